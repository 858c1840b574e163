"""Check note 11: mean, failures, merging and reducing, and where the promise ends."""

from __future__ import annotations

import numpy as np

import lev
from lev import bounds


def truth(keys: np.ndarray, query: np.ndarray, p: float) -> float:
    """Return the normaliser."""
    return float(np.sum(np.abs(keys @ query) ** p))


def errors(keys: np.ndarray, query: np.ndarray, p: float, draws: int, **how: float) -> np.ndarray:
    """Return the relative errors over many seeds."""
    true = truth(keys, query, p)
    return np.array(
        [lev.coreset(keys, p, seed=seed, **how).normalizer(query[None])[0] / true - 1 for seed in range(draws)]
    )


def reduced(keys: np.ndarray, query: np.ndarray, p: float, draws: int, size: int) -> np.ndarray:
    """Return the relative errors of coresets of four parts, merged and reduced."""
    found = []
    for seed in range(draws):
        parts = [lev.coreset(keys[i::4], p, size=size, seed=seed, indices=np.arange(i, len(keys), 4)) for i in range(4)]
        whole = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])).reduced(size=size)
        found.append(whole.normalizer(query[None])[0] / truth(keys, query, p) - 1)
    return np.array(found)


def looked(keys: np.ndarray) -> float:
    """Return the relative error at a query orthogonal to the sample, chosen after looking: 1."""
    small = lev.coreset(keys, 2, size=len(keys) // 2, seed=0)
    query = np.linalg.svd(small.keys)[2][-1]
    return abs(small.normalizer(query[None])[0] / truth(keys, query, 2) - 1)


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(0)
    keys, query = rng.standard_normal((600, 3)), rng.standard_normal(3)
    keys[7] = 3 * query
    for p in (0.5, 1.0, 3.0):
        found = errors(keys, query, p, 20, delta=0.3, failure=0.05)
        assert np.mean(np.abs(found) > 0.3) <= 0.15
        print(f"p = {p:g}: largest error of 20 draws {np.abs(found).max():.3f}, promised 0.3 but for 5 %")
    spread = errors(keys[8:], query, 1.0, 120, size=60)
    assert abs(spread.mean()) < 4 * spread.std() / np.sqrt(120)
    print(f"mean error {spread.mean():+.4f}, standard error {spread.std() / np.sqrt(120):.4f}")
    tree = reduced(keys[8:], query, 1.0, 40, 60)
    assert abs(tree.mean()) < 4 * tree.std() / np.sqrt(40)
    print(f"merged and reduced: mean {tree.mean():+.4f}, deviation {tree.std():.3f} against {spread.std():.3f}")
    few = int(bounds.coreset_rate(0.3, 0.05) * 3 / 10)
    assert np.mean(np.abs(errors(keys[8:], query, 1.0, 60, size=few)) > 0.1) > 0.05
    assert looked(np.eye(20)) > 0.9
    print("a query that looked at the sample is not covered")


if __name__ == "__main__":
    main()
