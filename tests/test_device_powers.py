"""The sketch on a device for p != 2: nothing is missed, and sets are about as small as those of the CPU."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, cuts
from test_device import KINDS, MILD, blocks, numpy, on, planted
from test_device import sketch_of as of_two
from test_gpu_kernels import of_kind
from test_powers import FAMILIES as RESOLVED
from test_powers import POWERS, assert_nothing_missed, powers, queries_for

import lev
from lev import bounds, device
from lev.cpu import heads as twin


def sketch_of(keys, kind, epsilon, p, positions, **arguments):
    return of_two(keys, kind, epsilon, positions, p=p, **arguments)


def alone(sketch, head):
    """Return one head of a sketch on the device as a sketch of the CPU."""
    one = lev.Sketch(sketch.dim, sketch.epsilon, sketch.p)
    one._streams, one._ids = [sketch.to_host()._streams[head]], sketch._ids
    return one


def hold(keys, kind, sketch):
    """Hold every head, on the device and brought to the CPU, to brute force over queries that look for gaps."""
    rows, rng = twin.wide(keys, kind), np.random.default_rng(keys.shape[1])
    for head, found in enumerate(map(numpy, sketch.universal_set())):
        at_the_cpu = alone(sketch, head)
        assert_nothing_missed(at_the_cpu, rows[head], rng)
        kept = at_the_cpu.universal_set()
        assert set(kept.indices) <= set(found.indices)
        said = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
        assert all(said[j] >= score * (1 - 1e-9) for j, score in zip(kept.indices.tolist(), kept.scores, strict=True))
        assert found.omitted < found.epsilon
        assert found.p == sketch.p


@settings(max_examples=60)
@given(st.data())
def test_nothing_is_missed_in_float64(data):
    keys, p = data.draw(blocks(RESOLVED)), data.draw(powers)
    with on("numpy"):
        hold(keys, "float64", sketch_of(keys, "float64", data.draw(EPSILONS), p, data.draw(cuts(keys.shape[1]))))


@settings(max_examples=15)
@given(st.data())
def test_nothing_is_missed_by_the_cuda_kernels(data):
    kind, p = data.draw(st.sampled_from(KINDS)), data.draw(powers)
    keys = of_kind(data.draw(blocks(MILD)), kind)
    with on("cuda"):
        hold(keys, kind, sketch_of(keys, kind, data.draw(EPSILONS), p, data.draw(cuts(keys.shape[1]))))


@settings(max_examples=25)
@given(st.data())
def test_merged_sketches_miss_nothing(data):
    keys, p, epsilon = data.draw(blocks(RESOLVED)), data.draw(powers), data.draw(EPSILONS)
    n = keys.shape[1]
    cut = data.draw(st.integers(0, n))
    with on("numpy"):
        first = sketch_of(keys[:, :cut], "float64", epsilon, p, data.draw(cuts(cut)))
        second = sketch_of(keys[:, cut:], "float64", epsilon, p, data.draw(cuts(n - cut)), start=cut)
        hold(keys, "float64", first.merge(second))


@settings(max_examples=25)
@given(st.data())
def test_a_row_that_is_not_admitted_never_reaches_epsilon(data):
    keys, p, epsilon = data.draw(blocks(RESOLVED, most_rows=40)), data.draw(powers), data.draw(EPSILONS)
    with on("numpy"):
        sketch = device.DeviceSketch(keys.shape[2], epsilon, p, heads=keys.shape[:1])
        for first, last in itertools.pairwise(data.draw(cuts(keys.shape[1]))):
            kept = sketch.admit(keys[:, first:last])
            for head, rows in enumerate(keys[:, :last]):
                for query in queries_for(rows, p, np.zeros(last), 1.0, np.random.default_rng(last)):
                    powered = np.abs(rows @ query) ** p if np.isfinite(query).all() else np.zeros(last)
                    if 1e-200 < powered.sum() < 1e200 and np.linalg.cond(rows * (np.abs(rows) > 0)) < 1e6:
                        weights = (powered / powered.sum())[first:]
                        assert np.all(kept[head] | (weights < epsilon * (1 + 1e-6)))
        hold(keys, "float64", sketch)


def test_a_row_is_judged_though_its_block_is_in_the_form_already():
    keys = np.array([0.126, -0.132, 0.640, 0.105, -0.536, 0.362, 1.304, 0.947])[None, :, None]
    with on("numpy"):
        kept = device.DeviceSketch(1, 0.3, 1, heads=(1,)).admit(keys)
    assert np.abs(keys[0, 6]) / np.abs(keys).sum() > 0.3
    assert kept[0].tolist() == [False] * 6 + [True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", POWERS)
def test_a_good_head_stays_on_the_device_and_its_set_is_small(kind, p):
    keys = planted(kind, 2, 600, 8)
    with on("cuda"):
        sketch = sketch_of(keys, kind, 0.1, p, [0, 200, 400, 600])
        assert (sketch.fallen, sketch.syncs) == (0, 6)
        found = [numpy(one) for one in sketch.universal_set()]
        mass = sketch._state.mass
    for one, rows, total in zip(found, twin.wide(keys, kind), mass, strict=True):
        cpu = lev.Sketch(8, 0.1, p)
        for part in np.split(rows, 3):
            cpu.admit(part)  # which ends a block
        offline = lev.universal_set(rows, 0.1, p)
        assert set(offline.indices) <= set(one.indices)
        assert len(one) <= 1.3 * max(len(cpu.universal_set()), len(offline)) + 2
        assert 8 * (1 - 1e-6) <= total <= 1.5 * cpu._settle()._streams[0].mass


@pytest.mark.parametrize("p", [1.0, 4.0])
def test_one_bad_head_goes_on_at_the_cpu(p):
    keys = planted("float32", 3, 60, 4)
    keys[1, :, 0] = keys[1, :, 1]
    with on("cuda"):
        sketch = sketch_of(keys, "float32", 0.1, p, [0, 30, 60])
        assert sketch.fallen == 1
        hold(keys, "float32", sketch)


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
def test_what_is_saved_comes_back_and_merges_as_at_the_cpu(p, tmp_path):
    keys = planted("float64", 2, 800, 6)
    with on("numpy"):
        parts = [sketch_of(keys[:, i : i + 400], "float64", 0.05, p, [0, 400], start=i) for i in (0, 400)]
        parts[0].save(tmp_path / "s.lev")
        back = device.DeviceSketch.load(tmp_path / "s.lev", keys[:, :0])
        assert (back.p, back.fallen) == (p, 0)
        np.testing.assert_allclose(back._state.mass, parts[0]._state.mass)
        cpu = parts[0].to_host().merge(parts[1].to_host())
        merged = back.merge(parts[1])
        np.testing.assert_allclose(merged._state.mass, [stream.mass for stream in cpu._streams], rtol=1e-4)
        for one, other, rows in zip(merged.universal_set(), cpu.universal_set(), keys, strict=True):
            assert set(lev.universal_set(rows, 0.05, p).indices) <= set(one.indices)
            assert set(other.indices) <= set(one.indices)
            assert len(one) <= len(other) + 1
        with pytest.raises(ValueError, match=r"other has p=2\.0; merging needs p="):
            merged.merge(device.DeviceSketch(6, 0.05, heads=(2,)))
    with pytest.raises(ValueError, match=r"fast must be False for p != 2; got fast=True, p=3"):
        device.DeviceSketch(6, 0.05, 3, fast=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("p", [1.0, 4.0])
def test_rows_that_are_not_finite_are_refused_and_change_nothing(bad, p):
    keys = planted("float32", 2, 60, 4)
    wrong = keys.copy()
    wrong[1, 50, 3] = bad
    with on("cuda"):
        for sketch in (device.DeviceSketch(4, 0.1, p, heads=(2,)), sketch_of(keys, "float32", 0.1, p, [0, 60])):
            before = sketch.to_host().to_bytes()
            with pytest.raises(ValueError, match="keys must be finite; row 50 holds NaN or infinity"):
                sketch.update(wrong)
            assert sketch.to_host().to_bytes() == before


def test_rows_too_small_for_squares_keep_a_weight():
    keys = np.random.default_rng(1).standard_normal((1, 64, 2))
    keys[0, 40] *= 1e-200
    with on("cuda"):
        sketch = sketch_of(keys, "float64", 0.01, 0.5, [0, 64])
        hold(keys, "float64", sketch)
        assert sketch._state.white.odds(sketch._place.kernels, keys, "float64")[1][0, 40] >= bounds.SMALLEST_ODDS / 2


def test_a_row_is_admitted_whose_weight_underflows():
    angles = np.linspace(0, np.pi, 600, endpoint=False)
    keys, new = np.stack([np.cos(angles), np.sin(angles)], axis=1), 1.05 * np.array([[np.cos(0.3), np.sin(0.3)]])
    powers = (np.vstack([new, keys]) @ new[0] / 1.05**2) ** 300
    assert powers[0] / powers.sum() > 0.99
    with on("numpy"):
        sketch = device.DeviceSketch(2, 0.1, 300).update(keys)
        assert sketch.fallen == 0
        assert sketch.admit(new).tolist() == [True]
        assert sketch._state._own(sketch._state.white, np.zeros((1, 1, 2))).tolist() == [[0]]
