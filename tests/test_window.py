"""The sliding window: after every update nothing in the window is missed, and nothing that left it is there."""

import itertools
import pickle
from fractions import Fraction

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts, streams

import lev
from lev import bounds, store, window
from lev.demo import sample
from lev.readers import open_rows


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(window, "_FIRST", 4)
    monkeypatch.setattr(window, "_STEP", 1)


def assert_window(found, keys, inside, epsilon):
    """Hold the set to the exact scores of the rows ``inside`` the window; an affine key ends in a 1."""
    rows = keys[inside]
    scores, queries = naive.leverage(rows)
    members = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    assert set(members) <= set(inside.tolist())
    np.testing.assert_array_equal(found.keys, keys[found.indices, : found.keys.shape[1]])
    for j, score, query in zip(inside.tolist(), scores, queries, strict=True):
        blur = naive.blur(rows, query, bounds.resolution(keys.shape[1]))
        seen = score if blur < 1e-9 else max(0.0, float(score) ** 0.5 - blur) ** 2
        assert seen < epsilon or j in members, f"missed key {j} with score {float(score)}"
        assert float(seen) <= members.get(j, found.omitted) * (1 + 2**-52)
        if found.exact and j in members:
            assert score >= epsilon * (1 - 2 * bounds.margin(keys.dtype))


@settings(max_examples=200)
@given(st.data())
def test_after_every_update_nothing_is_missed(data):
    keys, epsilon = data.draw(streams(most_rows=40, most_columns=3)), data.draw(EPSILONS)
    width = data.draw(st.integers(1, 20))
    block = data.draw(st.sampled_from([None, 1, max(1, width // 2), width]))
    sketch = lev.SlidingWindowSketch(keys.shape[1], epsilon, width, block=block)
    for first, last in itertools.pairwise(data.draw(cuts(len(keys)))):
        sketch.update(keys[first:last])
        inside = np.arange(max(0, last - width), last)
        assert_window(sketch.universal_set(), keys, inside, epsilon)
        assert sketch.count == last


@settings(max_examples=100)
@given(st.data())
def test_a_window_of_time_holds_what_came_in_it(data):
    keys, epsilon = data.draw(streams(most_rows=40, most_columns=3)), data.draw(EPSILONS)
    gaps = st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 7.5, 100.0]), min_size=len(keys), max_size=len(keys))
    times = np.cumsum([-5.0, *data.draw(gaps)])[1:]
    width = data.draw(st.sampled_from([0.5, 3.0, 10.0, 1000.0]))
    sketch = lev.SlidingWindowSketch(keys.shape[1], epsilon, width)
    for first, last in itertools.pairwise(data.draw(cuts(len(keys)))):
        sketch.update(keys[first:last], times=times[first:last])
        inside = np.flatnonzero(times[last - 1] - times[:last] < width) if last else np.arange(0)
        assert_window(sketch.universal_set(), keys, inside, epsilon)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_missed_row_by_row_in_each_family(family):
    keys = FAMILIES[family](np.random.default_rng(9), 44, 2)
    sketch = lev.SlidingWindowSketch(2, 0.3, 16, block=4)
    for i in range(len(keys)):
        found = sketch.update(keys[i : i + 1]).universal_set()
        if i % 3 == 2:
            assert_window(found, keys, np.arange(max(0, i - 15), i + 1), 0.3)


def test_a_key_dropped_beside_a_large_older_one_would_be_missed():
    """Row 1 is nothing beside row 0, and everything once row 0 has left: what a sketch of all rows misses."""
    keys = np.array([[1e3], [1.0], [1e-3], [1e-3], [1e-3]])
    sketch = lev.SlidingWindowSketch(1, 0.5, 4, block=1)
    for key in keys:
        sketch.update(key[None])
    assert sketch.universal_set().indices.tolist() == [1]


def test_until_the_window_is_full_it_is_the_exact_set():
    keys = np.random.default_rng(0).standard_normal((300, 4))
    found = lev.SlidingWindowSketch(4, 0.03, 300).update(keys).universal_set()
    wanted = lev.universal_set(keys, 0.03)
    assert found.exact
    np.testing.assert_array_equal(found.indices, wanted.indices)


def test_what_is_held_and_returned_stays_small():
    """Real keys: the slack that the blocks cost, and the rows held, within what is stated."""
    with sample() as path:
        keys = np.concatenate(list(open_rows(path, tensor="key")))[:6000, ::4]
    width, epsilon, sizes = 2000, 0.012, []
    sketch = lev.SlidingWindowSketch(16, epsilon, width)
    for first in range(0, len(keys), 250):
        sketch.update(keys[first : first + 250])
        found = sketch.universal_set()
        inside = np.arange(max(0, sketch.count - width), sketch.count)
        scores = lev.leverage_scores(keys[inside])
        assert set(inside[scores >= epsilon]) <= set(found.indices.tolist())
        # the rows of one block in sixteen are not counted: scores overshoot by 16 / 15 and by chance
        assert np.all(scores[np.searchsorted(inside, found.indices)] >= epsilon * 0.8)
        assert sketch.retained <= 4 * 16 / epsilon
        sizes.append(len(found))
    assert max(sizes) > 50
    assert len(sketch._blocks) <= 17
    assert sketch.nbytes < 2 * (17 * 16**2 * 8 + 4 * (16 / epsilon) * 16 * 8)


@settings(max_examples=60)
@given(st.data())
def test_affine_queries_miss_nothing(data):
    mild = ["gaussian", "integers", "low_rank", "repeated", "sparse"]
    keys, epsilon = data.draw(streams(mild, most_rows=30, most_columns=3)), data.draw(EPSILONS)
    width = data.draw(st.integers(1, 20))
    sketch = lev.SlidingWindowSketch(keys.shape[1], epsilon, width, intercept=True)
    for first, last in itertools.pairwise(data.draw(cuts(len(keys)))):
        found = sketch.update(keys[first:last]).universal_set()
        affine = np.hstack([keys, np.ones((len(keys), 1))])
        assert_window(found, affine, np.arange(max(0, last - width), last), epsilon)


@settings(max_examples=60)
@given(st.data())
def test_a_saved_window_goes_on_as_if_it_had_not_been_saved(data):
    keys, epsilon = data.draw(streams(most_rows=40, most_columns=3)), data.draw(EPSILONS)
    width, timed = data.draw(st.integers(1, 20)), data.draw(st.booleans())
    sketch = lev.SlidingWindowSketch(keys.shape[1], epsilon, width, payload_dim=1)
    kept = sketch.copy()
    for first, last in itertools.pairwise(data.draw(cuts(len(keys)))):
        rows, times = keys[first:last], np.arange(first, last) - 3.0 if timed else None
        for one in (sketch, kept):
            one.update(rows, payload=rows[:, :1], times=times)
        sketch = lev.SlidingWindowSketch.from_bytes(sketch.to_bytes())
        assert sketch == kept == pickle.loads(pickle.dumps(kept))
        assert (sketch.count, sketch.retained) == (kept.count, kept.retained)
        found, wanted = sketch.universal_set(), kept.universal_set()
        for name in ("indices", "keys", "scores", "payload", "omitted", "exact"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_files(tmp_path):
    sketch = lev.SlidingWindowSketch(3, 0.1, 5).update(KEYS)
    sketch.save(tmp_path / "a.lev")
    assert lev.load(tmp_path / "a.lev") == sketch
    with pytest.raises(lev.SketchFileError, match="holds a SlidingWindowSketch; expected a Sketch"):
        lev.Sketch.from_bytes(sketch.to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        lambda fields, tensors: fields.update(dim=4),
        lambda fields, tensors: fields.update(window=-1),
        lambda fields, tensors: fields.update(count=-1),
        lambda fields, tensors: fields.update(latest="x"),
        lambda fields, tensors: fields["blocks"].pop(),
        lambda fields, tensors: fields["blocks"][0].update(span=[1]),
        lambda fields, tensors: tensors.update({"0.times": tensors["0.times"][::-1]}),
        lambda fields, tensors: tensors.update({"0.times": tensors["0.times"] * np.nan}),
        lambda fields, tensors: tensors.update({"0.gram": -tensors["0.gram"]}),
        lambda fields, tensors: tensors.update({"0.ids": tensors["0.ids"].astype(np.int32)}),
        lambda fields, tensors: tensors.pop("0.keys"),
    ],
)
def test_a_hostile_file_is_refused(change):
    fields, tensors = store.unpack(lev.SlidingWindowSketch(3, 0.1, 9, block=3).update(KEYS).to_bytes())
    change(fields, tensors)
    with pytest.raises(lev.SketchFileError):
        lev.SlidingWindowSketch.from_bytes(store.pack(fields, tensors))


def test_ids_payload_and_family_travel():
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    keys, values = torch.eye(3), torch.arange(6.0).reshape(3, 2)
    sketch = lev.SlidingWindowSketch(3, 0.5, 2, payload_dim=2).update(keys, torch.tensor([5, 9, 7]), values)
    found = sketch.universal_set()
    assert found.indices.tolist() == [7, 9]
    assert torch.equal(found.payload, values[[2, 1]].to(found.payload.dtype))


KEYS = np.random.default_rng(0).standard_normal((9, 3))
NAN = np.where(np.arange(27).reshape(9, 3) == 13, np.nan, KEYS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s: s.update(KEYS, times=np.arange(9.0)[::-1]),
            ValueError,
            "must not go back; row 0 came at 8 after 20",
        ),
        (lambda s: s.update(KEYS, times=[21, 22, 21.5, *range(30, 36)]), ValueError, "row 2 came at 21.5 after 22"),
        (lambda s: s.update(KEYS, times=[np.nan] * 9), ValueError, "times must be finite; row 0"),
        (lambda s: s.update(KEYS, times=[21.0]), ValueError, r"times must have shape \(9,\); got \(1,\)"),
        (lambda s: s.update(KEYS, times=["a"] * 9), TypeError, "times must be real numbers"),
        (lambda s: s.update(KEYS), ValueError, "times must come with every update"),
        (lambda s: s.update(NAN, times=np.arange(21, 30)), ValueError, "keys must be finite; row 4"),
        (lambda s: s.update(KEYS[:1], [1], times=[30]), ValueError, "indices holds id 1, which"),
        (lambda s: s.merge(s), ValueError, "windows do not merge"),
        (lambda s: s.delete([1]), ValueError, "rows cannot be deleted"),
        (lambda s: s.universal_set(0.01), ValueError, "epsilon must be at least"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(call, error, message):
    sketch = lev.SlidingWindowSketch(3, 0.1, 5).update(KEYS, times=np.arange(12, 21))
    before = sketch.universal_set()
    with pytest.raises(error, match=message):
        call(sketch)
    after = sketch.update(KEYS[:0], times=[]).universal_set()
    np.testing.assert_array_equal(after.scores, before.scores)
    assert sketch.count == 9
    sketch.update(KEYS, times=np.arange(20, 29))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be positive and finite; got 0"),
        ({"window": -1}, ValueError, "window must be positive and finite; got -1"),
        ({"window": float("inf")}, ValueError, "window must be positive and finite; got inf"),
        ({"window": float("nan")}, ValueError, "window must be positive and finite; got nan"),
        ({"window": "9"}, TypeError, "window must be a real number"),
        ({"window": 9, "block": 10}, ValueError, "block must be positive and <= 9; got 10"),
        ({"window": 9, "block": 0}, ValueError, "block must be positive and <= 9; got 0"),
        ({"window": 9, "payload_dim": -1}, ValueError, "payload_dim must be >= 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lev.SlidingWindowSketch(3, 0.1, **arguments)


def test_rows_without_times_cannot_be_followed_by_rows_with_times():
    sketch = lev.SlidingWindowSketch(3, 0.1, 5).update(KEYS)
    with pytest.raises(ValueError, match="times must come with no update"):
        sketch.update(KEYS, times=np.arange(9))


def test_times_are_compared_by_their_exact_difference():
    sketch = lev.SlidingWindowSketch(1, 0.5, 1.0).update([[1.0]], times=[1e-17]).update([[1.0]], times=[1.0])
    assert sketch.universal_set().indices.tolist() == [0, 1]
    for first in range(1, 200):
        for width in range(1, 60, 7):
            before, now, span = first / 10, (first + width) / 10, width / 10
            found = lev.SlidingWindowSketch(1, 0.5, span).update([[1.0], [1.0]], times=[before, now]).universal_set()
            inside = Fraction(now) - Fraction(before) < Fraction(span)
            assert found.indices.tolist() == ([0, 1] if inside else [1]), (before, now)


@pytest.mark.filterwarnings("error")
def test_times_at_the_ends_of_float64():
    sketch = lev.SlidingWindowSketch(1, 0.5, 1.0).update([[1.0], [1.0]], times=[-1.7e308, 1.7e308])
    assert sketch.universal_set().indices.tolist() == [1]
