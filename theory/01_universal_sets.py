"""Check note 01: sensitivities, their sum, their invariance, and where they stop."""

from __future__ import annotations

from fractions import Fraction

import exact
import numpy as np


def attained(keys: np.ndarray) -> None:
    """Scores are weights of their own best query, no other query does better, and they sum to the rank."""
    scores = exact.scores(keys)
    assert sum(scores) == exact.rank(keys)
    for j, row in enumerate(keys):
        if any(row):
            assert exact.weights(keys, exact.best_query(keys, row))[j] == scores[j]
    for query in np.random.default_rng(0).integers(-9, 10, (20, keys.shape[1])):
        assert all(weight <= score for weight, score in zip(exact.weights(keys, query), scores, strict=True))


def tight(dim: int, copies: int) -> int:
    """Return the members of ``copies`` copies of each unit vector at epsilon = 1 / copies: dim * copies."""
    scores = exact.scores(np.repeat(np.eye(dim), copies, axis=0))
    assert all(score == Fraction(1, copies) for score in scores)
    return len(scores)


def invariant(keys: np.ndarray) -> None:
    """Invertible maps, signs and scale leave scores alone; a shift does not, unless there is an intercept."""
    dim = keys.shape[1]
    mix = np.triu(np.full((dim, dim), 2.0)) - np.eye(dim)
    signs = np.where(np.arange(len(keys)) % 2, 1, -1)[:, None]
    assert exact.scores(keys) == exact.scores(keys @ mix) == exact.scores(3 * signs * keys)
    ones = np.ones((len(keys), 1))
    lifted = exact.scores(np.hstack([keys, ones]))
    assert lifted == exact.scores(np.hstack([keys + 7, ones]))
    mean = [sum(column) / len(keys) for column in zip(*exact.rational(keys), strict=True)]
    centred = [[value - middle for value, middle in zip(row, mean, strict=True)] for row in exact.rational(keys)]
    assert lifted == [score + Fraction(1, len(keys)) for score in exact.scores(centred)]
    # just outside the assumptions: a shift without an intercept must move scores
    assert exact.scores(keys) != exact.scores(keys + 7)


def softmax_vertex() -> tuple[float, float]:
    """Return (score, softmax weight) of a hull vertex that leverage calls unimportant."""
    keys = np.vstack([np.linspace(-0.5, 0.5, 101)[:, None] * [1.0, 0.0], [[0.0, 50.0]] * 50, [[0.6, 0.0]]])
    score = exact.scores(np.round(keys * 200))[-1]
    logits = keys @ np.array([2000.0, -1000.0])
    weight = float(np.exp(logits - logits.max())[-1] / np.exp(logits - logits.max()).sum())
    return float(score), weight


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(1)
    for rows, dim, rank in ((6, 3, 3), (7, 4, 2), (3, 4, 3), (5, 1, 1)):
        keys = rng.integers(-5, 6, (rows, rank)) @ rng.integers(-3, 4, (rank, dim))
        attained(keys.astype(float))
    attained(np.zeros((2, 2)))
    print("scores are attained suprema and sum to the rank")
    print(f"size bound d / epsilon = 12 is met by {tight(3, 4)} members")
    invariant(rng.integers(-5, 6, (7, 3)).astype(float))
    print("invariant under maps, signs, scale; under shifts only with an intercept")
    score, weight = softmax_vertex()
    assert score < 0.1
    assert weight > 0.99
    print(f"softmax: a hull vertex with score {score:.3f} takes weight {weight:.3f}")


if __name__ == "__main__":
    main()
