"""Keys and decay at the ends of float64, against rationals: what is far away is not nothing."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

import lev

NUMBERS = st.builds(lambda part, power: float(np.ldexp(part, power)), st.integers(-3, 3), st.integers(-1074, 1020))


def weights(column, ids, p, decay=0.5):
    """Return the exact weights of keys of one column after the latest of them."""
    ages = [int(max(ids) - i) for i in ids]
    entries = [abs(Fraction(float(k))) ** p * Fraction(decay) ** age for k, age in zip(column, ages, strict=True)]
    total = sum(entries)
    return np.array([float(entry / total) if total else 0.0 for entry in entries])


def assert_held(found, column, ids, p, decay=0.5):
    truth = weights(column, ids, p, decay)
    said = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    for i, weight in zip(ids.tolist(), truth, strict=True):
        assert said.get(i, found.omitted) >= weight
        assert i in said or weight < found.epsilon
        assert not (found.exact and i in said) or weight >= found.epsilon * (1 - 1e-6)


def fed(data, column, ids, p, decay):
    """Return the universal sets of heads of the same keys, by one sketch or two that merge, in any parts."""
    heads, epsilon = data.draw(st.sampled_from([(), (2,)])), data.draw(st.sampled_from([0.01, 0.1, 0.3]))
    sketch, other = (lev.Sketch(1, epsilon, p, decay=decay, heads=heads) for _ in range(2))
    for first, last in itertools.pairwise(data.draw(cuts(len(column)))):
        keys = np.broadcast_to(column[first:last, None], (*heads, last - first, 1))
        (other if data.draw(st.booleans()) else sketch).admit(keys, ids[first:last])
    sketch = sketch.merge(other) if other.count else sketch
    return sketch.universal_set() if heads else [sketch.universal_set()]


@settings(max_examples=60)
@given(st.data())
def test_keys_of_any_size_and_age(data):
    column = np.array(data.draw(st.lists(NUMBERS, min_size=1, max_size=9)))
    n, p, in_order = len(column), data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
    ids = np.array(data.draw(st.lists(st.integers(0, 9000 if in_order else 895), min_size=n, max_size=n, unique=True)))
    ids = np.sort(ids) if in_order else ids
    for found in fed(data, column, ids, p, 0.5):
        assert_held(found, column, ids, p)


@settings(max_examples=100)
@given(st.data())
def test_old_keys_that_are_as_heavy_as_new_ones(data):
    p, decay, dtype = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([0.375, 0.5])), np.float64
    rate = -np.log2(decay) / p  # by which a key has to be larger for each id that it is older
    if data.draw(st.booleans()):
        dtype, p, rate = np.float32, 16, -np.log2(decay) / 16
    room = 1800 if dtype == np.float64 else 230
    lags = data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True))
    ids = np.unique((np.sort(lags) * room / rate).astype(np.int64))
    powers = np.round(room / 2 - ids * rate).astype(np.int64)
    parts = data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
    column = np.ldexp(np.array(parts, dtype), powers)
    for found in fed(data, column, ids, p, decay):
        assert_held(found, column, ids, p, decay)


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("p", "key", "later", "ids"), [(2, 1e300, 1e-30, (0, 2160)), (1, 1e300, 1e-20, (0, 1050))])
def test_an_old_key_dominates(heads, apart, p, key, later, ids):
    keys = np.broadcast_to([[key], [later]], (*heads, 2, 1))
    sketch = lev.Sketch(1, 0.5, p, decay=0.5, heads=heads)
    for part in [slice(0, 1), slice(1, 2)] if apart else [slice(0, 2)]:
        sketch.admit(keys[..., part, :], np.array(ids)[part])
    for found in sketch.universal_set() if heads else [sketch.universal_set()]:
        assert_held(found, [key, later], np.array(ids), p)
        assert found.indices[0] == 0
    (hits,) = sketch.heavy_hitters(np.ones((*heads, 1, 1)))[:1] if heads else [sketch.heavy_hitters([[1.0]])]
    assert hits.indices[0] == 0


def test_rows_of_zeros_bring_no_time():
    sketch = lev.Sketch(1, 0.3, decay=0.5).update([[1.0]], [0]).update([[1.0], [0.0], [0.0]], [1, 5000, 10_000])
    np.testing.assert_allclose(sketch.universal_set().scores, [1 / 3, 2 / 3])
    assert sketch.count == 4


@pytest.mark.parametrize("heads", [(), (2,)])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_rows_of_zeros_far_from_all_others(heads, p):
    keys, ids = np.array([[1e-200], [0], [1e-300], [0], [0]]), [0, 5000 * p, 10_000 * p, 12_000 * p, 20_000 * p]
    sketch = lev.Sketch(1, 0.3, p, decay=0.5, heads=heads)
    sketch.admit(np.broadcast_to(keys, (*heads, 5, 1)), ids)  # zeros make eras of their own in the block
    for found in sketch.universal_set() if heads else [sketch.universal_set()]:
        assert_held(found, keys[:, 0], np.array(ids), p)
        assert 10_000 * p in found.indices
    assert sketch.count == 5


@pytest.mark.parametrize("size", [1e-308, 1e-160, 1e-155, 1e155, 1e300])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_keys_after_many_rows_of_zeros(p, size):
    keys = np.concatenate([np.zeros(1000), np.array([3, 4, 2]) * size])
    found = lev.Sketch(1, 0.02, p).update(keys[:, None]).universal_set()
    assert_held(found, keys, np.arange(1003), p, 1)
    if p == 2:
        assert_held(lev.two_pass(keys[:, None], 0.02), keys, np.arange(1003), p, 1)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-4, 0)), min_size=1, max_size=5),
    st.sampled_from([-1060, -500, 0, 500, 1010]) | st.integers(-545, -505),  # where squares have few bits
    st.integers(0, 5),
    st.sampled_from([0, 300]),
    st.sampled_from([1, 2, 4]),
)
def test_keys_of_one_size_among_rows_of_zeros(numbers, top, place, zeros, p):
    column = np.array([np.ldexp(float(part), top + power) for part, power in numbers])
    column = np.insert(column, [min(place, len(numbers))] * zeros, 0.0)
    merged = lev.Sketch(1, 0.02, p).update(column[:150, None])
    merged.merge(lev.Sketch(1, 0.02, p, start=len(column[:150])).update(column[150:, None]))
    for sketch in (lev.Sketch(1, 0.02, p).update(column[:, None]), merged):
        assert_held(sketch.universal_set(), column, np.arange(len(column)), p, 1)


@pytest.mark.parametrize(
    ("ids", "column"),
    [
        ([57, 299, 53, 7, 208], [6.428e39, 4.586e-275, 8.009e39, 7.101e51, 1.128e-9]),
        ([384, 267, 1, 434], [1.9164e-104, 2.6032e-225, 4.676e13, 1.8505e-118]),
        ([35, 148, 306, 409], [1.5773e252, 2.6755e217, 1.307e-40, 1.9039e138]),
    ],
)
def test_weights_and_ages_that_lie_far_apart_in_a_first_block(ids, column):
    sketch = lev.Sketch(1, 0.05, 1, decay=0.5)  # the largest factor and the largest entry are of different rows
    sketch.admit(np.array(column)[:, None], np.array(ids))
    assert_held(sketch.universal_set(), column, np.array(ids), 1)


@pytest.mark.parametrize("p", [1, 4])
def test_a_second_pass_over_rows_of_zeros_that_come_last(p):
    keys = np.concatenate([np.eye(2), np.zeros((5000, 2))])
    found = lev.Sketch(2, 0.1, p, decay=0.375).update(keys).second_pass([keys[:2], keys[:0], keys[2:]])
    np.testing.assert_allclose(found.scores, 1)
    np.testing.assert_array_equal(found.indices, [0, 1])


@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(0, 9))
def test_a_later_key_hides_no_earlier_one(column, chunk):
    keys, sketch = np.array(column)[:, None], lev.CausalSketch(1, 0.01)
    parts = [sketch.attend(part, np.ones(part.shape)).toarray() for part in (keys[:chunk], keys[chunk:])]
    for i in range(len(keys)):
        found = np.vstack([np.pad(part, ((0, 0), (0, len(keys) - part.shape[1]))) for part in parts])[i]
        truth = weights(column[: i + 1], range(i + 1), 2, 1)
        heavy = np.append(truth >= 0.01, np.zeros(len(keys) - i - 1, bool))
        np.testing.assert_allclose(found[heavy], truth[heavy[: i + 1]], rtol=1e-9)


@pytest.mark.parametrize(("p", "size"), [(0.3, 1e306), (0.5, 1e304), (1.0, 1.5e308), (1.5, 1.5e308)])
def test_enormous_keys_do_not_become_infinite_by_their_weights(p, size):
    keys = np.full((1000, 2), size) * [1, 0.5]
    for sketch in (lev.Sketch(2, 0.0005, p), lev.Sketch(2, 0.0005, p, decay=0.9999)):
        sketch.update(keys)
        assert sketch.rank >= 1
        assert len(sketch.universal_set()) == 1000


@pytest.mark.parametrize("half_life", [1e9, 1e12, 1e14])
def test_a_decay_next_to_1_is_the_decay_that_was_given(half_life):
    decay, ids = 0.5 ** (1 / half_life), np.array([0, int(2 * half_life), int(4 * half_life)])
    share = [float(np.exp((ids[-1] - i) * np.log(np.longdouble(decay)))) for i in ids]
    found = lev.Sketch(1, 0.01, decay=decay).update(np.ones((3, 1)), ids).universal_set()
    np.testing.assert_allclose(found.scores, np.array(share) / sum(share), rtol=1e-11)


def test_the_ends_of_a_normaliser_say_what_float64_can():
    size = 3.6705252892523814e76
    low, high = lev.Sketch(2, 0.1, 4).update([[1.0, 0], [1, 1], [0, 1], [1, 2]]).normalizer([[size, size]])
    assert float(low[0]) <= 98 * size**4 < np.inf  # 1 + 16 + 1 + 81 powers, less one that overflows
    assert high[0] >= 98 * size**4
    low, high = lev.Sketch(2, 0.1).update(np.outer(np.arange(1, 6), [1.0, 3.0])).normalizer([[3.0, -1.0]])
    assert low[0] == 0 <= high[0] < 1e-20


@pytest.mark.parametrize("p", [300, 1000])
def test_a_large_power_loses_no_key(p):
    keys = np.random.default_rng(5).standard_normal((50, 2))
    angles = np.linspace(0, np.pi, 20_001)
    logs = p * np.log(np.abs(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ keys.T) + 1e-300)
    seen = np.exp(logs - logs.max(axis=1, keepdims=True))
    heavy = np.flatnonzero((seen / seen.sum(axis=1, keepdims=True)).max(axis=0) >= 0.1)
    assert len(heavy) == 5
    assert set(heavy) <= set(lev.Sketch(2, 0.1, p).update(keys).universal_set().indices)


def test_a_second_pass_knows_the_ids_of_merged_parts_and_refuses_others():
    keys = np.abs(np.random.default_rng(2).standard_normal((40, 1)))
    parts = [lev.Sketch(1, 0.2, 4, decay=0.9, start=start).update(keys[i : i + 20]) for i, start in ((0, 5), (20, 90))]
    found, ids = lev.merge(parts).second_pass(keys), np.append(np.arange(5, 25), np.arange(90, 110))
    assert_held(found, keys[:, 0], ids, 4, 0.9)
    truth = np.abs(keys[:, 0]) ** 4 * 0.9 ** (109.0 - ids)
    truth /= truth.sum()
    np.testing.assert_array_equal(found.indices, ids[truth >= 0.2])
    np.testing.assert_allclose(found.scores, truth[truth >= 0.2], rtol=1e-5)
    given = lev.Sketch(1, 0.2, 4, decay=0.9).update(keys, ids)
    with pytest.raises(ValueError, match="needs ids that the sketch counts; 40 of its ids were given"):
        given.second_pass(keys)


def test_rows_that_come_too_late_are_refused_and_merge():
    sketch = lev.Sketch(1, 0.1, 1, decay=0.5).update([[1.0]], [1000])
    sketch.update([[1.0]], [105])
    before = sketch.to_bytes()
    with pytest.raises(ValueError, match="indices holds 104, decayed too far beside rows before it"):
        sketch.update([[1.0], [1.0]], [1001, 104])
    assert sketch.to_bytes() == before
    old = lev.Sketch(1, 0.1, 1, decay=0.5).update([[2.0**900]], [104])
    assert_held(sketch.merge(old).universal_set(), [1.0, 1.0, 2.0**900], np.array([1000, 105, 104]), 1)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0])
def test_enormous_keys_that_age_are_read_back(p):
    sketch = lev.Sketch(1, 0.01, p, decay=0.99)
    for part in np.array_split(np.linspace(1, 2, 90)[:, None] * 5e307, 3):
        sketch.admit(part)
    assert lev.Sketch.from_bytes(sketch.to_bytes()) == sketch


@given(st.sampled_from([1, 2, 3, 4]), st.floats(1, 9), st.floats(1, 2), st.integers(-1090, -1010))
def test_normalisers_below_the_normal_numbers(p, key, part, power):
    query = float(np.ldexp(part, max(power // p, -1074)))
    total = (1 + Fraction(key) ** p) * Fraction(query) ** p
    sketch = lev.Sketch(1, 0.01, p).update([[1.0], [key]])
    low, high = sketch.normalizer([[query]])
    assert Fraction(float(low[0])) <= total <= Fraction(float(high[0]))
    ends = tuple(np.nextafter(float(total), [[0.0], [1.0]]))
    hits = sketch.heavy_hitters([[query]], normalizer=ends)
    share = float(Fraction(key) ** p / (1 + Fraction(key) ** p))
    assert hits[0, 1] >= share * (1 - 1e-12)
    assert p == 2 or hits.lower[0, 1] <= share * (1 + 1e-12)


def test_collinear_keys_and_a_query_across_them_give_no_warning():
    keys = [[1.0, 2.0], [2.00000000000002, 4.0]]
    hits = lev.Sketch(2, 0.01, 3.0, decay=0.9).update(keys).heavy_hitters([[-2.0, 1.0]])
    assert hits[0, 1] == 1


def test_a_small_power_of_keys_that_are_far_apart():
    lower, upper = lev.sensitivities([[1.0], [1e-250]], 0.5)
    np.testing.assert_allclose([lower[1], upper[1]], 1e-125, rtol=1e-6)


@settings(max_examples=60)
@given(
    st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from([1.0, 3.0, 1024.0]), st.sampled_from([1.0, 0.5, 1e-300])
)
def test_entries_lie_between_numbers_whatever_is_known_of_normalisers(column, p, decay):
    keys = np.array(column)[:, None]
    sketch = lev.Sketch(1, 0.01, p, decay=decay).update(keys)
    queries = np.array([[1.0], [0.0], [1e300], [1e-310]])
    nothing, all_ = np.zeros(4), np.full(4, np.inf)
    for known in (None, (nothing, all_), (all_, all_), sketch.normalizer(queries)):
        hits = sketch.heavy_hitters(queries, normalizer=known)
        assert np.all((hits.lower.data >= 0) & (hits.lower.data <= hits.data) & (hits.data <= 1))
    assert np.isfinite(sketch.second_pass(keys).scores).all()


@pytest.mark.parametrize("heads", [(), (2,)])
@pytest.mark.parametrize(
    ("ids", "column"),
    [
        ([738, 629, 406, 865], [2.0261306488676723e177, -1.296774530347984e-223, 2.7606985387162255e70, -1e-311]),
        ([3697, 3804, 5750, 6784, 6836, 8091], [0.0, 0.0, 4.0, 0.0, -2.42843e-319, 0.0]),
        ([2985, 5480, 5624, 7358], [6.0, 1.1235582092889474e307, 0.0, 2.7516420536594796e-135]),
    ],
)
def test_what_is_left_out_is_0_for_zeros_alone(ids, column, heads):
    sketch = lev.Sketch(1, 0.3, decay=0.5, heads=heads)
    sketch.admit(np.broadcast_to(np.array(column)[:, None], (*heads, len(ids), 1)), np.array(ids))
    for found in sketch.universal_set() if heads else [sketch.universal_set()]:
        assert_held(found, column, np.array(ids), 2)


@settings(max_examples=100)
@given(st.integers(1, 4), st.integers(1, 20), st.sampled_from([1, 2, 4]), st.integers(0, 2**32))
def test_columns_of_any_scale_beside_each_other(d, n, p, seed):
    """Rows along the axes, in parts and windows of any length: an axis of subnormal numbers beside one near 2^1000."""
    rng = np.random.default_rng(seed)
    powers, axes, ids = rng.choice([-1074, -1068, -1040, -300, 0, 300, 1015], d), rng.integers(0, d, n), np.arange(n)
    powers = np.clip(powers[axes] + rng.integers(-1, 2, n) * rng.choice([0, 3, 600]), -1074, 1015)
    keys, epsilon = np.zeros((n, d)), 0.2
    keys[ids, axes] = np.ldexp(rng.integers(-4, 5, n).astype(float), powers)
    sketches = [lev.Sketch(d, epsilon, p) for _ in range(2)]
    window = lev.SlidingWindowSketch(d, epsilon, n, block=int(rng.integers(1, n + 1)))
    for part in np.split(ids, np.flatnonzero(rng.random(n) < rng.random())):
        sketches[rng.integers(2)].admit(keys[part], part)
        window.update(keys[part])
    found = [lev.merge(sketches).universal_set()] + ([window.universal_set()] if p == 2 else [])
    for axis in np.unique(axes):
        own = ids[axes == axis]
        truth = weights(keys[own, axis], own, p, 1.0)
        for known in found:
            said = dict(zip(known.indices.tolist(), known.scores.tolist(), strict=True))
            for i, weight in zip(own.tolist(), truth, strict=True):
                assert said.get(i, known.omitted) >= weight
                assert i in said or weight < epsilon
