"""Attention over the universal keys, held to dense attention from the definition."""

import functools
import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, streams

torch = pytest.importorskip("torch", reason="needs the torch extra")
import lev.torch as lt  # noqa: E402
from lev.torch import powers  # noqa: E402

sdpa = torch.nn.functional.scaled_dot_product_attention
lev_attention = functools.partial(lt.lev_attention, crossover=0)  # the selection, however few keys there are


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(heads=4, key_heads=4, length=50, n=60, d=8, c=6, batch=2, dtype=torch.float32):
    shapes = [(batch, heads, length, d), (batch, key_heads, n, d), (batch, key_heads, n, c)]
    return [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def dense(query, key, value, f, allowed=None, kept=None):
    """Attention from the definition, in float64; ``kept`` says which keys are used, all count in a normaliser."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (rows.double().repeat_interleave(groups, -3) for rows in (key, value))
    allowed = torch.ones((), dtype=torch.bool) if allowed is None else allowed
    kept = allowed if kept is None else kept.repeat_interleave(groups, -2)[..., None, :] & allowed
    logits = query.double() @ key.mT
    if f == "softmax":
        logits = (logits / query.shape[-1] ** 0.5).masked_fill(~kept, -math.inf)
        return logits.softmax(-1).nan_to_num() @ value
    weights = (logits.abs() ** f).masked_fill(~allowed, 0)
    total = weights.sum(-1, keepdim=True)
    return (weights / torch.where(total > 0, total, 1)).masked_fill(~kept, 0) @ value


def kept_by(found, n):
    count = torch.zeros(*found.indices.shape[:-1], n, dtype=torch.int64)
    return count.scatter_add(-1, found.indices, found.mask.long()) > 0


def past(length, n):
    return torch.ones(length, n, dtype=torch.bool).tril()


FUNCTIONS = ["softmax", 1, 2, 3.5, 4]


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("length", "n"), [(50, 60), (60, 50), (1, 60), (270, 270)])
def test_attention_over_the_chosen_keys_is_that_of_the_definition(causal, f, key_heads, length, n):
    q, k, v = qkv(4, key_heads, length, n)
    arguments = {"f": f, "is_causal": causal, "enable_gqa": key_heads < 4}
    allowed = past(length, n) if causal else None
    for selector in ("norm", "leverage"):
        if selector == "leverage" and f not in ("softmax", 2):
            continue
        out = lev_attention(q, k, v, top_k=13, selector=selector, **arguments)
        chosen = lt.OnlineLeverage() if causal and selector == "leverage" else selector
        usable = torch.arange(n) < length if causal else None
        kept = kept_by(lt.universal_keys(k, top_k=min(13, n), selector=chosen, mask=usable), n)
        torch.testing.assert_close(out.double(), dense(q, k, v, f, allowed, kept), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("causal", [False, True])
def test_all_keys_are_full_attention(causal, f):
    q, k, v = qkv()
    out = lev_attention(q, k, v, top_k=60, f=f, is_causal=causal)
    torch.testing.assert_close(out.double(), dense(q, k, v, f, past(50, 60) if causal else None), rtol=1e-4, atol=1e-5)
    if f == "softmax":
        assert torch.equal(out, sdpa(q, k, v, is_causal=causal))
        assert torch.equal(lev_attention(q, k, v, top_k=7, crossover=60, is_causal=causal), out)
        assert not torch.equal(lev_attention(q, k, v, top_k=7, crossover=59, is_causal=causal), out)
        few = lev_attention(q[:, :, :10], k, v, top_k=7, crossover=30, is_causal=causal)
        assert torch.equal(few, sdpa(q[:, :, :10], k, v, is_causal=causal))
        assert not torch.equal(lev_attention(q[:, :, :10], k, v, top_k=7, crossover=29, is_causal=causal), few)


MASKS = {
    "one for all": (60,),
    "queries and keys": (50, 60),
    "one a head": (2, 4, 50, 60),
    "padding": (2, 1, 1, 60),
    "one a key head": (4, 1, 60),
    "queries": (2, 1, 50, 1),
}


@pytest.mark.parametrize("f", ["softmax", 2, 3])
@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize(("causal", "key_heads"), [(False, 4), (False, 2), (True, 2)])
def test_masks_hide_keys(shape, f, causal, key_heads):
    q, k, v = qkv(key_heads=key_heads)
    mask = torch.rand(MASKS[shape], generator=torch.Generator().manual_seed(1)) < 0.6
    full = mask.expand(2, 4, 50, 60) & (past(50, 60) if causal else True)
    arguments = {"f": f, "attn_mask": mask, "is_causal": causal, "enable_gqa": key_heads < 4}
    out = lev_attention(q, k, v, top_k=9, selector="norm", **arguments)
    usable = mask.expand(2, 4, 50, 60).any(-2).unflatten(1, (key_heads, -1)).any(2)
    usable = usable & (torch.arange(60) < 50) if causal else usable
    kept = kept_by(lt.universal_keys(k, top_k=9, selector="norm", mask=usable), 60)
    torch.testing.assert_close(out.double(), dense(q, k, v, f, full, kept), rtol=1e-4, atol=1e-5)


def test_additive_masks_are_added():
    q, k, v = qkv()
    bias = randn(4, 50, 60, seed=5)
    bias[..., 20:] = -math.inf
    out = lev_attention(q, k, v, top_k=20, attn_mask=bias)
    torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=bias))
    out = lev_attention(q, k, v, top_k=60, attn_mask=bias, is_causal=True)
    torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=bias.masked_fill(~past(50, 60), -math.inf)))


@pytest.mark.parametrize("f", ["softmax", 2, 3])
def test_a_fully_masked_row_is_as_in_scaled_dot_product_attention(f):
    q, k, v = qkv()
    mask = torch.ones(50, 60, dtype=torch.bool)
    mask[3] = False
    assert torch.equal(sdpa(q, k, v, mask)[..., 3, :], torch.zeros(2, 4, 6))
    out = lev_attention(q, k, v, top_k=9, f=f, attn_mask=mask)
    assert torch.equal(out[..., 3, :], torch.zeros(2, 4, 6))
    assert out.isfinite().all()


def test_scale_dropout_and_other_shapes():
    q, k, v = qkv()
    found = lt.universal_keys(k, top_k=9)
    wanted = sdpa(q, found.gather(k), found.gather(v), scale=0.7)
    torch.testing.assert_close(lev_attention(q, k, v, top_k=9, scale=0.7), wanted)
    torch.testing.assert_close(lev_attention(q[0, 0], k[0, 0], v[0, 0], top_k=9, scale=0.7), wanted[0, 0])
    torch.testing.assert_close(lev_attention(q[0], k[0], v[0], top_k=9, scale=0.7), wanted[0])
    for f in ("softmax", 2):
        torch.manual_seed(0)
        dropped = [lev_attention(q, k, v, top_k=9, f=f, dropout_p=0.5) for _ in range(40)]
        kept = lev_attention(q, k, v, top_k=9, f=f)
        assert not torch.equal(dropped[0], kept)
        torch.testing.assert_close(torch.stack(dropped).mean(0), kept, atol=0.8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("f", ["softmax", 2, 4])
def test_dtypes(dtype, f):
    q, k, v = qkv(dtype=dtype)
    out = lev_attention(q * 30, k * 30, v, top_k=60, f=f, scale=1 / 900 / 8**0.5)  # 4th powers pass 65504
    assert out.dtype == dtype
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(out.double(), dense(q, k, v, f), rtol=tolerance, atol=tolerance)


# -- nothing missed ----------------------------------------------------------------------------------------


def used(query, key, p, epsilon, causal):
    """Return the weights that lev_attention gives, dense (l, n): attention with the values e_j."""
    values = torch.eye(len(key), dtype=torch.float64)
    return lev_attention(query, key, values, f=p, epsilon=epsilon, is_causal=causal).numpy()


@settings(max_examples=60)
@given(st.data(), st.booleans(), st.sampled_from([2, 1.5, 4]), st.sampled_from([0.05, 0.2, 0.6]))
def test_every_heavy_entry_is_used_with_its_weight(data, causal, p, epsilon):
    """Queries are the keys, and for each key the query that gives it the most; causal ones come at every later time."""
    families = ["gaussian", "integers", "low_rank", "repeated", "sparse", "heavy_tailed"]
    keys = data.draw(streams(families, most_rows=16, most_columns=3))
    if not len(keys):
        return
    _, best = naive.leverage(keys)
    best = np.array([[float(value) for value in query] for query in best])
    best = best / np.maximum(np.abs(best).max(axis=1, keepdims=True), 1e-300)
    for queries in (best, best[::-1].copy(), np.roll(best, 1, axis=0), keys):
        logits = np.tril(queries @ keys.T) if causal else queries @ keys.T
        size = np.linalg.norm(queries, axis=1) * np.linalg.norm(keys)
        clear = np.abs(logits).max(axis=1) > 1e-8 * size  # the others see nothing but rounding
        weights = np.abs(logits) ** p
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)[clear]
        given = used(torch.from_numpy(queries), torch.from_numpy(keys), p, epsilon, causal)[clear]
        heavy = weights >= epsilon * (1 + 1e-9)
        np.testing.assert_allclose(given[heavy], weights[heavy], rtol=1e-6)
        assert np.all((given == 0) | (np.abs(given - weights) <= 1e-6))


def test_the_final_set_is_not_enough_for_causal_attention():
    """A key that is heavy early and drowned later is used by the early queries."""
    keys = torch.cat([torch.eye(2).repeat(1, 1), torch.eye(2).repeat(50, 1)]).double()
    causal = used(torch.eye(2).double()[[0, 1] * 51], keys, 2, 0.4, True)
    assert causal[0, 0] == causal[1, 1] == 1
    assert not len(lt.universal_keys(keys, epsilon=0.4).indices)


def test_epsilon_with_is_causal_needs_an_online_selector():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="scores keys in their prefix; got Leverage"):
        lev_attention(q, k, v, epsilon=0.1, is_causal=True, selector=lt.Leverage())
    assert lev_attention(q, k, v, epsilon=0.1, is_causal=True, selector=lt.OnlineLeverage()).isfinite().all()


# -- p = 2 in linear time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("length", "n"), [(50, 60), (60, 50), (7, 7)])
def test_square_attention_is_that_of_the_definition(causal, key_heads, length, n, monkeypatch):
    monkeypatch.setattr(powers, "_CHUNK", 16)
    q, k, v = qkv(4, key_heads, length, n)
    out = lt.square_attention(q, k, v, is_causal=causal, enable_gqa=key_heads < 4)
    wanted = dense(q, k, v, 2, past(length, n) if causal else None)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_residual_is_what_the_other_keys_add(causal):
    q, k, v = qkv(length=60)
    part = lev_attention(q, k, v, f=2, epsilon=0.3, is_causal=causal)
    found = lt.universal_keys(k, epsilon=0.3, selector=lt.OnlineLeverage() if causal else "leverage")
    kept = kept_by(found, 60)
    assert 0 < kept.sum() < kept.numel()
    others = dense(q, k, v, 2, past(60, 60) if causal else None, ~kept)
    residual = lt.square_attention(q, k, v, is_causal=causal) - part
    torch.testing.assert_close(residual.double(), others, rtol=1e-4, atol=1e-5)


def test_orthogonal_queries_and_zero_keys_weigh_nothing():
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    k, v = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[3.0], [5.0]])
    for out in (lt.square_attention(q, k, v), *(lev_attention(q, k, v, f=p, top_k=1) for p in (1, 2, 4))):
        assert out.tolist() == [[0.0], [3.0]]


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", ["softmax", 1.5, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_chosen_keys(causal, f):
    tensors = [x.requires_grad_() for x in qkv(1, 1, 8, 8, 2, 2, 1, torch.float64)]

    def attention(q, k, v):
        return lev_attention(q, k, v, top_k=4, f=f, is_causal=causal, selector=lt.Random())

    assert torch.autograd.gradcheck(attention, tensors)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_square_attention(causal, monkeypatch):
    monkeypatch.setattr(powers, "_CHUNK", 4)
    tensors = [x.requires_grad_() for x in qkv(2, 1, 6, 7, 2, 2, 1, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: lt.square_attention(*x, is_causal=causal, enable_gqa=True), tensors)


def test_gradients_are_finite_where_all_weights_are_zero():
    q, k, v = (x.requires_grad_() for x in (torch.zeros(3, 2), torch.ones(5, 2), torch.ones(5, 1)))
    for f in (1, 2, 4):
        lev_attention(q, k, v, f=f, top_k=2).sum().backward()
    lt.square_attention(q, k, v).sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("f", ["softmax", 2])
def test_an_empty_set_gives_zeros(f):
    q, k, v = (x.requires_grad_() for x in qkv(n=500))
    out = lev_attention(q, k, v, epsilon=0.9, f=f)
    assert torch.equal(out, torch.zeros(2, 4, 50, 6))
    out.sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in (q, k, v))


# -- memory and bad input ----------------------------------------------------------------------------------


class Largest(torch.overrides.TorchFunctionMode):
    """Notes the largest tensor that any function returns."""

    numel = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().nbytes():
                self.numel = max(self.numel, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("f", ["softmax", 2, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_dense_is_formed(causal, f):
    n = 3000
    q, k, v = qkv(1, 1, n, n, 8, 8, 1)
    with Largest() as seen:
        lev_attention(q, k, v, top_k=16, f=f, is_causal=causal, selector="norm")
    assert n * 8 <= seen.numel <= (n * 300 if f == 3 else n * 100)


SHAPES = (2, 4, 50, 8), (2, 4, 60, 8), (2, 4, 60, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"top_k": None}, ValueError, "exactly one of epsilon and top_k"),
        ({"epsilon": 0.1}, ValueError, "exactly one of epsilon and top_k"),
        ({"f": "relu"}, ValueError, "f must be 'softmax' or a power p > 0; got 'relu'"),
        ({"f": -1}, ValueError, "f must be positive and finite; got -1"),
        ({"f": None}, TypeError, "f must be a real number; got None"),
        ({"selector": "best"}, ValueError, "selector must be"),
        ({"attn_mask": torch.ones(50, 61)}, ValueError, r"broadcastable to \(2, 4, 50, 60\); got \(50, 61\)"),
        ({"attn_mask": torch.ones(50, 60, dtype=torch.int32)}, TypeError, "attn_mask must be bool or torch.float32"),
        ({"attn_mask": torch.ones(50, 60), "f": 2}, TypeError, "attn_mask must be bool for weights"),
        ({"query": [1.0]}, TypeError, "query must be a tensor; got list"),
        ({"query": torch.ones(2, 8, 50, 8)}, ValueError, "query heads may be a multiple"),
        ({"query": torch.ones(2, 6, 50, 8), "enable_gqa": True}, ValueError, r"query \(2, 6, 50, 8\)"),
        ({"query": torch.ones(2, 4, 50, 9)}, ValueError, "same width"),
        ({"value": torch.ones(2, 4, 61, 8)}, ValueError, r"value \(2, 4, 61, 8\)"),
        ({"value": torch.ones(2, 4, 60, 6).half()}, TypeError, "one floating dtype"),
        ({"key": torch.full((2, 4, 60, 8), math.nan)}, ValueError, "key must be finite"),
    ],
)
def test_bad_input_is_named(arguments, error, says):
    tensors = dict(zip(("query", "key", "value"), map(torch.ones, SHAPES), strict=True))
    with pytest.raises(error, match=says):
        lev_attention(**{**tensors, "top_k": 5, **arguments})


def test_real_keys(shared):
    from safetensors.torch import load_file

    found = load_file(shared / "dinov2_astronaut.safetensors")
    q, k, v = (found[f"layer9.{name}"].float() for name in ("query", "key", "value"))
    epsilon = 2 * 64 / 1370
    part = lev_attention(q, k, v, f=2, epsilon=epsilon)
    kept = kept_by(lt.universal_keys(k, epsilon=epsilon), 1370)
    assert 0 < kept.sum() < kept.numel() / 2
    torch.testing.assert_close(part.double(), dense(q, k, v, 2, None, kept), rtol=1e-3, atol=1e-4)
    weights = (q.double() @ k.double().mT).square()
    weights /= weights.sum(-1, keepdim=True)
    assert not torch.any((weights >= epsilon) & ~kept[..., None, :])
    torch.testing.assert_close(lt.square_attention(q, k, v).double(), weights @ v.double(), rtol=1e-4, atol=1e-5)


def test_families_of_keys_as_heads_of_one_call():
    rng = np.random.default_rng(2)
    tame = [name for name in FAMILIES if name not in ("subnormal", "enormous", "columns_apart")]
    keys = torch.from_numpy(np.stack([FAMILIES[name](rng, 40, 4) for name in tame]))
    weights = naive.weights(keys[0], keys[0], 2)
    given = lev_attention(keys, keys, torch.eye(40, dtype=torch.float64).expand(len(tame), 40, 40), f=2, epsilon=0.1)
    heavy = weights >= 0.1
    np.testing.assert_allclose(given[0].numpy()[heavy], weights[heavy], rtol=1e-9)
    assert given.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("f", ["softmax", 2, 4])
def test_devices_agree(f, causal):
    tensors = qkv()
    there = [x.cuda() for x in tensors]
    found = lev_attention(*there, top_k=9, f=f, is_causal=causal)
    assert found.device == there[0].device
    torch.testing.assert_close(found.cpu(), lev_attention(*tensors, top_k=9, f=f, is_causal=causal))
    scores = [lt.Leverage().scores(keys).cpu() for keys in (tensors[1], there[1])]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=0)
    torch.testing.assert_close(lt.square_attention(*there).cpu(), lt.square_attention(*tensors))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("n", "p", "dtype", "size"),
    [
        (3, 2.0**-10, torch.float64, 1.0),
        (2000, 0.01, torch.float64, 1.0),
        (5000, 0.1, torch.float32, 1.0),
        (9, 1024, torch.float32, 3.0),
        *[(3, p, torch.float32, size) for p in (1, 2, 3) for size in (1e20, 1e30, 1e-30)],
        *[(3, p, torch.float64, size) for p in (1, 2, 3) for size in (1e200, 1e300, 1e-300)],
    ],
)
def test_weights_do_not_depend_on_the_size_of_queries_and_keys(n, p, dtype, size, causal):
    key = torch.full((1, 1, n, 1), size, dtype=dtype)
    out = lev_attention(
        key[:, :, -1:] if not causal else key, key, torch.ones_like(key), f=p, top_k=n, is_causal=causal
    )
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("smallest", [1e-3, 1e-5, 1e-7, 1e-8])
def test_the_normaliser_keeps_its_digits_where_second_moments_lose_them(smallest, causal):
    key = randn(500, 4, dtype=torch.float64)
    key[:, 3], key[7, 3] = 0, smallest
    turn = torch.linalg.qr(randn(4, 4, seed=1, dtype=torch.float64))[0]
    value = torch.zeros(500, 1).double()
    value[7] = 1
    query = turn[3:4].expand(500, 4).contiguous()  # sees the seventh key alone
    out = lev_attention(query, key @ turn, value, f=2, epsilon=0.1, is_causal=causal)
    torch.testing.assert_close(out[7:], torch.ones_like(out[7:]), rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("f", [2, 3])
def test_what_padding_holds_has_no_say_in_the_scale(f):
    q, k, v = qkv(1, 1, 5, 6, batch=1, dtype=torch.float64)
    mask = torch.ones(6, dtype=torch.bool)
    mask[2] = False
    expected = lev_attention(q, k, v, f=f, top_k=6, attn_mask=mask)
    k[..., 2, :] = 1e300
    torch.testing.assert_close(lev_attention(q, k, v, f=f, top_k=6, attn_mask=mask), expected)
    k[..., 2, :] = math.nan
    torch.testing.assert_close(lev_attention(q, k, v, f=f, top_k=6, attn_mask=mask), expected)


def test_square_attention_is_exact_to_float64():
    def of(*rows):
        return torch.tensor(rows, dtype=torch.float64)

    assert lt.square_attention(of([1, 2]), of([1, 1], [3, -1]), of([1], [0])).item() == pytest.approx(0.9, rel=1e-15)
    assert lt.square_attention(of([1, -1]), of([1, 1], [1, 1.0001]), of([0], [1])).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("f", [2, 3])
def test_without_keys_the_output_is_zero(f):
    none = torch.zeros(1, 1, 0, 4)
    assert lev_attention(torch.ones(1, 1, 3, 4), none, none, f=f, top_k=3).equal(torch.zeros(1, 1, 3, 4))


def test_small_keys_keep_their_weight_beside_a_huge_one_that_a_query_does_not_see():
    key = torch.tensor([[1e38, 0.0], [0.0, 1e-20], [0.0, 3e-20]])
    value = torch.tensor([[7.0], [0.0], [1.0]])
    out = lev_attention(torch.tensor([[0.0, 1.0]]), key, value, f=2, top_k=3)
    torch.testing.assert_close(out, torch.tensor([[0.9]]))


@pytest.mark.parametrize("causal", [False, True])
def test_second_moments_serve_where_they_are_accurate(causal, monkeypatch):
    def refused(*_):
        raise AssertionError("all keys were gone through")

    monkeypatch.setattr(powers, "_sums", refused)
    q, k, v = qkv(1, 1, 1000, 1000, 8, batch=1, dtype=torch.float64)
    assert lev_attention(q, k, v, f=2, top_k=50, is_causal=causal).isfinite().all()


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, None])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_weights_hold_where_all_products_of_a_query_cancel(p, narrow):
    """A key alone has weight 1, however near to orthogonal, and whatever autocast makes of products."""
    key, query, value = randn(1, 1, 1, 64), randn(1, 1, 5000, 64, seed=1), torch.ones(1, 1, 1, 1)
    with torch.autocast("cpu", narrow, enabled=narrow is not None):
        out = lev_attention(query, key, value, f=p, top_k=1)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=2e-4, atol=0)


def test_lost_queries_are_done_again_in_every_head_with_their_masks():
    q, k, v = qkv(length=30, n=30)
    k[:, 1] = k[:, 1, :1]
    q[0, 1, 7] -= k[0, 1, 0] * (q[0, 1, 7] @ k[0, 1, 0]) / k[0, 1, 0].square().sum()
    mask = torch.rand(2, 4, 30, 30, generator=torch.Generator().manual_seed(3)) < 0.6
    for allowed, causal in ((None, False), (None, True), (mask, False), (mask[:, :, :1], False)):
        out = lev_attention(q, k, v, f=3, top_k=30, attn_mask=allowed, is_causal=causal)
        full = past(30, 30) if causal else None if allowed is None else allowed.expand(2, 4, 30, 30)
        wanted = dense(q, k, v, 3, full)
        torch.testing.assert_close(out.double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("f", ["softmax", 2])
def test_a_key_that_causality_hides_from_all_that_the_mask_shows_it_to_takes_no_place(f):
    k, v = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[1.0], [5.0]]]])
    mask = torch.tensor([[True], [False]])  # the last query sees nothing
    out = lev_attention(torch.ones(1, 1, 2, 1), k, v, top_k=1, f=f, attn_mask=mask, is_causal=True, selector="norm")
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 0.0]))
