"""Check note 07: growth classes, flows, groups, ridge, feature maps, and where they stop."""

from __future__ import annotations

from collections.abc import Callable

import exact
import numpy as np

from lev.eliminate import eliminate
from lev.functions import L1L2, Huber, Ridge, Tukey
from lev.growth import capped, flows


def h(power: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the least function of the class."""
    return lambda x: np.where(np.abs(x) <= 1, x**2, np.abs(x) ** power)


def shares(f: Callable[[np.ndarray], np.ndarray], keys: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the weights that one query gives."""
    values = f(keys @ query)
    return values / values.sum()


def scan(f: Callable[[np.ndarray], np.ndarray], keys: np.ndarray, count: int = 180) -> np.ndarray:
    """Return the most weight of each of (n, 2) keys over directions and, for each key, scales about its own."""
    best = np.zeros(len(keys))
    for angle in np.linspace(0, np.pi, count):
        query = np.array([np.cos(angle), np.sin(angle)])
        for size in np.abs(keys @ query):
            if size > 1e-6:
                for scale in (0.25, 0.5, 1.0, 2.0, 8.0):
                    best = np.maximum(best, shares(f, keys, scale * query / size))
    return best


def bounds_hold(keys: np.ndarray) -> tuple[float, float]:
    """No query passes a bound; return how near the least function of each class comes."""
    keys = keys[keys.any(axis=1)]
    found, rows = eliminate(keys), np.arange(len(keys))
    by_flow = flows(found, np.ones(len(keys)), rows, found.reach(1.0))[0]
    by_group = capped(found, rows)
    for f in (Huber(), L1L2(), h(1)):
        best = scan(f, keys)
        assert np.all(best <= by_flow * (1 + 1e-9))
        assert np.all(best <= by_group * (1 + 1e-9))
    linear = float(np.max(scan(h(1), keys) / by_flow))
    for f in (Tukey(), h(0)):
        assert np.all(scan(f, keys) <= by_group * (1 + 1e-9))
    return linear, float(np.max(scan(h(0), keys) / by_group))


def tight(copies: int) -> None:
    """Copies, and one row against copies of half of it, meet the bound by groups."""
    for rows in (np.ones(copies), np.append(1.0, np.full(copies, 0.5))):
        keys = rows[:, None]
        bound, found = capped(eliminate(keys), np.arange(len(keys))), shares(h(0), keys, np.ones(1))
        assert abs(bound[0] / found[0] - 1) < 1e-9


def flat() -> float:
    """Return the bound by flows over leverage where the flow is flat: 1."""
    angles = np.linspace(0, np.pi, 400, endpoint=False)
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    keys[7] *= 3  # twice the others' norm is enough
    found = eliminate(keys)
    j = int(np.argmax(np.linalg.norm(keys, axis=1)))
    upper = flows(found, np.ones(400), np.array([j]), found.reach(1.0))[0][0]
    return float(upper * np.linalg.norm(keys @ np.linalg.solve(keys.T @ keys, keys[j])) ** -2)


def flow_must_be_bounded() -> float:
    """Return a weight over what the flow would prove without |u| <= 1, the leverage score: above 1."""
    keys = np.array([[1.0], [10.0]])
    return float(shares(h(1), keys, np.ones(1))[0] / exact.scores(keys)[0])


def ridge(keys: np.ndarray, c: float, rho: float) -> None:
    """Queries on the sphere reach the score and none passes it."""
    upper = Ridge(c, rho).sensitivities(keys)[1]
    matrix = keys.T @ keys + c / rho**2 * np.eye(keys.shape[1])
    for j, key in enumerate(keys):
        query = np.linalg.solve(matrix, key)
        response = (keys @ (query * rho / np.linalg.norm(query))) ** 2
        assert abs(response[j] / (c + response.sum()) / upper[j] - 1) < 1e-9
        assert np.all(response / (c + response.sum()) <= upper * (1 + 1e-9))


def shared_groups() -> tuple[float, float]:
    """Return (weight, what groups that share a row would prove): the first is larger."""
    keys = np.array([[1.0], [1.0]])
    return shares(h(0), keys, np.ones(1))[0], 1 / (1 + 3 * 1.0)


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(0)
    for keys in (rng.standard_normal((10, 2)), rng.integers(-3, 4, (9, 2)) + 0.5, rng.standard_t(1, (12, 2))):
        linear, constant = bounds_hold(keys)
        print(f"bounds hold; the least function comes to {linear:.2f} of them for a = 1, {constant:.2f} for a = 0")
    for copies in (1, 2, 4):
        tight(copies)
    print(f"copies and halves meet the bound by groups; a flat flow proves {flat():.9f} of the leverage score")
    assert flow_must_be_bounded() > 2
    print(f"without |u| <= 1 a weight is {flow_must_be_bounded():.3f} times what would be proved")
    ridge(rng.standard_normal((9, 3)), 2.0, 0.7)
    weight, wrong = shared_groups()
    assert weight > wrong
    print(f"groups that share a row would prove {wrong:.2f} where the weight is {weight:.2f}")


if __name__ == "__main__":
    main()
