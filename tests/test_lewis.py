"""Lewis weights, certified sensitivities and their universal sets, against oracles written from the definition."""

from fractions import Fraction

import naive
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, streams

import lev
from lev import backend, lewis
from lev.eliminate import eliminate
from lev.form import Form
from lev.lewis import lewis_weights, lp_universal_set, sensitivities
from lev.triangle import triangle_of

POWERS = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0]
powers = st.sampled_from(POWERS)
# float64 oracles see no further than these families
PLAIN = ("gaussian", "integers", "low_rank", "repeated", "sparse", "heavy_tailed")
few = settings(max_examples=25, derandomize=True)
plain = streams(families=PLAIN, most_rows=25, most_columns=3)


def scaled(keys):
    """Return the keys with columns brought to one size, which changes no sensitivity."""
    largest = np.abs(keys).max(axis=0, initial=0)
    return keys / np.where(largest > 0, largest, 1)


def weight_of(keys, query, p):
    responses = np.abs(keys @ query)
    powers = (responses / (responses.max(initial=0) or 1.0)) ** p
    return powers / (powers.sum() or 1.0)


def scan(keys, p, count=200_001):
    """Return the sensitivities of (n, 2) keys by a dense scan of angles, kinks included: never above the truth."""
    angles = np.append(np.linspace(0, np.pi, count), np.arctan2(keys[:, 0], -keys[:, 1]))
    best = np.zeros(len(keys))
    for part in np.array_split(angles, 50):
        responses = np.abs(keys @ np.stack([np.cos(part), np.sin(part)]))
        powers = responses**p
        total = powers.sum(axis=0)
        best = np.maximum(best, np.divide(powers, total, out=np.zeros_like(powers), where=total > 0).max(axis=1))
    return best


def by_program(keys, j):
    """Return the sensitivity for p = 1: 1 / min ||Kx||_1 over <x,k_j> = 1, as a linear program in (x, s)."""
    n, d = keys.shape
    solved = scipy.optimize.linprog(
        np.append(np.zeros(d), np.ones(n)),
        A_ub=np.block([[keys, -np.eye(n)], [-keys, -np.eye(n)]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.append(keys[j], np.zeros(n))[None],
        b_eq=[1.0],
        bounds=[(None, None)] * d + [(0, None)] * n,
    )
    return 1 / solved.fun


def by_descent(keys, j, p):
    """Return the sensitivity for p > 1 by a general minimiser from the least squares query."""
    gram = np.linalg.pinv(keys.T @ keys)
    start = gram @ keys[j] / (keys[j] @ gram @ keys[j])
    along = scipy.linalg.null_space(keys[j][None])
    if along.shape[1] == 0:
        return 1 / np.sum(np.abs(keys @ start) ** p)

    def value(z):
        response = keys @ (start + along @ z)
        return np.sum(np.abs(response) ** p), along.T @ keys.T @ (p * np.abs(response) ** (p - 1) * np.sign(response))

    found = scipy.optimize.minimize(value, np.zeros(along.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-12})
    return 1 / found.fun


# -- Lewis weights -----------------------------------------------------------------------------------------


@given(plain, powers)
@few
def test_weights_are_the_fixed_point_and_sum_to_the_rank(keys, p):
    weights = lewis_weights(keys, p)
    live = weights > 0
    assert np.array_equal(live, keys.any(axis=1))
    rank = np.linalg.matrix_rank(scaled(keys))
    assert weights.sum() == pytest.approx(rank, rel=1e-9)
    if not rank:
        return
    # through an orthonormal basis, whose weighted form is better conditioned
    basis = np.linalg.svd(scaled(keys), full_matrices=False)[0][:, :rank][live]
    root = np.linalg.qr(weights[live, None] ** (0.5 - 1 / p) * basis)[1]
    again = np.linalg.norm(np.linalg.solve(root.T, basis.T), axis=0) ** p
    np.testing.assert_allclose(again, weights[live], rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("p", [*POWERS, 0.05, 3.9, 4.1, 30.0, 100.0])
def test_weights_are_right_to_1e_10(p):
    keys = np.random.default_rng(3).standard_normal((200, 6))
    weights = lewis_weights(keys, p)
    matrix = keys.T @ (weights[:, None] ** (1 - 2 / p) * keys)
    again = np.einsum("ij,ji->i", keys, np.linalg.solve(matrix, keys.T)) ** (p / 2)
    np.testing.assert_allclose(again, weights, rtol=1e-10)
    assert weights.sum() == pytest.approx(6, rel=1e-10)


@given(plain)
@few
def test_weights_for_2_are_leverage_scores(keys):
    np.testing.assert_allclose(lewis_weights(keys, 2), lev.leverage_scores(keys), rtol=1e-9, atol=1e-12)


@given(streams(most_rows=30), powers)
@few
def test_any_keys_have_weights_that_sum_to_a_rank(keys, p):
    weights = lewis_weights(keys, p)
    assert np.all((weights >= 0) & (weights <= 1 + 1e-9))
    total = weights.sum()
    assert total == pytest.approx(round(total), abs=1e-8)
    assert round(total) <= min(keys.shape)


def test_adding_a_row_can_raise_a_weight_beyond_2():
    keys = np.array([[-1.0, -3.0], [1.0, 2.0], [2.0, 3.0]])
    assert lewis_weights(keys, 4)[1] == pytest.approx(0.0460, abs=1e-4)
    assert lewis_weights(np.vstack([keys, [3.0, 0.0]]), 4)[1] == pytest.approx(0.0866, abs=1e-4)


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr(lewis, "_MOST_ROUNDS", 2)
    with pytest.raises(lewis.NotConverged, match=r"p=6\.0 .* residual [0-9.]+e"):
        lewis_weights(np.random.default_rng(0).standard_normal((20, 3)), 6)


# -- sensitivities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("family", ["gaussian", "integers", "repeated", "sparse", "heavy_tailed"])
def test_brackets_hold_the_scan(p, family):
    keys = FAMILIES[family](np.random.default_rng(7), 9, 2)
    lower, upper = sensitivities(keys, p)
    truth = scan(scaled(keys), p)
    assert np.all(upper >= truth * (1 - 1e-12))
    assert np.all(lower <= truth + 1e-6)
    assert np.all(lower >= truth * (1 - 2e-6)) or p < 1
    assert np.all(upper <= truth * (1 + 2e-6) + 1e-6) or p < 1


@given(plain)
@few
def test_p_1_is_the_linear_program(keys):
    lower, upper = sensitivities(keys, 1)
    for j in np.flatnonzero(keys.any(axis=1))[:5]:
        truth = by_program(scaled(keys), j)
        assert lower[j] * (1 - 1e-6) <= truth <= upper[j] * (1 + 1e-6)
        assert lower[j] >= (1 - 1e-5) * upper[j]


@given(
    streams(families=("gaussian", "repeated", "sparse"), most_rows=20, most_columns=3), st.sampled_from([1.5, 3, 4, 6])
)
@few
def test_brackets_hold_the_minimum(keys, p):
    lower, upper = sensitivities(keys, p)
    for j in np.flatnonzero(keys.any(axis=1))[:4]:
        truth = by_descent(keys, j, p)  # a query's weight, so never above the sensitivity
        assert truth <= upper[j] * (1 + 1e-12)
        assert lower[j] <= truth * (1 + 1e-4)


@given(streams(most_rows=10, most_columns=3), powers, st.integers(0, 2**32))
@few
def test_no_query_beats_an_upper_end_and_the_sandwich_holds(keys, p, seed):
    lower, upper = sensitivities(keys, p)
    assert np.all((lower >= 0) & (lower <= upper) & (upper <= 1))
    assert np.all(upper[~keys.any(axis=1)] == 0)
    weights, rank = lewis_weights(keys, p), max(1, round(lewis_weights(keys, p).sum()))
    low, high = sorted([1.0, float(rank) ** (p / 2 - 1)])
    assert np.all(lower <= high * weights * (1 + 1e-6))
    assert np.all(upper >= low * weights * (1 - 1e-6))
    live = keys[keys.any(axis=1)]
    if np.linalg.matrix_rank(scaled(live)) < keys.shape[1] or np.linalg.cond(scaled(live)) > 1e6:
        return
    rng = np.random.default_rng(seed)
    for query in [*rng.standard_normal((10, keys.shape[1])), *np.linalg.pinv(scaled(live)).T]:
        assert np.all(weight_of(scaled(keys), query, p) <= upper + 1e-9)


@given(plain, st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]))
@few
def test_brackets_close(keys, p):
    lower, upper = sensitivities(keys, p)
    assert np.all(lower >= (1 - 1e-5) * upper)


@given(plain, powers)
@few
def test_certificates_hold_for_any_positive_weights(keys, p):
    found = eliminate(keys)
    log_v = np.random.default_rng(0).uniform(-3, 0, len(found.rows))
    lower, upper = lewis._certificates(found, p, log_v)
    low, high = (ends[found.where] for ends in sensitivities(keys, p))
    assert np.all(lower <= high)
    assert np.all(upper >= low)


HARD = ("ill_conditioned", "near_collinear", "one_tiny_alone", "one_huge", "graded", "growing", "columns_apart")


@given(streams(families=HARD, most_rows=25))
@settings(max_examples=60, derandomize=True)
def test_brackets_hold_exact_leverage_on_hard_keys(keys):
    # directions at the level of rounding count as null: below the resolution nothing is promised
    assume(eliminate(keys).rank == naive.rank(keys))
    truth = naive.leverage(keys)[0]
    lower, upper = sensitivities(keys, 2, tolerance=1e-15)
    for low, true, high in zip(lower, truth, upper, strict=True):
        assert Fraction(low) <= true <= Fraction(high)


@settings(max_examples=12, derandomize=True)
@given(streams(families=(*HARD, "gaussian", "low_rank"), most_rows=25), st.integers(0, 2**32))
def test_long_keys_are_eliminated_part_by_part(keys, seed):
    """Pivots come from several parts, wherever the hard rows are; beside it stand the scores of the form."""
    assume(keys.any())
    rng = np.random.default_rng(seed)
    many = 2 * backend.TASK + 7
    long = keys[rng.integers(0, len(keys), many)] * 2.0 ** -rng.integers(0, 9, (many, 1))
    long[: backend.TASK] = long[:1]  # no part alone has all directions
    form, _ = Form.empty(long.shape[1]).add(long, None)
    low, high = form.factor().bracket(long)
    found = eliminate(long)
    assert np.linalg.matrix_rank(keys) <= found.rank <= form.rank
    assert np.abs(found.rows).max() < 2.0**found.rank
    assert len(found.where) == np.count_nonzero(long.any(axis=1))
    lower, upper = map(found.spread, lewis._certificates(found, 2.0, lewis._log_weights(found, 2.0)[0]))
    assert np.all(lower <= high)
    assert np.all(upper >= low)


@pytest.mark.parametrize("apart", [1e-3, 1e-7, 1e-9])
def test_a_triangle_keeps_what_a_gram_matrix_would_lose(apart):
    rows = np.random.default_rng(2).standard_normal((50, 1)) @ np.ones((1, 2))
    rows[:, 1] += apart * np.random.default_rng(3).standard_normal(50)
    factors = np.linspace(1, 2, 50)
    triangle = triangle_of(rows, factors, lewis.CLOSE)
    least = np.linalg.svd(factors[:, None] * rows, compute_uv=False)[-1]
    assert np.linalg.svd(triangle, compute_uv=False)[-1] == pytest.approx(least, rel=1e-5)


@settings(max_examples=40, derandomize=True)
@given(streams(families=HARD, most_rows=25), st.sampled_from([1.0, 1.5, 3.0, 4.0]))
def test_a_fixed_point_is_one_by_qr_too(keys, p):
    """Whatever the iteration made of Gram matrices, the last word is that of a QR factorisation."""
    found = eliminate(keys)
    assume(found.rank)
    log_weights, _ = lewis._log_weights(found, p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lewis, "CLOSE", 0.0)
        again = p / 2 * lewis.log_leverages(found, (1 - 2 / p) * log_weights)
    np.testing.assert_allclose(again, log_weights, atol=1e-10 * max(1, p))


@pytest.mark.parametrize("p", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_keys_that_need_no_coordinates_have_the_same_weights(p, dtype):
    keys = (8 * np.random.default_rng(4).standard_normal((9000, 5))).astype(dtype)
    keys[7] = 0
    own = eliminate(keys, lewis.CLOSE)
    np.testing.assert_array_equal(own.rows, np.delete(keys, 7, axis=0))
    found = eliminate(keys.astype(np.float64))
    np.testing.assert_allclose(lewis_weights(keys, p)[found.where], np.exp(lewis._log_weights(found, p)[0]), rtol=1e-10)


def test_rows_pick_and_order():
    keys = np.random.default_rng(0).standard_normal((12, 3))
    lower, upper = sensitivities(keys, 3)
    some = sensitivities(keys, 3, rows=[7, 2, 7])
    np.testing.assert_allclose(some, (lower[[7, 2, 7]], upper[[7, 2, 7]]), rtol=1e-12)
    assert [len(ends) for ends in sensitivities(keys, 3, rows=[])] == [0, 0]


def test_random_signs_meet_the_size_bound():
    d, p = 4, 4
    keys = np.random.default_rng(0).choice([-1.0, 1.0], (d ** (p // 2), d))
    total = sensitivities(keys, p)[0].sum()
    assert d ** (p / 2) / 4 <= total <= d ** (p / 2)


# -- universal sets ----------------------------------------------------------------------------------------


@given(plain, powers, st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]), st.integers(0, 2**32))
@few
def test_no_heavy_entry_is_missed(keys, p, epsilon, seed):
    found = lp_universal_set(keys, epsilon, p)
    d, rng = keys.shape[1], np.random.default_rng(seed)
    queries = [*rng.standard_normal((30, d)), *np.eye(d), *keys, *np.linalg.pinv(keys).T]
    heavy = lev.heavy_entries(np.array(queries), keys, epsilon, p)
    assert set(heavy.indices) <= set(found.indices)
    assert len(found) <= max(1, np.linalg.matrix_rank(scaled(keys))) ** max(1, p / 2) / epsilon * (1 + 1e-5) or p < 1
    assert found.omitted < epsilon
    assert np.array_equal(found.keys, keys[found.indices])


@given(plain, st.sampled_from([1.5, 3.0, 4.0]))
@few
def test_the_set_is_minimal_where_it_says_so(keys, p):
    found = lp_universal_set(keys, 0.2, p)
    lower, upper = sensitivities(keys, p)
    assert set(np.flatnonzero(lower >= 0.2)) <= set(found.indices)
    assert np.all(upper[found.indices] >= 0.2 * (1 - 1e-5))
    assert not found.exact or np.all(lower[found.indices] >= 0.2 * (1 - 1e-5))
    assert np.all(found.scores >= lower[found.indices])


def test_only_rows_that_certificates_leave_undecided_are_refined(monkeypatch):
    keys, refined = np.random.default_rng(0).standard_normal((300, 4)), []
    keys[7] *= 30
    keys[8] = keys[7]
    plain = lewis.refine

    def counted(found, p, weights, j):
        refined.append(j)
        return plain(found, p, weights, j)

    monkeypatch.setattr(lewis, "refine", counted)
    found = lp_universal_set(keys, 0.4, 3.0)
    assert found.indices.tolist() == [7, 8]
    assert found.exact
    assert set(refined) <= {7, 8}


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("size", "family"), [(30, "graded"), (40, "one_huge"), (20, "shrinking"), (2, "gaussian")])
def test_a_row_alone_in_its_direction_is_kept(p, size, family):
    keys = FAMILIES[family](np.random.default_rng(1), size, 3)
    keys[:, -1] = 0
    keys[size // 2] = [0, 0, 1e-9]
    assert size // 2 in lp_universal_set(keys, 1.0, p).indices


# -- input -------------------------------------------------------------------------------------------------


def test_no_keys_and_zero_keys():
    for keys in (np.zeros((0, 3)), np.zeros((4, 3))):
        assert np.array_equal(lewis_weights(keys, 3), np.zeros(len(keys)))
        assert np.array_equal(sensitivities(keys, 3), np.zeros((2, len(keys))))
        found = lp_universal_set(keys, 0.1, 3)
        assert (len(found), found.exact, found.omitted, found.count) == (0, True, 0.0, len(keys))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: lewis_weights(k, 0), ValueError, "p must be positive and finite; got 0"),
        (lambda k: lewis_weights(k, "2"), TypeError, "p must be a real number"),
        (lambda k: lewis_weights(k[0], 3), ValueError, "keys must have shape"),
        (lambda k: lewis_weights(k[:, :0], 3), ValueError, "at least one column"),
        (lambda k: lewis_weights(k * np.nan, 3), ValueError, "row 0 holds NaN"),
        (lambda k: lewis_weights(k * 1j, 3), TypeError, "keys must be real"),
        (lambda k: sensitivities(k, np.inf), ValueError, "p must be positive and finite"),
        (lambda k: sensitivities(k, 3, rows=[3]), ValueError, r"rows must be in \[0, 3\); got 3"),
        (lambda k: sensitivities(k, 3, rows=[-1]), ValueError, r"rows must be in \[0, 3\); got -1"),
        (lambda k: sensitivities(k, 3, rows=[0.5]), TypeError, "rows must be a vector of integers"),
        (lambda k: sensitivities(k, 3, tolerance=0), ValueError, "tolerance must be in"),
        (lambda k: lp_universal_set(k, 0, 3), ValueError, "epsilon must be in"),
        (lambda k: lp_universal_set(k, 0.5, True), TypeError, "p must be a real number; got True"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(np.eye(3))


def test_integers_and_narrow_floats_pass_and_rows_keep_their_dtype():
    keys = np.array([[2, 0], [0, 1], [0, 1]])
    for dtype in (np.int32, np.float16, np.float32):
        found = lp_universal_set(keys.astype(dtype), 0.5, 3)
        assert found.keys.dtype == dtype
        assert found.indices.tolist() == [0, 1, 2]


FAR = {
    "two blocks": np.repeat(np.eye(2), [49, 1], axis=0),
    "a line and a small row": np.column_stack([np.ones(20), np.linspace(-1, 1, 20)])
    * np.append(np.ones(19), 1e-5)[:, None],
    "gaussian": np.random.default_rng(0).standard_normal((16, 3)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("p", [2**-10, 2**-7, 0.01, 0.03, 80, 128, 256, 1024])
@pytest.mark.parametrize("name", FAR)
def test_powers_far_from_2_are_answered_though_weights_leave_float64(name, p, monkeypatch):
    monkeypatch.setattr(lewis, "_MOST_ROUNDS", 500)  # whatever the weights, what they prove holds
    keys = FAR[name]
    lower, upper = sensitivities(keys, p, tolerance=1.0)
    queries = np.vstack([np.random.default_rng(1).standard_normal((500, keys.shape[1])), np.linalg.pinv(keys).T])
    best = np.max([[weight_of(keys, query, p) for query in queries]], axis=1)[0]
    assert np.all(upper >= best * (1 - 1e-12))
    assert np.all(lower <= upper)
    assert set(np.flatnonzero(best >= 0.05)) <= set(lp_universal_set(keys, 0.05, p).indices)


def test_ends_by_weights_that_have_not_converged_are_close():
    _, upper = sensitivities(FAR["gaussian"], 2**-7, tolerance=1.0)
    assert upper.sum() < 3.01
    assert np.all(upper < 0.4)
    with pytest.raises(lewis.NotConverged):
        lewis_weights(FAR["two blocks"], 2**-10)


def test_collinear_keys_are_eliminated_to_one_direction():
    """A QR of so many may take its rounding for a second one."""
    many, rng = 2 * backend.TASK + 7, np.random.default_rng(0)
    keys = -(2.0 ** -rng.integers(0, 9, (many, 1))) * np.ones((1, 2))
    keys[: backend.TASK] = keys[:1]
    assert eliminate(keys).rank == 1
    _, upper = sensitivities(keys, 3, tolerance=1.0)
    shares = np.abs(keys[:, 0]) ** 3
    np.testing.assert_allclose(upper, shares / shares.sum(), rtol=1e-6)
