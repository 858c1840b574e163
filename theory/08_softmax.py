"""Check note 08: vertices, the ball and its dual, closed forms, and a ball too small."""

from __future__ import annotations

import math

import numpy as np

from lev.ball import ends
from lev.functions import BoundedSoftmax


def softmax(keys: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the weights that one query gives."""
    logits = keys @ query
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def vertices(count: int, dim: int, copies: int, size: float) -> np.ndarray:
    """Return the weight of each of ``count`` keys on a sphere, once ``copies`` times there, from a query at it."""
    keys = np.random.default_rng(0).standard_normal((count, dim))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    keys = np.repeat(keys, copies, axis=0)
    return np.array([softmax(keys, size * key)[j] for j, key in enumerate(keys)])


def inside() -> float:
    """Return the most weight, over large queries, of a key inside the hull of the others."""
    keys = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [0.1, 0.0]])
    queries = np.random.default_rng(0).standard_normal((4000, 2)) * np.logspace(-3, 6, 4000)[:, None]
    return max(softmax(keys, query)[3] for query in queries)


def two_keys(rho: float, size: float) -> float:
    """Return the sensitivity of one of two opposite keys."""
    return 1 / (1 + math.exp(-2 * rho * size))


def unit_vectors(count: int, rho: float) -> float:
    """Return the sensitivity of each of ``count`` unit vectors."""
    return 1 / (1 + (count - 1) * math.exp(-rho * math.sqrt(count / (count - 1))))


def any_distribution(keys: np.ndarray, rho: float, rng: np.random.Generator) -> float:
    """Every distribution proves an upper end; return the largest part of one that a query in the ball reached."""
    most = 0.0
    for pi in rng.dirichlet(np.full(len(keys), 0.3), 40):
        entropy = -float(np.sum(pi * np.log(np.maximum(pi, 1e-300))))
        upper = np.exp(-(entropy - rho * np.linalg.norm(pi @ keys - keys, axis=1)))
        for query in rng.standard_normal((40, keys.shape[1])):
            found = softmax(keys, rho * query / np.linalg.norm(query))
            assert np.all(found <= upper * (1 + 1e-9))
            most = max(most, float(np.max(found / upper)))
    return most


def gap(keys: np.ndarray, rho: float, rng: np.random.Generator) -> None:
    """The two ends that one query proves differ by exp(<y,s> + rho |s|)."""
    y = rng.standard_normal((keys.shape[1], 1))
    y *= rho / np.linalg.norm(y)
    lower, upper, slope = ends(keys, rho, np.array([0]), y)
    assert abs(math.log(upper[0] / lower[0]) - (y[:, 0] @ slope[:, 0] + rho * np.linalg.norm(slope))) < 1e-9


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(1)
    assert vertices(200, 8, 1, 1e4).min() > 1 - 1e-6
    assert abs(vertices(50, 8, 3, 1e4) - 1 / 3).max() < 1e-6
    print("200 keys on a sphere: every one receives all the weight from some query, 3 copies a third each")
    assert inside() < 0.5
    print(f"a key inside the hull receives at most {inside():.3f}")
    for rho in (0.1, 1.0, 10.0):
        lower, upper = BoundedSoftmax(rho).sensitivities(np.array([[0.7], [-0.7]]))
        assert max(abs(lower - two_keys(rho, 0.7)).max(), abs(upper - two_keys(rho, 0.7)).max()) < 1e-5
        lower, upper = BoundedSoftmax(rho).sensitivities(np.eye(6))
        assert max(abs(lower - unit_vectors(6, rho)).max(), abs(upper - unit_vectors(6, rho)).max()) < 1e-5
        keys = rng.standard_normal((9, 3))
        gap(keys, min(rho, 0.3), rng)
        print(
            f"rho = {rho:g}: closed forms met; random distributions reached to {any_distribution(keys, rho, rng):.2f}"
        )
    small = BoundedSoftmax(0.98).sensitivities(np.eye(6))[1][0]
    assert small < unit_vectors(6, 1.0)
    print(f"a ball 2 % too small would prove {small:.4f} where a query reaches {unit_vectors(6, 1.0):.4f}")


if __name__ == "__main__":
    main()
