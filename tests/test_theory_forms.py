"""Universal sets, streams, windows and sampled forms: each test would fail with its inequality reversed."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from theorems import MARGIN, close, exact, few, note, seeds, small, thresholds

import lev
from lev import bounds
from lev.form import Form

sampled = note("15_sampled_forms")


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
        sketch = sketch.update(row[None])._settle().copy()  # the bounds so far stay with the rows
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


# -- 15 ----------------------------------------------------------------------------------------------------


@given(small, thresholds, st.lists(st.booleans(), min_size=12, max_size=12))
def test_sampled_forms(keys, epsilon, sample):
    sampled.check(keys.astype(int), np.array(sample), Fraction(epsilon))
    # in one direction, with equal rows, the library's slack is met
    equal = lev.Sketch(1, 0.01, sample=1e-9).update(np.ones((600, 1)))
    assert equal.slack == pytest.approx(600 / 256, rel=2e-3)
    np.testing.assert_allclose(equal.normalizer([[1.0]]), [[256], [600]], rtol=1e-2)
