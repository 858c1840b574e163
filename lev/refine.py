"""The sensitivity of one row from both sides: any query proves a lower end, any solution of K^T u = k_j an upper.

1 / sigma_j = min { ||Kx||_p^p : <x,k_j> = 1 } and sigma_j^{1/p} = min { ||u||_q : K^T u = k_j }, 1/p + 1/q = 1.
One weighted least squares problem gives a candidate for each, so rounds only narrow the bracket.
Theory: 05, duality.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from lev import bounds
from lev.eliminate import Coordinates
from lev.triangle import LOOSE, solved, triangle_of

_ROUNDS = 60
_ROUNDS_BELOW_1 = 8
_LEAST = 1e-24  # weight of a row in a least squares problem, against the largest
_STEPS = np.append(0.0, 2.0 ** np.arange(-8, 4))  # in Newton steps

_QUIET = np.errstate(divide="ignore", over="ignore", invalid="ignore")  # what leaves float64 proves nothing


def refine(found: Coordinates, p: float, weights: np.ndarray, j: int) -> Iterator[tuple[float, float]]:
    """Yield (lower, upper) for row ``j``, narrower as rounds go by; ``weights`` (n,) start the least squares.

    For p > 2 a Newton step on the primal is 1 / (p - 1) of the way to the solution of a weighted least squares
    problem; for 1 < p < 2 a step on the dual is 1 / (q - 1) of it; p = 1 is a linear program; below 1 the problem
    is not convex and queries only raise the lower end.  Cost: O(n r^2) a round.
    """
    reach = found.reach(p)
    x, u = least_squares(found.rows, weights, j)
    lower, upper = below(found, p, j, x), above(found, p, j, u, reach)
    yield lower, upper
    if p == 1:
        x, u = linear_program(found, u, j)
        yield below(found, p, j, x), above(found, p, j, u, reach)
    if p in (1, 2):
        return
    primal = p > 2 or p < 1
    power = p if primal else p / (p - 1)
    state = _unit(found.rows, x, j) if primal else u
    still = 0
    for turn in range(_ROUNDS if p > 1 else _ROUNDS_BELOW_1):
        if not np.isfinite(state).all():  # as for powers so small that rounding leaves nothing of row j
            return
        size = np.abs(state) / np.abs(state).max()
        # Newton proper is thrown off by a response that is far too small; a floor slows it down near the end
        least = ((1 - lower / upper) / len(size)) ** (1 / power) if turn % 2 and power > 2 else 0.0
        weights = np.maximum(np.maximum(size, max(least, _LEAST)) ** (power - 2), _LEAST)
        x, u = least_squares(found.rows, weights if primal else 1 / weights, j)
        lower, upper = max(lower, below(found, p, j, x)), min(upper, above(found, p, j, u, reach))
        yield lower, upper
        moved = _best(state, _unit(found.rows, x, j) if primal else u, power)
        still = still + 1 if np.array_equal(moved, state) else 0
        if still == 2:  # neither kind of step leads on
            return
        state = moved


@_QUIET
def least_squares(rows: np.ndarray, weights: np.ndarray, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x = M^{-1} k_j and u = D K x for M = K^T D K, D = diag(weights): K^T u = k_j up to rounding."""
    weights = weights / weights.max()
    triangle = triangle_of(rows, np.sqrt(weights), LOOSE)
    x, u, left = np.zeros(rows.shape[1]), np.zeros(len(rows)), rows[j]
    for _ in range(2):
        x = x + solved(triangle, left)
        u = weights * (rows @ x)
        left = rows[j] - rows.T @ u
    return x, u


@_QUIET
def below(found: Coordinates, p: float, j: int, x: np.ndarray) -> float:
    """Return a proved lower end: the weight that query ``x`` gives to row ``j``, less what rounding may have added."""
    response = np.abs(found.rows @ x)
    pad = (bounds.dot_error(found.rank) * found.norms + found.blur) * float(np.linalg.norm(x))
    most = response + pad
    if not (most.max() > 0 and math.isfinite(most.max())):
        return 0.0
    own = max(float(response[j] - pad[j]), 0.0) / most.max()
    slack = bounds.dot_error(len(response) + 8) + bounds.dot_error(8) * (1 + p)
    return float(own**p / np.sum((most / most.max()) ** p)) * max(0.0, 1 - slack)


def above(found: Coordinates, p: float, j: int, u: np.ndarray, reach: float) -> float:
    """Return a proved upper end: ||u||_q^p, with what is missing from K^T u = k_j charged at ``reach``."""
    if p < 1 or not (np.isfinite(u).all() and math.isfinite(reach)):
        return 1.0
    size = np.abs(u)
    largest = float(size.max())
    total = largest if p == 1 else largest * float(np.sum((size / largest) ** (p / (p - 1)))) ** (1 - 1 / p)
    missing = float(np.linalg.norm(found.rows[j] - found.rows.T @ u))
    missing += bounds.dot_error(len(size) + 2) * float(found.norms @ size + found.norms[j])
    missing += float(found.blur @ size + found.blur[j])
    slack = bounds.dot_error(len(size) + 8) + bounds.dot_error(8) * (1 + p)
    root = total + missing * reach
    return min(1.0, root**p * (1 + p * slack)) if root < 1 else 1.0  # large powers would overflow


@_QUIET
def _unit(rows: np.ndarray, x: np.ndarray, j: int) -> np.ndarray:
    """Return what query ``x`` gives to the rows, 1 to row ``j``."""
    response = rows @ x
    return np.asarray(response / response[j])


def _best(state: np.ndarray, goal: np.ndarray, power: float) -> np.ndarray:
    """Return the best point of a few on the way from ``state`` to ``goal``, by its norm of that power.

    The norm is convex along the way: from Newton's step on, each way is gone while it falls.
    """
    if power <= 1:
        return goal
    largest, way = max(np.abs(state).max(), np.abs(goal).max()), goal - state
    steps = np.unique(np.minimum(_STEPS / (power - 1), 1.0))

    @functools.cache
    def size(i: int) -> float:
        return float(np.sum((np.abs(state + steps[i] * way) / largest) ** power)) if 0 <= i < len(steps) else math.inf

    best = int(np.searchsorted(steps, min(1 / (power - 1), 1.0)))
    for ahead in (1, -1):
        while size(best + ahead) < size(best):
            best += ahead
    return state + steps[best] * way


def linear_program(found: Coordinates, u: np.ndarray, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, u) for p = 1: max t with K^T u = t k_j and |u| <= 1, and the prices of its equations.

    If the solver gives up the result is ``u`` as it came and a query that proves nothing.
    """
    from scipy.optimize import linprog  # slow to import, and only p = 1 needs it

    rows, n = found.rows, len(found.rows)
    solved = linprog(
        np.append(np.zeros(n), -1.0),
        A_eq=np.column_stack([rows.T, -rows[j] / found.norms[j]]),
        b_eq=np.zeros(found.rank),
        bounds=[(-1.0, 1.0)] * n + [(0.0, None)],
        method="highs",
    )
    values, prices = solved.x, solved.eqlin.marginals
    if solved.status != 0 or values is None or prices is None or not values[-1] > 0:
        return np.zeros(found.rank), u
    return np.asarray(prices), values[:-1] * (found.norms[j] / values[-1])
