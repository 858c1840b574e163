"""Other functions than |x|^p: brackets and universal sets against queries that were searched for."""

import functools
import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, streams

import lev
from lev import functions, growth
from lev.eliminate import eliminate

GROWING = {"huber": functions.Huber(), "l1l2": functions.L1L2(), "tukey": functions.Tukey()}
PLAIN = ("gaussian", "integers", "low_rank", "repeated", "sparse", "heavy_tailed")
HARD = ("ill_conditioned", "one_tiny_alone", "one_huge", "graded", "growing", "near_collinear", "columns_apart")
few = settings(max_examples=25)
plain = streams(families=PLAIN, most_rows=20, most_columns=3)
seeds = st.integers(0, 2**32 - 1)


def random_queries(rng, keys, count=60):
    """Queries in all directions, towards the keys, against them, and at scales from 1e-6 to 1e6."""
    d = keys.shape[1]
    if not len(keys):
        return rng.standard_normal((count, d))
    queries = np.concatenate([rng.standard_normal((count, d)), keys, np.linalg.pinv(keys).T])
    return queries * 10.0 ** rng.uniform(-6, 6, (len(queries), 1))


# -- the functions themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROWING)
def test_values_are_those_of_the_definition(name):
    x = np.concatenate([-np.logspace(-3, 6, 50), np.logspace(-3, 6, 50), [0, 1]])
    np.testing.assert_allclose(GROWING[name](x), getattr(naive, name)(x), rtol=1e-7, atol=1e-16)


def test_sizes_scale_the_values():
    x = np.linspace(-9, 9, 41)
    np.testing.assert_allclose(functions.Huber(3)(x), 9 * naive.huber(x / 3), rtol=1e-12)
    np.testing.assert_allclose(functions.Tukey(3)(x), 9 * naive.tukey(x / 3), rtol=1e-12)
    np.testing.assert_allclose(functions.Power(3)(x), np.abs(x) ** 3)
    np.testing.assert_allclose(functions.Ridge(1, 2)(x), x**2)
    np.testing.assert_allclose(functions.BoundedSoftmax(2)(x), np.exp(x))


@given(st.floats(1e-3, 1e3), st.floats(0, 1), st.sampled_from(sorted(GROWING)))
def test_growth_is_within_its_class(x, t, name):
    f = GROWING[name]
    assert f(t * x) >= t**2 * f(x) * (1 - 1e-12) - 1e-300
    assert f(t * x) <= t**f.least * f(x) * (1 + 1e-12)


# -- growth classes ----------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(plain, st.sampled_from(sorted(GROWING)), seeds)
def test_no_query_beats_an_upper_end(keys, name, seed):
    lower, upper = GROWING[name].sensitivities(keys)
    assert np.all((lower >= 0) & (lower <= upper) & (upper <= 1))
    found = naive.shares(getattr(naive, name), keys, random_queries(np.random.default_rng(seed), keys))
    assert np.all(found.max(axis=0, initial=0) <= upper + 1e-9)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("family", ["gaussian", "repeated", "sparse", "integers"])
def test_a_climb_does_not_beat_an_upper_end(name, family):
    rng = np.random.default_rng(5)
    for columns in (1, 2, 3):
        keys = FAMILIES[family](rng, 9 * columns, columns)
        lower, upper = GROWING[name].sensitivities(keys)
        best = naive.search(functools.partial(naive.shares, getattr(naive, name), keys), keys, rng)
        assert np.all(best <= upper * (1 + 1e-9))
        assert np.all(lower >= best * 0.6)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("family", HARD)
def test_hard_keys_are_not_missed(name, family):
    rng = np.random.default_rng(3)
    keys = FAMILIES[family](rng, 30, 3)
    # only leverage is known exactly here, and it is what small queries reach
    truth = [float(score) for score in naive.leverage(keys)[0]]
    upper = GROWING[name].sensitivities(keys)[1]
    assert np.all(upper >= np.array(truth) * (1 - 1e-6))


@given(plain, st.sampled_from(sorted(GROWING)), st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]), seeds)
@few
def test_every_heavy_key_is_in_the_universal_set(keys, name, epsilon, seed):
    found = GROWING[name].universal_set(keys, epsilon)
    weights = naive.shares(getattr(naive, name), keys, random_queries(np.random.default_rng(seed), keys))
    assert set(np.flatnonzero((weights >= epsilon * (1 + 1e-9)).any(axis=0))) <= set(found.indices)
    assert found.omitted < epsilon
    assert np.array_equal(found.keys, keys[found.indices])
    lower, _ = GROWING[name].sensitivities(keys, found.indices)
    assert not found.exact or np.all(lower >= epsilon * (1 - 1e-5))


def test_the_least_function_of_the_class_meets_its_bound():
    # t^2 up to 1, then constant: one row against n copies of half of it; Tukey's class knows no better
    for copies in (1, 3, 8):
        keys = np.array([[1.0]] + [[0.5]] * copies)
        upper = functions.Tukey().sensitivities(keys)[1]
        best = naive.shares(lambda x: np.minimum(x**2, 1), keys, [[1.0]])[0]
        assert upper[0] == pytest.approx(best[0], rel=1e-9)
        # the rows are alike to a large query
        assert upper[1] == pytest.approx(1 / (copies + 1), rel=1e-9)


def test_copies_are_counted():
    for name, f in GROWING.items():
        upper = f.sensitivities(np.repeat(np.eye(3), 8, axis=0))[1]
        np.testing.assert_allclose(upper, 1 / 8, rtol=1e-9, err_msg=name)


def test_a_generic_stream_is_bounded_well():
    keys = np.random.default_rng(0).standard_normal((200, 4))
    for name, most in (("huber", 1.5), ("l1l2", 1.5), ("tukey", 4)):
        assert GROWING[name].sensitivities(keys)[1].sum() <= most * 4, name


@given(plain, seeds)
@few
def test_flows_hold_for_any_weights(keys, seed):
    found, rng = eliminate(keys), np.random.default_rng(seed)
    if not found.rank:
        return
    weights = 10.0 ** rng.uniform(-3, 0, len(found.rows))
    upper, _ = growth.flows(found, weights, np.arange(len(found.rows)), found.reach(1.0))
    for name in ("huber", "l1l2"):
        best = naive.shares(getattr(naive, name), keys, random_queries(rng, keys)).max(axis=0)[found.where]
        assert np.all(best <= upper + 1e-9)


# -- ridge -------------------------------------------------------------------------------------------------


@given(plain, st.sampled_from([1e-3, 1.0, 50.0]), st.sampled_from([0.1, 1.0, 7.0]), seeds)
@few
def test_ridge_is_the_most_within_the_ball(keys, c, rho, seed):
    lower, upper = functions.Ridge(c, rho).sensitivities(keys)
    rng = np.random.default_rng(seed)
    matrix = keys.T @ keys + c / rho**2 * np.eye(keys.shape[1])
    best = np.linalg.solve(matrix, keys.T).T if len(keys) else np.zeros((0, keys.shape[1]))
    for query in [*best, *rng.standard_normal((20, keys.shape[1]))]:
        size = np.linalg.norm(query)
        query = query * (rho / size if size else 0)
        weight = (keys @ query) ** 2 / (c + np.sum((keys @ query) ** 2))
        assert np.all(weight <= upper * (1 + 1e-9) + 1e-12)
    for j, query in enumerate(best):
        size = np.linalg.norm(query)
        reached = (keys[j] @ query * rho / size) ** 2 / (c + np.sum((keys @ query * rho / size) ** 2)) if size else 0
        assert lower[j] <= reached * (1 + 1e-6) + 1e-12
        assert upper[j] <= reached * (1 + 1e-6) + 1e-12


def test_ridge_rows_are_not_reported():
    found = functions.Ridge(1e6, 1.0).universal_set(np.eye(3), 1e-7)
    assert found.indices.tolist() == [0, 1, 2]
    assert found.count == 3


# -- softmax over a ball -----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(plain, st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3]), seeds)
def test_no_query_in_the_ball_beats_softmax_ends(keys, rho, seed):
    lower, upper = functions.BoundedSoftmax(rho).sensitivities(keys)
    assert np.all((lower >= 0) & (lower <= upper) & (upper <= 1))
    if len(keys) == 0:
        return
    rng = np.random.default_rng(seed)
    queries = random_queries(rng, keys - keys.mean(axis=0))
    queries *= rho / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), rho)
    slack = 1e-12 * (1 + rho * np.abs(keys).max())
    assert np.all(naive.softmax(queries, keys).max(axis=0) <= upper * np.exp(slack))


@pytest.mark.parametrize("rho", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("family", ["gaussian", "repeated", "integers"])
def test_softmax_brackets_close_on_what_a_climb_finds(rho, family):
    rng = np.random.default_rng(2)
    keys = FAMILIES[family](rng, 12, 2)
    lower, upper = functions.BoundedSoftmax(rho).sensitivities(keys)
    assert np.all(lower >= (1 - 2e-6) * upper)
    best = naive.search(lambda queries: naive.softmax(queries, keys), keys, rng, most=rho)
    assert np.all(best <= upper * (1 + 1e-9))
    assert np.all(lower >= best * (1 - 2e-6))
    assert np.all(best >= lower * 0.9)


@given(plain, st.sampled_from([0.3, 3.0]), st.sampled_from([0.05, 0.3, 0.7]))
@few
def test_softmax_universal_set_is_the_brackets(keys, rho, epsilon):
    f = functions.BoundedSoftmax(rho)
    found, (lower, upper) = f.universal_set(keys, epsilon), f.sensitivities(keys)
    assert set(np.flatnonzero(lower >= epsilon)) <= set(found.indices)
    assert np.all(upper[found.indices] >= epsilon * (1 - 1e-5))


def test_softmax_at_the_ends_of_the_scale():
    keys = np.array([[3.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    flat = functions.BoundedSoftmax(1e-300).sensitivities(keys)
    np.testing.assert_allclose(flat, 0.25, rtol=1e-9)
    for scale in (1e-100, 1e100):
        same = functions.BoundedSoftmax(2.0 / scale).sensitivities(keys * scale)
        np.testing.assert_allclose(same, functions.BoundedSoftmax(2.0).sensitivities(keys), rtol=1e-5)
    lower, upper = functions.BoundedSoftmax(1e300).sensitivities(keys * 1e100)
    assert np.all((lower == 0) & (upper == 1))


def test_unbounded_softmax_says_why_there_is_no_small_set():
    for make in (functions.BoundedSoftmax, lambda: functions.BoundedSoftmax(math.inf)):
        with pytest.raises(ValueError, match="no small universal set, for every vertex of the convex hull"):
            make()


# -- powers, input -----------------------------------------------------------------------------------------


def test_powers_are_those_of_the_library():
    keys = np.random.default_rng(0).standard_normal((30, 3))
    for p in (1, 2, 3.0):
        np.testing.assert_array_equal(functions.Power(p).sensitivities(keys), lev.sensitivities(keys, p))
        assert functions.Power(p).universal_set(keys, 0.2).indices.tolist() == (
            lev.universal_set(keys, 0.2, p).indices.tolist()
        )
        assert functions.Power(p).growth == p


EVERY = [*GROWING.values(), functions.Power(3), functions.Ridge(1, 1), functions.BoundedSoftmax(1)]


@pytest.mark.parametrize("f", EVERY, ids=repr)
def test_no_keys_zero_keys_and_rows(f):
    for keys in (np.zeros((0, 3)), np.zeros((4, 3))):
        lower, upper = f.sensitivities(keys)
        assert lower.shape == upper.shape == (len(keys),)
        found = f.universal_set(keys, 1.0)
        assert found.count == len(keys)
        assert found.omitted < 1
    keys = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    lower, upper = f.sensitivities(keys)
    np.testing.assert_allclose(f.sensitivities(keys, [7, 2, 7]), (lower[[7, 2, 7]], upper[[7, 2, 7]]), rtol=1e-9)
    assert [len(ends) for ends in f.sensitivities(keys, [])] == [0, 0]
    assert f.universal_set(keys, 0.01).keys.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: functions.Power(0), ValueError, "p must be positive and finite; got 0"),
        (lambda: functions.Power(math.inf), ValueError, "p must be positive and finite"),
        (lambda: functions.Huber(0), ValueError, "delta must be positive and finite; got 0"),
        (lambda: functions.Huber("1"), TypeError, "delta must be a real number"),
        (lambda: functions.Tukey(-1), ValueError, "c must be positive and finite; got -1"),
        (lambda: functions.Ridge(0, 1), ValueError, "c must be positive"),
        (lambda: functions.Ridge(1, math.inf), ValueError, "rho must be positive and finite"),
        (lambda: functions.Ridge(1e300, 1e-300), ValueError, r"sqrt\(c\) / rho must be positive and finite; got inf"),
        (lambda: functions.BoundedSoftmax(0), ValueError, "rho must be positive and finite; got 0"),
        (lambda: functions.BoundedSoftmax(math.nan), ValueError, "rho must be positive and finite; got nan"),
        (lambda: functions.Huber().sensitivities(np.eye(3), [3]), ValueError, r"rows must be in \[0, 3\); got 3"),
        (lambda: functions.Huber().sensitivities(np.eye(3), [0.5]), TypeError, "rows must be a vector of integers"),
        (lambda: functions.Ridge(1, 1).sensitivities(np.eye(3), [3]), ValueError, r"rows must be in \[0, 3\); got 3"),
        (lambda: functions.Tukey().sensitivities(np.eye(3) * np.nan), ValueError, "row 0 holds NaN"),
        (lambda: functions.Tukey().sensitivities(np.zeros((3, 0))), ValueError, "at least one column"),
        (lambda: functions.L1L2().universal_set(np.eye(3), 0), ValueError, "epsilon must be in"),
        (lambda: functions.BoundedSoftmax(1).universal_set(np.eye(3) * 1j, 0.5), TypeError, "keys must be real"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tukey_is_a_square_far_below_its_end():
    np.testing.assert_allclose(functions.Tukey(1e200)([1.0, -3.0]), [0.5, 4.5])
