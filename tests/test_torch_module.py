"""The layer in the place of nn.MultiheadAttention."""

import copy
import math
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
import lev.torch as lt  # noqa: E402

nn = torch.nn


def pair(**arguments):
    """Return nn.MultiheadAttention and the layer with its weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    if theirs.in_proj_bias is not None:
        nn.init.normal_(theirs.in_proj_bias)
    ours = lt.LevAttention(16, 4, **{"top_k": 30, **arguments})
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(length=30):
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1))


CAUSAL = torch.ones(30, 30, dtype=torch.bool).triu(1)
PADDED = torch.arange(30).expand(2, 30) >= torch.tensor([[20], [30]])
MINUS = torch.zeros(2, 30).masked_fill(PADDED, -math.inf)
BIAS = torch.randn(8, 30, 30, generator=torch.Generator().manual_seed(2))


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"key_padding_mask": PADDED},
        {"key_padding_mask": MINUS},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
        {"attn_mask": BIAS},
        {"attn_mask": BIAS, "key_padding_mask": PADDED},
        {"attn_mask": BIAS[0], "key_padding_mask": MINUS},
        {"attn_mask": BIAS > 1, "key_padding_mask": PADDED},
    ],
    ids=lambda masks: ", ".join(f"{name} {getattr(m, 'dtype', m)}" for name, m in masks.items()),
)
def test_with_all_keys_it_is_multihead_attention(masks):
    theirs, ours = pair()
    x, other = inputs(), inputs().flip(1)
    for q, k, v in ((x, x, x), (x, other, other), (x[:, :30], other, x)):
        wanted = theirs(q, k, v, need_weights=False, **masks)[0]
        found, weights = ours(q, k, v, **masks)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert weights is None


def test_causal_and_padding_hide_keys_together():
    theirs, ours = pair()
    x = inputs()
    wanted = theirs(x, x, x, need_weights=False, attn_mask=CAUSAL, key_padding_mask=PADDED)[0]
    found = ours(x, x, x, is_causal=True, key_padding_mask=PADDED)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_state_dict_is_that_of_multihead_attention():
    theirs, ours = pair(warm_start=3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.MultiheadAttention)
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(inputs(), inputs(), inputs())[0], ours(inputs(), inputs(), inputs())[0])
    plain = lt.LevAttention(16, 4, bias=False, top_k=30, dtype=torch.float64)
    reference = nn.MultiheadAttention(16, 4, bias=False, batch_first=True, dtype=torch.float64)
    reference.load_state_dict(plain.state_dict())
    x = inputs().double()
    torch.testing.assert_close(plain(x, x, x)[0], reference(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("f", ["softmax", 2])
def test_it_is_attention_over_the_universal_keys_of_its_heads(f):
    _, ours = pair(top_k=5, f=f)
    x = inputs()
    q, k, v = (rows.unflatten(-1, (4, 4)).transpose(1, 2) for rows in ours._projected(x, x, x))
    wanted = lt.lev_attention(q, k, v, top_k=5, f=f, crossover=0).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(ours(x, x, x)[0], ours.out_proj(wanted))


def test_encoder_layers_call_it_in_evaluation_too():
    """PyTorch's own encoder kernel would take the weights and run full attention without a word."""
    ours = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0)
    ours.self_attn = lt.LevAttention(16, 4, top_k=3)
    full = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0)
    full.load_state_dict(ours.state_dict())
    x = inputs()
    trained = ours(x)
    for model in (ours, nn.TransformerEncoder(ours, 1, enable_nested_tensor=False)):
        model.eval()
        with torch.no_grad():
            found = model(x)
        assert not torch.allclose(found, full.eval()(x), atol=1e-3)
    torch.testing.assert_close(ours(x), trained)
    ours.self_attn.top_k = 30
    torch.testing.assert_close(ours(x), full(x))


def test_warm_start_uses_all_keys_while_training():
    theirs, ours = pair(top_k=3, warm_start=2)
    x = inputs()
    full = theirs(x, x, x, need_weights=False)[0]
    ours.eval()
    restricted = ours(x, x, x)[0]
    assert not torch.allclose(restricted, full, atol=1e-3)
    ours.train()
    for _ in range(2):
        torch.testing.assert_close(ours(x, x, x)[0], full)
    torch.testing.assert_close(ours(x, x, x)[0], restricted)
    assert ours.steps == 3
    ours.eval()
    ours(x, x, x)
    assert ours.steps == 3


@pytest.mark.parametrize("f", ["softmax", 2])
def test_keys_are_scored_anew_as_often_as_asked_in_training_and_always_in_evaluation(f):
    _, ours = pair(top_k=3, f=f, recompute=3)
    _, fresh = pair(top_k=3, f=f)
    batches = [torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    same = [torch.allclose(ours(x, x, x)[0], fresh(x, x, x)[0]) for x in batches]
    assert same == [True, False, False, True, False]
    other = torch.randn(2, 29, 16, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(ours(other, other, other)[0], fresh(other, other, other)[0])
    ours.eval()
    for x in batches:
        torch.testing.assert_close(ours(x, x, x)[0], fresh(x, x, x)[0])
    x = batches[0].requires_grad_()
    ours.train()(x, x, x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("f", ["softmax", 2, 4])
def test_it_trains(f):
    torch.manual_seed(0)
    layer, head = lt.LevAttention(16, 4, 0.1, top_k=6, f=f, warm_start=1), nn.Linear(16, 1)
    x = inputs()
    target = x[:, :, :1].roll(1, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(60):
        loss = (head(layer(x, x, x)[0]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="exactly one of epsilon and top_k"):
        lt.LevAttention(16, 4)
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads; got 10 and 3"):
        lt.LevAttention(10, 3, top_k=3)
    with pytest.raises(ValueError, match="num_heads must be >= 1; got 0"):
        lt.LevAttention(10, 0, top_k=3)
    with pytest.raises(ValueError, match="warm_start must be >= 0"):
        lt.LevAttention(16, 4, top_k=3, warm_start=-1)
    with pytest.raises(ValueError, match="recompute must be >= 1; got 0"):
        lt.LevAttention(16, 4, top_k=3, recompute=0)
    with pytest.raises(ValueError, match="recompute must be 1 with epsilon"):
        lt.LevAttention(16, 4, epsilon=0.1, recompute=2)
    layer = lt.LevAttention(16, 4, top_k=3)
    with pytest.raises(ValueError, match="need_weights must be False"):
        layer(inputs(), inputs(), inputs(), need_weights=True)
    with pytest.raises(ValueError, match=r"query must have shape \(batch, length, embed_dim\); got \(30, 16\)"):
        layer(inputs()[0], inputs()[0], inputs()[0])
    assert repr(layer).startswith(
        "LevAttention(\n  top_k=3, f='softmax', selector='leverage', warm_start=0, recompute=1"
    )


def test_without_torch_the_extra_is_named():
    code = "import sys; sys.modules['torch'] = None; import lev; import lev.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: lev.torch needs torch: pip install 'lev-attention[torch]'" in done.stderr


@pytest.mark.parametrize("recompute", [1, 2])
def test_what_is_causal_does_not_look_ahead_in_training_either(recompute):
    torch.manual_seed(0)
    layer = lt.LevAttention(16, 2, top_k=5, recompute=recompute)
    x = torch.randn(2, 40, 16)
    later = x.clone()
    later[:, -1] *= 100
    one, other = (copy.deepcopy(layer)(rows, rows, rows, is_causal=True)[0][:, :-1] for rows in (x, later))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [False, True])
def test_masks_of_encoder_layers_fit_powers_too(training):
    """PyTorch's layers make numbers of bool masks on the way."""
    ours = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0)
    ours.self_attn = lt.LevAttention(16, 4, top_k=30, f=2)
    ours.train(training)
    short = ours(inputs()[:, :20])
    torch.testing.assert_close(ours(inputs(), src_key_padding_mask=PADDED)[0, :20], short[0])
    with pytest.raises(TypeError, match="attn_mask must be bool"):
        ours(inputs(), BIAS[0])


def test_masks_of_numbers_fit_what_autocast_makes_of_the_rows():
    theirs, ours = pair()
    x = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = ours(x, x, x, attn_mask=BIAS)[0], theirs(x, x, x, attn_mask=BIAS, need_weights=False)[0]
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("arguments", [{"recompute": 3}, {"warm_start": 3}, {"recompute": 2, "f": 2}], ids=str)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_gradients_nor_the_count_of_steps(arguments, reentrant):
    _, ours = pair(top_k=3, **arguments)
    _, other = pair(top_k=3, **arguments)
    for seed in range(6):
        x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        (wanted,) = torch.autograd.grad(ours(x, x, x)[0].square().sum(), x)
        y = x.detach().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(lambda rows: other(rows, rows, rows)[0], y, use_reentrant=reentrant)
        out.square().sum().backward()
        torch.testing.assert_close(y.grad, wanted)
    assert ours.steps == other.steps == 6


def test_it_compiles_in_a_process_where_no_kernel_ran_yet():
    code = """
import warnings; warnings.simplefilter("ignore")
import torch, lev.torch as lt
layer, x = lt.LevAttention(16, 4, top_k=5), torch.randn(2, 20, 16)
first = torch.compile(layer, backend="eager")(x, x, x)[0]
assert torch.equal(first, layer(x, x, x)[0])
keys = torch.randn(2, 20, 4)
for p in (2.0, 3.0):
    found = torch.compile(lambda rows: lt.universal_keys(rows, top_k=5, p=p).indices, backend="eager")(keys)
    assert torch.equal(found, lt.universal_keys(keys, top_k=5, p=p).indices)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
