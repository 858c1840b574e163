"""The bounded cache: what it holds, what it promises of the rest, and attention through it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the torch extra")

from lev.torch import Keep, KMeans, Leverage, Norm, Random  # noqa: E402
from lev.torch.cache import BoundedCache, bounded_attention  # noqa: E402


def stream(n, seed=0, heads=2, d=4, batch=1):
    """Return keys of uneven size, float64, so that some are worth holding."""
    made = torch.randn(batch, heads, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made * torch.linspace(0.2, 3, n).flip(0)[:, None]


def feed(cache, keys, cuts, mask=None):
    bounds = [0, *sorted(cuts), keys.shape[2]]
    for first, last in itertools.pairwise(bounds):
        cache.update(keys[:, :, first:last], keys[:, :, first:last], None if mask is None else mask[:, first:last])
        yield last


def naive_positions(keys, cuts, budget, sinks, recent):
    """Return the positions that stay, one head, (n, d): written from the definition, all scores anew each time."""
    held, bounds = [], [0, *sorted(cuts), len(keys)]
    for first, last in itertools.pairwise(bounds):
        held += range(first, last)
        gram = keys[:last].T @ keys[:last]
        score = {j: keys[j] @ np.linalg.pinv(gram) @ keys[j] for j in held}
        always = [j for j in held if j < sinks or j >= last - recent]
        rest = sorted((j for j in held if j not in always), key=lambda j: -score[j])
        held = sorted(always + rest[: budget - len(always)]) if len(held) > budget else held
    return held


splits = st.lists(st.integers(5, 59), max_size=6, unique=True)


@given(splits, st.integers(0, 1000), st.integers(6, 30), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=30)
def test_it_holds_sinks_recent_and_the_best_of_the_rest(cuts, seed, budget, sinks, recent):
    keys = stream(60, seed)
    cache = BoundedCache(budget, sinks=sinks, recent=recent)
    list(feed(cache, keys, cuts))
    for head in range(2):
        assert cache.positions[0, head].tolist() == naive_positions(keys[0, head].numpy(), cuts, budget, sinks, recent)


@given(splits, st.integers(0, 1000), st.integers(4, 40))
@settings(max_examples=30)
def test_no_query_ever_gives_a_dropped_token_more_than_omitted(cuts, seed, budget):
    keys = stream(60, seed)
    keys[0, 1] = keys[0, 1, :, :2] @ keys[0, 1, :2]  # a head whose keys span a plane
    cache = BoundedCache(budget, sinks=1, recent=2)
    for last in feed(cache, keys, cuts):
        for head in range(2):
            rows, held = keys[0, head, :last], cache.positions[0, head]
            queries = torch.cat([rows @ torch.linalg.pinv(rows.T @ rows), torch.eye(4, dtype=rows.dtype), rows])
            powers = (queries @ rows.T).square()
            weights = powers / powers.sum(1, keepdim=True).clamp(min=1e-300)
            weights[:, held] = 0
            assert weights.max() <= max(cache.omitted[0, head], 0) * (1 + 1e-9)


@given(splits, st.integers(0, 1000))
@settings(max_examples=10)
def test_a_chunked_stream_drops_only_what_the_budget_forces(cuts, seed):
    keys = stream(60, seed)
    cache = BoundedCache(60, sinks=1, recent=2)
    list(feed(cache, keys, cuts))
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, keys)
    assert (cache.omitted == -math.inf).all()


@pytest.mark.parametrize("selector", [Leverage(), Leverage(intercept=True), "centred_norm", "key_difference", Norm()])
def test_padding_changes_nothing(selector):
    keys = stream(40, batch=2)
    padded = torch.cat([torch.full((2, 2, 7, 4), 1e6, dtype=torch.float64), keys], 2)
    padded[1] = torch.cat([keys[1], padded[1, :, :7]], 1)  # one row padded in front, one behind
    mask = torch.ones(2, 47, dtype=torch.bool)
    mask[0, :7] = mask[1, 40:] = False
    cache = BoundedCache(12, sinks=2, recent=3, selector=selector)
    list(feed(cache, padded, [27], mask))
    for row, (cut, shift) in enumerate([(20, 7), (27, 0)]):
        plain = BoundedCache(12, sinks=2, recent=3, selector=selector)
        list(feed(plain, keys[row : row + 1], [cut]))
        assert torch.equal(cache.positions[row] - shift, plain.positions[0])


def test_scores_without_a_summary_stay_with_their_tokens():
    keys = torch.ones(1, 1, 50, 3)
    cache = BoundedCache(10, sinks=0, recent=0, selector=Random(3))
    list(feed(cache, keys, range(1, 50)))
    expected = Random(3).scores(keys)[0, 0].topk(10).indices.sort().values
    assert cache.positions[0, 0].tolist() == expected.tolist()


def test_the_batch_can_be_changed():
    keys = stream(30, batch=3)
    cache, other = BoundedCache(8, recent=2), BoundedCache(8, recent=2)
    list(feed(cache, keys[:, :, :20], []))
    cache.over_batch(lambda part: part[[2, 0]])
    cache.update(keys[[2, 0], :, 20:], keys[[2, 0], :, 20:])
    list(feed(other, keys[[2, 0]], [20]))
    assert torch.equal(cache.keys, other.keys)


def test_bad_input_names_itself_and_changes_nothing():
    with pytest.raises(ValueError, match="budget must hold 4 sinks and 64 recent tokens, or pass fewer; got 60"):
        BoundedCache(60)
    for selector in (KMeans(), "expected_attention"):
        with pytest.raises(ValueError, match="selector must be a Streamed one of keys"):
            BoundedCache(80, selector=selector)
    with pytest.raises(ValueError, match="selector must be a Streamed one"):
        BoundedCache(80, selector=Keep(Norm(), 1, 1))
    cache, keys = BoundedCache(80), stream(5)
    cache.update(keys, keys)
    for bad, match in [
        ((keys[0], keys[0]), "must have shapes"),
        ((keys, keys[:, :, :3]), "must have shapes"),
        ((keys[:, :1], keys[:, :1]), "keys must fit those held"),
        ((keys, keys, torch.ones(1, 4, dtype=torch.bool)), "mask must be bool of shape"),
        ((keys, keys, torch.ones(1, 5)), "mask must be bool of shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            cache.update(*bad)
    with pytest.raises(TypeError, match="values must be a tensor; got ndarray"):
        cache.update(keys, keys.numpy())
    assert cache.seen == len(cache) == 5


# -- attention ---------------------------------------------------------------------------------------------


def triple(n=90, past=0, d=4, groups=2):
    made = torch.Generator().manual_seed(1)
    query = torch.randn(2, 2 * groups, n - past, d, generator=made)
    key = torch.randn(2, 2, n, d, generator=made) * torch.linspace(0.2, 3, n)[:, None]
    return query, key, torch.eye(n).expand(2, 2, n, n)  # values that show the weights


@pytest.mark.parametrize("past", [0, 50, 89])
def test_with_room_for_all_it_is_causal_attention(past):
    query, key, value = triple(past=past)
    mask = torch.ones(90 - past, 90, dtype=torch.bool).tril(past)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    found = bounded_attention(query, key, value, top_k=100, sinks=2, recent=20)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("past", [0, 50, 89])
def test_a_query_sees_sinks_the_latest_and_no_more_than_its_budget(past):
    query, key, value = triple(past=past)
    weights = bounded_attention(query, key, value, top_k=24, sinks=2, recent=10)
    logits = query @ key.repeat_interleave(2, 1).mT / 2
    place = torch.arange(90)
    for i, row in enumerate(range(past, 90)):
        seen = weights[:, :, i] > 0
        assert not seen[..., row + 1 :].any(), "a later key"
        assert (seen.sum(-1) <= 24).all()
        assert (seen.sum(-1) >= min(row + 1, 20)).all(), "places left empty"
        assert seen[..., (place < min(2, row + 1)) | ((place > row - 5) & (place <= row))].all()
        expected = logits[:, :, i].masked_fill(~seen, -math.inf).softmax(-1)
        assert torch.allclose(weights[:, :, i], expected, atol=1e-6)


def test_masks_hide_and_padding_is_never_held():
    query, key, value = triple()
    mask = torch.ones(2, 1, 90, 90, dtype=torch.bool).tril()
    mask[0, :, :, :11] = False
    found = bounded_attention(query, key, value, top_k=24, sinks=2, recent=10, attn_mask=mask)
    alone = bounded_attention(query[:1, :, 11:], key[:1, :, 11:], value[:1, :, 11:], top_k=24, sinks=2, recent=10)
    assert (found[0, :, 11:, :11] == 0).all()
    assert ((found[0, :, 30:] > 0).sum(-1) >= 20).all()
    assert torch.equal(found[0, :, 11:16] > 0, alone[0, :, :5] > 0)


def test_gradients_reach_queries_keys_and_values():
    leaves = [x.clone().requires_grad_() for x in triple()]
    bounded_attention(*leaves, top_k=24, sinks=2, recent=10).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_a_budget_too_small_is_refused():
    with pytest.raises(ValueError, match="top_k must hold 4 sinks and 64 recent tokens, or pass fewer; got 50"):
        bounded_attention(*triple(), top_k=50)
    with pytest.raises(ValueError, match="recent must be >= 1; got 0"):
        bounded_attention(*triple(), top_k=50, recent=0)
    with pytest.raises(ValueError, match="attn_mask must be broadcastable to"):
        bounded_attention(*triple(), top_k=80, attn_mask=torch.ones(3, 7, dtype=torch.bool))


def test_a_refused_update_changes_nothing_even_what_is_proved():
    cache = BoundedCache(2, sinks=0, recent=0)
    with pytest.raises(ValueError, match="omitted are those of tokens that came; none did"):
        cache.omitted  # noqa: B018
    cache.update(torch.eye(2).view(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))
    new = torch.tensor([1.0, 0]).view(1, 1, 1, 2)
    for _ in range(20):
        with pytest.raises(ValueError, match=r"values must fit those held, \(1, 1, 2, 3\); got \(1, 1, 1, 4\)"):
            cache.update(new, torch.zeros(1, 1, 1, 4))
    cache.update(new, torch.zeros(1, 1, 1, 3))
    assert cache.omitted.item() == pytest.approx(0.5)


@pytest.mark.parametrize("top_k", [100, 116, 128, 200])
def test_with_room_for_all_it_is_full_attention(top_k):
    q, k, v = torch.randn(3, 1, 2, 100, 4, generator=torch.Generator().manual_seed(0))
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(bounded_attention(q, k, v, top_k=top_k), full)
    last = bounded_attention(q[:, :, -1:], k, v, top_k=100, sinks=1, recent=5)
    torch.testing.assert_close(last, full[:, :, -1:])


def test_no_tokens_attend_to_nothing():
    none = torch.zeros(1, 1, 0, 4)
    assert bounded_attention(none, none, none, top_k=9, sinks=1, recent=3).shape == (1, 1, 0, 4)


@pytest.mark.parametrize("selector", ["leverage", "centred_leverage", "norm"])
def test_an_empty_batch_is_attended_to(selector):
    assert bounded_attention(*torch.zeros(3, 0, 2, 30, 4), top_k=10, recent=4, selector=selector).shape == (0, 2, 30, 4)
