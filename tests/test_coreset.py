"""Coresets: what they promise of one query, that any tree of merges keeps it, and that seeds decide everything."""

import decimal
import importlib
import pickle
import sys

import naive
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, cuts, streams

import lev
from lev import bounds
from lev.coreset import _held, _rate, _uniform

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
        assert _held(_rate(shares, size), shares).sum() == pytest.approx(size)
        assert _held(_rate(shares, size), shares).max() <= 1
    assert _held(_rate(np.array([0.0, 0.3]), 2), np.array([0.0, 0.3])).tolist() == [0.0, 1.0]
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


# -- streams -----------------------------------------------------------------------------------------------


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(importlib.import_module("lev.coreset"), "_SHORTEST", 8)


def sketched(keys, p, positions=(), **how):
    sketch = lev.CoresetSketch(keys.shape[1], p, **{"delta": 0.5, **how})
    for part in np.split(keys, positions):
        sketch.update(part)
    return sketch


@pytest.mark.usefixtures("short_blocks")
@given(streams(families=("gaussian", "repeated", "sparse", "graded", "low_rank")), powers, st.data())
@few
def test_a_stream_is_sampled_alike_whatever_its_split(keys, p, data):
    # a rate so small that rows are left out
    how = {"delta": data.draw(st.sampled_from([0.5, 20.0])), "seed": data.draw(st.integers(0, 9))}
    whole, parts = (sketched(keys, p, at, **how) for at in ((), data.draw(cuts(len(keys)))[1:-1]))
    assert same(whole.coreset(), parts.coreset())
    assert whole.count == parts.count == len(keys)


@pytest.mark.usefixtures("short_blocks")
@given(streams(families=("gaussian", "repeated", "integers", "heavy_tailed", "low_rank")), powers, st.data())
@few
def test_rows_of_a_stream_are_held_at_no_less_than_the_rate(keys, p, data):
    owner = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(keys), max_size=len(keys))), np.int64)
    shares = lev.sensitivities(keys, p)[0]
    for seed in range(4):
        halves = [lev.CoresetSketch(keys.shape[1], p, delta=9, failure=0.5, seed=seed) for _ in range(2)]
        for i, half in enumerate(halves):
            half.update(keys[owner == i], np.flatnonzero(owner == i))
        merged = halves[0].merge(halves[1])
        found = merged.coreset()
        assert merged.count == len(keys)
        np.testing.assert_array_equal(found.keys, keys[found.indices])
        least = np.minimum(1, merged.rate * shares)
        assert np.all(1 / found.weights >= least[found.indices] * (1 - 1e-9))
        # rows that are held for sure by what they must have are there
        assert set(np.flatnonzero((_uniform(seed, np.arange(len(keys))) <= least * (1 - 1e-9)) & (least > 0))) <= set(
            found.indices
        )
        more = merged.update(keys[:5], np.arange(len(keys), len(keys) + len(keys[:5])))
        assert more.count == len(keys) + len(keys[:5])


def test_workers_send_their_sketches_and_reads_and_merges_leave_them_alone():
    keys = np.random.default_rng(0).standard_normal((2000, 3))
    parts = [lev.CoresetSketch(3, 1, delta=0.5, start=first).update(keys[first : first + 500]) for first in (0, 500)]
    sent = [pickle.loads(pickle.dumps(part)) for part in parts]
    before = parts[1].coreset()
    merged = sent[0].merge(parts[1])
    assert same(merged.coreset(), parts[0].coreset().merge(parts[1].coreset()))
    assert same(parts[1].coreset(), before)
    assert merged.update(keys[1000:]).count == 2000
    assert set(merged.coreset().indices[-5:]) <= set(range(1000, 2000))


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0])
def test_streamed_sums_are_unbiased_and_within_their_bracket(p):
    rng = np.random.default_rng(2)
    keys, queries = rng.standard_normal((3000, 2)) * np.exp(rng.standard_normal((3000, 1))), rng.standard_normal((5, 2))
    found = [sketched(keys, p, (100, 1700), delta=1.5, failure=0.1, seed=seed).coreset() for seed in range(60)]
    assert np.mean([len(small) for small in found]) < 600
    errors = np.array([small.normalizer(queries) for small in found]) / total(keys, queries, p) - 1
    assert np.all(np.abs(errors.mean(axis=0)) < 4 * errors.std(axis=0) / np.sqrt(60))
    wrong = 0
    for small in found:
        low, high = small.bracket(queries, 0.1)
        wrong += np.count_nonzero((total(keys, queries, p) < low) | (total(keys, queries, p) > high))
    assert wrong <= 0.1 * 60 * 5
    # brackets a twentieth as wide would not do
    assert np.mean(np.abs(errors) > bounds.coreset_error(found[0].rates[0], 0.1) / 20) > 0.1


@given(streams(families=("gaussian", "integers", "repeated")), powers)
@few
def test_a_coreset_of_all_keys_is_certain(keys, p):
    queries = np.random.default_rng(0).standard_normal((4, keys.shape[1]))
    for whole in (lev.coreset(keys, p, size=len(keys) + 1), sketched(keys, p, delta=1e-9).coreset()):
        low, high = whole.bracket(queries)
        true = total(keys, queries, p)
        assert np.all((low <= true * (1 + 1e-12)) & (true <= high * (1 + 1e-12)))
        assert np.all(low >= true * (1 - 1e-6))


@pytest.mark.parametrize(
    ("keys", "query", "p", "close"),
    [
        ([[1e-170, -1e-170]], [1e200, 1e-5], 1, True),  # norms that under- and overflow
        ([[1e-170, -1e-170], [3e-170, 1e-170]], [1.0, 2.0], 0.5, True),
        ([[1e-170 * 1.1, -1e-170]], [1 / 1.1, 1.0], 0.5, False),  # all is rounding
        ([[1e-200], [1e-300]], [1e150], 4, True),
        ([[1e308, -1e308]] * 2, [1e-5, 1e-5 * (1 + 2**-20)], 0.5, True),
        ([[15e-324], [35e-324]], [0.3], 1, False),  # sums that are subnormal
        ([[5e-324], [15e-324]], [1e300], 0.3, True),
        ([[1e-200], [2e-200]], [1.0], 2, False),  # and that underflow
        ([[1e200], [1.0]], [1e150], 2, False),  # and that overflow
        ([[0.0, 1.0], [0.0, 2.0]], [1e300, 1e-200], 1, True),  # a column of zeros
        ([[1e300, 0.0], [0.0, 1e-300]], [1e-300, 0.0], 2**-10, True),
        ([[1.0, 1.0], [0.5, 0.7]], [0.6, 0.1], 2**10, True),
    ],
)
def test_certain_ends_hold_where_float64_ends(keys, query, p, close):
    (row,) = naive.exact([query])
    with decimal.localcontext(prec=60, Emax=10**6, Emin=-(10**6)):
        sums = [abs(naive.dot(key, row)) for key in naive.exact(keys)]
        true = sum((decimal.Decimal(s.numerator) / s.denominator) ** decimal.Decimal(p) for s in sums if s)
        (low,), (high,) = lev.coreset(keys, p, size=9).bracket([query])
        assert 0 <= low <= sys.float_info.max
        assert decimal.Decimal(low) <= true <= decimal.Decimal(high)
        assert not close or high <= low * (1 + 1e-6)
        (estimate,) = lev.coreset(keys, p, size=9).normalizer([query])
        assert low <= estimate <= high


def test_brackets_follow_merges_and_reductions():
    keys, query = np.random.default_rng(0).standard_normal((4000, 2)), np.ones((1, 2))
    parts = [lev.coreset(keys[i::2], 1, delta=d, indices=np.arange(i, 4000, 2)) for i, d in ((0, 0.2), (1, 0.4))]
    merged = parts[0].merge(parts[1].reduced(delta=0.5))
    assert merged.rates == (bounds.coreset_rate(0.4, 0.01), bounds.coreset_rate(0.5, 0.01))
    low, high = merged.bracket(query, 0.02)
    estimate = merged.normalizer(query)
    np.testing.assert_allclose([estimate / low, estimate / high], [[1.4 * 1.5], [0.6 * 0.5]], rtol=1e-9)
    assert np.isinf(lev.coreset(keys, 1, size=3).bracket(query)[1])


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 4.0])
def test_a_coreset_narrows_the_ends_of_entries(p):
    rng = np.random.default_rng(5)
    keys = rng.standard_normal((4000, 3))
    keys[:6] *= 40
    queries = np.vstack([np.linalg.pinv(keys[:6]).T, keys[:6], rng.standard_normal((10, 3))])
    sketch = lev.Sketch(3, 0.001, p).update(keys)
    proved = sketch.heavy_hitters(queries)
    small = sketched(keys, p, delta=0.1, failure=0.001).coreset()
    hits = sketch.heavy_hitters(queries, normalizer=small.bracket(queries, 0.001))
    assert hits.nnz
    np.testing.assert_array_equal(hits.indices, proved.indices)
    np.testing.assert_array_equal(hits.indptr, proved.indptr)
    true = np.asarray(naive.weights(queries, keys, p)[hits.nonzero()])
    assert np.all((hits.lower.data <= true * (1 + 1e-9)) & (true <= hits.data * (1 + 1e-9)))
    assert np.all((hits.data <= proved.data) & (hits.lower.data >= proved.lower.data))
    assert np.all(hits.data <= np.maximum(1.25 * hits.lower.data, 1e-300) * (1 + 1e-9))


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
        (lambda: lev.coreset(KEYS, 1, size=3).bracket(KEYS, 0), ValueError, "failure must be in"),
        (lambda: lev.CoresetSketch(2**21, 1, delta=1), ValueError, r"dim must be at most 2\^20; got 2097152"),
        (lambda: lev.CoresetSketch(3, 0, delta=1), ValueError, "p must be positive and finite; got 0"),
        (lambda: lev.CoresetSketch(3, 1, delta=0), ValueError, "delta must be positive and finite; got 0"),
        (lambda: sketched(np.full((2, 3), np.nan), 1), ValueError, "row 0 holds NaN"),
        (lambda: sketched(KEYS, 1).update(KEYS, [0, 7, 8]), ValueError, "indices holds id 0"),
        (lambda: sketched(KEYS, 1).merge(3), TypeError, "other must be a CoresetSketch; got int"),
        (lambda: sketched(KEYS, 1).merge(sketched(KEYS, 1, seed=1)), ValueError, "other has seed=1; merging needs"),
        (lambda: sketched(KEYS, 1).merge(sketched(KEYS, 1)), ValueError, "other holds id 0"),
        (
            lambda: lev.Sketch(3, 0.5, 1).update(KEYS).heavy_hitters(KEYS, normalizer=[1.0]),
            TypeError,
            r"normalizer must be a pair \(lower, upper\)",
        ),
        (
            lambda: lev.Sketch(3, 0.5, 1).update(KEYS).heavy_hitters(KEYS, normalizer=([1.0], [2.0])),
            ValueError,
            "normalizer must hold two arrays of one number a query",
        ),
        (
            lambda: lev.Sketch(3, 0.5, 1).update(KEYS).heavy_hitters(KEYS, normalizer=([2.0] * 3, [1.0] * 3)),
            ValueError,
            "normalizer must hold 0 <= lower <= upper",
        ),
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


def test_a_row_whose_root_weight_underflows_is_held():
    heavy, p = np.tile([1.0, 0.0], (5, 1)), 0.01
    big = lev.Coreset(np.arange(5), heavy, np.full(5, 20000.0), p, 0, 100000, (1.0,))
    both = big.merge(lev.coreset([[0.0, 1.0]], p, size=5, indices=[200000]))
    assert 200000 in both.reduced(size=10**6).indices


def test_they_show_themselves_in_a_line():
    sketch = lev.CoresetSketch(2, 1, delta=0.5).update(np.eye(2))
    assert repr(sketch) == "CoresetSketch(dim=2, p=1, count=2)"
    assert repr(sketch.coreset()) == "Coreset(2 of 2 keys, p=1, seed=0)"
