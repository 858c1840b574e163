"""The theorems of theory/, as properties: each would fail with its inequality reversed."""

import importlib
import math
import re
import runpy
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import lev
from lev import bounds, lift
from lev.eliminate import eliminate
from lev.form import Form
from lev.lewis import _certificates
from lev.refine import above, below, least_squares
from lev.weighting import Weighting

THEORY = Path(__file__).parent.parent / "theory"
sys.path.insert(0, str(THEORY))
exact = importlib.import_module("exact")
rounding = importlib.import_module("04_rounding")
online = importlib.import_module("12_online_lewis")


other = importlib.import_module("07_other_functions")
softmax = importlib.import_module("08_softmax")
lewis = importlib.import_module("05_lewis_weights")
many = importlib.import_module("13_heads")
planted = importlib.import_module("09_planted_keys")
even = importlib.import_module("10_even_powers")
coresets = importlib.import_module("11_coresets")
sampled = importlib.import_module("15_sampled_forms")

MARGIN = bounds.margin(np.dtype(np.float64))
few = settings(max_examples=25, derandomize=True)
small = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.integers(-6, 6).map(float))
)
thresholds = st.sampled_from([1.0, 0.5, 0.3, 0.2, 0.1])
seeds = st.integers(0, 2**32 - 1)


def close(computed, true):
    return abs(Fraction(float(computed)) - true) <= 2 * Fraction(MARGIN) * true


# -- 01 ----------------------------------------------------------------------------------------------------


@given(small)
@few
def test_scores_are_attained_suprema(keys):
    scores = lev.leverage_scores(keys)
    for j, row in enumerate(keys):
        query = exact.best_query(keys, row)
        assert close(scores[j], exact.weights(keys, query)[j])
    assert close(math.fsum(scores), Fraction(exact.rank(keys)))


@given(small, thresholds, seeds)
@few
def test_no_query_finds_a_key_outside(keys, epsilon, seed):
    queries = np.random.default_rng(seed).integers(-9, 10, (20, keys.shape[1])).astype(float)
    found = lev.universal_set(keys, epsilon)
    for query in [*queries, *keys]:
        for j, weight in enumerate(exact.weights(keys, query)):
            assert weight < epsilon or j in found.indices
            assert j in found.indices or weight <= found.omitted


@given(st.integers(1, 5), st.integers(1, 9))
@few
def test_size_bound_is_tight(dim, copies):
    found = lev.universal_set(np.repeat(np.eye(dim), copies, axis=0), 1 / copies)
    limit = bounds.max_members(dim, 1 / copies)
    assert 0.98 * limit < len(found) <= limit * (1 + MARGIN)


@given(small, st.integers(0, 6))
@few
def test_top_bounds_what_it_omits(keys, k):
    top, scores = lev.universal_set(keys, 0.05).top(k), exact.scores(keys)
    left = max((score for j, score in enumerate(scores) if j not in top.indices), default=Fraction(0))
    assert len(top) <= k
    assert left <= Fraction(top.omitted)
    assert close(top.omitted, left) or len(top) < k


@given(small, st.integers(-40, 40), seeds)
@few
def test_scores_are_invariant(keys, power, seed):
    rng = np.random.default_rng(seed)
    mix = np.triu(rng.integers(-2, 3, (keys.shape[1],) * 2), 1) + np.eye(keys.shape[1])
    signs = rng.choice([-1.0, 1.0], (len(keys), 1))
    for same in (keys @ mix, signs * keys, keys * 2.0**power):
        assert all(map(close, lev.leverage_scores(same), exact.scores(keys)))


@given(small, st.integers(-3, 3), thresholds)
@few
def test_intercept_is_centred_leverage(keys, shift, epsilon):
    sketch = lev.Sketch(keys.shape[1], epsilon, intercept=True).update(keys + shift)
    n = len(keys)
    centred = [
        [n * value - sum(column) for value, column in zip(row, zip(*exact.rational(keys), strict=True), strict=True)]
        for row in exact.rational(keys)
    ]
    found = sketch.universal_set()
    for j, score in enumerate(exact.scores(centred)):
        score += Fraction(1, n)
        assert score < epsilon or j in found.indices
        assert j not in found.indices or close(found.scores[list(found.indices).index(j)], score)


@given(small, seeds)
@few
def test_normaliser_is_bracketed(keys, seed):
    queries = np.random.default_rng(seed).integers(-9, 10, (8, keys.shape[1])).astype(float)
    lower, upper = lev.Sketch(keys.shape[1], 0.5).update(keys).normalizer(queries)
    for query, low, high in zip(queries, lower, upper, strict=True):
        true = sum(exact.dot(row, exact.rational([query])[0]) ** 2 for row in exact.rational(keys))
        floor = (bounds.resolution(keys.shape[1]) * np.linalg.norm(keys) * np.linalg.norm(query)) ** 2
        assert low <= true + floor
        assert true <= high + floor


# -- 02 ----------------------------------------------------------------------------------------------------


@given(small, thresholds)
@few
def test_rows_only_lower_scores(keys, epsilon):
    sketch, bound = lev.Sketch(keys.shape[1], epsilon), {}
    for row in keys:
        sketch.admit(row[None])
        found = sketch.universal_set()
        assert all(score <= bound.get(j, 1) for j, score in zip(found.indices, found.scores, strict=True))
        bound = {j: bound.get(j, 1) for j in bound if j in found.indices} | dict(
            zip(found.indices, found.scores, strict=True)
        )
        assert bound.keys() == set(found.indices)


@given(small, st.integers(0, 12))
@few
def test_row_outside_a_form_scores_b_over_1_plus_b(keys, seen):
    *others, row = keys
    score, partial = exact.scores(keys)[-1], exact.against(others[:seen], row)
    bound = exact.against(others, row)
    assert score == (1 if bound == math.inf else bound / (1 + bound))
    assert score <= (1 if partial == math.inf else partial / (1 + partial))


@given(seeds, st.integers(1, 3))
@few
def test_stale_factor_stays_above(seed, dim):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-6, 7, (3, 8, dim)).astype(float) + 7 * np.eye(8, dim)
    form, _ = Form.empty(dim).add(blocks[0], None, 0.1)
    stale = form.factor()
    for end in (1, 2):
        form, upper = form.add(blocks[end], stale, 0.1)
        upper = stale.bracket(blocks[end])[1] if upper is None else upper
        # without the row in the stale form the bound still holds, also for all rows to come
        for score, bound in zip(exact.scores(np.vstack(blocks[: end + 1]))[8 * end :], upper, strict=True):
            assert score <= Fraction(float(bound))


# -- 03 ----------------------------------------------------------------------------------------------------


@given(small, thresholds, seeds)
@few
def test_any_split_and_tree_gives_the_universal_set(keys, epsilon, seed):
    rng, sketches = np.random.default_rng(seed), []
    owner = rng.integers(0, 3, len(keys))
    for part in range(3):
        sketch, mine = lev.Sketch(keys.shape[1], epsilon), np.flatnonzero(owner == part)
        for chunk in np.array_split(rng.permutation(mine), 2):
            sketch.update(keys[chunk], chunk)
            if rng.random() < 0.5:
                assert sketch.retained <= len(mine)
        sketches.append(sketch)
    found = lev.merge([sketches[i] for i in rng.permutation(3)]).universal_set()
    for j, score in enumerate(exact.scores(keys)):
        assert j in found.indices or score < epsilon
        assert j not in found.indices or score >= epsilon * (1 - 2 * MARGIN)


@given(small, thresholds)
@few
def test_dropped_bounds_what_was_dropped(keys, epsilon):
    sketch = lev.Sketch(keys.shape[1], epsilon)
    for chunk in np.array_split(keys, 3):
        sketch.admit(chunk)
    found, scores = sketch.universal_set(), exact.scores(keys)
    assert found.omitted < epsilon
    assert all(score <= Fraction(found.omitted) for j, score in enumerate(scores) if j not in found.indices)


def test_buffer_stays_within_its_bound(small_blocks):
    rng, epsilon = np.random.default_rng(0), 0.05
    sketch, largest = lev.Sketch(4, epsilon), 0
    for step in range(400):
        rank = 2 if step < 300 else 4
        sketch.update(rng.standard_normal((8, rank)) @ np.eye(rank, 4) * 1.02**step)
        held = sum(stream.retained for stream in sketch._streams)
        largest = max(largest, held / sketch._streams[0].form.rank)
        assert held <= 2 * bounds.max_members(sketch._streams[0].form.rank, epsilon) + sketch._block_rows()
        assert sketch.retained <= bounds.max_members(4, epsilon) * (1 + MARGIN)
    # a bound of rank / epsilon between prunes would be too tight
    assert largest > bounds.max_members(1, epsilon)


def test_merge_refuses_rows_seen_twice():
    sketch = lev.Sketch(2, 0.5).update(np.eye(2))
    for other in (sketch, sketch.copy()):
        with pytest.raises(ValueError, match="other"):
            sketch.merge(other)


# -- 15 ----------------------------------------------------------------------------------------------------


@given(small, thresholds, st.lists(st.booleans(), min_size=12, max_size=12))
def test_sampled_forms(keys, epsilon, sample):
    sampled.check(keys.astype(int), np.array(sample), Fraction(epsilon))
    # in one direction, with equal rows, the library's slack is met
    equal = lev.Sketch(1, 0.01, sample=1e-9).update(np.ones((600, 1)))
    assert equal.slack == pytest.approx(600 / 256, rel=2e-3)
    np.testing.assert_allclose(equal.normalizer([[1.0]]), [[256], [600]], rtol=1e-2)


# -- 04 ----------------------------------------------------------------------------------------------------


@given(seeds)
@few
def test_gram_error_holds(seed):
    rounding.gram_matrix(np.random.default_rng(seed))


@given(seeds)
@settings(few, max_examples=12)
def test_filters_are_upper_bounds(seed):
    rounding.filters(np.random.default_rng(seed))


@given(seeds, st.sampled_from([0, -40, 40]))
@few
def test_odds_in_float32_are_upper_bounds_and_close(seed, size):
    assert rounding.single_odds(np.random.default_rng(seed), size) <= 2.0**-8


def test_filter_is_met_with_equality():
    assert -MARGIN < rounding.filter_equality() <= 2.0**-10


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_groups_are_upper_bounds_and_close(kind):
    assert 0 <= rounding.groups(np.random.default_rng(1), kind) <= 2.0**-9


@given(seeds, st.integers(1, 3), st.integers(0, 9))
@few
def test_scores_of_graded_rows_are_bracketed(seed, dim, decades):
    rounding.bracketed(rounding.graded(np.random.default_rng(seed), 9, dim, decades))


@given(seeds, st.integers(1, 4), st.sampled_from([0, 1, 2, 4]))
@few
def test_scores_by_cholesky_are_bracketed_and_close(seed, dim, decades):
    """Claim (g) of note 04, for rows in an identity frame and in a triangle's, against the rationals."""
    keys = rounding.graded(np.random.default_rng(seed), 12, dim, decades)
    form = Form.empty(dim).grown(keys[:8], None)[0]
    form = form.grown(keys[8:], form.factor())[0]
    judge, close = form.triangular(), form.factor()
    lower, upper = judge.bracket(keys)
    for low, score, high in zip(lower, exact.scores(keys), upper, strict=True):
        assert low <= score <= high
    assert judge.slack - form.inherited <= form.limit + 2 * (close.slack - form.inherited)
    assert judge.values[0] <= close.values[0] * (1 + 1e-9)


def test_where_cholesky_is_not_accurate_enough_eigenvalues_are_taken():
    keys = np.random.default_rng(0).standard_normal((30, 3))
    form = replace(Form.empty(3).grown(keys, None)[0], limit=0.0)
    np.testing.assert_array_equal(form.triangular().values, form.factor().values)


@pytest.mark.parametrize("size", [1e-5, 1e-7, 1e-9])
def test_tiny_row_keeps_its_score(size):
    by_gram, by_lev = rounding.tiny_row(size, draws=4)
    assert by_lev > 1 - 1e-3
    assert by_gram < by_lev - (0.3 if size < 1e-6 else 0)


@pytest.mark.parametrize("noise", [1e-13, 1e-15, 1e-17])
def test_size_is_bounded_at_the_resolution(noise):
    rng, epsilon = np.random.default_rng(1), 0.05
    sketch = lev.Sketch(4, epsilon)
    for _ in range(12):
        plane = rng.standard_normal((500, 2)) * 10.0 ** rng.uniform(-6, 6, (500, 1))
        sketch.update(plane @ rng.standard_normal((2, 4)) + noise * rng.standard_normal((500, 4)))
    # kappa is near 1 for so few columns
    assert sketch.retained <= 4.5 * 4 / epsilon


def below_the_truth(form, keys):
    """Return whether some upper bound is below the exact score; plane rows, so two by two formulas do."""
    rows, upper = exact.rational(keys), form.factor().bracket(keys)[1]
    a, b = zip(*rows, strict=True)
    aa, ab, bb = exact.dot(a, a), exact.dot(a, b), exact.dot(b, b)
    area = aa * bb - ab * ab
    return any(
        bb * x * x - 2 * ab * x * y + aa * y * y > area * Fraction(float(bound))
        for (x, y), bound in zip(rows, upper, strict=True)
    )


def test_dependent_large_rows_are_charged():
    rng = np.random.default_rng(0)
    for _ in range(40):
        large = rng.uniform(0.5, 1, 2)
        # some five times above the resolution
        tiny = 3e-14 * np.array([-large[1], large[0]])
        keys = np.array([large, large * rng.uniform(0.5, 1), tiny, tiny])
        assert not below_the_truth(Form.empty(2).add(keys, None, 1.0)[0], keys)


@pytest.mark.parametrize("size", [1e-6, 1e-8, 1e-10, 1e-12])
def test_nearly_dependent_rows_are_charged(size):
    rng = np.random.default_rng(0)
    first = Form.empty(2).add

    for _ in range(20):
        large, part = rng.uniform(0.5, 1, 2), rng.uniform(0.5, 1)
        across = size * np.array([-large[1], large[0]])
        pair, small = np.array([large, part * large + across]), np.array([0.9 * across, 0.3 * across])
        keys = np.vstack([pair, small])
        before, moved = first(pair, None, 1.0)[0], small.copy()
        moved[1] += 0.2 * size * large
        forms = [
            first(keys, None, 1.0)[0],
            before._through_qr(small, None),
            before.add(small, before.factor(), 1e-9)[0],
            before.merge(first(moved, None, 1.0)[0]),
        ]
        for form in forms[:3]:
            assert not below_the_truth(form, keys)
        assert not below_the_truth(forms[3], np.vstack([pair, moved]))


def test_merged_small_sketches_are_charged():
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = np.linalg.qr(rng.standard_normal((2, 2)))[0]
        keys = rng.standard_normal((4, 2)) @ turn @ np.diag([1, 1e-10]) @ turn.T
        halves = [lev.Sketch(2, 1e-9, start=2 * i).update(keys[2 * i : 2 * i + 2]) for i in range(2)]
        assert not below_the_truth(lev.merge(halves)._streams[0].form, keys)


def test_every_qr_is_charged():
    rng = np.random.default_rng(4)
    for _ in range(5):
        turn = np.linalg.qr(rng.standard_normal((2, 2)))[0]
        keys = rng.standard_normal((600, 2)) @ turn @ np.diag([1, 1e-10]) @ turn.T
        form = Form.empty(2)
        for start in range(0, 600, 2):
            form = form._through_qr(keys[start : start + 2], None)
        assert not below_the_truth(form, keys)


def test_resolution_has_no_column_scales():
    size, query = 3e-14, exact.rational([[1.0, -1.0, 0.0]])[0]
    body = np.tile([0, 0, 2.0**-100], (1000, 1))
    keys = np.vstack([[[1, 1, 0]], body, [[size, -size, 0]]])
    # many small entries make the norm of a column, which its scale must follow
    assert exact.weights(keys, query)[-1] == 1
    assert math.sqrt(0.5) + rounding.blur(keys, query) <= 1
    assert 1001 in lev.universal_set(keys, 0.5).indices


@pytest.mark.parametrize("shift", [2, 4, 6, 7, 9, 20])
def test_resolution_bounds_what_is_hidden(shift):
    # without the blur it is false
    assert (0.1 if shift == 6 else -1) < rounding.resolution(shift) <= 1


@given(seeds)
@few
def test_dropped_parts_add_as_squares(seed):
    assert rounding.dropped_parts(np.random.default_rng(seed)) < 1e-13


def hidden(sketch, keys, queries):
    """Yield (sqrt weight, sqrt of what is said of the key, blur, held) of each key and query that sees any key."""
    found = sketch.universal_set()
    said = dict(zip(found.indices.tolist(), found.scores, strict=True))
    for query in queries:
        weights = exact.weights(keys, query)
        if any(weights):
            blur = rounding.blur(keys, query)
            for j, weight in enumerate(weights):
                yield math.sqrt(weight), math.sqrt(said.get(j, found.omitted)), blur, j in said


@given(seeds, st.floats(-17, -12), st.integers(-20, 20), st.sampled_from(["update", "admit", "merge"]))
@settings(few, max_examples=40)
def test_weight_above_the_blur_is_held(seed, decade, power, way):
    rng, epsilon = np.random.default_rng(seed), 0.15
    plane = rng.integers(-4, 5, (9, 2)) @ rng.integers(-3, 4, (2, 3)) * 1.0
    keys = plane + 10.0**decade * rng.standard_normal((9, 3)) * (rng.random((9, 1)) < 0.4)
    keys *= 2.0 ** np.array([0, power, -power])
    sketch = lev.Sketch(3, epsilon)
    for ids in np.array_split(np.arange(9), 1 if way == "update" else 3):
        if way == "merge":
            sketch.merge(lev.Sketch(3, epsilon).update(keys[ids], ids))
        else:
            getattr(sketch, way)(keys[ids])
    for weight, said, blur, held in hidden(sketch, keys, [exact.best_query(keys, row) for row in keys]):
        assert weight <= said + blur
        assert held or weight < math.sqrt(epsilon) + blur


def test_key_dropped_before_the_rank_rose_is_within_the_blur():
    keys = np.vstack([np.ones((40, 2)), 1 + 2.0**-49 * np.array([[1, -1], [4, -4]])])
    sketch = lev.Sketch(2, 0.05)
    sketch.admit(keys[:41])
    assert sketch.rank == 1
    sketch.admit(keys[41:])
    assert sketch.rank == 2
    seen = list(hidden(sketch, keys, [exact.best_query(keys, keys[40])]))
    assert all(weight <= said + blur for weight, said, blur, _ in seen)
    # full rank in the end does not show that nothing is hidden
    assert any(weight > math.sqrt(0.05) and not held for weight, _, _, held in seen)


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

columns = arrays.arrays(np.float64, st.integers(1, 9), elements=st.integers(1, 9).map(float))
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
    lower, upper = rule.ends(odds, odds, rule.masses(v, scales), len(column), scales)
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


# -- 13 ----------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 3))
@settings(few, max_examples=5)
def test_checked_factors_and_online_scores(seed, dim):
    rng = np.random.default_rng(seed)
    keys = np.vstack([9.0 * np.eye(dim), rng.integers(1, 10, (7, dim))])
    assert all(many.checked(keys, wrong) for wrong in (0.0, 0.1, 1.0))
    assert many.twice(keys, 0.02)
    assert not many.twice(keys, 0.02, charged=False)
    assert many.online(keys, dim + 2) < 1e-11
    for p in (0.5, 1.0, 2.0, 3.0, 4.0):
        assert many.powers(keys, p) <= 1 + 1e-12
        # copies of one row meet the bound
        assert p < 2 or many.powers(np.ones((5, 1)), p) == pytest.approx(1)
    assert many.final_set_is_not_enough(9) == Fraction(1, 10)


# -- 07 ----------------------------------------------------------------------------------------------------


@given(seeds)
@settings(few, max_examples=6)
def test_growth_bounds_hold_and_are_met(seed):
    rng = np.random.default_rng(seed)
    other.bounds_hold(rng.integers(-4, 5, (7, 2)) + rng.choice([0.0, 0.5]))
    other.tight(int(rng.integers(1, 5)))
    # one percent less would be passed: the least function of the class comes that near
    assert min(other.bounds_hold(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))) > 0.99


def test_flow_bound_is_leverage_where_flat():
    assert other.flat() == pytest.approx(1, abs=1e-6)
    assert other.flow_must_be_bounded() > 2


@given(small, st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([0.1, 1.0, 9.0]))
@few
def test_ridge_is_attained_on_the_sphere(keys, c, rho):
    other.ridge(keys[keys.any(axis=1)], c, rho)


@given(small, seeds)
@few
def test_feature_maps_are_leverage(keys, seed):
    mix = np.random.default_rng(seed).integers(-3, 4, (keys.shape[1], 3)).astype(float)
    maps = lift.FeatureMap(phi=lambda rows: rows, psi=lambda rows: np.abs(rows @ mix))
    found = lev.LiftedSketch(keys.shape[1], 0.2, maps).update(keys).universal_set()
    for j, score in enumerate(exact.scores(np.abs(keys @ mix))):
        assert score < 0.2 or j in found.indices
        assert j not in found.indices or close(found.scores[list(found.indices).index(j)], score)


# -- 08 ----------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 6), st.integers(1, 3))
@few
def test_softmax_has_no_small_set(count, dim, copies):
    assert softmax.vertices(count, dim, copies, 1e9).min() > (1 - 1e-3) / copies
    assert softmax.inside() < 0.5
    with pytest.raises(ValueError, match="no small universal set"):
        lev.functions.BoundedSoftmax()


@given(st.floats(0.01, 20), st.integers(2, 9))
@few
def test_softmax_ends_meet_at_closed_forms(rho, count):
    for keys, truth in (
        (np.array([[0.7], [-0.7]]), softmax.two_keys(rho, 0.7)),
        (np.eye(count), softmax.unit_vectors(count, rho)),
    ):
        lower, upper = lev.functions.BoundedSoftmax(rho).sensitivities(keys)
        assert np.all(lower <= truth * (1 + 1e-12))
        assert np.all(upper >= truth * (1 - 1e-12))
        assert np.all(upper <= truth * (1 + 1e-5))
        more = np.vstack([keys, keys[:1]])
        assert np.all(lev.functions.BoundedSoftmax(rho).sensitivities(more)[0][: len(keys)] <= upper * (1 + 1e-9))


@given(seeds, st.sampled_from([0.1, 1.0, 5.0]))
@few
def test_any_distribution_bounds_softmax(seed, rho):
    rng = np.random.default_rng(seed)
    softmax.any_distribution(rng.standard_normal((7, 2)), rho, rng)
    softmax.gap(rng.standard_normal((7, 2)), min(rho, 0.2), rng)


# -- 09 ----------------------------------------------------------------------------------------------------


@given(seeds)
@few
def test_planted_keys_stand_out(seed):
    score, bound = planted.stand_out(seed)
    assert score >= bound


def test_planted_bound_is_met():
    keys = planted.flat_noise(3, 5, 6, 0.3, np.random.default_rng(0))
    np.testing.assert_allclose(lev.leverage_scores(keys)[:3], 1 / (1 + 5 * 0.3**2), rtol=1e-9)


def test_no_gap_at_equal_norms():
    ratios = [planted.ratio(copies) for copies in (1, 10, 100, 1000)]
    assert all(ratio > 1 for ratio in ratios)
    assert ratios[-1] == pytest.approx(1, abs=2e-3)


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


# -- 06 ----------------------------------------------------------------------------------------------------


@given(small, thresholds)
@few
def test_prefix_scores_are_those_of_the_prefix(keys, epsilon):
    lives = lev.CausalSketch(keys.shape[1], epsilon).update(keys).lifetimes()
    for i in range(len(keys)):
        members = set(lives.ids[lives.mask([i])[0]].tolist())
        for j, score in enumerate(exact.scores(keys[: i + 1])):
            assert j in members or score < epsilon
            assert j not in members or score >= epsilon * (1 - 2 * bounds.PREFIX_SHARE)


@given(small, thresholds, st.integers(1, 6))
@few
def test_rows_after_decide_for_windows(keys, epsilon, width):
    sketch = lev.SlidingWindowSketch(keys.shape[1], epsilon, width, block=1)
    for end in range(1, len(keys) + 1):
        found = sketch.update(keys[end - 1 : end]).universal_set()
        first = max(0, end - width)
        for j, score in enumerate(exact.scores(keys[first:end])):
            assert score < epsilon or first + j in found.indices


# -- the folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(THEORY.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_scripts_run(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_notes_have_their_six_parts():
    for note in sorted(THEORY.glob("[0-9]*.md")):
        parts = re.findall(r"^## (.*)$", note.read_text(), flags=re.MULTILINE)
        assert parts == ["Claim", "Proof", "Source", "Used in", "Check", "Status"], note.name
        assert note.with_suffix(".py").exists()


def named(text, pattern):
    return sorted(set(re.findall(pattern, text)))


def resolve(path):
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def test_index_names_what_exists():
    text = "".join(path.read_text() for path in THEORY.glob("*.md"))
    tests = named(text, r"`(test_\w+)`")
    assert tests
    files = Path(__file__).parent.glob("test_*.py")
    assert set(tests) <= {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    for path in named((THEORY / "README.md").read_text(), r"`(lev\.[\w.]+)`"):
        assert resolve(path) is not None
    for path in named(text, r"`((?:bounds|form|sketch|heavy|scores|universal|cpu)\.[\w.]+)`"):
        assert resolve(f"lev.{path}") is not None
