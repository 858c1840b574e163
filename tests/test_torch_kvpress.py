"""The press for kvpress, on a tiny random model; kvpress needs an environment of its own."""

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("kvpress", reason="needs the kvpress extra, in an environment of its own")
transformers = pytest.importorskip("transformers")

import lev  # noqa: E402
from lev.torch import Leverage, OnlineLeverage, universal_keys  # noqa: E402
from lev.torch.kvpress import LevPress, LewisWeights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of its own affairs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


def run(model, press=None):
    ids = torch.randint(0, 80, (1, 60), generator=torch.Generator().manual_seed(0))
    cache = transformers.DynamicCache()
    with torch.no_grad():
        if press is None:
            model(ids, past_key_values=cache)
        else:
            with press(model):
                model(ids, past_key_values=cache)
    return [layer.keys for layer in cache.layers]


SELECTORS = ["leverage", "centred_leverage", "norm", Leverage(), LewisWeights(1.0), LewisWeights(4.0), OnlineLeverage()]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_the_keys_of_the_highest_scores_stay(model, selector):
    pressed, full = run(model, LevPress(0.5, selector=selector)), run(model)
    for held, keys in zip(pressed, full, strict=True):
        chosen = universal_keys(keys, top_k=30, selector=selector)
        assert held.shape == (1, 2, 30, 16)
        assert torch.equal(held.sort(-2).values, chosen.gather(keys).sort(-2).values)


def test_scores_are_exact(model):
    keys = run(model)[0]
    found = LevPress(0.5).score(None, None, keys, None, None, {})
    assert torch.allclose(found[0, 1], lev.leverage_scores(keys[0, 1]), rtol=1e-4)
    found = LevPress(0.5, selector=LewisWeights(4.0)).score(None, None, keys, None, None, {})
    assert torch.allclose(found[0, 1], lev.lewis_weights(keys[0, 1], 4.0))


def test_before_rotation(model):
    after, before = (run(model, LevPress(0.75, before_rotation=flag))[0] for flag in (False, True))
    assert not torch.equal(after, before)


def test_an_unknown_selector_is_refused():
    with pytest.raises(ValueError, match="selector must be"):
        LevPress(0.5, selector="best")
