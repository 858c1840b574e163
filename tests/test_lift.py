"""The symmetric power and feature maps: lifted sketches against brute force over all keys and queries."""

import itertools
import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FAMILIES, cuts, streams

import lev
from lev.lift import FeatureMap, SymmetricPower

pytestmark = pytest.mark.usefixtures("small_blocks")
PLAIN = ("gaussian", "integers", "low_rank", "repeated", "sparse", "heavy_tailed")
plain = streams(families=PLAIN, most_rows=40, most_columns=3)
even = st.sampled_from([2, 4, 6])
epsilons = st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9])
few = settings(max_examples=40)


def parts_of(keys, epsilon, p, positions):
    for first, last in itertools.pairwise(positions):
        yield lev.LiftedSketch(keys.shape[1], epsilon, SymmetricPower(p), start=first).update(keys[first:last])


def merged(parts):
    whole, *others = parts
    for other in others:
        whole.merge(other)
    return whole


def queries_for(keys, rng):
    d = keys.shape[1]
    more = [*keys, *np.linalg.pinv(keys).T] if len(keys) else []
    return np.array([*rng.standard_normal((60, d)), *np.eye(d), *more])


@settings(max_examples=150)
@given(st.data())
def test_nothing_is_missed_whatever_the_split(data):
    keys, p, epsilon = data.draw(plain), data.draw(even), data.draw(epsilons)
    sketch = merged(parts_of(keys, epsilon, p, data.draw(cuts(len(keys)))))
    found, rng = sketch.universal_set(), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    queries = queries_for(keys, rng)
    weights, total = naive.weights(queries, keys, p), np.sum(np.abs(queries @ keys.T) ** p, axis=1)
    floor = 1e-9 * (np.linalg.norm(queries, axis=1) * np.linalg.norm(keys)) ** p
    lower, upper = sketch.normalizer(queries)
    assert np.all((lower <= total * (1 + 1e-9) + floor) & (total <= upper * (1 + 1e-9) + floor))
    assert set(np.flatnonzero((weights >= epsilon * (1 + 1e-9)).any(axis=0))) <= set(found.indices)
    said = np.full(len(keys), found.omitted)
    said[found.indices] = found.scores
    assert np.all(weights.max(axis=0, initial=0) <= said + 1e-7)
    np.testing.assert_array_equal(found.keys, keys[found.indices])
    assert (found.p, found.count) == (p, len(keys))


@given(plain, st.sampled_from([4, 6]), epsilons)
@few
def test_what_is_known_by_other_proofs_is_kept(keys, p, epsilon):
    found = lev.LiftedSketch(keys.shape[1], epsilon, SymmetricPower(p)).update(keys).universal_set()
    lower, _ = lev.sensitivities(keys, p)
    assert set(np.flatnonzero(lower >= epsilon)) <= set(found.indices)
    assert len(found) <= SymmetricPower(p).dim(keys.shape[1]) / epsilon * (1 + 1e-6)


def test_a_lewis_certificate_leaves_rows_out():
    left = 0
    for seed in range(20):
        keys = FAMILIES["heavy_tailed"](np.random.default_rng(seed), 40, 3)
        found = lev.LiftedSketch(3, 0.3, SymmetricPower(4)).update(keys).universal_set()
        left += np.count_nonzero(lev.leverage_scores(SymmetricPower(4).keys(keys)) >= 0.3) - len(found)
        lower = lev.sensitivities(keys, 4)[0]
        assert set(np.flatnonzero(lower >= 0.3)) <= set(found.indices)
        assert np.all(np.delete(lower, found.indices) <= found.omitted)
        assert found.omitted < 0.3
    assert left > 20


@given(streams(families=PLAIN[:5], most_rows=40, most_columns=3), even, epsilons, st.data())
@few
def test_heavy_hitters_and_normalisers_are_exact(keys, p, epsilon, data):
    sketch = merged(parts_of(keys, epsilon, p, data.draw(cuts(len(keys)))))
    queries = queries_for(keys, np.random.default_rng(0))
    weights = naive.weights(queries, keys, p)
    total = np.sum(np.abs(queries @ keys.T) ** p, axis=1)
    clear = total > 1e-6 * (np.linalg.norm(queries, axis=1) * np.linalg.norm(keys)) ** p
    lower, upper = sketch.normalizer(queries)
    np.testing.assert_allclose(lower[clear], total[clear], rtol=1e-6)
    np.testing.assert_allclose(upper[clear], total[clear], rtol=1e-6)
    found = sketch.heavy_hitters(queries, width=max(1, len(keys))).toarray()[:, : len(keys)]
    alone = (found > 0) != (weights >= epsilon)
    assert np.all(np.abs(np.maximum(found, weights)[alone & clear[:, None]] - epsilon) <= 1e-5 * epsilon)
    both = ~alone & (found > 0) & clear[:, None]
    np.testing.assert_allclose(found[both], weights[both], rtol=1e-5)


@pytest.mark.parametrize("p", [2, 4, 6])
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_the_ends_of_the_scale(p, scale):
    keys = np.random.default_rng(0).standard_normal((60, 3))
    keys[7] *= 30
    exponent = math.frexp(scale)[1] if p == 6 else 0
    found = lev.LiftedSketch(3, 0.3, SymmetricPower(p, exponent)).update(keys * scale)
    plain = lev.LiftedSketch(3, 0.3, SymmetricPower(p)).update(keys)
    np.testing.assert_array_equal(found.universal_set().indices, plain.universal_set().indices)
    query = np.ones((1, 3))
    np.testing.assert_allclose(
        found.heavy_hitters(query / scale, 0.3).toarray(), plain.heavy_hitters(query, 0.3).toarray(), rtol=1e-9
    )
    if p < 6:
        lower, upper = found.normalizer(query / scale)
        np.testing.assert_allclose([lower, upper], plain.normalizer(query), rtol=1e-9)


def test_rows_that_would_leave_the_range_are_refused_and_change_nothing():
    sketch = lev.LiftedSketch(2, 0.5, SymmetricPower(8)).update(np.eye(2))
    for row in ([1e100, 1.0], [1.0, 1e-100]):
        with pytest.raises(ValueError, match="row 1 does not, divided by 2"):
            sketch.update([[1.0, 1.0], row])
    assert sketch.count == 2
    scaled = lev.LiftedSketch(2, 0.5, SymmetricPower(8, 332)).update([[1e100, 0.0], [0.0, 1e100]])
    assert scaled.universal_set().indices.tolist() == [0, 1]


@pytest.mark.parametrize("family", ["graded", "one_huge", "ill_conditioned", "one_tiny_alone", "columns_apart"])
def test_hard_keys_are_not_missed(family):
    keys = FAMILIES[family](np.random.default_rng(3), 30, 3)
    found = lev.LiftedSketch(3, 0.2, SymmetricPower(4)).update(keys).universal_set()
    # the best p = 2 query of each key, exact: a lower bound on what p = 4 gives
    for query in naive.leverage(keys)[1]:
        powers = [naive.dot(row, query) ** 4 for row in naive.exact(keys)]
        total = sum(powers)
        size = float(sum(naive.dot(row, row) for row in naive.exact(keys)) ** 2 * naive.dot(query, query) ** 2)
        if not total or float(total) < 1e-6 * size:
            continue  # below what float64 sees of lifted rows
        for j, value in enumerate(powers):
            assert value < total * 0.2 or j in found.indices


def test_feature_maps_are_lifts():
    rng = np.random.default_rng(0)
    keys, mix = rng.standard_normal((80, 3)), rng.standard_normal((3, 5))
    lift = FeatureMap(phi=lambda q: np.maximum(q @ mix, 0), psi=lambda k: np.exp(k @ mix / 2))
    sketch = lev.LiftedSketch(3, 0.1, lift).update(keys[:50]).update(keys[50:])
    queries = rng.standard_normal((40, 3))
    weights = naive.weights(lift.phi(queries), lift.psi(keys), 2)
    found = sketch.universal_set()
    assert not found.exact
    assert set(np.flatnonzero((weights >= 0.1).any(axis=0))) <= set(found.indices)
    np.testing.assert_allclose(
        sketch.heavy_hitters(queries, width=80).toarray(), np.where(weights >= 0.1, weights, 0), rtol=1e-8
    )


def test_ids_dtypes_and_an_empty_sketch():
    sketch = lev.LiftedSketch(2, 0.5, SymmetricPower(4))
    assert len(sketch.universal_set()) == sketch.count == sketch.retained == 0
    sketch.update(np.eye(2, dtype=np.float32), indices=[5, 9]).update(np.zeros((0, 2), np.float32), indices=[])
    found = sketch.universal_set()
    assert found.indices.tolist() == [5, 9]
    assert found.keys.dtype == np.float32
    assert (sketch.epsilon, sketch.retained) == (0.5, 2)
    assert sketch.resolution == lev.bounds.resolution(3)


def test_torch_goes_in_and_out():
    torch = pytest.importorskip("torch")
    keys = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.bfloat16)
    found = lev.LiftedSketch(2, 0.5, SymmetricPower(4)).update(keys).universal_set()
    assert found.keys.dtype == torch.bfloat16
    assert torch.equal(found.keys, keys)
    assert found.scores.dtype == torch.float64


def test_the_memory_of_a_lift_is_named():
    with pytest.raises(ValueError, match=r"p=8 lifts 64 columns to 766480, whose form needs 4.70e\+12 bytes"):
        lev.LiftedSketch(64, 0.1, SymmetricPower(8))
    with pytest.raises(ValueError, match=r"most_bytes is 1\.00e"):
        lev.LiftedSketch(3, 0.1, SymmetricPower(4), most_bytes=100)


def small(**arguments):
    return lev.LiftedSketch(2, 0.5, SymmetricPower(4), **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SymmetricPower(3), ValueError, "p must be an even integer for the symmetric-power lift; got 3"),
        (lambda: SymmetricPower(2.5), ValueError, "p must be an even integer"),
        (lambda: SymmetricPower(0), ValueError, "p must be positive"),
        (lambda: SymmetricPower(math.inf), ValueError, "p must be positive and finite"),
        (lambda: SymmetricPower(2000), ValueError, r"p must be in \[2\^-10, 2\^10\]; got 2000"),
        (lambda: SymmetricPower(4, 0.5), TypeError, "exponent must be an integer"),
        (lambda: lev.LiftedSketch(0, 0.5, SymmetricPower(4)), ValueError, "dim must be >= 1"),
        (
            lambda: lev.LiftedSketch(10**30, 0.5, FeatureMap(abs, abs)),
            ValueError,
            r"dim must be at most 2\^20; got 1000",
        ),
        (lambda: lev.LiftedSketch(2, 0, SymmetricPower(4)), ValueError, "epsilon must be in"),
        (lambda: lev.LiftedSketch(2, 0.5, 4), TypeError, "lift must have keys and queries; got int"),
        (lambda: small().update(np.ones((3, 3))), ValueError, r"keys must have shape \(m, 2\)"),
        (lambda: small().update([[1, np.nan]]), ValueError, "row 0 holds NaN"),
        (lambda: small().update(np.eye(2), indices=[1]), ValueError, r"indices must have shape \(2,\)"),
        (lambda: small().update(np.eye(2), indices=[1, 1]), ValueError, "indices must be unique"),
        (lambda: small().heavy_hitters(np.ones((1, 3))), ValueError, r"queries must have shape \(m, 2\)"),
        (lambda: small().universal_set(0.1), ValueError, "epsilon must be at least the sketch's 0.5"),
        (lambda: small().merge(lev.Sketch(3, 0.5)), TypeError, "other must be a LiftedSketch; got Sketch"),
        (lambda: small().merge(lev.LiftedSketch(2, 0.5, SymmetricPower(2))), ValueError, "other has lift=Symm"),
        (lambda: small().merge(lev.LiftedSketch(3, 0.5, SymmetricPower(4))), ValueError, "other has dim=3"),
        (
            lambda: lev.LiftedSketch(2, 0.5, FeatureMap(np.abs, lambda k: k[:1])).update(np.eye(2)),
            ValueError,
            r"psi must return \(2, 2\) for 2 rows; got \(1, 2\)",
        ),
        (
            lambda: lev.LiftedSketch(2, 0.5, FeatureMap(lambda q: q[:, :1], np.abs)).heavy_hitters(np.eye(2)),
            ValueError,
            r"phi must have shape \(m, 2\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_update_changes_nothing(monkeypatch):
    monkeypatch.setattr(lev.lift, "_CHUNK", 3)
    sketch = small().update(np.eye(2))
    for keys, indices in ([np.ones((4, 2)), [7, 8, 9, 1]], [[[1, 2], [3, np.inf]], None]):
        with pytest.raises(ValueError, match=r"indices|keys"):
            sketch.update(keys, indices)
    assert sketch.count == 2
    assert sketch.update(np.ones((5, 2))).count == 7
