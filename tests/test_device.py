"""The sketch on a device: its host code over NumPy, with the NumPy kernels and with the emulated CUDA kernels."""

import contextlib
import dataclasses
import itertools
import sys

import emulated
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, cuts
from test_gpu_kernels import of_kind
from test_laws import assert_universal

import lev
from lev import bounds, device, whitening
from lev.cpu import heads as twin
from lev.form import Form
from lev.place import Place, arrive, host

KINDS = ["float16", "bfloat16", "float32", "float64"]
RNG = np.random.default_rng(21)
HALVES = (slice(0, 30), slice(30, 60))


@contextlib.contextmanager
def on(kernels):
    """Run DeviceSketch by "numpy" or "cuda" kernels, with blocks of 8 rows."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(device, "_BLOCK", 8)
        if kernels == "cuda":
            module = stack.enter_context(emulated.kernels())
            patch.setattr(Place, "kernels", property(lambda self: module))
        yield


def sketch_of(keys, kind, epsilon, positions, **arguments):
    """Return a sketch of (heads, n, d) keys of a kind; NumPy has no bfloat16, so it comes by the door of torch."""
    torch = sys.modules.get("torch") or pytest.importorskip("torch") if kind == "bfloat16" else None
    sketch = device.DeviceSketch(keys.shape[2], epsilon, heads=keys.shape[:1], **arguments)
    for first, last in itertools.pairwise(positions):
        part = keys[:, first:last]
        sketch.update(part if torch is None else torch.from_numpy(part.view(np.int16).copy()).view(torch.bfloat16))
    return sketch


def numpy(found):
    """Return a universal set with NumPy scores and indices, from any family and device."""
    indices, scores = (
        value.cpu().numpy() if hasattr(value, "cpu") else host(value) for value in (found.indices, found.scores)
    )
    return dataclasses.replace(found, indices=indices, scores=scores)


def hold(keys, kind, sketch, epsilon=None):
    """Hold every head of a sketch to the definition, on the device and brought to the CPU."""
    rows, whole = twin.wide(keys, kind), sketch.to_host()
    for found in (sketch.universal_set(epsilon), whole.universal_set(epsilon)):
        for head, one in enumerate(found):
            assert_universal(numpy(one), rows[head].astype(np.float32 if kind != "float64" else float), whole)
    assert whole.count == sketch.count == keys.shape[1]


@st.composite
def blocks(draw, families, most_rows=30):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(0, most_rows)), draw(st.integers(1, 3))
    names = draw(st.lists(st.sampled_from(families), min_size=1, max_size=3))
    keys = np.stack([np.resize(FAMILIES[name](rng, max(n, 1), d), (max(n, 1), d))[:n] for name in names])
    keys[:, rng.random(n) < draw(st.sampled_from([0.0, 0.2]))] = 0
    return keys


MILD = ["gaussian", "integers", "low_rank", "repeated", "sparse", "near_collinear"]


@settings(max_examples=60)
@given(st.data())
def test_nothing_is_missed_in_float64(data):
    keys = data.draw(blocks(list(FAMILIES)))
    with on("numpy"):
        hold(keys, "float64", sketch_of(keys, "float64", data.draw(EPSILONS), data.draw(cuts(keys.shape[1]))))


@settings(max_examples=15)
@given(st.data())
def test_nothing_is_missed_by_the_cuda_kernels(data):
    kind = data.draw(st.sampled_from(KINDS))
    keys = data.draw(blocks(list(FAMILIES) if kind == "float64" else MILD))
    keys = of_kind(keys * 2.0 ** data.draw(st.integers(-3, 3)), kind)
    with on("cuda"):
        sketch = sketch_of(
            keys, kind, data.draw(EPSILONS), data.draw(cuts(keys.shape[1])), fast=data.draw(st.booleans())
        )
        hold(keys, kind, sketch)


def planted(kind, heads=2, n=700, d=20):
    keys = RNG.standard_normal((heads, n, d))
    keys[:, 17] *= 30
    return of_kind(keys, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [False, True])
def test_a_good_head_stays_on_the_device_and_agrees_with_the_cpu(kind, fast):
    keys = planted(kind)
    with on("cuda"):
        sketch = sketch_of(keys, kind, 0.1, [0, 300, 700], fast=fast)
        assert (sketch.fallen, sketch.syncs) == (0, 2)
        found = sketch.universal_set()
        assert sketch.syncs == 2
    for one, rows in zip(found, twin.wide(keys, kind), strict=True):
        alone = lev.universal_set(rows, 0.1)
        np.testing.assert_array_equal(numpy(one).indices, alone.indices)
        np.testing.assert_allclose(numpy(one).scores, alone.scores, rtol=bounds.FAST_MARGIN if fast else 1e-5)
        assert one.exact


@pytest.mark.parametrize("when", [0, 30])
def test_one_bad_head_goes_on_at_the_cpu(when):
    """At once, for it is not of full rank, or later, for what comes dwarfs all directions but one."""
    keys = planted("float32", 3, 60, 4)
    keys[1, when:, 0] = keys[1, when:, 1]
    if when:
        keys[1, when:] = 1e6 * keys[1, when:, :1]
    with on("cuda"):
        sketch = sketch_of(keys, "float32", 0.1, [0, 30, 60])
        assert sketch.fallen == 1
        hold(keys, "float32", sketch)
        hold(keys, "float32", sketch, 0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_and_change_nothing(bad):
    keys = planted("float32")
    with on("cuda"):
        sketch = sketch_of(keys, "float32", 0.1, [0, 300, 305])
        before = sketch.to_host().to_bytes()
        for more in (400, 2):
            wrong = planted("float32")[:, :more]
            wrong[1, more - 1, 3] = bad
            with pytest.raises(ValueError, match=f"keys must be finite; row {more - 1} holds NaN or infinity"):
                sketch.update(wrong)
            assert sketch.to_host().to_bytes() == before
            assert sketch.count == 305


def test_nothing_is_aliased_and_reads_change_nothing():
    keys = planted("float32")
    with on("numpy"):
        keys[:, 301] *= 20
        parts = keys[:, :300].copy(), keys[:, 300:303].copy()
        sketch = device.DeviceSketch(20, 0.1, heads=(2,)).update(parts[0]).update(parts[1])
        for part in parts:
            part[:] = 0
        wanted = lev.Sketch(20, 0.1, heads=(2,)).update(keys[:, :303]).universal_set()
        for one, other, alone in zip(sketch.universal_set(), sketch.universal_set(), wanted, strict=True):
            assert one.indices.tolist() == other.indices.tolist() == alone.indices.tolist()
            np.testing.assert_array_equal(one.keys, alone.keys)
        assert sketch.count == 303


@pytest.mark.parametrize("heads", [(), (2,)])
def test_an_empty_sketch_is_empty(heads):
    found = device.DeviceSketch(3, 0.5, heads=heads).universal_set()
    for one in found if heads else [found]:
        assert (len(one), one.count, one.exact, one.keys.shape) == (0, 0, True, (0, 3))


def test_files_go_to_the_cpu(tmp_path):
    keys = planted("float64")
    with on("numpy"):
        sketch = sketch_of(keys, "float64", 0.1, [0, 700])
        sketch.save(tmp_path / "s.lev")
    loaded = lev.load(tmp_path / "s.lev")
    assert [u.indices.tolist() for u in loaded.universal_set()] == [u.indices.tolist() for u in sketch.universal_set()]
    other = lev.Sketch(20, 0.1, heads=(2,), start=700).update(keys)
    assert loaded.merge(other).count == 1400


@settings(max_examples=25)
@given(st.data())
def test_merged_sketches_miss_nothing(data):
    kernels = data.draw(st.sampled_from(["numpy", "numpy", "cuda"]))
    kind = data.draw(st.sampled_from(["float32", "float64"]))
    keys = of_kind(data.draw(blocks(list(FAMILIES) if kind == "float64" else MILD)), kind)
    epsilon, n = data.draw(EPSILONS), keys.shape[1]
    cut = data.draw(st.integers(0, n))
    with on(kernels):
        first = sketch_of(keys[:, :cut], kind, epsilon, data.draw(cuts(cut)))
        second = sketch_of(keys[:, cut:], kind, epsilon, data.draw(cuts(n - cut)), start=cut)
        before = second.to_host().to_bytes()
        hold(keys, kind, first.merge(second))
        assert second.to_host().to_bytes() == before


def test_merging_agrees_with_one_sketch_and_refuses_what_does_not_fit():
    keys = planted("float32", 2, 60, 3)
    with on("cuda"):
        parts = [sketch_of(keys[:, part], "float32", 0.1, [0, 30], start=part.start) for part in HALVES]
        merged = parts[0].merge(parts[1])
        assert (merged.count, merged.fallen) == (60, 0)
        whole = sketch_of(keys, "float32", 0.1, [0, 60])
        for one, other in zip(merged.universal_set(), whole.universal_set(), strict=True):
            assert one.indices.tolist() == other.indices.tolist()
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-9)
        hold(np.concatenate([keys, keys[:, :9]], axis=1), "float32", merged.update(keys[:, :9]))
        with pytest.raises(ValueError, match="which this sketch has seen already"):
            merged.merge(parts[1])
        with pytest.raises(TypeError, match="other must be a DeviceSketch; got Sketch"):
            merged.merge(lev.Sketch(3, 0.1))
        with pytest.raises(ValueError, match=r"other has heads=\(3,\); merging needs heads=\(2,\)"):
            merged.merge(device.DeviceSketch(3, 0.1, heads=(3,)))
        with pytest.raises(ValueError, match="other has kind='float64'; merging needs kind='float32'"):
            merged.merge(sketch_of(keys.astype(float), "float64", 0.1, [0, 60], start=9000))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_to_the_device(kind, tmp_path):
    keys = planted(kind, 3, 60, 3)
    keys[2, :, 0] = keys[2, :, 1]  # stays at the CPU
    like = keys[:, :0]
    if kind == "bfloat16":
        torch = pytest.importorskip("torch")
        like = torch.zeros((3, 0, 3), dtype=torch.bfloat16)
    with on("cuda"):
        sketch = sketch_of(keys, kind, 0.1, [0, 40])
        sketch.save(tmp_path / "s.lev")
        back = device.DeviceSketch.load(tmp_path / "s.lev", like)
        assert (back.count, back.fallen, back.heads) == (40, 1, (3,))
        for one, other in zip(back.universal_set(), sketch.universal_set(), strict=True):
            assert numpy(one).indices.tolist() == numpy(other).indices.tolist()
            np.testing.assert_allclose(numpy(one).scores, numpy(other).scores, rtol=1e-6)
            assert one.keys.dtype == other.keys.dtype
        more = keys[:, 40:]
        if kind == "bfloat16":
            more = torch.from_numpy(more.view(np.int16).copy()).view(torch.bfloat16)
        hold(keys, kind, back.update(more))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 0.5}, "sketch has decay=0.5; a device needs decay=1.0"),
        ({"intercept": True}, "sketch has intercept=True"),
        ({"payload_dim": 0}, "sketch has ids that were given, or padding"),
    ],
)
def test_sketches_that_a_device_cannot_hold_are_refused(arguments, message):
    sketch = lev.Sketch(2, 0.1, **arguments).update(np.eye(2), indices=[4, 5])
    with pytest.raises(ValueError, match=message):
        device.DeviceSketch.of(sketch, np.zeros((0, 2)))


def test_a_sketch_comes_only_to_keys_of_its_dtype():
    sketch = lev.Sketch(2, 0.1).update(np.eye(2))
    with pytest.raises(TypeError, match="like must be float64, as the rows that the sketch kept; got float32"):
        device.DeviceSketch.of(sketch, np.zeros((0, 2), np.float32))
    with pytest.raises(TypeError, match="sketch must be a Sketch; got list"):
        device.DeviceSketch.of([], np.zeros((0, 2)))


@settings(max_examples=25)
@given(st.data())
def test_a_row_that_is_not_admitted_never_reaches_epsilon(data):
    kernels = data.draw(st.sampled_from(["numpy", "numpy", "cuda"]))
    keys = data.draw(blocks(list(FAMILIES), most_rows=40))
    epsilon = data.draw(EPSILONS)
    with on(kernels):
        sketch = device.DeviceSketch(keys.shape[2], epsilon, heads=keys.shape[:1])
        for first, last in itertools.pairwise(data.draw(cuts(keys.shape[1]))):
            kept = sketch.admit(keys[:, first:last])
            assert (kept.dtype, kept.shape) == (bool, (len(keys), last - first))
            for head, rows in enumerate(keys[:, :last]):
                lower, _ = Form.empty(rows.shape[1]).add(rows, None)[0].factor().bracket(rows)
                assert np.all(kept[head] | (lower[first:] < epsilon))
                if not kept[head].all() and last <= 16:
                    truth = naive.leverage(rows)[0]
                    assert all(kept[head, i] or truth[first + i] < epsilon for i in range(last - first))
        hold(keys, "float64", sketch)


def test_tokens_are_admitted_one_by_one_as_heavy_as_they_are():
    keys = planted("float16", 3, 64, 6)
    keys[:, 60] *= 40
    keys[1, :, 0] = keys[1, :, 1]  # goes on at the CPU, where all are kept
    with on("cuda"):
        sketch = device.DeviceSketch(6, 0.5, heads=(3,))
        answers = [sketch.admit(keys[:, i : i + 1]) for i in range(64)]
    kept = np.concatenate(answers, axis=1)
    assert kept[:, :7].all()
    assert kept[1].all()
    assert kept[:, 60].all()
    assert kept[[0, 2], 30:60].mean() < 0.3


@pytest.mark.parametrize("k", [0, 1, 2, 50])
def test_the_best_of_each_head_are_stacked(k):
    keys = planted("float32", 3, 400, 6)
    keys[2, :, 0] = keys[2, :, 1]
    with on("cuda"):
        sketch = sketch_of(keys, "float32", 0.04, [0, 300, 400])
        ids, scores, mask = sketch.stack(k)
        wanted = sketch.to_host().stack(k)
    np.testing.assert_array_equal(ids, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], rtol=1e-9)
    np.testing.assert_array_equal(mask, wanted[2])
    empty = device.DeviceSketch(6, 0.1, heads=(3,)).stack(2)
    assert (empty[0] == -1).all()
    assert not empty[2].any()


def test_only_members_are_stacked():
    keys = np.full((1, 8, 1), 0.001)
    keys[0, 3] = 1  # its score is short of 1 by less than a filter sees
    with on("numpy"):
        sketch = device.DeviceSketch(1, 1.0, heads=(1,)).update(keys)
        assert sketch._state.ids.tolist() == [[3]]
        assert [part.tolist() for part in sketch.stack(2)] == [[[-1, -1]], [[0, 0]], [[False, False]]]
        # nor of a head at the CPU, where what is empty but for a larger epsilon takes it over
        fallen = device.DeviceSketch(2, 0.1, heads=(1,)).update(np.arange(1.0, 10)[None, :, None] * np.ones(2))
        taken = device.DeviceSketch(2, 0.25, heads=(1,), start=9).merge(fallen)
        assert (fallen.fallen, fallen.stack(9)[2].sum()) == (1, 4)
        for sketch in (taken, taken.to_host()):
            assert [ids for ids in sketch.stack(9)[0][0].tolist() if ids >= 0] == [8]


def test_the_margin_is_that_of_wrong_factors():
    """A factor that is wrong in its tenth digit is found out by what it multiplies to."""
    rows = RNG.standard_normal((1, 200, 5))
    gram = rows.swapaxes(1, 2) @ rows

    class Wrong:
        @staticmethod
        def factor(matrix):
            lower, inverse = twin.factor(matrix)
            return lower * (1 - 1e-4), inverse * (1 - 3e-4)

    for kernels, most in ((twin, 1e-9), (Wrong, 0.1)):
        white = whitening.whitener(kernels, gram, bounds.batch_gram_error(200, False), 0.0, np.zeros(1), 0.1)
        lower, upper = white.ends(rows)
        truth = lev.leverage_scores(rows[0])
        assert np.all((lower[0] <= truth * (1 + 1e-12)) & (truth <= upper[0] * (1 + 1e-12)))
        assert (upper - lower).max() < most


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: np.ones((2, 5, 4)), ValueError, r"keys must have shape \(2, m, 20\); got \(2, 5, 4\)"),
        (lambda: np.ones((2, 5, 20), complex), TypeError, "keys must be real numbers; got dtype complex128"),
        (lambda: np.ones((2, 5, 20), np.int64), TypeError, "keys must be floats, or integers that fit them; got int64"),
        (
            lambda: np.ones((2, 5, 20), np.float16),
            TypeError,
            "keys must be float32 on device None, as before; got float16",
        ),
    ],
)
def test_bad_blocks_are_refused(make, error, message):
    with on("numpy"):
        sketch = sketch_of(planted("float32"), "float32", 0.1, [0, 700])
        with pytest.raises(error, match=message):
            sketch.update(make())
        assert sketch.count == 700
    with pytest.raises(ValueError, match="dim must be at most 256 on a device; got 300"):
        device.DeviceSketch(300, 0.1)


def unreadable():
    torch = pytest.importorskip("torch")
    eye = torch.eye(2)
    yield from (eye.to_sparse(), eye.to(torch.float8_e4m3fn), torch._neg_view(eye))
    yield from (eye.bfloat16().to_sparse(), torch._neg_view(eye.bfloat16()))


def test_what_is_no_array_is_named():
    with pytest.raises(ValueError, match="keys cannot be read as an array: setting an array element"):
        arrive("keys", [[1.0, 2.0], [3.0]])
    for keys in unreadable():
        with pytest.raises(TypeError, match="keys cannot be read as an array: "):
            arrive("keys", keys)


class OnAGpu:
    """What DLPack sees of an array on a GPU."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise BufferError


def test_a_gpu_array_without_cupy_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        RuntimeError, match="keys is on a GPU, whose kernels need CuPy: pip install cupy-cuda13x; found"
    ):
        arrive("keys", OnAGpu())
