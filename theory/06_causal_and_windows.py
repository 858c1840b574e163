"""Check note 06: scores in every prefix of a block, and what windows may drop."""

from __future__ import annotations

from fractions import Fraction

import exact
import numpy as np

import lev
from lev import bounds


def prefix_scores(base: np.ndarray, block: np.ndarray, row: np.ndarray | None, j: int | None) -> np.ndarray:
    """Return by claim 2 the scores of ``row`` of the base, or of row j of the block, after each row of the block."""
    whiten = np.linalg.inv(np.linalg.cholesky(base.T @ base)).T
    z = block @ whiten
    inverse = np.linalg.inv(np.linalg.cholesky(np.eye(len(z)) + z @ z.T))
    if row is not None:
        w = row @ whiten
        return w @ w - np.cumsum((inverse @ z @ w) ** 2)
    return 1 - np.cumsum(inverse[:, j] ** 2)


def block_formula(rng: np.random.Generator, dim: int) -> None:
    """Claim 2 against the definition, for rows of the base and of the block."""
    base = np.vstack([np.eye(dim), rng.integers(-3, 4, (3, dim))]).astype(float)
    block = rng.integers(-9, 10, (5, dim)).astype(float)
    for i in range(len(block)):
        truth = exact.scores([*base, *block[: i + 1]])
        for k in range(len(base)):
            assert abs(prefix_scores(base, block, base[k], None)[i] - truth[k]) < 1e-12
        for j in range(i + 1):
            assert abs(prefix_scores(base, block, None, j)[i] - truth[len(base) + j]) < 1e-12


def rising_rank(rng: np.random.Generator, dim: int) -> None:
    """Claim 2 (c): rows that raise the rank score 1 and lower no other; one that does not raise it may."""
    keys = np.hstack([rng.integers(-3, 4, (4, dim)), np.zeros((4, 3))])
    keys[:, 0] = 1 + np.arange(4)  # so that no row is zero, and some share a direction
    block = np.hstack([rng.integers(-3, 4, (3, dim)), np.triu(rng.integers(1, 9, (3, 3)))])
    before = exact.scores(keys)
    for i in range(3):
        assert exact.scores([*keys, *block[: i + 1]]) == [*before, *[1] * (i + 1)]
    assert sum(exact.scores([*keys, keys[0]])[:4]) < sum(before)


def end_of_block() -> None:
    """Claim 3: the first of two equal rows scores 1 at its own row and 1/2 at the end."""
    assert exact.scores([[1.0]])[0] == 1
    assert exact.scores([[1.0], [1.0]])[0] == Fraction(1, 2)
    assert lev.CausalSketch(1, 0.6).update([[1.0], [1.0]]).lifetimes().admitted.tolist() == [0]


def windows(rng: np.random.Generator) -> None:
    """Claim 4: rows after j bound j in every window; rows before it do not."""
    keys = rng.integers(-4, 5, (9, 2)).astype(float)
    for end in range(1, 10):
        for j in range(end):
            after = exact.scores(keys[j:end])[0]
            assert all(exact.scores(keys[first:end])[j - first] <= after for first in range(j + 1))
    keys = np.array([[9.0], [1.0], [1.0]])
    assert exact.scores(keys)[1] < Fraction(1, 2) == exact.scores(keys[1:])[0]


def lifetimes(rng: np.random.Generator) -> None:
    """The library's lifetimes against the definition of U_i."""
    keys = rng.integers(-3, 4, (40, 3)).astype(float)
    lives = lev.CausalSketch(3, 0.25).update(keys).lifetimes()
    for i in range(len(keys)):
        members = set(lives.ids[lives.mask([i])[0]].tolist())
        scores = exact.scores(keys[: i + 1])
        assert {j for j, score in enumerate(scores) if score >= Fraction(1, 4)} <= members
        assert all(scores[j] >= Fraction(1, 4) * (1 - Fraction(bounds.PREFIX_SHARE)) for j in members)


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(6)
    for dim in (1, 2, 3):
        block_formula(rng, dim)
        rising_rank(rng, dim)
    print("scores in every prefix of a block are one triangular solve; rows that raise the rank lower none")
    end_of_block()
    print("end-of-block scores miss members, as stated")
    windows(rng)
    print("rows after a row bound it in every window; rows before it do not")
    lifetimes(rng)
    print("lifetimes hold every member and no other")


if __name__ == "__main__":
    main()
