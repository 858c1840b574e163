"""Lewis weights, even powers and coresets: each test would fail with its inequality reversed."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from theorems import columns, exact, few, note, seeds

import lev
from lev import bounds, lift
from lev.eliminate import eliminate
from lev.form import Form
from lev.lewis import _certificates
from lev.refine import above, below, least_squares
from lev.weighting import Weighting

online = note("12_online_lewis")
lewis = note("05_lewis_weights")
even = note("10_even_powers")
coresets = note("11_coresets")


# -- 05 ----------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(lewis.POWERS), st.integers(1, 4))
@settings(few, max_examples=12)
def test_certificates_hold_for_any_weights(seed, p, dim):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((9, dim)) * np.exp(rng.standard_normal((9, 1)))
    lewis.certified(keys, p, rng)
    lewis.sandwich(keys, p)


@given(columns, st.sampled_from(lewis.POWERS), st.floats(-3, 3))
@few
def test_certificates_are_met(column, p, shift):
    truth = column**p / np.sum(column**p)
    found = eliminate(column[:, None])
    lower, upper = _certificates(found, p, np.log(truth) + shift)
    assert np.all((lower <= truth) & (truth <= upper))
    np.testing.assert_allclose([lower, upper], [truth, truth], rtol=1e-9)


@given(columns, st.sampled_from(lewis.POWERS))
@few
def test_lewis_weights_of_a_column_are_its_sensitivities(column, p):
    truth = column**p / np.sum(column**p)
    np.testing.assert_allclose(lev.lewis_weights(column[:, None], p), truth, rtol=1e-9)
    lower, upper = lev.sensitivities(column[:, None], p)
    assert np.all((lower <= truth * (1 + 1e-15)) & (truth <= upper * (1 + 1e-15)))
    np.testing.assert_allclose([lower, upper], [truth, truth], rtol=2e-6)


def test_lewis_weights_are_not_monotone():
    keys = np.array([[-1.0, -3.0], [1.0, 2.0], [2.0, 3.0]])
    before, after = lev.lewis_weights(keys, 4)[1], lev.lewis_weights(np.vstack([keys, [3.0, 0.0]]), 4)[1]
    assert (round(before, 4), round(after, 4)) == (0.0460, 0.0866)


@given(st.sampled_from([1.0, 1.5, 3.0, 4.0]), st.integers(1, 6), st.floats(-9, 9))
@few
def test_dual_ends_are_met_by_copies(p, copies, power):
    # K^T u = k_j with u = 1 / copies on the copies of k_j, and the query e_j
    keys = np.repeat(np.eye(2), copies, axis=0) * 10.0**power
    found = eliminate(keys)
    x, u = least_squares(found.rows, np.ones(2 * copies), 0)
    assert below(found, p, 0, x) <= 1 / copies <= above(found, p, 0, u, found.reach(p))
    assert below(found, p, 0, x) == pytest.approx(1 / copies, rel=1e-9)
    assert above(found, p, 0, u, found.reach(p)) == pytest.approx(1 / copies, rel=1e-9)
    # half of u is charged for the half of k_j that it lacks, and for p > 2 no less would do
    whole = eliminate(np.ones((copies, 1)))
    halved = above(whole, p, 0, np.full(copies, 0.5 / copies), whole.reach(p))
    assert halved >= 1 / copies
    assert p < 2 or halved == pytest.approx(1 / copies, rel=1e-9)


@given(seeds)
@settings(few, max_examples=2)
def test_lewis_iterations_contract_and_descend(seed):
    rng = np.random.default_rng(seed)
    lewis.converges(rng.standard_normal((8, 2)), rng)


def test_coordinates_hold_their_error():
    assert 0 < lewis.coordinates() <= 1
    assert lewis.gamma_is_needed() > 1.5


# -- 10 ----------------------------------------------------------------------------------------------------

half_powers = st.sampled_from([2, 4, 6, 8])


@given(st.integers(1, 4), half_powers, seeds)
@few
def test_lift_identity(dim, p, seed):
    even.identity(*np.random.default_rng(seed).integers(-9, 10, (2, dim)), p)
    assert even.without_roots() > 0.1


@given(st.integers(1, 3), half_powers, seeds)
@settings(few, max_examples=12)
def test_lift_bounds_the_sensitivity(dim, p, seed):
    rng = np.random.default_rng(seed)
    part = even.bounded(rng.standard_normal((3 if dim == 1 else 25, dim)), p, rng)
    # in one column the bound is the sensitivity itself
    assert part == pytest.approx(1) if dim == 1 else part < 1 + 1e-6
    score, truth = even.strict()
    assert truth < 0.9 < score


@given(st.integers(1, 4), st.floats(0.3, 4), st.sampled_from([0.1, 0.3, 0.9]), seeds)
@few
def test_lift_serves_smaller_powers(dim, smaller, epsilon, seed):
    keys = np.random.default_rng(seed).standard_t(1, (12, dim))
    scores = lev.leverage_scores(lift.SymmetricPower(4).keys(keys))
    lower = lev.sensitivities(keys, smaller, tolerance=1.0)[0]
    assert np.all(scores[lower >= epsilon] >= epsilon ** (4 / smaller) * (1 - 1e-6))


# -- 11 ----------------------------------------------------------------------------------------------------


def test_coresets_fail_as_seldom_as_they_say():
    keys = np.random.default_rng(0).standard_normal((800, 2))
    query = np.array([1.0, 2.0])
    found = coresets.errors(keys, query, 1.0, 60, delta=0.3, failure=0.1)
    assert np.mean(np.abs(found) > 0.3) <= 0.1
    size = int(bounds.coreset_rate(0.3, 0.1) * 2 / 20)
    # a twentieth of the rows is too few
    assert np.mean(np.abs(coresets.errors(keys, query, 1.0, 60, size=size)) > 0.3) > 0.1


def test_coresets_are_unbiased():
    keys, query = np.random.default_rng(0).standard_normal((400, 2)), np.array([1.0, 2.0])
    for found in (coresets.errors(keys, query, 3.0, 150, size=40), coresets.reduced(keys, query, 3.0, 50, 40)):
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
        assert 0.02 < found.std() < 0.5


@given(st.floats(1e-3, 0.999), st.floats(1e-9, 0.5))
@few
def test_coreset_error_is_the_rate_solved(delta, failure):
    assert bounds.coreset_error(bounds.coreset_rate(delta, failure), failure) == pytest.approx(delta, rel=1e-9)
    assert bounds.coreset_error(math.inf, failure) == 0


@pytest.mark.parametrize("size", [0.9, 1.0, 3.0])
def test_dependent_rows_have_no_common_factor(size):
    # rows that elimination cannot tell apart once made the excuse divide by nothing
    keys = np.array([[1.0, 0, 0], [size, 0, 0], [1e-5, 0, 0], [0, 0, 0.3]])
    scores = exact.scores(keys)
    _, upper = Form.empty(3).add(keys, None)[0].factor().bracket(keys)
    assert all(
        score <= Fraction(min(bound, 1.0)) * (1 + Fraction(1, 2**40))
        for score, bound in zip(scores, upper, strict=True)
    )


# -- 12 ----------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(online.POWERS), st.integers(1, 4))
@few
def test_online_weights_fit(seed, p, dim):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((30, dim)) * np.exp(rng.standard_normal((30, 1)))
    assert online.fits(keys, p)
    assert online.last_row_fits(keys, p, 1.001)
    assert not online.last_row_fits(keys, p, 0.98)
    online.proves(keys, p, rng)
    assert 0 < online.parts(keys, p) <= 1 + 1e-9
    online.size(keys, p)


# in one column weights proportional to |k|^p meet every bound: each of these fails if an end is moved inwards

online_powers = st.sampled_from(online.POWERS)


def fitted(column, p, decay=1.0):
    """Return (rule, scales, v, M, weights) of rows at their last time, weighted in proportion to their entries."""
    rule, ids = Weighting(p, decay), np.arange(len(column))
    scales = rule.scales(ids, rule.epoch(ids))
    entries = np.abs(column) ** p * decay ** (-1.0 * ids)
    # weights within [0, 1]; for p > 2 a weight decays in the sums, so it is given in the units of its time
    v = entries / entries.sum() * (decay ** (1.0 * ids) if p > 2 else 1.0)
    form = float(np.sum((rule.factors(v, scales) * column) ** 2))
    return rule, scales, v, form, entries / entries.sum()


@given(columns, online_powers, st.sampled_from([1.0, 0.9, 0.5]))
@few
def test_online_ends_are_met(column, p, decay):
    rule, scales, v, form, truth = fitted(column, p, decay)
    odds = (scales * column) ** 2 / form
    lower, upper = rule.ends(odds, odds, rule.masses(v, scales), len(column), np.log2(scales))
    assert np.all((lower <= truth) & (truth <= upper))
    np.testing.assert_allclose(upper, truth, rtol=1e-9)
    low, high = rule.sandwich(rule.masses(v, scales), len(column), rule.epoch(np.arange(len(column))))
    total = float(np.sum(np.abs(column) ** p * scales ** min(2.0, p))) / form ** (p / 2)
    assert low <= total <= high
    np.testing.assert_allclose(low if p > 2 else high, total, rtol=1e-9)
    if decay == 1:
        np.testing.assert_allclose([*lower, low, high], [*truth, total, total], rtol=1e-9)


@given(st.sampled_from(online.POWERS), st.integers(2, 9))
@few
def test_parts_in_a_whole_are_met(p, copies):
    # copies of one row, each a sketch of its own: with the share, 1 / copies, bounds are exact again
    parts = [lev.Sketch(1, 0.05, p, start=i).update([[3.0]]) for i in range(copies)]
    one = lev.Sketch(1, 0.05, p)
    for part in parts:
        one.merge(part)
    scores = lev.merge(parts).universal_set().scores
    assert np.all(scores >= 1 / copies)
    if p < 2 and copies == 2:
        np.testing.assert_allclose(scores, 0.5, rtol=1e-9)
