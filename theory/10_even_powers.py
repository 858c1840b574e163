"""Check note 10: the identity over the rationals, the bounds, a strict example, and what the roots are for."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import exact
import numpy as np

import lev
from lev.lift import SymmetricPower


def squares(a: np.ndarray, b: np.ndarray, half: int) -> Fraction:
    """Return <Phi(a), Phi(b)> over the rationals, with the multinomial coefficients, not their roots."""
    total = Fraction(0)
    for term in itertools.combinations_with_replacement(range(len(a)), half):
        count = math.factorial(half)
        for i in set(term):
            count //= math.factorial(term.count(i))
        total += count * math.prod((Fraction(int(a[i])) * int(b[i]) for i in term), start=Fraction(1))
    return total


def identity(a: np.ndarray, b: np.ndarray, p: int) -> None:
    """<Phi(a), Phi(b)> is <a,b>^{p/2}, over the rationals and as the library computes it."""
    truth = exact.dot(*exact.rational([a, b])) ** (p // 2)
    assert squares(a, b, p // 2) == truth
    lifted = SymmetricPower(p).keys(np.array([a, b], float))
    size = float(np.abs(lifted[0]) @ np.abs(lifted[1]))
    assert abs(float(lifted[0] @ lifted[1]) - float(truth)) <= 1e-14 * size


def weights(keys: np.ndarray, queries: np.ndarray, p: float) -> np.ndarray:
    """Return the most weight of each key over the queries."""
    powers = np.abs(queries @ keys.T) ** p
    return np.max(powers / powers.sum(axis=1, keepdims=True), axis=0)


def bounded(keys: np.ndarray, p: int, rng: np.random.Generator) -> float:
    """No weight, for p or a smaller power, passes what the lift says; return the largest part reached for p."""
    lifted = SymmetricPower(p).keys(keys)
    scores = lev.leverage_scores(lifted)
    assert scores.sum() <= SymmetricPower(p).dim(keys.shape[1]) * (1 + 1e-9)
    queries = np.vstack([rng.standard_normal((3000, keys.shape[1])), keys, np.linalg.pinv(keys).T])
    for smaller in (p, p - 0.5, p / 2, 1.0):
        assert np.all(weights(keys, queries, smaller) ** (p / smaller) <= scores * (1 + 1e-6))
    return float(np.max(weights(keys, queries, p) / scores))


def strict() -> tuple[float, float]:
    """Return (score, sensitivity) of (1, 1) beside the unit vectors, p = 4."""
    keys = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return float(lev.leverage_scores(SymmetricPower(4).keys(keys))[2]), float(lev.sensitivities(keys, 4)[1][2])


def without_roots() -> float:
    """Return how far the normaliser is off without the multinomial coefficients."""
    a, b = np.array([1.0, 2.0, 3.0]), np.ones(3)
    plain = sum(math.prod(a[list(t)] * b[list(t)]) for t in itertools.combinations_with_replacement(range(3), 2))
    return abs(plain / (a @ b) ** 2 - 1)


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(0)
    for p, dim in ((2, 3), (4, 1), (4, 4), (6, 3), (8, 2)):
        for _ in range(10):
            identity(*rng.integers(-9, 10, (2, dim)), p)
        part = bounded(rng.standard_normal((30, dim)), p, rng)
        rank = np.linalg.matrix_rank(SymmetricPower(p).keys(rng.standard_normal((200, dim))))
        assert rank == SymmetricPower(p).dim(dim)
        print(f"p = {p}, d = {dim}, D = {rank}: weights reach {part:.2f} of the scores")
    score, truth = strict()
    assert score > 1 - 1e-9 > 0.9 > truth
    print(f"strict: score {score:.3f}, sensitivity {truth:.3f}")
    copies = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 5)
    assert np.allclose(lev.leverage_scores(SymmetricPower(4).keys(copies))[:3], 1 / 3)
    assert without_roots() > 0.1


if __name__ == "__main__":
    main()
