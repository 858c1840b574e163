"""Kernels beside the plain formula, over widths and lengths that fit no tile."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lev import backend
from lev.cpu import rows as kernels


@given(st.integers(0, 10 * backend.TASK))
def test_tapered_slices_hold_every_place_once_in_whole_groups(count):
    parts = backend.tapered(count)
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    assert all(part.start % backend.GROUPS[1] == 0 and part.stop - part.start <= backend.TASK for part in parts)


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from([1, 3, 32, 64, 100]),
    st.integers(1, 3),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_gram_is_the_product_and_odds_are_of_groups(d, m, size, chain, affine, share, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((m, d)).astype(np.float32)
    factors, scale = rng.uniform(0.5, 2, m), np.exp2(rng.integers(-3, 4, d + affine))
    x = np.hstack([rows.astype(np.float64), np.ones((m, int(affine)))]) * scale * factors[:, None]
    rank = int(share * (d + affine))  # none: y is x
    pivots, triangle = rng.permutation(d + affine)[:rank], np.triu(rng.standard_normal((rank, rank)))
    y = x[:, pivots] @ triangle if rank else x
    precision = rng.standard_normal((y.shape[1], y.shape[1]))
    precision += precision.T
    gram, odds = np.empty_like(precision), np.empty(-(-m // size))
    doubled, energy = np.triu(precision) + np.triu(precision, 1), np.zeros(d + affine)
    given = scale, pivots, triangle, doubled, (2.0, 3.0), size, chain * size
    kernels.gram(rows, factors, *given, gram, energy, odds)
    largest = np.abs(y).max() ** 2
    np.testing.assert_allclose(gram, y.T @ y, rtol=1e-12, atol=1e-11 * largest)
    np.testing.assert_allclose(energy, np.square(x).sum(axis=0), rtol=1e-12)
    norms = np.maximum(np.square(x).sum(axis=1), np.square(y).sum(axis=1))
    scores = np.add.reduceat(np.einsum("ij,jk,ik->i", y, precision, y), np.arange(0, m, size))
    chains = np.repeat(np.add.reduceat(norms, np.arange(0, m, chain * size)), chain)[: len(odds)]
    np.testing.assert_allclose(
        odds, 2 * scores + 3 * chains, rtol=1e-12, atol=1e-10 * np.abs(precision).sum() * largest
    )


@given(st.lists(st.floats(0, 1) | st.just(np.nan), max_size=20), st.floats(0, 1))
def test_above_finds_what_is_not_below(values, limit):
    values, places = np.array(values), np.full(len(values), -1)
    count, most = kernels.above(values, limit, places)
    np.testing.assert_array_equal(places[:count], np.flatnonzero(~(values < limit)))
    assert most == values[values < limit].max(initial=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gram_passes_on_what_is_not_finite(bad):
    rows = np.ones((70, 5), np.float32)
    rows[69, 4] = bad
    for pivots in ([], [0, 1, 2, 3, 4], [0, 1, 2]):
        rank, energy = len(pivots), np.zeros(5)
        gram = np.empty((rank or 5, rank or 5))
        given, odds = (np.array(pivots, np.int64), np.eye(rank), np.eye(len(gram)), (1.0, 1.0), 64, 64), np.empty(2)
        kernels.gram(rows, np.ones(70), np.ones(5), *given, gram, energy, odds)
        assert not np.isfinite(energy[4])
        assert np.isfinite(odds).tolist() == [True, False]
        assert np.isfinite(gram).all() == (rank == 3)


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 130),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.integers(0, 99),
)
def test_scores_are_squared_norms_of_the_product(d, m, kind, unit, affine, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((m, d)).astype(kind)
    factors, scale = rng.uniform(0.5, 2, m), np.exp2(rng.integers(-3, 4, d + affine))
    lower = np.tril(rng.standard_normal((d + affine, d + affine))).astype(unit)
    x = np.hstack([rows.astype(np.float64), np.ones((m, int(affine)))]) * scale * factors[:, None]
    squares, norms = np.full(m, np.nan), np.full(m, np.nan)
    kernels.scores(rows, factors, scale, lower, squares, norms)
    np.testing.assert_allclose(norms, np.square(x).sum(axis=1), rtol=1e-12)
    off = np.abs(np.sqrt(squares) - np.linalg.norm(x @ lower.astype(np.float64), axis=1))
    assert np.all(off <= 2 * (d + 4) * np.finfo(unit).eps * np.sqrt(norms) * np.linalg.norm(lower))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("unit", [np.float32, np.float64])
def test_a_row_that_is_not_finite_spoils_its_own_score_alone(bad, unit):
    rows = np.ones((70, 5), np.float32)
    rows[69, 4] = bad
    squares = np.empty(70)
    kernels.scores(rows, np.ones(70), np.ones(5), np.eye(5, dtype=unit), squares, np.empty(70))
    np.testing.assert_array_equal(squares[:69], 5.0)
    assert not np.isfinite(squares[69])
