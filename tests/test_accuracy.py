"""Scores against an extended-precision oracle, over conditioning, dtypes and sizes; real keys where they are."""

import itertools

import naive
import numpy as np
import pytest
from strategies import FAMILIES

import lev
from lev import bounds


def conditioned(n, d, condition, seed=0):
    """Return (n, d) keys with a log-spaced spectrum from 1 down to 1 / condition, in random directions."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((n, d)))[0]
    right = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (left * np.logspace(0, -np.log10(condition), d)) @ right


@pytest.mark.parametrize("condition", [1, 30, 1e2, 1e3, 1e4])
@pytest.mark.parametrize(("n", "d"), [(3000, 64), (20_000, 16), (500, 3)])
def test_float64_scores_are_right_to_1e_8(n, d, condition):
    keys = conditioned(n, d, condition)
    truth = naive.orthonormal_scores(keys)
    np.testing.assert_allclose(lev.leverage_scores(keys), truth, rtol=1e-8, atol=0)
    found = lev.Sketch(d, 1e-9).update(keys).universal_set()
    assert len(found) == n
    np.testing.assert_allclose(found.scores, truth, rtol=1e-8, atol=0)
    assert np.all(found.scores >= truth * (1 - 1e-14))


@pytest.mark.parametrize("condition", [1e6, 1e8])
def test_beyond_that_the_error_grows_with_the_condition_and_stays_above(condition):
    keys = conditioned(5000, 8, condition)
    truth = naive.orthonormal_scores(keys)
    found = lev.Sketch(8, 1e-9).update(keys).universal_set()
    assert np.all(found.scores >= truth)
    np.testing.assert_allclose(found.scores, truth, rtol=2e-14 * condition, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("condition", [1, 30, 300])
def test_narrow_floats_are_right_within_their_own_rounding(dtype, condition):
    keys = (conditioned(4000, 16, condition) * 30).astype(dtype)
    truth = naive.orthonormal_scores(keys)
    found = lev.Sketch(16, 1e-9).update(keys).universal_set()
    np.testing.assert_allclose(found.scores, truth, rtol=np.finfo(np.float32).eps * 100, atol=0)
    np.testing.assert_allclose(lev.leverage_scores(keys), truth, rtol=np.finfo(np.float32).eps * 100, atol=0)


def test_scores_sum_to_the_rank_of_rounded_low_rank_keys():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((5000, 5)) @ rng.standard_normal((5, 24))
    assert lev.leverage_scores(keys).sum() == pytest.approx(5, rel=1e-9)
    sketch = lev.Sketch(24, 0.01).update(keys)
    assert sketch.rank == 5


@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
def test_a_tiny_row_alone_in_its_direction_scores_one(size):
    rng = np.random.default_rng(1)
    keys = rng.standard_normal((4000, 6))
    keys[:, 5], keys[2345] = 0, size * np.eye(6)[5]
    keys = keys @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert lev.leverage_scores(keys)[2345] == pytest.approx(1, abs=1e-3)
    assert lev.Sketch(6, 0.9).update(keys).universal_set().indices.tolist() == [2345]
    gram = keys.T @ keys
    if size <= 1e-7:  # what this guards against: the same score by way of a float64 Gram matrix
        assert keys[2345] @ np.linalg.solve(gram, keys[2345]) < 0.9


def test_long_streams_see_every_path_and_agree_with_the_oracle():
    keys = conditioned(60_000, 12, 40).astype(np.float32)
    keys[[7, 30_000, 59_999]] *= 90
    truth = naive.orthonormal_scores(keys)
    for epsilon in (12 / 60_000 * 2, 0.01):
        found = lev.Sketch(12, epsilon).update(keys).universal_set()
        assert found.exact
        assert set(np.flatnonzero(truth >= epsilon)) <= set(found.indices)
        assert set(found.indices) <= set(np.flatnonzero(truth >= epsilon * (1 - 2 * bounds.margin(keys.dtype))))


def test_a_rank_jump_late_in_the_stream_is_seen():
    rng = np.random.default_rng(2)
    keys = np.zeros((30_000, 10), np.float32)
    keys[:, :6] = rng.standard_normal((30_000, 6))
    keys[20_000:, 6:] = rng.standard_normal((10_000, 4)) * 1e-4
    sketch = lev.Sketch(10, 0.01)
    for block in np.array_split(keys, 11):
        sketch.update(block)
    assert sketch.rank == 10
    truth = naive.orthonormal_scores(keys)
    assert set(sketch.universal_set().indices) == set(np.flatnonzero(truth >= 0.01))


@pytest.mark.parametrize("family", ["one_huge", "graded", "growing", "columns_apart", "subnormal"])
def test_scores_of_rows_far_apart_sum_to_the_rank(family):
    keys = FAMILIES[family](np.random.default_rng(5), 40, 4)
    truth = np.array([float(score) for score in naive.leverage(keys)[0]])
    np.testing.assert_allclose(lev.leverage_scores(keys), truth, rtol=1e-6, atol=1e-9)


def test_leverage_scores_take_leading_axes():
    keys = np.random.default_rng(3).standard_normal((2, 3, 40, 4))
    scores = lev.leverage_scores(keys)
    assert scores.shape == (2, 3, 40)
    np.testing.assert_allclose(scores[1, 2], naive.orthonormal_scores(keys[1, 2]), rtol=1e-10)


# -- real keys -------------------------------------------------------------------------------------------------


def real(shared, name):
    from safetensors.numpy import load_file

    return load_file(shared / f"{name}.safetensors")


@pytest.mark.parametrize("layer", [4, 14, 26])
def test_language_model_keys(shared, layer):
    tensors = real(shared, "smollm2_pydoc")
    for head in range(3):
        check_real(tensors[f"layer{layer}.key"][head], tensors[f"layer{layer}.query"][3 * head])


@pytest.mark.parametrize("layer", [2, 9])
def test_vision_model_keys(shared, layer):
    tensors = real(shared, "dinov2_astronaut")
    for head in range(6):
        check_real(tensors[f"layer{layer}.key"][head], tensors[f"layer{layer}.query"][head][:200])


def check_real(keys, queries):
    """Hold the sketch to the oracle at a threshold that some keys reach, and its heavy hitters to brute force."""
    n, d = keys.shape
    truth = naive.orthonormal_scores(keys)
    epsilon = 1.5 * d / n
    sketch = lev.Sketch(d, epsilon).update(keys)
    found = sketch.universal_set()
    assert found.exact
    assert len(found) > 0
    assert set(found.indices) == set(np.flatnonzero(truth >= epsilon))
    wide = keys.astype(np.float64)
    best = np.linalg.lstsq(wide.T @ wide, wide[found.indices][:50].T, rcond=None)[0].T
    for asked in (queries, best):
        hits, wanted = sketch.heavy_hitters(asked), lev.heavy_entries(asked, keys, epsilon)
        assert hits.nnz == wanted.nnz
        np.testing.assert_array_equal(hits.indices, wanted.indices)
        np.testing.assert_allclose(hits.data, wanted.data, rtol=1e-6)
    assert sketch.heavy_hitters(best).nnz >= len(best)


def test_a_long_real_stream_in_parts_and_merged(shared):
    keys = real(shared, "minilm_pydoc_stream")["key"]
    epsilon = 2 * keys.shape[1] / len(keys)
    whole = lev.Sketch(keys.shape[1], epsilon).update(keys).universal_set()
    edges = [0, 40_000, 40_001, len(keys)]
    parts = [
        lev.Sketch(keys.shape[1], epsilon, start=first).update(keys[first:last])
        for first, last in itertools.pairwise(edges)
    ]
    merged = lev.merge(parts[::-1]).universal_set()
    np.testing.assert_array_equal(merged.indices, whole.indices)
    truth = naive.orthonormal_scores(keys)
    np.testing.assert_array_equal(whole.indices, np.flatnonzero(truth >= epsilon))


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1.0, 1e300])
def test_what_a_query_has_in_a_column_of_zeros_hides_nothing(size):
    keys = size * np.array([[9.0, 0, 0, 3], [-3, 0, 5, 7], [1, 0, 2, 0]])
    queries = np.random.default_rng(1).standard_normal((3, 4)) * np.array([1e-300, 1e300, 1e-300, 1e-300])
    truth = np.array([naive.entries(query, keys, 2) for query in queries])
    assert np.all(truth > 0)
    sketch, causal = lev.Sketch(4, 1e-9).update(keys), lev.CausalSketch(4, 1e-9)
    found = causal.update(keys[:2]).attend(keys[2:], queries[2:]).toarray()
    np.testing.assert_allclose(lev.heavy_entries(queries, keys, 1e-9).toarray(), truth, rtol=1e-9)
    np.testing.assert_allclose(sketch.heavy_hitters(queries).toarray(), truth, rtol=1e-9)
    np.testing.assert_allclose(found, truth[2:], rtol=1e-9)
