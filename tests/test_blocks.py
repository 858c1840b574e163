"""Kernels for a block of many heads beside the plain formula, over widths and lengths that fit no tile."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lev
from lev import bounds
from lev.cpu import blocks as kernels

BAD = ["zero", "twice", "ill", "indefinite", "nan", "inf", "huge", "tiny"]


def plain(rows, factors, starts, scale):
    """Return the scaled rows of each head as kernels should see them, in float64."""
    scaled = np.hstack([rows.astype(np.float64), np.ones((len(rows), 1))]) * factors[:, None]
    spans = itertools.pairwise(starts)
    return [scaled[first:last, : scale.shape[1]] * own for (first, last), own in zip(spans, scale, strict=True)]


@settings(max_examples=60)
@given(st.integers(1, 30), st.lists(st.integers(0, 150), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**32))
def test_grams_are_products_and_fresh_ones_are_scaled(d, counts, affine, seed):
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = rng.standard_normal((starts[-1], d)).astype(rng.choice([np.float32, np.float64]))
    rows *= np.exp2(rng.integers(-20, 20, d)).astype(rows.dtype)
    factors, fresh = rng.uniform(0.5, 2, len(rows)), rng.random(len(counts)) < 0.5
    scale = np.exp2(rng.integers(-9, 9, (len(counts), d + affine)))
    scale[fresh] = 1
    gram = np.empty((len(counts), d + affine, d + affine))
    kernels.grams(rows, factors, starts, fresh, scale, int(rng.choice([1, 64, 70, 640])), gram)
    for x, own in zip(plain(rows, factors, starts, scale), gram, strict=True):
        size = np.abs(x).T @ np.abs(x)
        assert np.all(np.abs(own - x.T @ x) <= 1e-13 * size)
        np.testing.assert_array_equal(own, own.T)
    for own, m in zip(gram[fresh], np.array(counts)[fresh], strict=True):
        assert m == 0 or np.all((np.diagonal(own) >= 0.25 * (1 - 1e-12)) & (np.diagonal(own) < 1))
    assert np.all(np.frexp(scale)[0] == 0.5)


@settings(max_examples=60)
@given(st.integers(1, 40), st.lists(st.sampled_from(["good", *BAD]), min_size=1, max_size=5), st.integers(0, 2**32))
def test_whiteners_are_inverse_roots_and_heads_do_not_touch(d, kinds, seed):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((len(kinds), d + 5, d)) * np.logspace(0, -3, d)
    gram = keys.swapaxes(1, 2) @ keys
    for own, kind in zip(gram, kinds, strict=True):
        own *= {"zero": 0.0, "huge": 1e300, "tiny": 1e-300}.get(kind, 1.0)
        own[-1, -1] *= {"indefinite": -1.0}.get(kind, 1.0)
        own[0, 0] = {"nan": np.nan, "inf": np.inf}.get(kind, own[0, 0])
    whiten, sizes = np.empty_like(gram), np.empty(len(gram))
    kernels.whiteners(gram, whiten, sizes)
    for head, kind in enumerate(kinds):
        one, size = np.empty((1, d, d)), np.empty(1)
        kernels.whiteners(gram[head : head + 1], one, size)
        np.testing.assert_array_equal(one[0], whiten[head])
        if kind in {"zero", "indefinite", "nan"}:
            assert np.isnan(whiten[head]).all()
            assert np.isnan(sizes[head])
        elif kind not in {"inf", "huge", "tiny"}:
            assert not np.triu(whiten[head], 1).any()
            np.testing.assert_allclose(whiten[head].T @ gram[head] @ whiten[head], np.eye(d), atol=1e-8)
            np.testing.assert_allclose(sizes[head], np.trace(np.linalg.inv(gram[head])), rtol=1e-6)


@pytest.mark.parametrize("d", [1, 5, 6, 7, 13, 64, 65])
def test_an_inverse_is_off_from_the_right_as_the_note_says(d):
    """|L W - I| <= g(2 D) ||L|| ||W||, which moves scores little; |W L - I| may be larger."""
    rng = np.random.default_rng(d)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    keys = (rng.standard_normal((2 * d + 3, d)) * np.logspace(0, -5, d)) @ turn
    gram = (keys.T @ keys)[None]
    whiten, size, width = np.empty_like(gram), np.empty(1), int(kernels.padded(d))
    kernels.whiteners(gram, whiten, size)
    root, minus = np.zeros((width, width)), np.zeros((width, width))
    root[:d, :d] = gram[0]
    assert kernels.factor(root, d, minus)
    lower = np.tril(root[:d, :d])
    off = np.linalg.norm(lower @ whiten[0] - np.eye(d))
    assert off <= 2 * bounds.dot_error(2 * d) * np.linalg.norm(lower) * np.linalg.norm(whiten[0])


@settings(max_examples=40)
@given(st.integers(1, 30), st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(0, 2**32))
def test_bounds_are_norms_of_whitened_rows(d, counts, seed):
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = rng.standard_normal((starts[-1], d)).astype(np.float32)
    factors, scale = rng.uniform(0.5, 2, len(rows)), np.exp2(rng.integers(-9, 9, (len(counts), d)))
    whiten = np.tril(rng.standard_normal((len(counts), d, d)))
    squares, norms = np.empty(len(rows)), np.empty(len(rows))
    kernels.bound(rows, factors, starts, scale, whiten, squares, norms)
    seen = plain(rows, factors, starts, scale)
    wanted = [np.square(x @ own).sum(axis=1) for x, own in zip(seen, whiten, strict=True)]
    np.testing.assert_allclose(squares, np.concatenate(wanted), rtol=1e-9)
    np.testing.assert_allclose(norms, np.concatenate([np.square(x).sum(axis=1) for x in seen]), rtol=1e-12)


def spoiled(rng, kind, n, d):
    keys = rng.standard_normal((n, d))
    if kind == "twice":
        keys[:, 0] = keys[:, 1]
    if kind == "ill":
        keys[:, 0] = keys[:, 1] + 1e-9 * keys[:, 2]
    return keys * {"zero": 0.0, "huge": 1e200, "tiny": 1e-200}.get(kind, 1.0)


@pytest.mark.parametrize("kind", ["zero", "twice", "ill", "huge", "tiny"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_bad_head_goes_its_own_way_and_leaves_the_others_alone(kind, place, monkeypatch):
    rng = np.random.default_rng(7)
    keys = rng.standard_normal((4, 900, 6))
    keys[:, 17] *= 40
    keys[place] = spoiled(rng, kind, 900, 6)
    absorbed, absorb = [], lev.candidates.Candidates.absorb
    monkeypatch.setattr(lev.candidates.Candidates, "absorb", lambda *a: absorbed.append(1) or absorb(*a))
    found = lev.Sketch(6, 0.05, heads=(4,)).update(keys).universal_set()
    assert 1 <= len(absorbed) <= 4  # the one head, once a block
    others = [head for head in range(4) if head != place]
    alone = lev.Sketch(6, 0.05, heads=(3,)).update(keys[others]).universal_set()
    for head, one in zip(others, alone, strict=True):
        np.testing.assert_array_equal(found[head].indices, one.indices)
        np.testing.assert_array_equal(found[head].scores, one.scores)
    own = lev.universal_set(keys[place], 0.05)
    np.testing.assert_array_equal(found[place].indices, own.indices)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 255, 300, 899])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_that_is_not_finite_is_named_and_changes_nothing(bad, row, dtype):
    keys = np.random.default_rng(8).standard_normal((3, 900, 6)).astype(dtype)
    sketch = lev.Sketch(6, 0.05, heads=(3,)).update(keys)
    before = sketch.to_bytes()
    keys[1, row, 2] = bad
    with pytest.raises(ValueError, match=f"keys must be finite; row {row} holds NaN or infinity"):
        sketch.update(keys)
    assert sketch.to_bytes() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decayed_heads_are_scored_as_of_now(dtype):
    """Three blocks: forms are moved to later epochs, and a form without rows too."""
    rng, n = np.random.default_rng(10), 900
    keys = rng.standard_normal((3, n, 6)).astype(dtype)
    weights = 0.99 ** ((n - 1 - np.arange(n)) / 2)
    found = lev.Sketch(6, 0.07, heads=(3,), decay=0.99).update(keys).universal_set()
    for one, own in zip(found, keys, strict=True):
        scores = lev.leverage_scores(own * weights[:, None])
        np.testing.assert_array_equal(one.indices, np.flatnonzero(scores >= 0.07))
        np.testing.assert_allclose(one.scores, scores[one.indices], rtol=1e-6)


def test_kept_rows_are_scored_by_each_block():
    """Rows kept early are held to what comes: in two blocks or in one the sets agree, ids in any order."""
    rng = np.random.default_rng(9)
    keys = (rng.standard_normal((5, 2000, 8)) * np.linspace(3, 1, 2000)[:, None]).astype(np.float32)
    ids, payload = rng.permutation(2000), rng.standard_normal((5, 2000, 3))
    sketch = lev.Sketch(8, 0.01, heads=(5,), payload_dim=3)
    for first in range(0, 2000, 300):
        part = slice(first, first + 300)
        sketch.update(keys[:, part], indices=ids[part], payload=payload[:, part])
    for head, found in enumerate(sketch.universal_set()):
        scores = lev.leverage_scores(keys[head])
        np.testing.assert_array_equal(found.indices, np.sort(ids[scores >= 0.01]))
        where = np.argsort(ids)[found.indices]
        np.testing.assert_array_equal(found.keys, keys[head, where])
        np.testing.assert_array_equal(found.payload, payload[head, where])
        np.testing.assert_allclose(found.scores, scores[where], rtol=1e-9)
        assert found.exact
        assert found.omitted < 0.01
