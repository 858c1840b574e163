"""lev.scan: any source, any number of threads, the same sketch."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, streams
from test_laws import assert_universal

import lev
from lev import backend, parallel
from lev.readers import open_rows

KEYS = np.random.default_rng(0).standard_normal((1000, 4))
KEYS[::97] *= 40
WANTED = lev.universal_set(KEYS, 0.02).indices


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parallel, "_PART_NUMBERS", 4 * 130)


@settings(max_examples=60)
@given(streams(tuple(sorted({"gaussian", "integers", "repeated", "sparse", "low_rank"}))), EPSILONS, st.integers(1, 4))
def test_nothing_is_missed_in_any_parts(keys, epsilon, threads):
    sketch = lev.scan(keys, epsilon, threads=threads)
    assert_universal(sketch.universal_set(), keys, sketch)
    assert sketch.count == len(keys)


@pytest.mark.parametrize("suffix", ["npy", "npz", "array", "torch", "reader", "list", "blocks", "memmap"])
def test_any_source_and_any_threads_give_the_same_bits(tmp_path, suffix):
    np.save(tmp_path / "keys.npy", KEYS)
    np.save(tmp_path / "a.npy", KEYS[:333])
    np.save(tmp_path / "b.npy", KEYS[333:])
    np.savez(tmp_path / "keys.npz", keys=KEYS)
    torch = pytest.importorskip("torch", reason="needs the torch extra") if suffix == "torch" else None
    make = {
        "npy": lambda: tmp_path / "keys.npy",
        "npz": lambda: str(tmp_path / "keys.npz"),
        "array": lambda: KEYS,
        "torch": lambda: torch.tensor(KEYS),
        "reader": lambda: open_rows(tmp_path / "keys.npy"),
        "list": lambda: [tmp_path / "a.npy", tmp_path / "b.npy"],
        "blocks": lambda: (KEYS[i : i + 77] for i in range(0, 1000, 77)),
        "memmap": lambda: np.load(tmp_path / "keys.npy", mmap_mode="r"),
    }[suffix]
    sketches = [lev.scan(make(), 0.02, threads=threads) for threads in (1, 2, 5, None)]
    assert len({sketch.to_bytes() for sketch in sketches}) == 1
    np.testing.assert_array_equal(np.asarray(sketches[0].universal_set().indices), WANTED)
    assert sketches[0].count == 1000


def test_parts_are_sketched_on_as_many_threads_as_asked_and_run_alone(monkeypatch):
    seen, inner, meet = set(), [], threading.Barrier(2, timeout=20)
    whole = parallel.Part.sketch

    def sketch(part, *args, **arguments):
        seen.add(threading.get_ident())
        if part.first < 260:
            meet.wait()
        inner.append(len(set(backend.run(lambda _: (time.sleep(0.01), threading.get_ident()), range(8)))))
        return whole(part, *args, **arguments)

    monkeypatch.setattr(parallel.Part, "sketch", sketch)
    lev.scan(KEYS, 0.02, threads=2)
    assert len(seen) == 2
    assert set(inner) == {1}


def test_ids_and_arguments_are_those_of_one_stream():
    sketch = lev.scan(KEYS, 0.02, start=100, intercept=True)
    assert sketch.intercept
    wanted = lev.Sketch(4, 0.02, start=100, intercept=True).update(KEYS).universal_set()
    np.testing.assert_array_equal(sketch.universal_set().indices, wanted.indices)
    assert lev.scan(iter([]), 0.1, dim=3).count == 0
    assert lev.scan(np.zeros((0, 3)), 0.1).dim == 3
    assert sketch.count == 1000


def test_bad_input_is_refused(tmp_path):
    bad = KEYS.copy()
    bad[700, 1] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    for source, error, message in [
        (bad, ValueError, "source must be finite; row 700 holds"),
        (tmp_path / "bad.npy", ValueError, "bad.npy must be finite; row 700 holds"),
        ([tmp_path / "bad.npy", tmp_path / "wide.npy"], ValueError, "wide.npy has rows of 5 numbers"),
        (3, TypeError, "source must be an array, a file or blocks of rows; got int"),
        ([], ValueError, "source must hold at least one file"),
        (KEYS[0], ValueError, r"source must have shape \(..., n, d\); got \(4,\)"),
        (iter([]), ValueError, "source holds no blocks, and dim was not given"),
        (tmp_path / "none.npy", FileNotFoundError, "none.npy: no such file"),
    ]:
        with pytest.raises(error, match=message):
            lev.scan(source, 0.1)
    with pytest.raises(ValueError, match="threads must be >= 1; got 0"):
        lev.scan(KEYS, 0.1, threads=0)


def test_an_error_does_not_wait_for_the_next_block():
    go_on, ended = threading.Event(), []

    def blocks():
        yield KEYS
        yield KEYS * np.nan
        ended.append(go_on.wait(20))

    with pytest.raises(ValueError, match="source must be finite; row 1000 holds"):
        lev.scan(blocks(), 0.1)
    assert not ended
    go_on.set()


def test_an_error_of_the_source_comes_after_the_blocks_before_it():
    def blocks():
        yield KEYS
        yield KEYS
        raise OSError("gone")

    taken = []
    with pytest.raises(OSError, match="gone"):
        taken.extend(parallel._ahead(blocks()))
    assert len(list(parallel._ahead([KEYS, KEYS]))) == 2
    with pytest.raises(OSError, match="gone"):
        lev.scan(blocks(), 0.1)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_an_error_ends_the_process_while_the_pipe_is_silent():
    code = "import lev; lev.scan('-', 0.1, dim=4)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(np.full((backend.BLOCK // 4, 4), np.nan, np.float32).tobytes())
        process.stdin.flush()
        assert process.wait(60) == 1
        assert process.stderr.read().endswith(b"standard input must be finite; row 0 holds NaN or infinity\n")
