"""Check note 02: scores only fall as rows arrive, and what would not be safe."""

from __future__ import annotations

import math
from fractions import Fraction

import exact
import numpy as np


def falls(keys: np.ndarray) -> None:
    """Scores of the first rows fall as rows arrive, exactly, for every prefix."""
    before: list[Fraction] = []
    for end in range(1, len(keys) + 1):
        now = exact.scores(keys[:end])
        assert all(new <= old for new, old in zip(now, before, strict=False))
        before = now


def falls_for(function, rng: np.random.Generator) -> None:
    """Each weight of each query falls when rows are added, whatever f >= 0."""
    logits = rng.standard_normal((50, 12))
    values = function(logits)
    few, many = values[:, :6].sum(axis=1, keepdims=True), values.sum(axis=1, keepdims=True)
    assert np.all(values[:, :6] / many <= values[:, :6] / few)


def one_more_row(others: np.ndarray, row: np.ndarray) -> None:
    """With b against all others b / (1 + b) is the score; against some of them it is an upper bound."""
    score = exact.scores([*others, row])[-1]
    for some in range(len(others) + 1):
        bound = exact.against(others[:some], row)
        odds = 1 if bound == math.inf else bound / (1 + bound)
        assert odds >= score
    assert odds == score


def pseudo_inverse() -> None:
    """A row outside the span: its score is 1, a pseudo-inverse says 1/2."""
    form, row = np.diag([1.0, 0.0]), np.array([1.0, 1.0])
    wrong = row @ np.linalg.pinv(form) @ row
    assert exact.against([[1.0, 0.0]], row) == math.inf
    assert exact.scores([[1.0, 0.0], row])[1] == 1
    assert wrong / (1 + wrong) == 0.5


def right_sketch(keys: np.ndarray) -> None:
    """Fewer columns never raise a score, and here they lower one: an under-estimate."""
    pairs = list(zip(exact.scores(keys[:, :-1]), exact.scores(keys), strict=True))
    assert all(sketched <= true for sketched, true in pairs)
    assert any(sketched < true / 2 for sketched, true in pairs)


def running_mean() -> None:
    """Rows less their running mean: the first becomes 0 though its centred score is the largest."""
    keys = np.array([[9.0], [0.0], [0.0], [0.0]])
    means = np.cumsum(keys, axis=0) / np.arange(1, 5)[:, None]
    assert exact.scores(np.hstack([keys, np.ones((4, 1))]))[0] == 1
    assert exact.scores(keys - means)[0] == 0


def removal() -> None:
    """Without the assumption that rows stay, a dropped key comes back."""
    keys = [[10.0], [1.0], [1.0]]
    assert exact.scores(keys)[1] < Fraction(1, 2) == exact.scores(keys[1:])[0]


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(2)
    for dim in (1, 2, 4):
        keys = rng.integers(-4, 5, (8, dim)).astype(float)
        falls(keys)
        one_more_row(keys[:-1], keys[-1])
        one_more_row(np.outer(np.arange(1, 4), np.arange(1, dim + 1)).astype(float), keys[0])
    print("scores fall, and b / (1 + b) is exact against all other rows")
    for function in (np.abs, np.square, lambda x: x**4, lambda x: np.minimum(1, np.abs(x))):
        falls_for(function, rng)
    print("weights fall for |x|, x^2, x^4 and a bounded f")
    pseudo_inverse()
    right_sketch(np.array([[1.0, 0.0], [1.0, 9.0], [1.0, 0.0], [1.0, 0.0]]))
    running_mean()
    removal()
    print("unsafe as stated: pseudo-inverse, fewer columns, running mean, removal of rows")


if __name__ == "__main__":
    main()
