"""Coresets: what they promise of one query, that any tree of merges keeps it, and that seeds decide everything."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, streams

import lev
from lev.coreset import _filled, _uniform

few = settings(max_examples=30)
powers = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0])


def total(keys, queries, p):
    return np.sum(np.abs(queries @ keys.T) ** p, axis=1)


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("indices", "keys", "weights"))


@given(streams(families=("gaussian", "repeated", "sparse", "integers")), powers, st.integers(0, 99))
@few
def test_weights_are_one_over_probabilities_and_rows_are_the_users_own(keys, p, seed):
    found = lev.coreset(keys, p, size=8, seed=seed)
    assert np.all(found.weights >= 1)
    assert np.all(np.diff(found.indices) > 0)
    np.testing.assert_array_equal(found.keys, keys[found.indices])
    assert found.count == len(keys)
    assert same(found, lev.coreset(keys, p, size=8, seed=seed))
    # a size for all keeps all, and estimates are then exact
    whole = lev.coreset(keys, p, size=len(keys) + 1, seed=seed)
    queries = np.random.default_rng(0).standard_normal((5, keys.shape[1]))
    np.testing.assert_allclose(whole.normalizer(queries), total(keys, queries, p), rtol=1e-9)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("family", ["gaussian", "heavy_tailed", "one_huge", "sparse"])
def test_each_query_is_within_delta(p, family):
    rng = np.random.default_rng(4)
    keys = FAMILIES[family](rng, 600, 2)
    queries = np.array([*rng.standard_normal((20, 2)), *keys[:10]])
    true = total(keys, queries, p)
    some = true > 0
    wrong = [
        np.abs(lev.coreset(keys, p, delta=0.5, failure=0.02, seed=seed).normalizer(queries)[some] / true[some] - 1)
        > 0.5
        for seed in range(12)
    ]
    assert np.mean(wrong) <= 0.02


def test_rows_are_fewer_where_there_are_many():
    keys = np.random.default_rng(0).standard_normal((20_000, 3))
    for p in (1.0, 2.0):
        found = lev.coreset(keys, p, delta=0.2, failure=0.1)
        assert len(found) <= 1.1 * lev.bounds.coreset_rate(0.2, 0.1) * 3
        assert found.weights.sum() == pytest.approx(20_000, rel=0.2)


def test_the_expected_size_is_the_size():
    shares = np.random.default_rng(0).random(500) ** 6
    for size in (1, 5, 60, 300):
        assert _filled(shares, size).sum() == pytest.approx(size)
        assert _filled(shares, size).max() <= 1
    assert _filled(np.array([0.0, 0.3]), 2).tolist() == [0.0, 1.0]
    sizes = [
        len(lev.coreset(np.random.default_rng(1).standard_normal((300, 2)), 1, size=40, seed=s)) for s in range(40)
    ]
    assert np.mean(sizes) == pytest.approx(40, abs=4)


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_id_alone():
    ids = np.arange(100_000)
    u = _uniform(3, ids)
    assert np.all((u > 0) & (u < 1))
    np.testing.assert_allclose(np.histogram(u, 10, (0, 1))[0], 10_000, rtol=0.05)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(u, _uniform(4, ids))[0, 1]) < 0.02
    np.testing.assert_array_equal(u[::-7], _uniform(3, ids[::-7]))
    assert _uniform(2**70, ids[:2]).shape == (2,)


@given(streams(families=("gaussian", "repeated", "sparse")), powers, st.data())
@few
def test_merging_joins_and_does_not_depend_on_order(keys, p, data):
    owner = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(keys), max_size=len(keys))), np.int64)
    parts = [lev.coreset(keys[owner == i], p, size=5, seed=1, indices=np.flatnonzero(owner == i)) for i in range(3)]
    left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[2].merge(parts[0].merge(parts[1]))
    assert same(left, right)
    assert left.count == len(keys)
    queries = np.random.default_rng(0).standard_normal((5, keys.shape[1]))
    np.testing.assert_allclose(left.normalizer(queries), sum(part.normalizer(queries) for part in parts), rtol=1e-9)
    less = left.reduced(size=4)
    assert set(less.indices) <= set(left.indices)
    assert np.all(less.weights >= left.weights[np.isin(left.indices, less.indices)] * (1 - 1e-12))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_reducing_weighs_rows_by_what_they_stand_for(p):
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((4000, 2)) * 10.0 ** rng.uniform(-1, 1, (4000, 1))
    weighted = lev.coreset(keys, p, size=400)
    held, rate = weighted.reduced(delta=0.5, failure=0.9), lev.bounds.coreset_rate(0.5, 0.9)
    before = weighted.weights[np.isin(weighted.indices, held.indices)]
    shares = lev.sensitivities(weighted.weights[:, None] ** (1 / p) * weighted.keys, p, tolerance=1.0)[0]
    shares = shares[np.isin(weighted.indices, held.indices)]
    # each row was held with at least rate times its share of the weighted sum
    assert np.all(before / held.weights >= np.minimum(1, rate * shares) * (1 - 1e-6))
    assert len(held) < len(weighted)


def test_order_of_rows_does_not_matter():
    keys = np.random.default_rng(0).standard_normal((200, 3))
    order = np.random.default_rng(1).permutation(200)
    one, other = lev.coreset(keys, 1, size=30), lev.coreset(keys[order], 1, size=30, indices=order)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-9)


def test_l1_regression_on_a_coreset_is_nearly_as_good():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1500, 3))
    target = rows @ [1.0, -2.0, 0.5] + rng.standard_t(1, 1500)

    def fit(rows, target, weights):
        n, d = rows.shape
        solved = scipy.optimize.linprog(
            np.concatenate([np.zeros(d), weights, weights]),
            A_eq=np.hstack([rows, np.eye(n), -np.eye(n)]),
            b_eq=target,
            bounds=[(None, None)] * d + [(0, None)] * 2 * n,
        )
        return np.abs(rng_rows @ solved.x[:d] - rng_target).sum()

    rng_rows, rng_target = rows, target
    small = lev.coreset(np.column_stack([rows, target]), 1, size=250)
    best = fit(rows, target, np.ones(1500))
    assert best <= fit(small.keys[:, :3], small.keys[:, 3], small.weights) <= 1.05 * best


def test_scales_of_keys_change_nothing():
    keys = np.random.default_rng(0).standard_normal((300, 3))
    plain = lev.coreset(keys, 3, size=40)
    for scale in (2.0**-300, 2.0**300):
        found = lev.coreset(keys * scale, 3, size=40)
        np.testing.assert_array_equal(found.indices, plain.indices)
        np.testing.assert_allclose(found.weights, plain.weights, rtol=1e-6)


def test_no_keys_and_zero_keys():
    for keys in (np.zeros((0, 3)), np.zeros((4, 3))):
        found = lev.coreset(keys, 3, delta=0.1)
        assert (len(found), found.count) == (0, len(keys))
        assert found.normalizer(np.ones((2, 3))).tolist() == [0, 0]


KEYS = np.eye(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lev.coreset(KEYS, 1), ValueError, "give either delta or size; got delta=None and size=None"),
        (lambda: lev.coreset(KEYS, 1, delta=0.1, size=3), ValueError, "give either delta or size"),
        (lambda: lev.coreset(KEYS, 0, size=3), ValueError, "p must be positive and finite; got 0"),
        (lambda: lev.coreset(KEYS, 1, size=0), ValueError, "size must be >= 1; got 0"),
        (lambda: lev.coreset(KEYS, 1, delta=0), ValueError, "delta must be positive and finite; got 0"),
        (lambda: lev.coreset(KEYS, 1, delta=0.1, failure=2), ValueError, "failure must be in"),
        (lambda: lev.coreset(KEYS, 1, size=3, seed=-1), ValueError, "seed must be >= 0"),
        (lambda: lev.coreset(KEYS, 1, size=3, indices=[0, 1]), ValueError, r"indices must have shape \(3,\)"),
        (lambda: lev.coreset(KEYS, 1, size=3, indices=[0, 1, 1]), ValueError, "indices must be unique"),
        (lambda: lev.coreset(KEYS * np.nan, 1, size=3), ValueError, "row 0 holds NaN"),
        (lambda: lev.coreset(KEYS[:, :0], 1, size=3), ValueError, "at least one column"),
        (lambda: lev.coreset(KEYS, 1, size=3).normalizer(np.ones((1, 2))), ValueError, "queries must have shape"),
        (lambda: lev.coreset(KEYS, 1, size=3).merge(3), TypeError, "other must be a Coreset; got int"),
        (
            lambda: lev.coreset(KEYS, 1, size=3).merge(lev.coreset(KEYS, 2, size=3)),
            ValueError,
            "other has p=2.0; merging needs p=1.0",
        ),
        (
            lambda: lev.coreset(KEYS, 1, size=3).merge(lev.coreset(KEYS, 1, size=3)),
            ValueError,
            "other holds id 0, which this coreset holds already",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
