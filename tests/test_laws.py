"""The laws: never miss, any split, any partition, any order, monotone, bounded."""

import itertools
import math
import pickle

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts, streams

import lev
from lev import bounds

pytestmark = pytest.mark.usefixtures("small_blocks")


def sketch_of(keys, epsilon, positions=None, **arguments):
    sketch = lev.Sketch(keys.shape[1], epsilon, **arguments)
    positions = [0, len(keys)] if positions is None else positions
    for first, last in itertools.pairwise(positions):
        sketch.update(keys[first:last])
    return sketch


def assert_universal(found, keys, sketch):
    """Hold a universal set to the exact scores: nothing missed, nothing extra if exact, every bound above."""
    scores, queries = naive.leverage(keys)
    members = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    for j, (score, query) in enumerate(zip(scores, queries, strict=True)):
        # blur is what the sketch itself says it cannot see: it only matters for nearly dependent keys
        blur = naive.blur(keys, query, sketch.resolution)
        seen = score if blur < 1e-9 else max(0.0, float(score) ** 0.5 - blur) ** 2
        if seen >= found.epsilon:
            assert j in members, f"missed key {j} with score {float(score)}"
        assert float(seen) <= members.get(j, found.omitted) * (1 + 2**-52)
    if found.exact:
        least = found.epsilon * (1 - 2 * bounds.margin(keys.dtype))
        assert all(scores[j] >= least for j in members)


def assert_same_hits(found, wanted, epsilon):
    """Hold heavy hitters to brute force; only an entry that is epsilon up to rounding may stand in one alone."""
    assert found.shape == wanted.shape
    found, wanted = found.toarray(), wanted.toarray()
    alone = (found > 0) != (wanted > 0)
    assert np.all(np.abs(np.maximum(found, wanted)[alone] - epsilon) <= 1e-6 * epsilon)
    np.testing.assert_allclose(found[~alone], wanted[~alone], rtol=1e-6)


@settings(max_examples=400)
@given(st.data())
def test_nothing_is_missed_whatever_the_keys_and_the_split(data):
    keys = data.draw(streams())
    sketch = sketch_of(keys, data.draw(EPSILONS), data.draw(cuts(len(keys))))
    assert_universal(sketch.universal_set(), keys, sketch)
    assert sketch.count == len(keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_missed_in_each_family(family):
    rng = np.random.default_rng(7)
    for epsilon in (0.02, 0.2, 0.9):
        keys = FAMILIES[family](rng, 50, 4)
        sketch = sketch_of(keys, epsilon)
        assert_universal(sketch.universal_set(), keys, sketch)


@given(st.data())
def test_any_split_gives_the_same_bits(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    whole = sketch_of(keys, epsilon)
    parts = sketch_of(keys, epsilon, data.draw(cuts(len(keys))))
    assert parts == whole
    assert parts.to_bytes() == whole.to_bytes()


@settings(max_examples=200)
@given(st.data())
def test_any_partition_and_merge_order_misses_nothing(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    positions = data.draw(cuts(len(keys)))
    parts = [
        lev.Sketch(keys.shape[1], epsilon, start=first).update(keys[first:last])
        for first, last in itertools.pairwise(positions)
    ]
    before = [part.to_bytes() for part in parts]
    tree = lev.merge(data.draw(st.permutations(parts)))
    assert [part.to_bytes() for part in parts] == before
    chain = lev.Sketch(keys.shape[1], epsilon)
    for part in data.draw(st.permutations(parts)):
        chain.merge(part)
    for merged in (tree, chain):
        assert_universal(merged.universal_set(), keys, merged)
        assert merged.count == len(keys)


@pytest.mark.parametrize("family", ["ill_conditioned", "near_collinear", "one_huge", "graded"])
def test_merging_small_parts_of_nearly_dependent_rows_misses_nothing(family):
    # an excuse of a first merge, charged to the rows of a second, once hid keys here
    rng = np.random.default_rng(0)
    for _ in range(150):
        keys = FAMILIES[family](rng, 10, 2)
        parts = [lev.Sketch(2, 0.1, start=a).update(keys[a:b]) for a, b in ((6, 7), (7, 10), (0, 6))]
        merged = lev.merge(parts)
        assert_universal(merged.universal_set(), keys, merged)


@given(st.data())
def test_order_of_rows_does_not_matter(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    order = np.array(data.draw(st.permutations(range(len(keys)))), dtype=np.int64)
    sketch = lev.Sketch(keys.shape[1], epsilon).update(keys[order], indices=order)
    assert_universal(sketch.universal_set(), keys, sketch)


@given(st.data())
def test_reads_change_nothing(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    read, unread = lev.Sketch(keys.shape[1], epsilon), lev.Sketch(keys.shape[1], epsilon)
    for position in data.draw(cuts(len(keys)))[1:]:
        block = keys[read.count : position]
        read.update(block).universal_set()
        read.heavy_hitters(keys[:3])
        unread.update(block)
    assert read == unread


@given(streams(), EPSILONS)
def test_bytes_pickle_and_copy_are_the_same_sketch(keys, epsilon):
    sketch = sketch_of(keys, epsilon)
    for twin in (lev.Sketch.from_bytes(sketch.to_bytes()), pickle.loads(pickle.dumps(sketch)), sketch.copy()):
        assert twin == sketch
        assert twin.count == sketch.count
        np.testing.assert_array_equal(twin.universal_set().scores, sketch.universal_set().scores)
        twin.update(np.ones((1, keys.shape[1])))
        assert twin != sketch
        assert sketch.count == len(keys)


@settings(max_examples=200)
@given(st.data())
def test_a_sketch_goes_on_after_a_round_trip(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    half = len(keys) // 2
    sketch = lev.Sketch.from_bytes(sketch_of(keys[:half], epsilon).to_bytes()).update(keys[half:])
    assert_universal(sketch.universal_set(), keys, sketch)


@given(streams(), EPSILONS, EPSILONS)
def test_a_larger_epsilon_is_answered_from_the_same_sketch(keys, epsilon, other):
    sketch = sketch_of(keys, min(epsilon, other))
    assert_universal(sketch.universal_set(max(epsilon, other)), keys, sketch)


@given(streams(), EPSILONS, st.integers(0, 20))
def test_top_k_still_holds_everything_above_its_epsilon(keys, epsilon, k):
    sketch = sketch_of(keys, epsilon)
    best = sketch.universal_set().top(k)
    assert len(best) <= k
    assert best.epsilon == math.nextafter(best.omitted, math.inf)
    assert_universal(best, keys, sketch)


@given(st.data())
def test_admit_never_turns_away_a_row_that_matters(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    sketch, kept = lev.Sketch(keys.shape[1], epsilon, payload_dim=1), np.zeros(len(keys), bool)
    ids = np.arange(len(keys))
    for position in data.draw(cuts(len(keys)))[1:]:
        block = slice(sketch.count, position)
        given = ids[block] if data.draw(st.booleans()) else None
        kept[block] = sketch.admit(keys[block], given, ids[block, None])
    found = sketch.universal_set()
    assert kept[found.indices].all()
    np.testing.assert_array_equal(found.payload[:, 0], found.indices)
    assert_universal(found, keys, sketch)


@given(st.data())
def test_what_is_retained_is_bounded(data):
    keys, epsilon = data.draw(streams(["gaussian", "integers", "low_rank", "repeated", "sparse"])), data.draw(EPSILONS)
    sketch = sketch_of(keys, epsilon)
    assert sketch.rank == naive.rank(keys)
    assert sketch.retained <= bounds.max_members(sketch.rank, epsilon) * (1 + 2 * bounds.margin(keys.dtype))


# near rounding a normaliser is only known within the margin of the form, and entries below epsilon may be listed too
@given(streams([family for family in FAMILIES if family != "near_rounding"]), EPSILONS)
def test_heavy_hitters_are_those_of_brute_force(keys, epsilon):
    sketch = sketch_of(keys, epsilon)
    queries = keys[:7] if len(keys) else np.ones((2, keys.shape[1]))
    found, wanted = sketch.heavy_hitters(queries), lev.heavy_entries(queries, keys, epsilon)
    assert_same_hits(found, wanted, epsilon)


@settings(max_examples=60)
@given(streams(["gaussian", "integers", "repeated", "sparse"]), EPSILONS)
def test_the_best_query_of_each_key_is_found(keys, epsilon):
    sketch = sketch_of(keys, epsilon)
    scores, queries = naive.leverage(keys)
    queries = np.array([[float(value) for value in query] for query in queries]).reshape(-1, keys.shape[1])
    found = sketch.heavy_hitters(queries, width=len(keys)).toarray()
    for j, score in enumerate(scores):
        if score >= epsilon * (1 + 1e-12):
            assert found[j, j] == pytest.approx(float(score), rel=1e-8)


@settings(max_examples=200)
@given(st.data())
def test_intercept_gives_the_scores_of_rows_with_a_one_appended(data):
    keys, epsilon = data.draw(streams(["gaussian", "integers", "repeated", "near_collinear"])), data.draw(EPSILONS)
    sketch = sketch_of(keys, epsilon, data.draw(cuts(len(keys))), intercept=True)
    found = sketch.universal_set()
    assert found.keys.shape[1] == keys.shape[1]
    affine = np.hstack([keys, np.ones((len(keys), 1))])
    assert_universal(found, affine, sketch)
    queries = np.hstack([keys[:3], np.full((len(keys[:3]), 1), 0.5)])
    found, wanted = sketch.heavy_hitters(queries), lev.heavy_entries(queries, affine, epsilon)
    assert_same_hits(found, wanted, epsilon)


@given(st.data())
def test_payload_travels_with_its_keys(data):
    keys, epsilon = data.draw(streams()), data.draw(EPSILONS)
    payload = np.arange(2.0 * len(keys)).reshape(-1, 2)
    positions = data.draw(cuts(len(keys)))
    sketch = lev.Sketch(keys.shape[1], epsilon, payload_dim=2)
    for first, last in itertools.pairwise(positions):
        sketch.update(keys[first:last], payload=payload[first:last])
    for found in (sketch.universal_set(), lev.Sketch.from_bytes(sketch.to_bytes()).universal_set()):
        np.testing.assert_array_equal(found.payload, payload[found.indices])
        np.testing.assert_array_equal(found.keys, keys[found.indices])


@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, bool])
def test_narrow_dtypes_are_scored_as_the_numbers_they_are(dtype, data):
    families = ["integers", "low_rank"] if np.dtype(dtype).kind in "iub" else ["gaussian", "repeated", "sparse"]
    keys = data.draw(streams(families)).astype(dtype)
    sketch = sketch_of(keys, data.draw(EPSILONS), data.draw(cuts(len(keys))))
    found = sketch.universal_set()
    assert found.keys.dtype == dtype or not len(keys)
    assert_universal(found, keys, sketch)
