"""Check note 13: checked factors, online scores, and causal attention."""

from __future__ import annotations

from fractions import Fraction

import exact
import numpy as np


def prefix_scores(keys: np.ndarray) -> list[Fraction]:
    """Return the exact score of every row among the rows up to itself."""
    return [exact.scores(keys[: j + 1])[j] for j in range(len(keys))]


def checked(keys: np.ndarray, wrong: float, *, with_error: bool = True) -> bool:
    """Say whether the bound by a factor that is wrong by ``wrong`` holds for every row."""
    dim = keys.shape[1]
    gram = keys.T @ keys  # of integers: exact
    noise = np.random.default_rng(1).standard_normal((2, dim, dim))
    lower = np.linalg.cholesky(gram + wrong * np.eye(dim)) * (1 + wrong * noise[0] / 100)
    inverse = np.linalg.inv(lower) * (1 + wrong * noise[1] / 100)
    f = np.linalg.norm(inverse @ lower - np.eye(dim))
    e = np.linalg.norm(lower @ lower.T - gram) if with_error else 0.0
    least = ((1 - f) / np.linalg.norm(inverse)) ** 2
    assert f < 1
    assert e < least
    bounds = np.square(keys @ inverse.T).sum(axis=1) / ((1 - f) ** 2 * (1 - e / least))
    return all(bound * (1 + 1e-12) >= score for bound, score in zip(bounds, exact.scores(keys), strict=True))


def twice(keys: np.ndarray, wrong: float, *, charged: bool = True) -> bool:
    """Say whether the bound holds for every row if all but the first are off by ``wrong``, along the first."""
    rows = keys @ np.linalg.inv(np.linalg.cholesky(keys.T @ keys)).T
    along = rows[0] / np.linalg.norm(rows[0])
    blurred = rows + wrong * np.sign(rows @ along)[:, None] * along
    blurred[0] = rows[0]
    inverse = np.linalg.inv(np.linalg.cholesky(blurred.T @ blurred))
    pad = float(np.linalg.norm(inverse)) * (wrong if charged else 0.0)
    t = pad * len(keys) ** 0.5
    assert t < 1
    bounds = (np.linalg.norm(blurred @ inverse.T, axis=1) + pad) ** 2 / (1 - t) ** 2
    return all(bound * (1 + 1e-12) >= score for bound, score in zip(bounds, exact.scores(keys), strict=True))


def online(keys: np.ndarray, start: int) -> float:
    """Return how far the block formula is from the exact scores of the rows from ``start`` on."""
    whiten = np.linalg.inv(np.linalg.cholesky(keys[:start].T @ keys[:start]))
    rows = keys[start:] @ whiten.T
    lower = np.linalg.cholesky(np.eye(len(rows)) + rows @ rows.T)
    scores = 1 - 1 / np.diagonal(lower) ** 2
    return float(np.abs(scores - np.array([float(score) for score in prefix_scores(keys)[start:]])).max())


def powers(keys: np.ndarray, p: float) -> float:
    """Return the largest weight of any of many queries as a share of the bound: at most 1."""
    n, tau = len(keys), np.array([float(score) for score in exact.scores(keys)])
    best = np.array([[float(value) for value in exact.best_query(keys, row)] for row in keys])
    queries = np.vstack([best, np.random.default_rng(0).standard_normal((2000, keys.shape[1]))])
    responses = np.abs(queries @ keys.T) ** p
    weights = responses / responses.sum(axis=1, keepdims=True)
    return float((weights.max(axis=0) / (n ** max(0.0, p / 2 - 1) * tau ** (p / 2))).max())


def final_set_is_not_enough(copies: int) -> Fraction:
    """Return the final score of a key that was alone when it came."""
    keys = np.ones((copies + 1, 1))
    assert prefix_scores(keys)[0] == 1
    return exact.scores(keys)[0]


def main() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-9, 10, (14, 3)).astype(float)
    for wrong in (0.0, 0.1, 1.0):
        assert checked(keys, wrong)
    assert not checked(keys, 10.0, with_error=False), "leaving out the residual should miss"
    assert twice(keys, 0.02)
    assert not twice(keys, 0.02, charged=False), "leaving out what the rows are off by should miss"
    gap = max(online(keys, start) for start in (5, 8, 13))
    assert gap < 1e-12
    share = {p: powers(keys, p) for p in (0.5, 1.0, 2.0, 3.0, 4.0)}
    assert max(share.values()) <= 1 + 1e-12
    print(f"online scores by blocks are off by {gap:.1e}; weights reach, of their bounds:", share)
    print(f"a key alone when it came ends at {final_set_is_not_enough(99)}")


if __name__ == "__main__":
    main()
