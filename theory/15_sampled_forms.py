"""Check note 15: rows judged by a form of some of the rows, over the rationals, against the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import exact
import numpy as np


def sifted(keys: np.ndarray, sample: np.ndarray, epsilon: Fraction, wrong: int = 1) -> tuple[list, list, Fraction]:
    """Return the places of the rows in the form and of the others, and the sum of the odds of the others."""
    form, left, total = [], [], Fraction(0)
    for j, row in enumerate(keys):
        odds = exact.against(keys[form * wrong], row)
        if sample[j] or odds == math.inf or odds / (1 + odds) >= epsilon:
            form.append(j)
        else:
            left.append(j)
            total += odds
    return form, left, total


def check(keys: np.ndarray, sample: np.ndarray, epsilon: Fraction) -> int:
    """Return how many rows were left out; none of them reaches epsilon, and the slack holds for scores and queries."""
    form, left, total = sifted(keys, sample, epsilon)
    scores = exact.scores(keys)
    assert all(scores[j] < epsilon for j in left)
    for j in form:
        seen = min(Fraction(1), Fraction(exact.against(keys[form], keys[j])))
        assert seen / (1 + total) <= scores[j] <= seen
    for query in np.random.default_rng(len(left)).integers(-5, 6, (20, keys.shape[1])):
        whole, part = (sum(int(value) ** 2 for value in keys[rows] @ query) for rows in (slice(None), form))
        assert part <= whole <= (1 + total) * part
    return len(left)


def met() -> None:
    """One direction, equal rows: the slack is what the scores are too high by."""
    keys = np.ones((12, 1), np.int64)
    form, left, total = sifted(keys, np.zeros(12, bool), Fraction(1, 3))
    assert exact.against(keys[form], keys[0]) == (1 + total) * exact.scores(keys)[0]
    assert len(left) == 12 - len(form) > 0


def main() -> None:
    """Run every check."""
    rng, left = np.random.default_rng(15), 0
    for _ in range(40):
        keys = rng.integers(-3, 4, (30, int(rng.integers(1, 4))))
        left += check(keys, rng.random(30) < 0.2, Fraction(1, int(rng.integers(2, 8))))
    assert left > 100
    print(f"{left} rows were left out of their forms, and none was missed")
    met()
    print("the slack is met in one direction")
    keys = np.ones((9, 1), np.int64)
    _, left_out, _ = sifted(keys[:2], np.array([True, False]), Fraction(2, 5), wrong=2)
    assert left_out == [1]
    assert exact.scores(keys[:2])[1] >= Fraction(2, 5)
    print("judged by twice the form a key is lost, as it must be")


if __name__ == "__main__":
    main()
