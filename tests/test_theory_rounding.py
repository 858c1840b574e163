"""Rounding, and many heads at once: each test would fail with its inequality reversed."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from theorems import MARGIN, exact, few, note, seeds

import lev
from lev.form import Form
from lev.frame import Stacked, whitening_frame

rounding = note("04_rounding")
many = note("13_heads")


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


# two large rows that agree to a hundredth, which are excused beside a tiny one
LARGE = np.array([[1.0, 1, 1], [1, 1, 1.01]])


def excused(tiny):
    """Return a form that excused the large rows, and its rows."""
    rows = np.vstack([LARGE, [tiny]])
    form = replace(Form.empty(3), limit=MARGIN)._through_qr(rows, None)
    assert form.excuse > 99
    return form, rows


@pytest.mark.parametrize("way", ["admit", "merge"])
@pytest.mark.parametrize("size", [1e-13, 1e-12])
@pytest.mark.parametrize("apart", [True, False])
def test_an_excuse_does_not_blur_large_rows_to_come(size, way, apart):
    large, small = 3 * LARGE, size * np.array([[1.0, -1, 0]])
    blocks = [excused([1e-6 * size, -1e-6 * size, 0])[1], *([large, small] if apart else [large + small])]
    sketch, start = lev.Sketch(3, 0.3), 0
    for block in blocks:
        if way == "merge":
            sketch.merge(lev.Sketch(3, 0.3, start=start).update(block))
        else:
            sketch.admit(block)
        start += len(block)
    keys = np.vstack(blocks)
    assert sketch.rank == 3
    for weight, said, blur, held in hidden(sketch, keys, [exact.best_query(keys, row) for row in keys[-2:]]):
        assert weight <= said + blur
        assert held or weight < math.sqrt(0.3) + blur


@pytest.mark.parametrize("size", [1.0, 2.0**-11])
def test_rows_are_charged_at_most_once(size):
    form, rows = excused([1e-9, -1e-9, 0])
    for i in range(400):
        more = size * (LARGE[:1] if i % 20 == 0 else np.array([[1.0, -1, 0]]) * (-1) ** i)
        form, rows = form._through_qr(more, None), np.vstack([rows, more])
        sizes = np.linalg.norm(rows / 2.0**form.frame.exponents, axis=0)
        assert np.linalg.norm(form.tail) <= (1 + 1e-9) * np.linalg.norm(sizes)
        np.testing.assert_allclose(form.charged().tail, sizes if form.excuse else form.tail)
    assert not form.excuse


def test_nothing_is_excused_in_plain_columns():
    rows = np.array([[1.0, 1], [2.0**-11, -(2.0**-11)]])
    excuses = [whitening_frame([Stacked(rows, np.zeros(2, np.int64), np.full(2, tail))], 0.0)[2] for tail in (0, 1)]
    assert excuses[0] >= 1
    assert not excuses[1]  # nor where it does not pay
    form = Form.empty(2)._through_qr(rows, None)
    assert form.frame.triangle is None
    assert not form.excuse
    np.testing.assert_allclose(form.tail, np.linalg.norm(rows / 2.0**form.frame.exponents, axis=0))


def test_large_rows_to_come_are_charged_rather_than_excused():
    form, rows = excused([1e-9, 1e-9, 1e-9])
    assert form.rank == 2
    grown, _ = form._summed(3 * LARGE, None)
    sizes = np.linalg.norm(np.vstack([rows, 3 * LARGE]) / 2.0**form.frame.exponents, axis=0)
    assert not grown.excuse
    np.testing.assert_allclose(grown.tail, sizes)
    # and neither their own excuse nor their tail hides what they have outside the span
    assert form._leaves(3 * LARGE + 2e-13 * np.array([1.0, -1, 0]), None).all()


@pytest.mark.parametrize("size", [1e-14, 3e-14])
def test_merges_do_not_add_to_the_blur(size):
    rng, line, many = np.random.default_rng(0), np.array([1.0, 0.7310585786300049]), 600
    form = Form.empty(2)
    for _ in range(many):
        form = form.merge(Form.empty(2)._through_qr(rng.standard_normal((2, 1)) * line, None))
    off = math.sqrt(2 * many) * (line + size * np.array([1.0, -1.0]))
    assert form.rank == 1
    assert form._through_qr(off[None], None).rank == 2


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
