"""On a CUDA device: the kernels against their twins, and the sketch against that of the CPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device import KINDS, hold, planted
from test_gpu_kernels import blocks, sides

import lev
from lev import bounds, device
from lev.cpu import heads as twin
from lev.place import Place, host

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cupy():
    module = pytest.importorskip("cupy", reason="needs cupy, which launches the kernels")
    try:
        module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs a CUDA device: {error}")
    return module


@pytest.fixture(scope="module")
def kernels(cupy):
    from lev.gpu import heads

    return heads


@settings(max_examples=100)
@given(block=blocks(most_rows=3000), fast=st.booleans())
def test_gram_is_within_its_error(cupy, kernels, block, fast):
    keys, kind = block
    found = host(kernels.gram(cupy.asarray(keys), kind, fast))
    rows = twin.wide(keys, kind)
    true, size = rows.swapaxes(1, 2) @ rows, np.abs(rows).swapaxes(1, 2) @ np.abs(rows)
    error = bounds.batch_gram_error(keys.shape[1], fast and kernels.tensor(kind, keys.shape[2]))
    assert np.all(np.abs(found - true) <= (error + bounds.dot_error(keys.shape[1])) * size)
    np.testing.assert_array_equal(found, host(kernels.gram(cupy.asarray(keys), kind, fast)))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_tensor_cores_are_within_the_model(cupy, kernels, kind):
    """Numbers of one sign and many binades, whose sums lose the most."""
    rng = np.random.default_rng(0)
    for spread in (1, 4, 8):
        rows = 2.0 ** rng.uniform(-spread, 0, (4, 4096, 128))
        keys = (
            (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            if kind == "bfloat16"
            else rows.astype(kind)
        )
        true = twin.gram(keys, kind, False)
        off = np.abs(host(kernels.gram(cupy.asarray(keys), kind, True)) / true - 1).max()
        assert off <= bounds.batch_gram_error(4096, True)


@pytest.mark.parametrize("d", [1, 33, 64, 128, 160, 256])
def test_factor_is_that_of_numpy(cupy, kernels, d):
    rows = np.random.default_rng(d).standard_normal((5, d + 20, d))
    gram = rows.swapaxes(1, 2) @ rows
    gram[1, d // 2, d // 2] = -1
    lower, inverse = (host(part) for part in kernels.factor(cupy.asarray(gram)))
    good = [0, 2, 3, 4]
    np.testing.assert_allclose(lower[good] @ lower[good].swapaxes(1, 2), gram[good], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(lower[good] @ inverse[good], np.stack([np.eye(d)] * 4), atol=1e-8)
    assert np.isnan(inverse[1]).any()


@settings(max_examples=100)
@given(block=blocks(most_rows=2000), seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_screen_drops_no_row_that_reaches_the_limit(cupy, kernels, block, seed, share):
    keys, kind = block
    heads, _, d = keys.shape
    matrix = np.tril(np.random.default_rng(seed).uniform(-1, 1, (heads, d, d)))
    parts, seen = kernels.probe(cupy.asarray(matrix), kind)
    scale, limit = np.ones((heads, d), np.float32), np.full((heads, 2), 0.01, np.float32)
    truth = sides(keys, kind, host(seen), scale, limit)
    limit[:, 1] = np.quantile(truth, share, axis=1)
    found, count, _ = (
        host(part) for part in kernels.screen(cupy.asarray(keys), kind, parts, cupy.asarray(scale), cupy.asarray(limit))
    )
    size = np.linalg.norm(twin.wide(keys, kind), axis=2) * np.linalg.norm(host(seen), axis=(1, 2)).reshape(-1, 1)
    blur = bounds.screen_error(d, kind) * size + bounds.screen_blur(d) * truth
    for head in range(heads):
        rows = set(found[head, : count[head]].tolist())
        assert set(np.flatnonzero(truth[head] - blur[head] >= limit[head, 1])) <= rows
        assert rows <= set(np.flatnonzero(truth[head] + blur[head] >= limit[head, 1]))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_sketch_of_cupy_arrays(cupy, kind, fast):
    keys = planted(kind, 3, 30_000, 96)
    sketch = device.DeviceSketch(96, 0.05, heads=(3,), fast=fast)
    for part in np.array_split(keys, 5, axis=1):
        sketch.update(cupy.asarray(part))
    assert (sketch.fallen, sketch.syncs) == (0, 5)
    alone = lev.Sketch(96, 0.05, heads=(3,)).update(keys).universal_set()
    for head, (one, other, whole) in enumerate(
        zip(sketch.universal_set(), alone, sketch.to_host().universal_set(), strict=True)
    ):
        assert isinstance(one.indices, cupy.ndarray)
        assert set(other.indices) <= set(host(one.indices).tolist())
        assert set(other.indices) <= set(whole.indices)
        assert fast or one.exact
        np.testing.assert_array_equal(host(one.keys), keys[head, host(one.indices)])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_tensors_in_their_stream(cupy, kind):
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that was built for CUDA")
    with torch.cuda.stream(torch.cuda.Stream()):
        keys = torch.randn(2, 5000, 64, device="cuda")
        keys[:, 77] *= 40
        keys = keys.to(getattr(torch, kind))
        sketch = device.DeviceSketch(64, 0.1, heads=(2,), fast=True).update(keys)
        del keys
        for found in sketch.universal_set():
            assert found.keys.dtype == getattr(torch, kind)
            assert found.indices.is_cuda
            assert found.indices.tolist() == [77]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["float16", "float32", "float64"]), epsilon=st.floats(0.05, 1))
def test_nothing_is_missed(cupy, seed, kind, epsilon):
    rng = np.random.default_rng(seed)
    keys = (rng.integers(-3, 4, (2, 60, 3)) * 2.0 ** rng.integers(-3, 3, (2, 1, 3))).astype(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_BLOCK", 8)
        sketch = device.DeviceSketch(3, epsilon, heads=(2,), fast=bool(seed % 2))
        for part in np.array_split(keys, 3, axis=1):
            sketch.update(cupy.asarray(part))
        hold(keys, kind, sketch)


def test_rows_that_are_not_finite_are_refused_and_change_nothing(cupy):
    keys = planted("float32", 2, 5000, 20)
    sketch = device.DeviceSketch(20, 0.1, heads=(2,)).update(cupy.asarray(keys))
    before = sketch.to_host().to_bytes()
    keys[1, 4321, 3] = np.nan
    with pytest.raises(ValueError, match="row 4321 holds NaN"):
        sketch.update(cupy.asarray(keys))
    assert sketch.to_host().to_bytes() == before


@settings(max_examples=60)
@given(block=blocks(most_rows=1), seed=st.integers(0, 2**32))
def test_one_row_a_head_is_screened(cupy, kernels, block, seed):
    keys, kind = block
    heads, _, d = keys.shape
    matrix = np.tril(np.random.default_rng(seed).uniform(-1, 1, (heads, d, d)))
    parts, seen = kernels.probe(cupy.asarray(matrix), kind)
    scale, none = np.ones((heads, d), np.float32), np.zeros((heads, 2), np.float32)
    truth = sides(keys, kind, host(seen), scale, none)
    for times, passes in ((1 - 1e-4, True), (1 + 1e-4, False)):
        limit = np.stack([np.zeros(heads), truth[:, 0] * times], axis=1).astype(np.float32)
        arguments = parts, cupy.asarray(scale), cupy.asarray(limit)
        _, count, _ = kernels.screen(cupy.asarray(keys), kind, *arguments)
        far = truth[:, 0] > 1e-20
        assert np.all((host(count) == passes)[far])


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_merge_admit_stack_and_files(cupy, kind, tmp_path):
    keys = planted(kind, 3, 9000, 32)
    halves = [
        device.DeviceSketch(32, 0.05, heads=(3,), start=start).update(cupy.asarray(keys[:, start : start + 4500]))
        for start in (0, 4500)
    ]
    merged = halves[0].merge(halves[1])
    whole = lev.Sketch(32, 0.05, heads=(3,)).update(keys)
    for one, other in zip(merged.universal_set(), whole.universal_set(), strict=True):
        assert set(other.indices) <= set(host(one.indices).tolist())
    ids, scores, mask = (host(part) for part in merged.stack(2))
    assert (ids[:, 0] == 17).all()
    assert mask[:, 0].all()
    assert (scores[:, 0] >= scores[:, 1]).all()
    merged.save(tmp_path / "s.lev")
    back = device.DeviceSketch.load(tmp_path / "s.lev", cupy.asarray(keys[:, :0]))
    token = cupy.asarray(keys[:, 17:18])
    assert host(back.admit(token)).all()
    light = cupy.asarray(keys[:, 100:101])
    assert not host(back.admit(light)).any()
    assert back.count == 9002


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 4.0])
def test_other_powers(cupy, kernels, kind, p):
    keys = planted(kind, 3, 9000, 32)
    sketch = device.DeviceSketch(32, 0.05, p, heads=(3,))
    for part in np.array_split(keys, 3, axis=1):
        sketch.update(cupy.asarray(part))
    assert (sketch.fallen, sketch.syncs) == (0, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "kernels", property(lambda self: twin if self.device is None else kernels))
        alone = device.DeviceSketch(32, 0.05, p, heads=(3,))
        for part in np.array_split(keys, 3, axis=1):
            alone.update(part)
    np.testing.assert_allclose(host(sketch._state.mass), alone._state.mass, rtol=1e-6)
    for one, other in zip(sketch.universal_set(), alone.universal_set(), strict=True):
        assert set(other.top(1).indices) == {17}
        scores = dict(zip(host(one.indices).tolist(), host(one.scores).tolist(), strict=True))
        assert all(
            abs(scores[j] / score - 1) < 1e-6 for j, score in zip(other.indices.tolist(), other.scores, strict=True)
        )
