"""Many heads at once: each is held to the same oracle as a sketch of its own."""

import itertools

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts
from test_laws import assert_universal

import lev
from lev import bounds, heads

RNG = np.random.default_rng(11)


@st.composite
def blocks(draw, most_rows=30):
    """A (heads, n, d) array: each head of a family of its own, some with a dependent or an empty column."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(0, most_rows)), draw(st.integers(1, 3))
    names = draw(st.lists(st.sampled_from(list(FAMILIES)), min_size=2, max_size=4))
    return np.stack([np.resize(FAMILIES[name](rng, max(n, 1), d), (max(n, 1), d))[:n] for name in names])


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=200)
@given(st.data())
def test_each_head_misses_nothing(data):
    keys, epsilon = data.draw(blocks()), data.draw(EPSILONS)
    with np.errstate(over="ignore"):
        narrow = keys.astype(np.float32)
    if data.draw(st.booleans()) and np.isfinite(narrow).all():  # filtered by products in float32
        keys = narrow
    sketch = lev.Sketch(keys.shape[2], epsilon, heads=(len(keys),))
    for first, last in itertools.pairwise(data.draw(cuts(keys.shape[1]))):
        sketch.update(keys[:, first:last])
    for head, found in enumerate(sketch.universal_set()):
        assert_universal(found, keys[head], sketch)
    assert lev.Sketch.from_bytes(sketch.to_bytes()) == sketch
    assert sketch == lev.Sketch(keys.shape[2], epsilon, heads=(len(keys),)).update(keys)


@settings(max_examples=200)
@given(blocks(60))
def test_scores_of_heads_are_those_of_each(keys):
    scores = lev.leverage_scores(keys)
    for head, block in enumerate(keys):
        truth, queries = naive.leverage(block)
        blur = [naive.blur(block, query, bounds.resolution(keys.shape[2])) for query in queries]
        for got, score, unseen in zip(scores[head], truth, blur, strict=True):
            assert unseen > 1e-9 or got == pytest.approx(float(score), rel=1e-8, abs=1e-300)


def plain(count=4, rows=500, dim=6, dtype=np.float64):
    keys = RNG.standard_normal((count, rows, dim)).astype(dtype)
    keys[:, 17] *= 40
    return keys


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_batch_is_used_and_agrees(dtype, monkeypatch):
    keys = plain(dtype=dtype)
    monkeypatch.setattr(lev.candidates.Candidates, "absorb", None)
    found = lev.Sketch(6, 0.1, heads=(2, 2)).update(keys.reshape(2, 2, 500, 6)).universal_set()
    monkeypatch.undo()
    for one, block in zip(found, keys, strict=True):
        alone = lev.universal_set(block, 0.1)
        np.testing.assert_array_equal(one.indices, alone.indices)
        np.testing.assert_allclose(one.scores, alone.scores, rtol=1e-5 if dtype != np.float64 else 1e-8)
        assert one.exact
        assert one.keys.dtype == dtype


def test_one_bad_head_does_not_slow_the_others(monkeypatch):
    keys = plain()
    keys[2, :, 0] = keys[2, :, 1]
    absorbed, absorb = [], lev.candidates.Candidates.absorb
    monkeypatch.setattr(lev.candidates.Candidates, "absorb", lambda *a: absorbed.append(1) or absorb(*a))
    found = lev.Sketch(6, 0.1, heads=(4,)).update(keys).universal_set()
    assert len(absorbed) <= 3  # the one head, once a block
    assert [17 in one.indices for one in found] == [True] * 4


def test_batches_on_all_cores_do_not_share_their_scratch():
    keys = plain(96, 300, 64, np.float32)
    for found, block in zip(lev.Sketch(64, 0.3, heads=(96,)).update(keys).universal_set(), keys, strict=True):
        reached = np.square(np.linalg.qr(block.astype(np.float64))[0]).sum(axis=1) >= 0.3
        np.testing.assert_array_equal(found.indices, np.flatnonzero(reached))


def test_batches_do_not_depend_on_their_size(monkeypatch):
    keys = plain()
    whole = lev.Sketch(6, 0.1, heads=(4,)).update(keys)
    monkeypatch.setattr(heads, "_BATCH", 1)
    assert [u.indices.tolist() for u in lev.Sketch(6, 0.1, heads=(4,)).update(keys).universal_set()] == [
        u.indices.tolist() for u in whole.universal_set()
    ]


@pytest.mark.parametrize("arguments", [{}, {"p": 1.0}, {"p": 4.0}, {"decay": 0.99}, {"intercept": True}])
def test_heads_are_sketches_of_their_own(arguments):
    keys, payload = plain(), RNG.standard_normal((4, 500, 2))
    together = lev.Sketch(6, 0.1, heads=(4,), payload_dim=2, **arguments).update(keys, payload=payload)
    queries = RNG.standard_normal((4, 9, 6))
    hits, (lower, upper) = together.heavy_hitters(queries), together.normalizer(queries)
    for head, found in enumerate(together.universal_set()):
        alone = lev.Sketch(6, 0.1, payload_dim=2, **arguments).update(keys[head], payload=payload[head])
        expected = alone.universal_set()
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.payload, payload[head, found.indices])
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-8)
        np.testing.assert_allclose(hits[head].toarray(), alone.heavy_hitters(queries[head]).toarray(), rtol=1e-6)
        low, high = alone.normalizer(queries[head])
        np.testing.assert_allclose(lower[head], low, rtol=1e-6)
        np.testing.assert_allclose(upper[head], high, rtol=1e-6)
    assert together.rank.shape == (4,)
    assert together.retained == sum(map(len, together.universal_set()))


def test_zeros_that_bring_no_time_are_counted():
    keys = np.zeros((2, 3, 1))
    keys[1] = 1
    sketch = lev.Sketch(1, 0.5, heads=(2,), decay=0.5)
    sketch.admit(keys)
    sketch.admit(np.ones((2, 3, 1)))
    assert sketch.count == 6
    assert [found.count for found in sketch.universal_set()] == [6, 6]
    assert lev.Sketch.from_bytes(sketch.to_bytes()) == sketch


def test_merging_and_admitting_heads():
    keys = plain().reshape(2, 2, 500, 6)
    halves = [lev.Sketch(6, 0.1, heads=(2, 2), start=s).update(keys[:, :, s : s + 250]) for s in (0, 250)]
    whole = lev.Sketch(6, 0.1, heads=(2, 2)).update(keys)
    for merged, one in zip(lev.merge(halves).universal_set(), whole.universal_set(), strict=True):
        np.testing.assert_array_equal(merged.indices, one.indices)
    kept = lev.Sketch(6, 0.1, heads=(2, 2)).admit(keys)
    assert kept.shape == (2, 2, 500)
    assert kept[:, :, 17].all()


def test_grouped_queries_share_their_key_head():
    keys, queries = plain(), RNG.standard_normal((8, 5, 6))
    sketch = lev.Sketch(6, 0.05, heads=(4,)).update(keys)
    hits, (lower, upper) = sketch.heavy_hitters(queries), sketch.normalizer(queries)
    assert len(hits) == 8
    assert lower.shape == upper.shape == (8, 5)
    for head, found in enumerate(hits):
        wanted = lev.heavy_entries(queries[head], keys[head // 2], 0.05)
        np.testing.assert_allclose(found.toarray(), wanted.toarray(), rtol=1e-8)
    with pytest.raises(ValueError, match=r"queries must have shape \(4, m, 6\); got \(6, 5, 6\)"):
        sketch.heavy_hitters(queries[:6])


def test_stack_gives_fixed_shapes():
    keys = plain()
    sketch = lev.Sketch(6, 0.1, heads=(2, 2)).update(keys.reshape(2, 2, 500, 6))
    indices, scores, mask = sketch.stack(3)
    assert indices.shape == scores.shape == mask.shape == (2, 2, 3)
    for head, found in enumerate(sketch.universal_set()):
        best = found.top(3)
        assert set(indices.reshape(4, 3)[head][mask.reshape(4, 3)[head]]) == set(best.indices)
    assert np.all(indices[~mask] == -1)
    assert np.all(scores[~mask] == 0)
    assert np.all(np.diff(scores, axis=-1) <= 0)
    with pytest.raises(ValueError, match="k must be >= 0; got -1"):
        sketch.stack(-1)


def test_padding_is_not_a_row():
    keys, mask = plain(2), np.zeros((2, 500), bool)
    mask[1, 400:] = True
    keys[1, 400:] *= 1e6
    found = lev.Sketch(6, 0.1, heads=(2,)).update(keys, mask=mask).universal_set()
    assert [one.count for one in found] == [500, 400]
    np.testing.assert_array_equal(found[1].indices, lev.universal_set(keys[1, :400], 0.1).indices)


def test_padding_with_an_intercept_is_refused():
    """A row of zeros weighs nothing in <q,k>, but b^2 in <q,k> + b: taken for padding it would hide other keys."""
    sketch, mask = lev.Sketch(6, 0.1, heads=(2,), intercept=True), np.zeros((2, 500), bool)
    sketch.update(plain(2), mask=mask)
    mask[1, 400:] = True
    before = sketch.to_bytes()
    with pytest.raises(ValueError, match="mask must be False with an intercept"):
        sketch.update(plain(2), mask=mask)
    assert sketch.to_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keys": np.ones((4, 6))}, ValueError, r"keys must have shape \(2, 2, m, 6\); got \(4, 6\)"),
        ({"keys": np.ones((2, 3, 5, 6))}, ValueError, r"got \(2, 3, 5, 6\)"),
        ({"keys": np.full((2, 2, 5, 6), np.nan)}, ValueError, "keys must be finite; row 0 holds"),
        ({"keys": np.ones((2, 2, 5, 6)), "mask": np.ones((2, 2, 4), bool)}, ValueError, r"mask must have shape"),
        ({"keys": np.ones((2, 2, 5, 6)), "mask": np.ones((2, 2, 5))}, TypeError, "mask must be bool"),
        ({"keys": np.ones((2, 2, 5, 6)), "payload": np.ones((2, 2, 5, 1))}, ValueError, "payload must have shape"),
    ],
)
def test_bad_blocks_are_refused_and_change_nothing(arguments, error, message):
    sketch = lev.Sketch(6, 0.1, heads=(2, 2)).update(plain().reshape(2, 2, 500, 6))
    before = sketch.to_bytes()
    with pytest.raises(error, match=message):
        sketch.update(**arguments)
    assert sketch.to_bytes() == before
    bad = plain().reshape(2, 2, 500, 6)
    bad[1, 0, 301, 2] = np.nan
    with pytest.raises(ValueError, match="row 301 holds NaN"):
        sketch.update(bad)
    assert sketch.to_bytes() == before
