"""Check note 05: certificates, the sandwich, convergence, duality, coordinates, and where they stop."""

from __future__ import annotations

import math

import exact
import numpy as np

from lev.eliminate import eliminate
from lev.lewis import lewis_weights, sensitivities

POWERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)


def omega(keys: np.ndarray, v: np.ndarray, p: float) -> np.ndarray:
    """Return omega from its definition."""
    form = keys.T @ (v[:, None] ** (1 - 2 / p) * keys)
    return np.einsum("ij,ji->i", keys, np.linalg.solve(form, keys.T)) ** (p / 2)


def weights(keys: np.ndarray, query: np.ndarray, p: float) -> np.ndarray:
    """Return the weights that one query gives."""
    powers = np.abs(keys @ query) ** p
    return powers / powers.sum()


def certified(keys: np.ndarray, p: float, rng: np.random.Generator) -> None:
    """Any v: the lower end is reached by the query M^{-1} k_j, and no query passes the upper one."""
    v = rng.uniform(0.05, 1, len(keys))
    o = omega(keys, v, p)
    ends = (np.max(o / v) ** (2 / p - 1), v.sum() ** (p / 2 - 1))
    form = keys.T @ (v[:, None] ** (1 - 2 / p) * keys)
    best = np.array([weights(keys, np.linalg.solve(form, key), p)[j] for j, key in enumerate(keys)])
    assert np.all(best >= min(ends) * o * (1 - 1e-9))
    for query in [*rng.standard_normal((300, keys.shape[1])), *np.linalg.pinv(keys).T]:
        assert np.all(weights(keys, query, p) <= max(ends) * o * (1 + 1e-9))


def gamma_is_needed() -> float:
    """Return how far a weight passes omega itself for p < 2 when v is not a fixed point."""
    keys, v = np.eye(2), np.array([0.01, 1.0])
    return float(weights(keys, keys[0], 1.0)[0] / omega(keys, v, 1.0)[0])


def sandwich(keys: np.ndarray, p: float) -> None:
    """Weights sum to the rank, are a fixed point, and hold the sensitivities."""
    w, rank = lewis_weights(keys, p), keys.shape[1]
    assert abs(w.sum() - rank) < 1e-8
    assert np.allclose(omega(keys, w, p), w, rtol=1e-9)
    lower, upper = sensitivities(keys, p)
    low, high = sorted((1.0, rank ** (p / 2 - 1)))
    assert np.all(lower <= high * w * (1 + 1e-6))
    assert np.all(upper >= low * w * (1 - 1e-6))
    assert upper.sum() <= rank ** max(1, p / 2) * (1 + 1e-5)
    assert np.all(lower <= upper)
    assert p < 1 or np.all(lower >= (1 - 1e-5) * upper)


def converges(keys: np.ndarray, rng: np.random.Generator) -> None:
    """The plain map contracts for p < 4 and fails beyond; the damped one descends on F for every p > 2."""
    for p in (0.5, 1.0, 1.5, 3.0, 3.9):
        v, u = rng.uniform(0.01, 1, (2, len(keys)))
        before, after = (np.abs(np.log(a / b)).max() for a, b in ((v, u), (omega(keys, v, p), omega(keys, u, p))))
        assert after <= abs(1 - p / 2) * before * (1 + 1e-9)
    for p in (3.0, 6.0, 20.0):
        v, last = rng.uniform(0.01, 1, len(keys)), math.inf
        for _ in range(int(30 * p)):
            form = keys.T @ (v[:, None] ** (1 - 2 / p) * keys)
            value = v.sum() - np.linalg.slogdet(form)[1] / (1 - 2 / p)
            assert value <= last + 1e-9
            v, last = v ** (1 - 2 / p) * omega(keys, v, p) ** (2 / p), value
        assert np.allclose(v, lewis_weights(keys, p), rtol=1e-6)
    # just outside: undamped beyond 4, two rows in one direction
    pair = np.ones((2, 1))
    v = np.array([0.5, 0.4])
    for _ in range(5):
        v = omega(pair, v, 6.0)
    assert not np.allclose(v, 0.5, rtol=0.1)


def coordinates() -> float:
    """Return the largest part of the promised error that elimination used, on rows 10^20 apart."""
    rng, used = np.random.default_rng(0), 0.0
    for _ in range(20):
        keys = rng.integers(-9, 10, (8, 3)) * 10.0 ** rng.integers(-10, 11, (8, 1))
        keys[:3] += np.diag(10.0 ** rng.integers(-10, 11, 3))
        found = eliminate(keys)
        pivots = [int(j) for j in np.argsort(found.blur, kind="stable")[: found.rank]]
        chosen = [exact.rational(keys)[found.where[j]] for j in pivots]
        for j, row in enumerate(found.rows):
            # true coordinates: x with x K_P = k_j, times L_P
            x = exact.reduced(
                [[*a, b] for a, b in zip(zip(*chosen, strict=True), exact.rational(keys)[found.where[j]], strict=True)]
            )[0]
            true = np.array(
                [
                    float(exact.dot([line[-1] for line in x], column))
                    for column in zip(*exact.rational(found.rows[pivots]), strict=True)
                ]
            )
            error = np.linalg.norm(true - row)
            assert error <= found.blur[j] + 4e-16 * found.norms[j]
            used = max(used, error / (found.blur[j] + 4e-16 * found.norms[j]))
    return float(used)


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(0)
    for p in POWERS:
        keys = rng.standard_normal((12, 3))
        certified(keys, p, rng)
        sandwich(keys, p)
    print("certificates hold for any v, the sandwich for Lewis weights, brackets close for p >= 1")
    print(f"without gamma, p = 1: a weight {gamma_is_needed():.3g} times omega")
    converges(rng.standard_normal((10, 3)), rng)
    print("the plain map contracts below 4 and not beyond; the damped map descends for every p > 2")
    keys = np.array([[-1.0, -3.0], [1.0, 2.0], [2.0, 3.0]])
    before, after = lewis_weights(keys, 4)[1], lewis_weights(np.vstack([keys, [3.0, 0.0]]), 4)[1]
    assert abs(before - 0.0460) < 1e-4 < 1e-2 < after - before
    print(f"p = 4: adding a row raises a Lewis weight from {before:.4f} to {after:.4f}")
    print(f"coordinates: at most {coordinates():.2f} of the error promised")
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (36, 6))
    total = float(sensitivities(signs, 4, tolerance=1e-3)[0].sum())
    assert 36 / 4 <= total <= 36
    print(f"random signs, p = 4, d = 6: total sensitivity {total:.1f}, between 36 / 4 and 36")


if __name__ == "__main__":
    main()
