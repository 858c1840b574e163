"""Sketches whose form holds a sample of the rows: nothing is missed, whatever the keys, the split and the merge."""

import itertools

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts, streams
from test_laws import assert_universal

import lev
from lev import bounds

small_blocks = pytest.mark.usefixtures("small_blocks")
samples = st.sampled_from([1e-9, 1 / 16, 1 / 3, 0.9])


def sketched(keys, positions, epsilon, sample, **arguments):
    sketch = lev.Sketch(keys.shape[1], epsilon, sample=sample, **arguments)
    for first, last in itertools.pairwise(positions):
        sketch.update(keys[first:last])
    return sketch


def assert_entries(sketch, keys):
    """Hold entries and normalisers to brute force: each lies between its ends, and none that reaches epsilon lacks."""
    queries = np.vstack([keys[:5], np.ones((2, keys.shape[1]))])
    hits = sketch.heavy_hitters(queries, width=len(keys))
    upper, lower = hits.toarray(), hits.lower.toarray()
    low, high = sketch.normalizer(queries)
    for i, query in enumerate(queries):
        blur = naive.blur(keys, query, sketch.resolution)
        if blur > 1e-9:
            continue
        weights = naive.entries(query, keys, 2)
        reached = weights >= sketch.epsilon * (1 + 1e-9)
        assert np.all(upper[i, reached] >= weights[reached] * (1 - 1e-9))
        assert np.all(lower[i] <= weights * (1 + 1e-9))
        exact = [naive.dot(row, naive.exact([query])[0]) for row in naive.exact(keys)]
        total = float(sum(value**2 for value in exact))
        hidden = (sketch.resolution * np.linalg.norm(keys) * np.linalg.norm(query)) ** 2 if total == 0 else 0
        assert low[i] * (1 - 1e-9) <= total + hidden
        assert total <= high[i] * (1 + 1e-9)


@small_blocks
@settings(max_examples=60)
@given(st.data())
def test_nothing_is_missed_whatever_the_keys_and_the_split(data):
    keys, epsilon, sample = data.draw(streams()), data.draw(EPSILONS), data.draw(samples)
    sketch = sketched(keys, data.draw(cuts(len(keys))), epsilon, sample)
    assert sketch.count == len(keys)
    assert_universal(sketch.universal_set(), keys, sketch)
    if len(keys):
        found = sketch.second_pass(np.array_split(keys, 3))
        assert_universal(found, keys, sketch)


@small_blocks
@pytest.mark.parametrize("order", ["as it came", "short rows first", "long rows first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_missed_in_each_family_and_order(family, order):
    rng = np.random.default_rng(7)
    for epsilon in (0.02, 0.2, 0.9):
        keys = FAMILIES[family](rng, 80, 3)
        if order != "as it came":
            sizes = np.argsort(np.abs(keys).max(axis=1), kind="stable")
            keys = keys[sizes if order == "short rows first" else sizes[::-1]]
        sketch = sketched(keys, [0, 17, 80], epsilon, 0.1)
        assert_universal(sketch.universal_set(), keys, sketch)


@small_blocks
@settings(max_examples=60)
@given(st.data())
def test_any_partition_and_merge_order_misses_nothing(data):
    keys, epsilon, sample = data.draw(streams()), data.draw(EPSILONS), data.draw(samples)
    parts = [
        lev.Sketch(keys.shape[1], epsilon, start=first, sample=sample).update(keys[first:last])
        for first, last in itertools.pairwise(data.draw(cuts(len(keys))))
    ]
    merged = lev.merge(data.draw(st.permutations(parts)))
    assert merged.count == len(keys)
    assert_universal(merged.universal_set(), keys, merged)
    more = np.vstack([keys, 2 * keys[:9]])
    merged.update(more[len(keys) :], indices=np.arange(len(keys), len(more)))
    assert_universal(merged.universal_set(), more, merged)


@small_blocks
@given(st.data())
def test_any_split_gives_the_same_bits_and_a_file_holds_them(data):
    keys, epsilon, sample = data.draw(streams()), data.draw(EPSILONS), data.draw(samples)
    decay, intercept = data.draw(st.sampled_from([1.0, 0.9])), data.draw(st.booleans())
    arguments = {"epsilon": epsilon, "sample": sample, "decay": decay, "intercept": intercept}
    whole = sketched(keys, [0, len(keys)], **arguments)
    assert sketched(keys, data.draw(cuts(len(keys))), **arguments) == whole
    twin = lev.Sketch.from_bytes(whole.to_bytes())
    assert twin == whole == whole.copy()
    assert (twin.count, twin.sample, twin.slack) == (whole.count, sample, whole.slack)
    np.testing.assert_array_equal(twin.universal_set().scores, whole.universal_set().scores)


@small_blocks
@settings(max_examples=60)
@given(st.data())
def test_entries_and_normalizers_have_two_ends(data):
    families = ["gaussian", "integers", "repeated", "sparse", "low_rank"]
    keys = data.draw(streams(families, most_rows=40, most_columns=3))
    if len(keys):
        sketch = sketched(keys, data.draw(cuts(len(keys))), data.draw(EPSILONS), data.draw(samples))
        assert_entries(sketch, keys)


@small_blocks
@given(streams(["gaussian", "integers", "repeated", "sparse", "one_huge"]), EPSILONS, samples)
def test_scores_are_above_by_the_slack_at_most(keys, epsilon, sample):
    sketch = sketched(keys, [0, len(keys)], epsilon, sample)
    found, (scores, _) = sketch.universal_set(), naive.leverage(keys)
    assert sketch.slack >= 1
    for j, score in zip(found.indices.tolist(), found.scores.tolist(), strict=True):
        assert score <= float(scores[j]) * sketch.slack * (1 + 1e-5)


@small_blocks
@given(streams(["gaussian", "integers", "low_rank", "repeated", "sparse"]), EPSILONS, samples)
def test_what_is_retained_is_bounded(keys, epsilon, sample):
    sketch = sketched(keys, [0, len(keys)], epsilon, sample)
    assert sketch.rank == naive.rank(keys)
    assert sketch.retained <= bounds.max_members(sketch.rank, epsilon) * (1 + 2 * bounds.margin(keys.dtype))


@small_blocks
@settings(max_examples=60)
@given(streams(["gaussian", "integers", "repeated"], most_columns=3), EPSILONS, samples)
def test_decayed_and_affine_scores_are_bounded(keys, epsilon, sample):
    scaled = keys * 0.5 ** np.arange(len(keys))[::-1, None]
    affine = np.hstack([keys, np.ones((len(keys), 1))])
    for rows, arguments in ((scaled, {"decay": 0.25}), (affine, {"intercept": True})):
        sketch = sketched(keys, [0, len(keys)], epsilon, sample, **arguments)
        assert_universal(sketch.universal_set(), rows, sketch)
        assert_universal(sketch.second_pass(keys), rows, sketch)


def test_a_long_stream_leaves_most_rows_out_of_its_form():
    keys = np.random.default_rng(0).standard_normal((60_000, 8)).astype(np.float32)
    keys[31_415] *= 200
    keys[55_555] *= 200
    sketch = lev.Sketch(8, 0.05, sample=1 / 16).update(keys)
    (stream,) = sketch._settle()._streams
    assert stream.form.rows < 60_000 / 12
    assert sketch.count == stream.form.rows + stream.left == 60_000
    found, exact = sketch.universal_set(), lev.universal_set(keys, 0.05)
    assert set(exact.indices.tolist()) <= set(found.indices.tolist()) <= set(range(60_000))
    assert not found.exact
    second = sketch.second_pass(keys)
    assert second.exact
    np.testing.assert_array_equal(second.indices, exact.indices)
    np.testing.assert_allclose(second.scores, exact.scores, rtol=1e-9)


@small_blocks
@pytest.mark.parametrize("place", range(8, 16))
def test_what_is_left_out_is_bounded_in_every_task(place):
    keys = np.ones((16, 1))
    keys[place] = 2
    sketch = sketched(keys, [0, 16], 0.9, 1e-9)
    assert sketch._settle()._streams[0].left == 8
    assert_universal(sketch.universal_set(), keys, sketch)


@pytest.mark.parametrize("epsilon", [5e-324, 1e-9, 1.0])
def test_any_epsilon_has_a_first_block(epsilon):
    keys = np.random.default_rng(2).standard_normal((400, 3))
    assert len(lev.Sketch(3, epsilon, sample=0.5).update(keys).universal_set()) == (0 if epsilon == 1 else 400)


def test_the_sample_is_the_same_in_any_order():
    keys, ids = np.full((20_000, 1), 1.0), np.arange(20_000)
    forms = []
    for order in (ids, ids[::-1]):
        sketch = lev.Sketch(1, 0.9, sample=0.01).update(keys, indices=order)
        forms.append(sketch._settle()._streams[0].form.rows)
    assert all(abs(rows - 200) < 100 + 256 for rows in forms)  # the first block enters as a whole


@pytest.mark.parametrize("place", [100, 1111, 4321])  # in the first block, in one that is sifted, behind all blocks
def test_bad_rows_are_named_by_their_place(place):
    keys = np.random.default_rng(1).standard_normal((5000, 3))
    keys[place, 1] = np.nan
    sketch = lev.Sketch(3, 0.1, sample=1 / 16)
    with pytest.raises(ValueError, match=f"keys must be finite; row {place} holds NaN or infinity"):
        sketch.update(keys)
    assert sketch.count == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_missed_by_a_few_weak_eigenvectors(dtype):
    rng, n, d, epsilon = np.random.default_rng(3), 20_000, 40, 0.05
    keys = rng.standard_normal((n, d))
    keys[-200:, : d - 10] = 0  # all of it in weak directions, where the bound is met
    keys[-200::10] *= np.sqrt(n * epsilon / 10 * rng.uniform(1, 2, (20, 1)))
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]  # else the frame would scale the columns
    keys = (keys * np.logspace(0, -1.4, d) @ turn).astype(dtype)
    parts = [lev.Sketch(d, epsilon, start=i, sample=0.9).update(keys[i : i + 9000]) for i in (0, 9000)]
    sketch = lev.merge(parts)  # judges by all rows so far
    judge = sketch._streams[0].judge
    assert 0 < judge.sieve(epsilon, keys.dtype).bounds[0].matrix.shape[1] < d / 2
    sketch.update(keys[18_000:])
    scores = np.square(np.linalg.qr(keys.astype(np.float64))[0]).sum(axis=1)
    reached = np.flatnonzero(scores >= epsilon)
    assert 10 < len(reached) < 20
    assert set(reached.tolist()) <= set(sketch.universal_set().indices.tolist())


def test_what_does_not_go_together_is_refused():
    for bad in ({"p": 3.0}, {"heads": (2,)}):
        with pytest.raises(ValueError, match=r"sample must be 1 with heads or p != 2; got sample=0\.5"):
            lev.Sketch(2, 0.1, sample=0.5, **bad)
    for bad in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"sample must be in \(0, 1\]"):
            lev.Sketch(2, 0.1, sample=bad)
    with pytest.raises(ValueError, match=r"other has sample=1\.0; merging needs sample=0\.5"):
        lev.Sketch(2, 0.1, sample=0.5).merge(lev.Sketch(2, 0.1))
    with pytest.raises(ValueError, match="keys must be the 3 rows of the sketch; got 2"):
        lev.Sketch(1, 0.1, sample=0.5).update([[1.0]] * 3).second_pass([[[1.0]], [[1.0]]])


def test_a_row_that_leaves_the_span_is_held():
    keys = np.zeros((600, 2))
    keys[:, 0] = 1
    keys[500] = [1, 1e-3]
    assert lev.Sketch(2, 0.9, sample=1e-9).update(keys).universal_set().indices.tolist() == [500]


def test_merging_adds_what_was_left_out():
    parts = [
        lev.Sketch(1, 0.01, start=4000 * i, sample=1e-9).update(np.ones((n, 1))) for i, n in enumerate([600, 3000])
    ]
    (lower,), (upper,) = lev.merge(parts).normalizer([[1.0]])
    assert lower <= 512
    assert 3600 <= upper <= 512 * (1 + 344 / 256 + 2744 / 256) * (1 + 2**-8)
