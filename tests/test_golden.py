"""Files that were written once are read for ever: by other processes, Python versions and versions of lev."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lev

FOLDER = Path(__file__).parent / "golden"
MAKE = runpy.run_path(str(FOLDER / "make.py"))
FILES = sorted(path.stem for path in FOLDER.glob("*.lev"))
IDS = {
    "plain": [0, 37, 74, 111, 148, 185, 222, 259, 296, 333, 370],
    "low_rank": [0, 37, 74, 111, 148, 185, 222, 259, 296, 333, 370],
    "sampled": [0, 37, 74, 111, 148, 185, 222, 259, 296, 333, 370],
    "causal": [0, 37, 74, 111, 148, 185, 222, 259, 296, 333, 370],
    "window": [259, 296, 333, 370],
    "intercept_payload": [1000, 1037, 1074, 1111, 1148, 1185, 1222, 1259, 1296, 1333, 1370],
}


def test_there_is_a_file_for_each():
    assert FILES == sorted(IDS) == sorted(MAKE["sketches"]())


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_holds_the_set_it_should(name):
    held, fresh = lev.load(FOLDER / f"{name}.lev"), MAKE["sketches"]()[name]
    found, wanted = held.universal_set(), fresh.universal_set()
    assert found.indices.tolist() == wanted.indices.tolist() == IDS[name]
    np.testing.assert_array_equal(found.keys, wanted.keys)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6)
    assert found.keys.dtype == wanted.keys.dtype
    assert (held.count, held.dim, held.epsilon, held.intercept) == (400, fresh.dim, 0.05, fresh.intercept)
    if held.payload_dim:
        np.testing.assert_array_equal(found.payload, MAKE["keys"]()[found.indices - 1000, :2])


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_streams_and_merges_on(name):
    held, fresh = lev.load(FOLDER / f"{name}.lev"), MAKE["sketches"]()[name]
    rows = 30 * MAKE["keys"]()[:50, : held.dim]
    more = {"payload": rows[:, :2]} if held.payload_dim else {}
    held.update(rows, **more)
    fresh.update(rows, **more)
    assert held.universal_set().indices.tolist() == fresh.universal_set().indices.tolist()
    assert held.count == 450


def test_another_process_reads_the_same():
    code = f"import lev; print([len(lev.load(r'{FOLDER}/' + name + '.lev').universal_set()) for name in {FILES}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([len(IDS[name]) for name in FILES])
