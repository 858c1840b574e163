"""timm's vision transformers over the universal keys, with their own weights."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
try:  # it needs torchvision, which may be absent, or built for another torch and fail in its own ways
    with warnings.catch_warnings(action="ignore"):
        import timm
except (ImportError, RuntimeError) as error:
    pytest.skip(f"timm does not import here, see the timm extra: {error}", allow_module_level=True)

from lev.torch import Keep, Norm, universal_keys  # noqa: E402
from lev.torch.timm import attention_layer  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def vit(**changes):
    torch.manual_seed(0)
    return timm.models.VisionTransformer(**SIZES, **changes).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "scale_attn_norm": True}])
def test_weights_load_unchanged_and_a_wide_budget_changes_nothing(images, changes):
    plain = vit(**changes)
    for budget in ({"top_k": 65}, {"top_k": 10_000}, {"epsilon": 1e-9}):
        model = vit(attn_layer=attention_layer(**budget), **changes)
        model.load_state_dict({name: value + 0.05 for name, value in plain.state_dict().items()})
        moved = vit(**changes)
        moved.load_state_dict(model.state_dict())
        assert torch.allclose(model(images), moved(images), atol=1e-5)


def test_a_small_budget_is_attention_over_the_chosen_keys(images):
    selector = Keep(Norm(), first=1)
    model = vit(attn_layer=attention_layer(top_k=16, selector=selector))
    attention, x = model.blocks[0].attn, torch.randn(2, 65, 48)
    query, key, value = attention.qkv(x).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    chosen = universal_keys(key, top_k=16, selector=selector).indices
    mask = torch.zeros(2, 3, 65, dtype=torch.bool).scatter(-1, chosen, True)[:, :, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    assert torch.allclose(attention(x), attention.proj(out.transpose(1, 2).flatten(-2)), atol=1e-5)


def test_it_trains(images):
    model = vit(attn_layer=attention_layer(top_k=16, f=2)).train()
    model(images).sum().backward()
    assert all(block.attn.qkv.weight.grad.abs().sum() > 0 for block in model.blocks)


def test_by_name(images):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, attn_layer=attention_layer(top_k=3))
    assert model.eval()(images).shape == (2, 1000)


def test_bad_arguments_are_refused_before_a_model_is_built():
    with pytest.raises(ValueError, match="exactly one of epsilon and top_k"):
        attention_layer()
    with pytest.raises(ValueError, match="selector must be"):
        attention_layer(top_k=3, selector="best")
