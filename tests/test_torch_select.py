"""Universal keys of attention heads, held to exact scores and to the definition."""

import math

import naive
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import EPSILONS, FAMILIES, streams

import lev
from lev import bounds

torch = pytest.importorskip("torch", reason="needs the torch extra")
import lev.torch as lt  # noqa: E402
from lev.torch import leverage  # noqa: E402

NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scores_seen(keys):
    """Return exact scores, lessened where float64 says it cannot see them, as in the laws of a sketch."""
    return np.array([seen(keys, *found) for found in zip(*naive.leverage(keys), strict=True)])


def prefix_scores(keys):
    """Return the exact score of every row among the rows up to itself, lessened in the same way."""
    rows, d = naive.exact(keys), keys.shape[1]
    scores, matrix = [], naive.gram([], d)
    for j, row in enumerate(rows):
        matrix = [[matrix[a][b] + row[a] * row[b] for b in range(d)] for a in range(d)]
        query = naive.solve(matrix, [row])[0]
        scores.append(seen(keys[: j + 1], naive.dot(query, row), query))
    return np.array(scores)


def seen(keys, score, query):
    blur = naive.blur(keys, query, bounds.resolution(keys.shape[1]))
    return float(score) if blur < 1e-9 else max(0.0, float(score) ** 0.5 - blur) ** 2


def members(found, head=(0, 0)):
    return found.indices[head][found.mask[head]].tolist()


def assert_universal(keys, found, epsilon, scores):
    held = members(found)
    upper = dict(zip(held, found.scores[0, 0].tolist(), strict=False))
    for j in np.flatnonzero(scores >= epsilon):
        assert j in held, f"missed key {j} with score {scores[j]}"
    assert all(score <= upper[j] * (1 + 2**-52) for j, score in enumerate(scores) if j in upper)


@settings(max_examples=120)
@given(streams(most_rows=25), EPSILONS, st.sampled_from(sorted(NARROW)))
def test_no_key_is_missed(keys, epsilon, dtype):
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(np.clip(keys, -1e4, 1e4) if dtype == "float16" else keys).to(NARROW[dtype])
    tensor = tensor.nan_to_num(posinf=1e30, neginf=-1e30)[None, None]
    found = lt.universal_keys(tensor, epsilon=epsilon)
    keys = tensor[0, 0].double().numpy()
    assert_universal(keys, found, epsilon, scores_seen(keys))


@settings(max_examples=120)
@given(streams(most_rows=25))
def test_checked_factors_bound_every_score(keys):
    """As on devices that the compiled kernels do not serve."""
    upper, wide = leverage._checked(torch.from_numpy(keys)[None], 1e-8)
    assert wide.item() or np.all(upper[0].numpy() >= scores_seen(keys) * (1 - 2**-52))


@pytest.mark.parametrize("way", ["compiled", "checked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_bound_the_exact_ones_closely_in_each_family(family, way, monkeypatch):
    if way == "checked":
        monkeypatch.setattr(leverage, "_on_cpu", lambda heads: leverage._checked(heads, 1e-8))
    keys = FAMILIES[family](np.random.default_rng(3), 40, 4)
    upper = lt.Leverage().scores(torch.from_numpy(keys)[None, None])[0, 0].numpy()
    true = np.array([float(score) for score in naive.leverage(keys)[0]])
    assert np.all(upper >= scores_seen(keys) * (1 - 2**-52))
    # of what can only just be told from rounding scores are known to a few per cent
    assert np.all(upper <= true * (1.1 if family == "near_rounding" else 1.0) + 1e-4)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 8), st.booleans())
def test_ill_conditioned_heads_are_whitened_twice(seed, d, decades, single):
    """Bounds hold, are close, and no head needs a loop; columns and rows of several sizes."""
    rng = np.random.default_rng(seed)
    bent = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.logspace(0, -decades, d) @ rng.standard_normal((d, d))
    keys = rng.standard_normal((30, d)) * 2.0 ** rng.integers(-3, 4, (30, 1)) @ bent
    keys = keys.astype(np.float32).astype(float) if single else keys
    upper, margin = leverage._twice_whitened(torch.from_numpy(keys)[None])
    true = np.array([float(score) for score in naive.leverage(keys)[0]])
    assert np.all(upper[0].numpy() >= true * (1 - 2**-52))
    if np.linalg.cond(keys) < 1e8:
        assert margin.item() < 1e-4
        assert np.all(upper[0].numpy() <= true * (1 + 4e-4) + 1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_rows_off_their_place_are_charged(first, monkeypatch):
    """Whitened rows that are wrong by as much as they may be never bring a bound below its score."""
    keys = torch.from_numpy(np.random.default_rng(5).standard_normal((1, 40, 3)))
    plain = leverage.Whitener.whiten

    def wrong(self, rows):
        """Shorten the first row, or lengthen all others along it."""
        white, pad = plain(self, rows)
        along = white[:, :1] / white[:, :1].norm(dim=-1, keepdim=True)
        off = 1e-3 * (white @ along.mT).sign()
        off[:, (slice(1, None) if first else 0)] = 0
        return (white + (-off if first else off) * along, pad + off.abs()[..., 0]) if rows is keys else (white, pad)

    monkeypatch.setattr(leverage.Whitener, "whiten", wrong)
    upper, margin = leverage._twice_whitened(keys)
    true = np.array([float(score) for score in naive.leverage(keys[0].numpy())[0]])
    assert np.all(upper[0].numpy() >= true)
    assert 1e-3 < margin.item() < 0.1


def test_a_weak_direction_that_a_gram_matrix_hides_is_kept():
    keys = np.ones((4000, 2)) * np.linspace(1, 2, 4000)[:, None]
    keys[:, 1] = 0
    keys[7] = [0, 1e-9]
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert 7 in members(lt.universal_keys(torch.from_numpy(keys @ turn)[None, None], epsilon=0.9))


@pytest.mark.parametrize("size", [1e-170, 1e-200])
def test_columns_whose_squares_vanish_count(size):
    keys = torch.tensor([[size, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert lt.Leverage().scores(keys).tolist() == pytest.approx([1, 1])
    assert lt.OnlineLeverage().scores(keys).tolist() == pytest.approx([1, 1])


@settings(max_examples=60)
@given(streams(most_rows=16), EPSILONS)
@example(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]] * 4), 0.1)
def test_online_scores_bound_those_in_each_prefix(keys, epsilon):
    tensor = torch.from_numpy(keys)[None, None]
    found = lt.universal_keys(tensor, epsilon=epsilon, selector=lt.OnlineLeverage())
    assert_universal(keys, found, epsilon, prefix_scores(keys))


@pytest.mark.parametrize("block", [8, 128])
def test_online_scores_are_exact_to_the_row_once_the_rank_is_full(block, monkeypatch):
    monkeypatch.setattr(leverage, "_BLOCK", block)
    keys = np.random.default_rng(1).standard_normal((60, 5)).cumsum(axis=0)
    upper = lt.OnlineLeverage().scores(torch.from_numpy(keys))
    np.testing.assert_allclose(upper.numpy()[5:], prefix_scores(keys)[5:], rtol=1e-9)
    assert torch.all(upper[:5] == 1)


def given_by_some_query(keys, p):
    """Return for every key the most that many queries give it, the best ones for p = 2 among them: (n,)."""
    _, best = naive.leverage(keys)
    best = np.array([[float(value) for value in query] for query in best]).reshape(-1, keys.shape[1])
    best /= np.maximum(np.abs(best).max(axis=1, keepdims=True), 1e-300)
    return naive.weights(np.vstack([best, RANDOM_QUERIES[:, : keys.shape[1]]]), keys, p).max(axis=0)


RANDOM_QUERIES = np.random.default_rng(9).standard_normal((500, 4))


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 3, 4, 6])
@pytest.mark.parametrize("family", ["gaussian", "integers", "repeated", "low_rank", "sparse"])
def test_other_powers_miss_nothing(p, family):
    keys = FAMILIES[family](np.random.default_rng(4), 24, 3)
    found = lt.universal_keys(torch.from_numpy(keys)[None, None], epsilon=0.1, p=p)
    assert_universal(keys, found, 0.1, given_by_some_query(keys, p))
    online = lt.OnlineLeverage(power=p).scores(torch.from_numpy(keys)).numpy()
    prefix = [given_by_some_query(keys[: j + 1], p)[j] for j in range(len(keys))]
    assert np.all(online >= np.array(prefix) * (1 - 1e-12))


def test_heads_are_scored_as_if_alone():
    """Batched heads, healthy and not, of different scales, get what each gets by itself."""
    rng = np.random.default_rng(0)
    heads = [FAMILIES[name](rng, 50, 4) for name in FAMILIES if name != "near_rounding"]
    together = lt.Leverage().scores(torch.from_numpy(np.stack(heads))).numpy()
    for keys, scores in zip(heads, together, strict=True):
        np.testing.assert_allclose(scores, lev.leverage_scores(keys), atol=1e-4)


def test_well_conditioned_heads_take_no_loop_over_heads(monkeypatch):
    monkeypatch.setattr(leverage, "sensitivity_bounds", None)
    lt.universal_keys(randn(3, 5, 300, 16), top_k=7)
    lt.universal_keys(randn(3, 5, 300, 16) * 1e-20, epsilon=0.2)
    with pytest.raises(TypeError):
        lt.universal_keys(randn(1, 1, 10, 16), top_k=7)  # fewer keys than columns: head by head


@pytest.mark.parametrize("selector", lt.SELECTORS)
def test_shapes_order_and_ties(selector):
    key, query = randn(2, 3, 90, 8), randn(2, 3, 11, 8, seed=1)
    found = lt.universal_keys(key, top_k=20, selector=selector, query=query)
    assert found.indices.shape == found.scores.shape == found.mask.shape == (2, 3, 20)
    assert found.indices.dtype == torch.int64
    assert found.scores.dtype == torch.float64
    assert found.mask.all()
    assert torch.all(found.indices.diff() > 0)
    again = lt.universal_keys(key, top_k=20, selector=selector, query=query)
    assert torch.equal(found.indices, again.indices)
    scores = lt.SELECTORS[selector].scores(key, query=query)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :20].sort(-1).values
    assert torch.equal(best, found.indices)


def test_ties_go_to_the_lower_index():
    found = lt.universal_keys(torch.ones(1, 1, 50, 3), top_k=4, selector="norm")
    assert members(found) == [0, 1, 2, 3]


def test_sets_of_different_sizes_are_padded():
    key = randn(1, 2, 60, 4)
    key[0, 0, 5] *= 100
    found = lt.universal_keys(key, epsilon=0.9)
    assert found.mask.sum(-1).tolist() == [[1, 0]]
    assert found.indices.tolist() == [[[5], [0]]]
    assert found.scores[0, 1].tolist() == [0]


@pytest.mark.parametrize("selector", [*lt.SELECTORS, lt.OnlineLeverage(), lt.Sensitivity(1.0), lt.KMeans(8)])
def test_padding_is_as_if_it_were_not_there(selector):
    key, query = randn(1, 2, 40, 6), randn(1, 2, 9, 6, seed=1)
    mask = torch.ones(40, dtype=torch.bool)
    mask[30:] = False
    poisoned = key.clone()
    poisoned[..., 30:, :] = math.nan
    found = lt.universal_keys(poisoned, top_k=12, selector=selector, query=query, mask=mask)
    alone = lt.universal_keys(key[..., :30, :], top_k=12, selector=selector, query=query)
    assert torch.equal(found.indices, alone.indices)
    torch.testing.assert_close(found.scores, alone.scores)
    few = lt.universal_keys(poisoned, top_k=33, selector=selector, query=query, mask=mask)
    assert few.mask.sum(-1).tolist() == [[30, 30]]


def test_gradients_flow_through_what_is_gathered_and_not_through_the_choice():
    key = randn(1, 1, 30, 4, dtype=torch.float64).requires_grad_()
    found = lt.universal_keys(key, top_k=5)
    assert not lt.universal_keys(key[..., :3, :], top_k=2, p=3).scores.requires_grad
    assert not found.scores.requires_grad
    found.gather(key).sum().backward()
    assert sorted(key.grad[0, 0].sum(-1).nonzero().flatten().tolist()) == members(found)


STREAMED = [lt.Leverage(), lt.Leverage(intercept=True), lt.Norm(), lt.CentredNorm(), lt.KeyDifference(), lt.Random(3)]


@pytest.mark.parametrize("selector", [*STREAMED, lt.Recent(), lt.ExpectedAttention()], ids=repr)
def test_summaries_of_parts_add_up(selector):
    key, query = randn(2, 2, 70, 5), randn(2, 2, 70, 5, seed=1)
    parts = list(zip(key.split([20, 1, 49], -2), query.split([20, 1, 49], -2), strict=True))
    summary = sum(selector.summary(k, query=q) for k, q in parts)
    ranks = torch.cat([selector.rank(parts[i][0], summary, start) for i, start in enumerate([0, 20, 21])], -1)
    torch.testing.assert_close(ranks, selector.scores(key, query=query), rtol=1e-9, atol=1e-12)


@settings(max_examples=60)
@given(streams(most_rows=25), st.integers(0, 25))
def test_streamed_leverage_is_never_below(keys, cut):
    """Also for rows that are not in the sum yet, and where a sum proves nothing."""
    tensor, selector = torch.from_numpy(keys), lt.Leverage()
    early = selector.summary(tensor[:cut])
    both = early + selector.summary(tensor[cut:])
    for summary in (early, both):
        assert np.all(selector.rank(tensor, summary).numpy() >= scores_seen(keys) * (1 - 2**-52))


def test_centred_leverage_is_that_of_rows_with_a_one():
    keys = np.random.default_rng(5).standard_normal((50, 4)) + 7
    affine = np.hstack([keys, np.ones((50, 1))])
    scores = lt.Leverage(intercept=True).scores(torch.from_numpy(keys)).numpy()
    np.testing.assert_allclose(scores, lev.leverage_scores(affine), rtol=1e-9)


def test_random_is_uniform_and_of_the_seed_alone():
    key = torch.zeros(2, 4, 5000, 1)
    drawn = lt.Random(7).scores(key)
    assert torch.equal(drawn[0], drawn[1])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.01
    assert abs(float(drawn[0].corrcoef().triu(1).abs().max())) < 0.05
    assert not torch.equal(drawn, lt.Random(8).scores(key))
    assert drawn[0, 1, :2].tolist() == lt.Random(7).scores(key[:1, :2, :2])[0, 1].tolist()
    assert drawn[0, 2, :9].tolist() == [plain_random(7, 2, position) for position in range(9)]


def plain_random(seed, head, position):
    """Return what two rounds of splitmix64 in integers of any size make of seed, head and position."""

    def mix(state):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    return (mix(mix(mix(head + seed * 0x1F123BB5) ^ position)) >> 11) * 2.0**-53


def test_heuristics_are_what_they_say():
    key, query = randn(2, 3, 60, 5), randn(2, 3, 800, 5, seed=2)
    torch.testing.assert_close(lt.Norm().scores(key), key.double().norm(dim=-1))
    mean = key.double().mean(-2, keepdim=True)
    torch.testing.assert_close(lt.CentredNorm().scores(key), (key.double() - mean).norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(key.double(), mean, dim=-1)
    torch.testing.assert_close(lt.KeyDifference().scores(key), -cosine)
    sampled = (query.double() @ key.double().mT / 5**0.5).exp().mean(-2).log()
    torch.testing.assert_close(lt.ExpectedAttention().scores(key, query=query), sampled, atol=0.2, rtol=0.1)
    kept = lt.universal_keys(key, top_k=10, selector="sinks_recent")
    assert members(kept) == [0, 1, 2, 3, 54, 55, 56, 57, 58, 59]


def test_kmeans_takes_one_key_of_each_cluster_first():
    generator = np.random.default_rng(0)
    cluster = generator.permutation(np.repeat(np.arange(6), 9))
    centres = 20 * np.eye(6)
    keys = centres[cluster] + generator.standard_normal((54, 6))
    selector = lt.KMeans(clusters=6, rounds=20, seed=next(s for s in range(200) if _one_each(s, cluster)))
    found = members(lt.universal_keys(torch.from_numpy(keys)[None, None], top_k=6, selector=selector))
    assert sorted(cluster[found]) == list(range(6))
    for c in range(6):
        inside = np.flatnonzero(cluster == c)
        distances = np.linalg.norm(keys[inside] - keys[inside].mean(axis=0), axis=1)
        assert inside[distances.argmin()] in found


def _one_each(seed, cluster):
    """Say whether that seed starts Lloyd's algorithm with a key in each cluster."""
    drawn = lt.Random(seed).scores(torch.zeros(1, len(cluster), 1))[0]
    return len(set(cluster[drawn.argsort(descending=True)[:6].numpy()])) == 6


def test_keep_adds_both_ends_to_another_selector():
    key = randn(1, 1, 50, 4)
    mask = torch.arange(50) < 45
    found = lt.universal_keys(key, top_k=10, selector=lt.Keep(lt.Norm(), first=2, last=3), mask=mask)
    rest = lt.universal_keys(key[..., 2:42, :], top_k=5, selector="norm")
    assert members(found) == [0, 1, *(j + 2 for j in members(rest)), 42, 43, 44]
    wide = lt.universal_keys(key, epsilon=0.9, selector=lt.Keep(lt.Leverage(), first=1))
    assert members(wide) == [0]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "exactly one of epsilon and top_k"),
        ({"epsilon": 0.1, "top_k": 3}, ValueError, "exactly one of epsilon and top_k"),
        ({"top_k": 11}, ValueError, "top_k must be at most the number of keys, 10; got 11"),
        ({"top_k": 0}, ValueError, "top_k must be >= 1"),
        ({"top_k": 2.5}, TypeError, "top_k must be an integer"),
        ({"epsilon": 1.5}, ValueError, "epsilon must be in"),
        ({"epsilon": 0.1, "selector": "norm"}, ValueError, "epsilon needs a selector that bounds"),
        ({"epsilon": 0.1, "selector": lt.Leverage(), "p": 4}, ValueError, "p=4"),
        ({"top_k": 1, "p": 0}, ValueError, "p must be positive"),
        ({"top_k": 1, "selector": "best"}, ValueError, "one of leverage, .*; got 'best'"),
        ({"top_k": 1, "selector": 3}, TypeError, "selector must be a name or a Selector; got int"),
        ({"top_k": 1, "selector": "expected_attention"}, ValueError, "query must be given"),
        (
            {"top_k": 1, "mask": torch.ones(9) > 0},
            ValueError,
            r"to \(1, 2, 10\); got \(9,\)",
        ),
        ({"top_k": 1, "query": torch.ones(2, 4, 3)}, ValueError, r"query must have the shape .* got \(2, 4, 3\)"),
        ({"top_k": 1, "mask": torch.ones(10)}, TypeError, "mask must be bool; got torch.float32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, says):
    with pytest.raises(error, match=says):
        lt.universal_keys(randn(1, 2, 10, 3), **arguments)


def test_bad_keys_are_named():
    key = randn(1, 2, 10, 3)
    key[0, 1, 4, 0] = math.inf
    with pytest.raises(ValueError, match=r"key at \(0, 1, 4\) holds NaN or infinity"):
        lt.universal_keys(key, top_k=1)
    with pytest.raises(TypeError, match="tensor of floats; got torch"):
        lt.universal_keys(torch.ones(1, 2, 3, dtype=torch.int64), top_k=1)
    with pytest.raises(TypeError, match="key must be a tensor; got ndarray"):
        lt.universal_keys(np.ones((1, 2, 3)), top_k=1)
    with pytest.raises(TypeError, match="key must be a tensor; got NoneType"):
        lt.universal_keys(None, top_k=1)
    with pytest.raises(ValueError, match="d > 0"):
        lt.universal_keys(torch.ones(5, 0), top_k=1)


def test_no_keys_and_no_heads():
    assert lt.universal_keys(torch.ones(2, 3, 0, 4), epsilon=0.5).indices.shape == (2, 3, 0)
    assert lt.universal_keys(torch.ones(0, 3, 5, 4), epsilon=0.5).indices.shape == (0, 3, 0)
    assert lt.universal_keys(torch.ones(0, 3, 5, 4), top_k=2).indices.shape == (0, 3, 2)


def test_scores_in_prefixes_leave_nothing_out_for_powers_far_from_2():
    key = torch.ones(1, 1000, 1).double()
    key[:, -1] = 1.01
    assert lt.OnlineLeverage(1024.0).scores(key)[0, -1] == 1  # 0.96 by its definition
    key = torch.stack([torch.ones(20), torch.linspace(-1, 1, 20)], -1).double()[None]
    key[:, -1] *= 1e-200
    p = 2.0**-10
    sizes = key[0, :, 0].abs() ** p  # the weights that the query (1, 0) gives
    score = lt.OnlineLeverage(p).scores(key)
    assert (score[0, -1] >= sizes[-1] / sizes.sum()).item()
    assert 19 in lt.universal_keys(key, epsilon=0.01, p=p, selector=lt.OnlineLeverage(p)).indices
    key[:, 3] = 0
    assert lt.OnlineLeverage(p).scores(key)[0, 3] == 0


@pytest.mark.parametrize("p", [200.0, 0.02])
def test_scores_in_prefixes_are_numbers(p):
    scores = lt.OnlineLeverage(p).scores(randn(2, 1500, 2, dtype=torch.float64))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_no_keys_have_no_scores():
    for shape in ((0, 30, 4), (2, 0, 4)):
        found = lt.universal_keys(torch.zeros(shape), epsilon=0.1, p=3)
        assert found.indices.shape == (shape[0], 0)


def test_a_selector_is_refused_however_short_the_keys():
    x = torch.ones(1, 1, 5, 2)
    with pytest.raises(ValueError, match="selector must be a Selector or one of"):
        lt.lev_attention(x, x, x, top_k=2, selector="x")
    with pytest.raises(ValueError, match="clusters must be >= 1; got -1"):
        lt.KMeans(-1)


def test_keys_that_are_stored_negated_are_as_any():
    keys = torch.randn(50, 8, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)).conj().imag
    assert keys.is_neg()
    for of in (lambda rows: lt.universal_keys(rows, top_k=3).indices, lambda rows: lev.leverage_scores(rows)):
        assert torch.equal(of(keys), of(keys.clone().resolve_neg()))
    short = torch._neg_view(keys.bfloat16())
    assert torch.equal(lev.leverage_scores(short), lev.leverage_scores(short.resolve_neg()))


@pytest.mark.parametrize("other", [lambda rows: rows.to(torch.float8_e4m3fn), torch.Tensor.to_sparse])
def test_tensors_that_numpy_lacks_are_named(other):
    with pytest.raises(TypeError, match=r"keys must be a dense tensor of a dtype that NumPy has; got torch\.float"):
        lev.Sketch(3, 0.1).update(other(torch.ones(2, 3)))
