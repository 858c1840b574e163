"""Streams for every power and with decay: nothing is missed, whatever the keys, the split, the merge and the query."""

import itertools
import math

import naive
import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, cuts, streams

import lev
from lev import bounds

small_blocks = pytest.mark.usefixtures("small_blocks")
POWERS = [0.5, 1.0, 1.5, 3.0, 4.0, 6.0]
powers = st.sampled_from(POWERS)
decays = st.sampled_from([1.0, 0.99, 0.9, 0.5])
some = settings(max_examples=60)
FAMILIES = ("gaussian", "integers", "low_rank", "repeated", "sparse", "graded", "one_huge", "heavy_tailed", "growing")
FAMILIES += ("near_rounding",)


def sketched(keys, positions, **arguments):
    sketch = lev.Sketch(keys.shape[1], **arguments)
    for first, last in itertools.pairwise(positions):
        sketch.update(keys[first:last])
    return sketch


def queries_for(keys, p, ages, decay, rng):
    yield from rng.standard_normal((3, keys.shape[1]))
    yield from keys[:3]
    for j in rng.permutation(len(keys))[:8]:
        yield from naive.ascent(keys, j, p, ages, decay)


def assert_nothing_missed(sketch, keys, rng, *, least_blur=1e-4):
    """Hold set, entries and normaliser of a sketch of ``keys`` to brute force over queries that look for gaps."""
    p, decay, found = sketch.p, sketch.decay, sketch.universal_set()
    ages = np.arange(len(keys))[::-1]
    said = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    seen = []
    for query in queries_for(keys, p, ages, decay, rng):
        blur = naive.blur(keys * decay ** (ages / p)[:, None], query, 1e-14) if np.isfinite(query).all() else np.inf
        if blur > least_blur:
            continue
        weights = naive.entries(query, keys, p, ages, decay)
        (hits,) = sketch.heavy_hitters(query[None], width=len(keys)).toarray()
        # a product <q,k> is only known up to the blur
        for j, weight in enumerate(np.maximum(weights ** (1 / p) - blur, 0) ** p * (1 - 1e-9)):
            assert weight <= said.get(j, found.omitted), f"key {j} gets {weight}"
            assert weight < found.epsilon or j in said
            assert weight < found.epsilon or weight <= hits[j]
        low, high = (float(end[0]) for end in sketch.normalizer(query[None]))
        with np.errstate(over="ignore"):
            total = float(np.sum(decay**ages * np.abs(keys @ query) ** p))
        if 1e-290 < total < 1e290:
            assert low * (1 - 1e-6) <= total <= high * (1 + 1e-6)
            if blur < 1e-9:
                seen.append((query, total, weights))
    if seen:
        assert_narrowed(sketch, *map(np.array, zip(*seen, strict=True)))


def assert_narrowed(sketch, queries, totals, weights):
    """A normaliser known from elsewhere narrows the ends of entries; a wrong one leaves them within what is proved."""
    proved = sketch.heavy_hitters(queries, width=weights.shape[1])
    for known, right in (((1 - 1e-6, 1 + 1e-6), True), ((1 / 9, 1 / 8), False), ((8, 9), False)):
        ends = [totals * end for end in known]
        hits = sketch.heavy_hitters(queries, width=weights.shape[1], normalizer=ends)
        np.testing.assert_array_equal(hits.indptr, proved.indptr)
        np.testing.assert_array_equal(hits.indices, proved.indices)
        assert np.all((proved.lower.data <= hits.lower.data) & (hits.lower.data <= hits.data))
        assert np.all(hits.data <= proved.data)
        if right:
            true = weights[np.repeat(np.arange(len(queries)), np.diff(hits.indptr)), hits.indices]
            assert np.all((hits.lower.data <= true * (1 + 1e-5)) & (true <= hits.data * (1 + 1e-5)))


@small_blocks
@some
@given(st.data())
def test_nothing_is_missed_whatever_the_keys_and_the_split(data):
    keys = data.draw(streams(families=FAMILIES, most_rows=24, most_columns=3))
    p, decay, epsilon = data.draw(powers), data.draw(decays), data.draw(EPSILONS)
    sketch = sketched(keys, data.draw(cuts(len(keys))), epsilon=epsilon, p=p, decay=decay)
    assert_nothing_missed(sketch, keys, np.random.default_rng(len(keys)))


@small_blocks
@some
@given(st.data())
def test_nothing_is_missed_among_float32_rows(data):
    families = ("gaussian", "integers", "repeated", "sparse", "heavy_tailed", "shrinking")
    keys = np.clip(data.draw(streams(families=families, most_rows=24, most_columns=3)), -1e37, 1e37).astype(np.float32)
    p, epsilon = data.draw(powers), data.draw(EPSILONS)
    sketch = sketched(keys, data.draw(cuts(len(keys))), epsilon=epsilon, p=p)
    assert_nothing_missed(sketch, keys.astype(np.float64), np.random.default_rng(len(keys)))


def climbed(keys, p, rounds=3):
    """Return for each key queries that give it more and more weight, by reweighted least squares, all at once."""
    eye, weights, found = np.eye(keys.shape[1]), np.ones((len(keys), len(keys))), []
    for _ in range(rounds):
        grams = np.einsum("jl,la,lb->jab", weights, keys, keys)
        ridges = 1e-12 * np.trace(grams, axis1=1, axis2=2)[:, None, None] * eye
        found.append(np.linalg.solve(grams + ridges, keys[:, :, None])[:, :, 0])
        sizes = np.abs(found[-1] @ keys.T)
        weights = np.clip(sizes / sizes.max(axis=1, keepdims=True), 1e-6, 1) ** (p - 2)
    return np.concatenate(found)


@small_blocks
def test_ten_thousand_cases_miss_nothing():
    cases, heavy = 0, 0
    for seed in range(90):
        rng = np.random.default_rng(seed)
        p, epsilon, dim = POWERS[seed % 6], (0.02, 0.05, 0.2)[seed % 3], 1 + seed % 4
        keys = strategies.FAMILIES[("gaussian", "repeated", "heavy_tailed", "integers")[seed // 3 % 4]](rng, 40, dim)
        keys = keys[keys.any(axis=1)]
        owner = rng.integers(0, 1 + seed % 4, len(keys))
        parts = [lev.Sketch(dim, epsilon, p) for _ in range(1 + seed % 4)]
        for part, sketch in enumerate(parts):
            for ids in np.array_split(np.flatnonzero(owner == part), 2):
                sketch.update(keys[ids], ids)
        sketch = lev.merge([parts[i] for i in rng.permutation(len(parts))])
        queries = np.vstack([climbed(keys, p), rng.standard_normal((20, dim)), keys])
        weights, found = naive.weights(queries, keys, p), sketch.universal_set()
        assert set(np.flatnonzero((weights >= epsilon * (1 + 1e-9)).any(axis=0))) <= set(found.indices.tolist())
        hits = sketch.heavy_hitters(queries, width=len(keys))
        upper, lower = hits.toarray(), hits.lower.toarray()
        reached = weights >= epsilon * (1 + 1e-9)
        assert np.all(upper[reached] >= weights[reached] * (1 - 1e-9))
        assert np.all(lower <= weights * (1 + 1e-9))
        cases, heavy = cases + len(queries), heavy + np.count_nonzero(reached)
    assert cases >= 10_000
    assert heavy >= 10_000  # entries that could have been missed


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_weights_do_not_raise_what_was_taken_for_rounding(p, apart, request):
    rows = 20
    if apart:  # the last row then comes alone
        request.getfixturevalue("small_blocks")
    line = np.outer(np.random.default_rng(0).standard_normal(rows), [3.0, 4.0])
    for level in 10.0 ** -np.arange(13, 18):
        keys = np.vstack([line, [[4 * level, -3 * level]]])
        sketch = sketched(keys, [0, rows, rows + 1], epsilon=0.1, p=p)
        for share in 10.0 ** -np.arange(12):  # how far from across the line the query is
            query = np.array([0.8, -0.6]) + share * np.array([0.6, 0.8])
            if naive.blur(keys, query, 1e-14) < 1e-3:
                low, high = (float(end[0]) for end in sketch.normalizer(query[None]))
                total = np.sum(np.abs(keys @ query) ** p)
                assert low * (1 - 1e-2) <= total <= high * (1 + 1e-2)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.9, 3.0])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_rows_too_large_for_a_frame_of_few_directions_are_held(p, decay):
    """Beside rows that are tiny, or of long ago, they overflow."""
    sketch = lev.Sketch(2, 0.5, p, decay=decay)
    sketch.admit([[1e-160, 1e-160]] if decay == 1 else [[1.0, 1.0]])
    big, last = (1e160, 1) if decay == 1 else (1.0, 5000)
    sketch.admit([[big, big]], indices=[last])
    found, (low, high) = sketch.universal_set(), sketch.normalizer([[1 / big, 0.0]])
    assert found.indices.tolist() in ([last], [0, last])
    assert found.omitted < 1e-70
    assert 0.5 < low[0] <= 1 + 1e-9
    assert high[0] >= 1 - 1e-9


@small_blocks
@some
@given(st.data())
def test_nothing_is_missed_by_merging_in_any_order(data):
    keys = data.draw(streams(families=FAMILIES, most_rows=24, most_columns=3))
    p, decay, epsilon = data.draw(powers), data.draw(decays), data.draw(EPSILONS)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=len(keys), max_size=len(keys)))
    parts = []
    for number in data.draw(st.permutations(range(4))):
        ids = np.flatnonzero(np.array(owner) == number)
        parts.append(lev.Sketch(keys.shape[1], epsilon, p, decay=decay).update(keys[ids], indices=ids))
    merged = lev.merge(parts)
    assert merged.count == len(keys)
    assert_nothing_missed(merged, keys, np.random.default_rng(len(keys)))
    more = np.vstack([keys, keys[:9] + 1])
    merged.update(more[len(keys) :], indices=np.arange(len(keys), len(more)))
    assert_nothing_missed(merged, more, np.random.default_rng(len(keys)))


@small_blocks
@given(st.data())
def test_any_split_gives_the_same_bits(data):
    keys = data.draw(streams())
    arguments = {"epsilon": data.draw(EPSILONS), "p": data.draw(powers), "decay": data.draw(decays)}
    whole = sketched(keys, [0, len(keys)], **arguments)
    assert sketched(keys, data.draw(cuts(len(keys))), **arguments) == whole
    twin = lev.Sketch.from_bytes(whole.to_bytes())
    assert twin == whole
    assert_same_set(twin.universal_set(), whole.universal_set())


def assert_same_set(one, other):
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert (one.omitted, one.exact, one.count) == (other.omitted, other.exact, other.count)


@small_blocks
@some
@given(streams(families=("gaussian", "integers", "repeated", "sparse"), most_rows=60), powers, EPSILONS)
def test_certified_sensitivities_agree(keys, p, epsilon):
    lower, upper = lev.sensitivities(keys, p)
    sketch = sketched(keys, [0, len(keys)], epsilon=epsilon, p=p)
    found = sketch.universal_set()
    said = np.full(len(keys), found.omitted)
    said[found.indices] = found.scores
    assert np.all(said >= lower * (1 - 1e-12))
    if found.exact:
        assert np.all(upper[found.indices] >= epsilon * (1 - 1e-4))


@small_blocks
@pytest.mark.parametrize("p", POWERS)
def test_size_is_within_its_bound(p):
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((4000, 3)) * np.exp(rng.standard_normal((4000, 1)))
    sketch = sketched(keys, [0, 4000], epsilon=0.02, p=p)
    (stream,) = sketch._settle()._streams
    assert sketch.retained <= bounds.max_members(stream.mass, 0.02, p)
    growth = math.log(np.linalg.norm(keys, axis=1).max() / np.linalg.norm(keys, axis=1).min() * 4000)
    assert 3 * (1 - 1e-9) <= stream.mass <= 3 * (1 + growth * 2 / p)


def test_a_jump_of_the_rank_within_a_block_adds_little_weight():
    rng = np.random.default_rng(4)
    keys = rng.standard_normal((4096, 4))
    keys[:2048, 2:] = 0
    for p in POWERS:
        sketch = lev.Sketch(4, 0.05, p).update(keys)
        assert sketch._settle()._streams[0].mass < 4 * (1 + math.log(4096) * 4 / p)


@small_blocks
@given(streams(families=FAMILIES, most_rows=24, most_columns=3), EPSILONS)
def test_decayed_squares_are_exact(keys, epsilon):
    sketch = lev.Sketch(keys.shape[1], epsilon, decay=0.25).update(keys)
    scaled = keys * 0.5 ** np.arange(len(keys))[::-1, None]
    scores, queries = naive.leverage(scaled)
    found = sketch.universal_set()
    said = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    for j, (score, query) in enumerate(zip(scores, queries, strict=True)):
        blur = naive.blur(scaled, query, sketch.resolution)
        seen = score if blur < 1e-9 else max(0.0, float(score) ** 0.5 - blur) ** 2
        assert float(seen) <= said.get(j, found.omitted) * (1 + 2**-40)
        assert seen < epsilon * (1 + 2**-40) or j in said
    if found.exact:
        assert all(scores[j] >= epsilon * (1 - 2.0**-20) for j in said)


@pytest.mark.parametrize("p", [1.0, 2.0, 6.0])
def test_a_long_decayed_stream_neither_overflows_nor_drifts(p):
    rng = np.random.default_rng(5)
    sketch = lev.Sketch(4, 0.05, p, decay=0.99, start=2**52)
    sizes = []
    for _ in range(40):
        keys = rng.standard_normal((5000, 4))
        sizes.append(sketch.update(keys).retained)
    fresh = lev.Sketch(4, 0.05, p, decay=0.99, start=2**52 + 195_000).update(keys)
    old, new = sketch.universal_set(), fresh.universal_set()
    if p == 2:
        np.testing.assert_array_equal(old.indices, new.indices)
        np.testing.assert_allclose(old.scores, new.scores, rtol=1e-9)
    assert np.isfinite(sketch.normalizer(keys[:5])[0]).all()
    assert max(sizes[10:]) <= 2 * max(sizes[:10])


def test_directions_not_seen_for_long_are_released():
    rng = np.random.default_rng(6)
    keys = rng.standard_normal((20_000, 3))
    keys[5:, 2] = 0
    sketch = lev.Sketch(3, 0.05, decay=0.8)
    assert sketch.update(keys[:50]).rank == 3
    assert sketch.update(keys[50:]).rank == 2
    sketch.update(np.eye(3)[2:])
    assert sketch.rank == 3
    assert sketch.universal_set().scores.max() == 1


def test_time_is_the_id():
    keys = np.array([[1.0], [1.0], [1.0]])
    sketch = lev.Sketch(1, 0.001, decay=0.5).update(keys, indices=[7, 0, 10])
    np.testing.assert_allclose(sketch.universal_set().scores, np.array([0, 2**-3, 1])[1:] / (2**-10 + 2**-3 + 1))
    lower, upper = sketch.normalizer([[1.0]])
    assert lower[0] <= 1 + 2**-3 + 2**-10 <= upper[0]


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_the_normalizer_is_as_of_the_last_id(p):
    sketch = lev.Sketch(1, 0.5, p, decay=0.9, start=5).update([[3.0]])
    np.testing.assert_allclose(sketch.normalizer([[1.0]])[0], 3.0**p)
    sketch.update([[0.0]])
    np.testing.assert_allclose(sketch.normalizer([[1.0]])[0], 0.9 * 3.0**p)


@pytest.mark.parametrize("scale", [1e100, 1e-100])
@pytest.mark.parametrize("p", [0.5, 3.0, 10.0])
def test_scale_changes_nothing(p, scale):
    keys = np.random.default_rng(8).standard_normal((300, 3))
    keys[7] *= 20
    plain, scaled = (lev.Sketch(3, 0.1, p).update(part).universal_set() for part in (keys, keys * scale))
    np.testing.assert_array_equal(plain.indices, scaled.indices)
    np.testing.assert_allclose(plain.scores, scaled.scores, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e100, 1e-100])
@pytest.mark.parametrize("p", [0.5, 3.0, 10.0])
def test_scale_changes_no_answer(p, scale):
    keys = np.random.default_rng(8).standard_normal((30, 2))
    keys[7] *= 20
    queries = np.vstack([keys[7], [1.0, -1.0]])

    def answers(keys, queries):
        sketch = lev.Sketch(2, 0.1, p).update(keys)
        yield lev.lewis_weights(keys, p)
        yield from lev.sensitivities(keys, p, [7, 0])
        yield lev.universal_set(keys, 0.3, p).indices
        yield lev.heavy_entries(queries, keys, 0.1, p).toarray()
        yield sketch.heavy_hitters(queries).toarray()
        yield np.array(sketch.normalizer(queries))
        yield lev.CoresetSketch(2, p, delta=3).update(keys).coreset().indices
        if p >= 1:
            yield sketch.second_pass(keys).indices

    # a query that shrinks as the keys grow keeps every answer; one that does not leaves float64, and nothing is raised
    for one, other in zip(answers(keys, queries), answers(keys * scale, queries / scale), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    sketch, small = lev.Sketch(2, 0.1, p).update(keys * scale), lev.coreset(keys * scale, p, delta=0.5)
    far = [[scale, scale]]
    low, high = sketch.normalizer(far)
    assert low <= high
    ends = small.bracket(far)
    assert ends[0] <= small.normalizer(far)
    np.testing.assert_array_equal(sketch.heavy_hitters(far).indices, sketch.heavy_hitters(far, normalizer=ends).indices)


@pytest.mark.parametrize("p", [1.0, 3.0, 10.0])
def test_large_and_small_rows_together(p):
    keys = np.random.default_rng(2).standard_normal((40, 2))
    keys[0] *= 1e100
    keys[1] *= 1e-100
    keys[2] *= 1e150
    found, whole = lev.Sketch(2, 0.1, p).update(keys).universal_set(), lev.universal_set(keys, 0.1, p)
    # two directions, and two rows that dwarf all others
    assert {0, 2} <= set(whole.indices.tolist()) <= set(found.indices.tolist())
    assert whole.scores[[0, 1]].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("p", [0, -1, np.inf, np.nan])
def test_a_bad_p_is_named_everywhere(p):
    keys = np.eye(2)
    for call in (
        lambda: lev.Sketch(2, 0.1, p),
        lambda: lev.CoresetSketch(2, p, delta=0.5),
        lambda: lev.coreset(keys, p, size=1),
        lambda: lev.lewis_weights(keys, p),
        lambda: lev.sensitivities(keys, p),
        lambda: lev.universal_set(keys, 0.1, p),
        lambda: lev.heavy_entries(keys, keys, 0.1, p),
        lambda: lev.functions.Power(p),
        lambda: lev.lift.SymmetricPower(p),
    ):
        with pytest.raises(ValueError, match=f"p must be .*; got {p}"):
            call()


@pytest.mark.parametrize("p", [1.0, 4.0])
def test_entries_have_two_ends(p):
    rng = np.random.default_rng(9)
    keys = rng.standard_normal((500, 4))
    keys[3] *= 30
    sketch = lev.Sketch(4, 0.05, p).update(keys)
    hits = sketch.heavy_hitters(keys[:50])
    truth = lev.heavy_entries(keys[:50], keys, 0.05, p).toarray()
    upper, lower = hits.toarray(), hits.lower.toarray()
    assert np.all(upper[truth > 0] >= truth[truth > 0] * (1 - 1e-12))
    assert np.all(lower <= upper)
    exact = naive.weights(keys[:50], keys, p)
    assert np.all(lower[lower > 0] <= exact[lower > 0] * (1 + 1e-12))
    assert hits.lower.nnz == hits.nnz


@pytest.mark.parametrize("p", [3.0, 4.0, 10.0])
def test_sums_of_weights_that_underflow_miss_nothing(p):
    for keys, ids in (([[3.0], [0.0]], [0, 1500]), ([[1e-9], [3.0], [3.0], [3.0]], [1500, 0, 1, 2])):
        sketch = lev.Sketch(1, 0.1, p, decay=0.5)
        for key, number in zip(keys, ids, strict=True):
            sketch.update([key], [number]).universal_set()
        found = sketch.universal_set()
        weights = naive.entries(np.ones(1), np.array(keys), p, 1500 - np.array(ids), 0.5)
        assert {ids[j] for j in np.flatnonzero(weights >= 0.1)} <= set(found.indices.tolist())


def test_young_decayed_streams_have_an_upper_normalizer():
    rng = np.random.default_rng(3)
    keys, queries = rng.standard_normal((1000, 3)), rng.standard_normal((50, 3))
    ratios = []
    for count in (10, 100, 1000):
        sketch = lev.Sketch(3, 0.1, 4.0, decay=0.99).update(keys[:count])
        low, high = sketch.normalizer(queries)
        true = np.sum(np.abs(keys[:count] @ queries.T) ** 4 * 0.99 ** np.arange(count)[::-1, None], axis=0)
        assert np.all((low <= true) & (true <= high))
        ratios.append(float(np.median(high / true)))
    assert ratios[0] < 10
    assert ratios[-1] > 100  # it grows as the oldest rows age


def test_affine_queries_for_other_powers():
    keys = np.random.default_rng(10).standard_normal((60, 2)) + 5
    sketch = lev.Sketch(2, 0.1, 3.0, intercept=True).update(keys)
    with_one = np.hstack([keys, np.ones((60, 1))])
    lower, _ = lev.sensitivities(with_one, 3.0)
    found = sketch.universal_set()
    assert set(np.flatnonzero(lower >= 0.1)) <= set(found.indices.tolist())
    query = np.linalg.pinv(with_one)[:, found.indices[0]]
    total = np.sum(np.abs(with_one @ query) ** 3)
    low, high = sketch.normalizer(query[None])
    assert low[0] <= total <= high[0]


@pytest.mark.parametrize("p", POWERS)
def test_a_block_weighed_against_itself_fits(p):
    keys = np.random.default_rng(14).standard_t(2, (200, 3))
    ones = np.ones(200)
    state = lev.Sketch(3, 0.1, p)._streams[0]
    weights = state._balanced(keys, ones, ones)
    form, _ = state.form.add(keys, None, None, state.weighting.factors(weights, ones))
    own = form.factor().ends(keys)[0] ** (p / 2)
    assert np.all(own <= weights)
    assert weights.sum() < 3 * 1.2


# -- a second pass -----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(streams(families=("gaussian", "integers", "repeated", "sparse", "low_rank"), most_rows=40), EPSILONS, st.data())
def test_a_second_pass_tightens_and_misses_nothing(keys, epsilon, data):
    p = data.draw(st.sampled_from([1.0, 1.5, 3.0, 4.0, 6.0]))
    lower, upper = lev.sensitivities(keys, p)
    sketch = lev.Sketch(keys.shape[1], epsilon, p).update(keys)
    before = sketch.to_bytes()
    found = sketch.second_pass(np.array_split(keys, 3))
    assert sketch.to_bytes() == before
    said = np.full(len(keys), found.omitted)
    said[found.indices] = found.scores
    assert np.all(said >= lower * (1 - 1e-12))
    assert set(np.flatnonzero(lower >= epsilon)) <= set(found.indices.tolist())
    assert set(found.indices.tolist()) <= set(sketch.universal_set().indices.tolist())
    if found.exact:
        assert np.all(upper[found.indices] >= epsilon * (1 - 1e-4))


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 4.0])
def test_a_second_pass_makes_a_stream_exact(p):
    rng = np.random.default_rng(12)
    keys = (rng.standard_normal((3000, 5)) * np.exp(0.7 * rng.standard_normal((3000, 1)))).astype(np.float32)
    sketch = lev.Sketch(5, 0.01, p, decay=0.9999).update(keys)
    found = sketch.second_pass(keys)
    assert found.exact or p == 1  # where reweighting is slow
    assert len(found) < len(sketch.universal_set())
    lower, upper = lev.sensitivities(keys * 0.9999 ** (np.arange(3000)[::-1, None] / p), p, found.indices[:20])
    assert np.all(found.scores[:20] >= lower * (1 - 1e-9))
    assert p == 1 or np.all(upper >= 0.01)


def test_a_second_pass_for_a_far_power_of_keys_that_age():
    keys = np.random.default_rng(0).standard_normal((4, 3))
    found = lev.Sketch(3, 0.2, 700.0, decay=0.01).update(keys).second_pass(keys)
    lower, _ = lev.sensitivities(keys * 0.01 ** (np.arange(4)[::-1, None] / 700), 700.0)
    said = np.full(4, found.omitted)
    said[found.indices] = found.scores
    assert np.all(said >= lower * (1 - 1e-9))


def test_what_a_second_pass_refuses():
    keys = np.random.default_rng(13).standard_normal((50, 2))
    sketch = lev.Sketch(2, 0.01, 3.0).update(keys)
    with pytest.raises(TypeError, match="keys must be readable many times; got a generator"):
        sketch.second_pass(block for block in [keys])
    with pytest.raises(ValueError, match="keys must be the 50 rows of the sketch; got 49"):
        sketch.second_pass(keys[:49])
    for other in (keys[::-1], keys + 1e-9, np.random.default_rng(1).standard_normal((50, 2))):
        with pytest.raises(ValueError, match="keys must be the rows of the sketch, in order; the row of id"):
            sketch.second_pass(np.array_split(other, 3))
    padded = lev.Sketch(2, 0.01, 3.0).update(keys, mask=np.arange(50) == 7)
    with pytest.raises(ValueError, match="second_pass needs rows without padding; 1 came with mask"):
        padded.second_pass(keys)
    with pytest.raises(ValueError, match="second_pass needs heads=\\(\\) and p >= 1"):
        lev.Sketch(2, 0.01, 0.5).update(keys).second_pass(keys)
    assert len(lev.Sketch(2, 0.01).update(keys).second_pass(None)) == len(lev.universal_set(keys, 0.01))
