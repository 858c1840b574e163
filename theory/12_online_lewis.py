"""Check note 12: weights as rows come, what they prove, parts in a whole, decay; and where each would fail."""

from __future__ import annotations

import math

import numpy as np

from lev.weighting import Weighting

POWERS = (0.5, 1.0, 1.5, 3.0, 4.0, 8.0)


def odds(form: np.ndarray, row: np.ndarray) -> float:
    """Return k^T M^+ k, infinite for a row that leaves the span."""
    query = np.linalg.pinv(form, hermitian=True) @ row
    return float(row @ query) if np.allclose(form @ query, row, rtol=0, atol=1e-9 * np.abs(row).max()) else math.inf


def stream(keys: np.ndarray, p: float, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return (M, v) after all rows, each weighted as it comes by ``factor`` times the root."""
    form, v = np.zeros((keys.shape[1],) * 2), np.zeros(len(keys))
    for j, row in enumerate(keys):
        root = Weighting(p).weights(np.array([odds(form, row)]))[0]
        v[j] = min(1.0, factor * root)
        form = form + v[j] ** (1 - 2 / p) * np.outer(row, row)
    return form, v


def omega(form: np.ndarray, keys: np.ndarray, p: float) -> np.ndarray:
    """Return omega of every row."""
    return np.einsum("ij,ji->i", keys, np.linalg.pinv(form, hermitian=True) @ keys.T) ** (p / 2)


def fits(keys: np.ndarray, p: float, factor: float = 1.0) -> bool:
    """1 and 3: whether every row fits at the end."""
    form, v = stream(keys, p, factor)
    return bool(np.all(omega(form, keys, p) <= v * (1 + 1e-9)))


def last_row_fits(keys: np.ndarray, p: float, factor: float) -> bool:
    """1: whether the last row fits at once, which below the root it does not."""
    form = stream(keys[:-1], p)[0]
    root = Weighting(p).weights(np.array([odds(form, keys[-1])]))[0]
    form = form + (factor * root) ** (1 - 2 / p) * np.outer(keys[-1], keys[-1])
    return bool(omega(form, keys[-1:], p)[0] <= factor * root * (1 + 1e-9))


def proves(keys: np.ndarray, p: float, rng: np.random.Generator) -> None:
    """4: both ends of the weights of many queries, and of their normalisers."""
    form, v = stream(keys, p)
    o, c = omega(form, keys, p), v.sum() ** (p / 2 - 1)
    for query in [*rng.standard_normal((200, keys.shape[1])), *(np.linalg.solve(form, keys.T).T)]:
        powers, size = np.abs(keys @ query) ** p, float(query @ form @ query) ** (p / 2)
        assert np.all(powers <= powers.sum() * max(1, c) * o * (1 + 1e-9))
        assert min(1, 1 / c) * size <= powers.sum() * (1 + 1e-9)
        assert powers.sum() <= max(1, 1 / c) * size * (1 + 1e-9)
    best = [np.abs(keys @ query) ** p for query in np.linalg.solve(form, keys.T).T]
    assert all(powers[j] / powers.sum() >= min(1, c) * o[j] * (1 - 1e-9) for j, powers in enumerate(best))


def parts(keys: np.ndarray, p: float) -> float:
    """6: return lambda, having checked that the merged form fits with weights times lambda."""
    halves = [stream(part, p) for part in np.array_split(keys, 2)]
    form, v = sum(half[0] for half in halves), np.concatenate([half[1] for half in halves])
    share = max(float(np.linalg.eigvals(np.linalg.solve(form, half[0])).real.max()) for half in halves)
    assert np.all(omega(share ** (1 - 2 / p) * form, keys, p) <= share * v * (1 + 1e-9))
    return share


def size(keys: np.ndarray, p: float) -> None:
    """7: S within its bound."""
    rank = keys.shape[1]
    first = np.linalg.slogdet(stream(keys[:rank], p)[0])[1]
    form, v = stream(keys, p)
    assert v.sum() <= (rank + np.linalg.slogdet(form)[1] - first) * (1 + 1e-9)


def decayed(p: float, gamma: float, steps: int, forget: bool) -> float:
    """9: return the sum of upper ends at the end of a decayed stream; without ``forget`` S does not decay."""
    rng, rule = np.random.default_rng(3), Weighting(p)
    form, mass, ages, kept = np.zeros((3, 3)), 0.0, np.zeros(0), np.zeros((0, 3))
    for _ in range(steps):
        row = rng.standard_normal(3)
        form, mass = form * (gamma if forget else gamma ** (2 / p)), mass * (gamma if forget else 1.0)
        v = rule.weights(np.array([odds(form, row)]))[0]
        form, mass = form + v ** (1 - 2 / p) * np.outer(row, row), mass + v
        kept, ages = np.vstack([kept, row]), np.append(ages + 1, 0)
    ends = mass ** (p / 2 - 1) * omega(form, kept * gamma ** (ages / p)[:, None], p)
    weights = np.abs(kept @ rng.standard_normal((3, 300))) ** p * gamma ** ages[:, None]
    assert np.all((weights / weights.sum(axis=0)).max(axis=1) <= ends * (1 + 1e-9))
    return float(np.minimum(ends, 1).sum())


def main() -> None:
    """Check every claim."""
    rng = np.random.default_rng(11)
    for p in POWERS:
        keys = rng.standard_normal((60, 3)) * np.exp(rng.standard_normal((60, 1)))
        assert fits(keys, p)
        assert not last_row_fits(keys, p, 0.9)
        assert last_row_fits(keys, p, 1.1)
        proves(keys, p, rng)
        share = parts(keys, p)
        size(keys, p)
        print(f"p = {p}: rows fit, ends hold, half of the stream has share {share:.2f} of the whole")
    steady, growing = (decayed(6.0, 0.98, 1500, forget) for forget in (True, False))
    print(f"p = 6, decay .98, 1500 rows: sum of bounds {steady:.0f}, with an undecayed sum of weights {growing:.0f}")
    assert growing > 2 * steady


if __name__ == "__main__":
    main()
