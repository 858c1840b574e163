"""Two passes: the exact set, and nothing but members is held."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, cuts, streams
from test_laws import assert_universal

import lev
from lev.readers import open_rows


@settings(max_examples=150)
@given(st.data())
def test_two_passes_miss_nothing(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    parts = list(itertools.pairwise(data.draw(cuts(len(keys)))))
    found = lev.two_pass(lambda: (keys[first:last] for first, last in parts), epsilon)
    assert found.count == len(keys)
    assert_universal(found, keys, lev.Sketch(keys.shape[1], epsilon))


def test_sources_and_families(tmp_path):
    keys = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    keys[::500] *= 20
    np.save(tmp_path / "keys.npy", keys)
    wanted = lev.universal_set(keys, 0.02)
    blocks = [keys[:0], keys[:1000], keys[1000:]]
    for source in (keys, tmp_path / "keys.npy", [tmp_path / "keys.npy"], open_rows(tmp_path / "keys.npy"), blocks):
        found = lev.two_pass(source, 0.02, start=7)
        np.testing.assert_array_equal(found.indices, wanted.indices + 7)
        assert found.exact
        assert found.keys.dtype == np.float32


def test_what_can_be_read_once_only_and_what_changes_is_refused():
    blocks = iter([np.ones((2, 2))])
    grows = itertools.count(1)
    for source, message in [
        (blocks, "source can be read once only"),
        ("-", "source can be read once only"),
        ([], "source must hold at least one file"),
        (lambda: [np.ones((next(grows), 2))], "source gave 1 rows first and 2 rows then"),
        (lambda: [np.ones((2, 2)), np.ones((2, 3))], r"source must have shape \(m, 2\)"),
        (lambda: [np.ones((2, 2)), np.array([[1, np.nan]])], "source must be finite; row 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            lev.two_pass(source, 0.1)
