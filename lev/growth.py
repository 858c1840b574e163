"""Sensitivities of weights that grow between |x|^a and x^2, a = 0 or 1: proved upper ends, and queries for lower ones.

With f(t x) >= t^2 f(x) for t <= 1 and f(t x) >= t^a f(x) for t >= 1, a key's share is at most what it has of
h(t) = min(1, t^2) (a = 0) or h(t) = t^2 up to 1 and |t| beyond (a = 1) at the query scaled so that its own t is 1.
Theory: 07, other functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy  # its parts load when they are first used

from lev import bounds
from lev.eliminate import Coordinates
from lev.lewis import lewis_weights
from lev.triangle import LOOSE, inverse_of, solved, triangle_of

_ROUNDS = 12
_CHUNK = 2**22  # numbers of one dense block
_MOST = 2.0**450  # what may be squared
_SCALES = 2.0 ** np.array([-24, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6, 9, 24])


def growth_brackets(
    found: Coordinates,
    f: Callable[[np.ndarray], np.ndarray],
    least: int,
    asked: np.ndarray,
    enough: Callable[[float, float], bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper), each (m,), for the rows ``asked`` of ``found``; ``least`` is a, and f turns about 1.

    Cost: O(n r log n) a row, and O(n r^2) a round for each row that is not ``enough`` yet.
    """
    upper, reach = capped(found, asked), found.reach(1.0)
    step = max(1, _CHUNK // max(1, len(found.rows)))
    for weights in [np.ones(len(found.rows)), flattening(found)] if least else []:
        for part in (slice(start, start + step) for start in range(0, len(asked), step)):
            upper[part] = np.minimum(upper[part], flows(found, weights, asked[part], reach)[0])
    lower = np.zeros(len(asked))
    for at, j in enumerate(asked):
        if enough(0.0, upper[at]):
            continue
        for low, high in _rounds(found, f, least, int(j), reach):
            lower[at], upper[at] = max(lower[at], low), min(upper[at], high)
            if enough(lower[at], upper[at]):
                break
    return lower, upper


def _rounds(
    found: Coordinates, f: Callable[[np.ndarray], np.ndarray], least: int, j: int, reach: float
) -> Iterator[tuple[float, float]]:
    """Yield (lower, upper) for row ``j`` from least squares problems that are reweighted towards h.  Cost: O(n r^2)."""
    weights, best = np.ones(len(found.rows)), 0.0
    for _ in range(_ROUNDS):
        uppers, queries = flows(found, weights, np.array([j]), reach)
        low = reached(found, f, j, queries[0])
        yield low, float(uppers[0]) if least else 1.0
        if low <= best * (1 + 1e-3):
            return
        best = low
        with np.errstate(divide="ignore", invalid="ignore"):
            response = np.abs(found.rows @ queries[0] / (found.rows[j] @ queries[0]))
        weights = 1 / np.maximum(1, 2 * response) if least else 1 / np.maximum(1, response**2)
        weights = np.where(np.isfinite(response), np.maximum(weights, 1e-24), 1e-24)


def flattening(found: Coordinates) -> np.ndarray:
    """Return weights whose flows are flat: one over the Lewis weights for p = 1."""
    weights = lewis_weights(found.rows, 1.0)
    least = float(weights.min(initial=1.0))
    return least / weights if least > 0 else np.ones(len(weights))


def flows(found: Coordinates, weights: np.ndarray, asked: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (upper, queries), (m,) and (m, r), for a = 1: bounds by the weighted least squares flow into each row.

    With H(t) = t^2 up to 1/2 and |t| - 1/4 beyond, H <= h, any u with |u_l| <= 1 and sum_{l != j} u_l k_l = nu k_j
    proves sum_{l != j} H(x_l) >= nu - |u|^2 / 4 wherever x_j = 1.  What is missing from the equation is charged
    at ``reach``, a bound on |x| / ||K x||_1, as is the keys' blur.
    """
    rows, n, rank = found.rows, len(found.rows), found.rank
    triangle = triangle_of(rows, np.sqrt(weights), LOOSE)
    queries = solved(triangle, rows[asked].T)
    flow = weights[:, None] * (rows @ queries)
    at = np.arange(len(asked))
    supply = 1 - flow[asked, at]
    flow[asked, at] = 0
    size = np.abs(flow)
    missing = np.linalg.norm(rows.T @ flow - supply * rows[asked].T, axis=0)
    missing += bounds.dot_error(n + 2) * (found.norms @ size + np.abs(supply) * found.norms[asked])
    missing += found.blur @ size + np.abs(supply) * found.blur[asked]
    energy, steepest = np.square(flow).sum(axis=0), size.max(axis=0, initial=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        step = np.minimum(2 * supply / energy, (1 - bounds.dot_error(8)) / steepest)
        charged = step * missing * reach
        least = step * supply - step**2 * energy / 4 * (1 + bounds.dot_error(n + 8)) - charged * (n / 4 + 1)
        upper = (1 + bounds.dot_error(16)) / (1 + np.maximum(least / (1 + charged), 0))
    sound = np.isfinite(least) & (supply > 0)
    return np.where(sound, np.minimum(upper, 1), 1.0), queries.T.reshape(len(asked), rank)


def capped(found: Coordinates, asked: np.ndarray) -> np.ndarray:
    """Return upper ends, (m,), for a = 0: rows are dealt into groups, and each group holds its own against row j.

    Of a group G, sum min(1, x_l^2) >= min(1, c) with c the least sum x_l^2 over x_j = 1, for either some |x_l| > 1 or
    none.  Groups are dealt by leverage, so that each has a share of every direction, and several counts are tried.
    """
    n, rank = found.rows.shape
    # in float32, where copies tie
    order = np.argsort(-_scores(found, np.arange(n), np.arange(n)).astype(np.float32), kind="stable")
    best = np.ones(len(asked))
    counts = np.unique(np.round(2.0 ** np.arange(0, math.log2(max(1, n / rank)) + 0.25, 0.25)).astype(int))
    for count in counts:
        held = np.zeros(len(asked))
        for first in range(count):
            group = order[first::count]
            score = _scores(found, group, asked)
            with np.errstate(divide="ignore"):
                least = 1 / score - np.isin(asked, group)
            held += np.clip(least, 0, 1)
        best = np.maximum(best, 1 + held * (1 - bounds.dot_error(count + 16)))
    return np.minimum(1, (1 + bounds.dot_error(8)) / best)


def _scores(found: Coordinates, group: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return upper bounds, (m,), on max <x,k_j>^2 / sum_group <x,k_l>^2; infinite where rounding proves nothing."""
    part, rank = found.rows[group], found.rank
    if len(group) < rank:
        return np.full(len(asked), math.inf)
    triangle = triangle_of(part, np.ones(len(group)))
    if not np.abs(np.diagonal(triangle)).min() > 0:
        return np.full(len(asked), math.inf)
    inverse = float(np.linalg.norm(inverse_of(triangle)))
    lost = bounds.dot_error(len(group) * rank) * float(np.linalg.norm(triangle)) + float(
        np.linalg.norm(found.blur[group])
    )
    if not lost * inverse < 0.5:
        return np.full(len(asked), math.inf)
    roots = np.linalg.norm(
        scipy.linalg.solve_triangular(triangle, found.rows[asked].T, trans=1, lower=True, check_finite=False), axis=0
    )
    pad = (found.blur[asked] + bounds.dot_error(4 * rank + 4) * found.norms[asked]) * inverse
    return ((roots + pad) / (1 - lost * inverse)) ** 2 * (1 + bounds.dot_error(8))


def reached(found: Coordinates, f: Callable[[np.ndarray], np.ndarray], j: int, x: np.ndarray) -> float:
    """Return a proved lower end: the most that query ``x`` at some scale gives to row ``j``, less its rounding."""
    response = np.abs(found.rows @ x)
    pad = (bounds.dot_error(found.rank) * found.norms + found.blur) * float(np.linalg.norm(x))
    own = float(response[j] - pad[j])
    if not (own > 0 and math.isfinite(own)):
        return 0.0
    most = (response + pad) / own
    if not most.max() < _MOST:
        return 0.0
    shares = [float(f(np.array(scale)) / np.sum(f(scale * most))) for scale in _SCALES]
    return max(shares) * (1 - bounds.dot_error(len(most) + 64))
