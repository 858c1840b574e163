"""Softmax over queries in a ball: the most weight of a row, from both sides.

sigma_j = exp(-min_{|y| <= rho} g(y)), g(y) = log sum_l exp((k_l - k_j) y), which is convex.  Any y in the ball proves a
lower end, any distribution pi over the rows an upper: g >= H(pi) - rho |sum pi_l k_l - k_j|.  The distribution that a
query gives closes the gap at the best one.  Theory: 08, softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from lev import bounds

_ROUNDS = 60
_SWEEPS = 4
_LARGEST = 500  # power of two of a logit
_HALVINGS = 100
_CHUNK = 2**22  # numbers of one dense block


def ball_brackets(
    keys: np.ndarray, rho: float, asked: np.ndarray, enough: Callable[[float, float], bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper), each (m,), for the rows ``asked`` of finite float64 ``keys`` (n, d).

    Cost: O(n d) a row, and O(n d^2) a round, about ten rounds, for each row that is not ``enough`` by then.
    """
    exponent = int(np.frexp(np.abs(keys).max(initial=0))[1])
    lower, upper = np.zeros(len(asked)), np.ones(len(asked))
    if exponent + math.frexp(rho)[1] > _LARGEST:  # logits of rounding errors only
        return lower, upper
    # only <q,k> matters: bring the keys to one binade and the ball to match
    keys, rho = np.ldexp(keys, -exponent), math.ldexp(rho, exponent)
    step = max(1, _CHUNK // max(1, len(keys)))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        lower[part], upper[part] = _sweep(keys, rho, asked[part])
    for at, j in enumerate(asked):
        if enough(lower[at], upper[at]):
            continue
        for low, high in _newton(keys, rho, int(j)):
            lower[at], upper[at] = max(lower[at], low), min(upper[at], high)
            if enough(lower[at], upper[at]):
                break
    return lower, upper


def ends(keys: np.ndarray, rho: float, asked: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (lower, upper), (m,), that points ``y`` (d, m) of the ball prove, and the slopes of g there."""
    n, d = keys.shape
    logits = keys @ y
    top = logits.max(axis=0)
    share = np.exp(logits - top)
    total = share.sum(axis=0)
    share /= total
    largest = float(np.linalg.norm(keys, axis=1).max(initial=0))
    value = top + np.log(total) - logits[asked, np.arange(len(asked))]
    slopes = keys.T @ share - keys[asked].T
    # H(pi) = log total + top - <y, mean>, so that H - rho |mean - k_j| = value - <y, slope> - rho |slope|
    gap = np.einsum("ij,ij->j", y, slopes) + rho * np.linalg.norm(slopes, axis=0)
    slack = bounds.dot_error(4 * n + 4 * d + 64) * (2 + math.log(n) + 4 * rho * largest)
    with np.errstate(invalid="ignore", over="ignore"):
        high = np.exp(-(value - gap) + slack)
        low = np.exp(-value - slack)
    high = np.where(np.isnan(high), 1.0, np.clip(high, np.finfo(np.float64).tiny, 1.0))
    return np.where(np.isnan(low), 0.0, np.minimum(low, 1)), high, slopes


def _sweep(keys: np.ndarray, rho: float, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper) for many rows at once by a few steps towards the point of the ball against the slope."""
    y = np.zeros((keys.shape[1], len(asked)))
    lower, upper, slopes = ends(keys, rho, asked, y)
    for turn in range(_SWEEPS):
        norms = np.linalg.norm(slopes, axis=0)
        away = np.divide(slopes, norms, out=np.zeros_like(slopes), where=norms > 0)
        towards = -rho * (1 - bounds.dot_error(keys.shape[1] + 16)) * away
        y = y + (towards - y) * (1.0 if turn == 0 else 2 / (2 + turn))
        low, high, slopes = ends(keys, rho, asked, y)
        lower, upper = np.maximum(lower, low), np.minimum(upper, high)
    return lower, upper


def _newton(keys: np.ndarray, rho: float, j: int) -> Iterator[tuple[float, float]]:
    """Yield (lower, upper) for row ``j`` along Newton steps within the ball, halved until g falls by enough."""
    inside, row = rho * (1 - bounds.dot_error(keys.shape[1] + 16)), np.array([j])
    y = np.zeros(keys.shape[1])
    for _ in range(_ROUNDS):
        low, high, slopes = ends(keys, rho, row, y[:, None])
        yield float(low[0]), float(high[0])
        value, share = _log_sum(keys, j, y)
        centred = keys - share @ keys
        curvature = centred.T @ (share[:, None] * centred)
        goal = _within(curvature, curvature @ y - slopes[:, 0], inside)
        promised, length = float(slopes[:, 0] @ (y - goal)), 1.0
        rounding = bounds.dot_error(len(keys)) * (1 + abs(value) + rho)  # g cannot be told apart by less
        while value - _log_sum(keys, j, y + length * (goal - y))[0] < 0.1 * length * promised - rounding:
            length /= 2
        if not promised > 0:
            return
        y = y + length * (goal - y)


def _log_sum(keys: np.ndarray, j: int, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return g and the weights of all rows at ``y``."""
    logits = keys @ y
    top = float(logits.max())
    share = np.exp(logits - top)
    total = float(share.sum())
    return top + math.log(total) - float(logits[j]), share / total


def _within(curvature: np.ndarray, pull: np.ndarray, radius: float) -> np.ndarray:
    """Return the z in the ball that is least in z^T curvature z / 2 - <pull, z>."""
    values, vectors = np.linalg.eigh(curvature)
    values, along = np.maximum(values, 0), vectors.T @ pull

    def point(shift: float) -> np.ndarray:
        return np.divide(along, values + shift, out=np.full(len(along), math.inf), where=values + shift > 0)

    low, high = 0.0, 2 * float(np.linalg.norm(along)) / radius if radius > 0 else 0.0
    if not np.linalg.norm(point(low)) <= radius:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if np.linalg.norm(point(middle)) > radius else (low, middle)
        low = high
    z = np.where(along == 0, 0.0, point(low))
    size = float(np.linalg.norm(z))
    return vectors @ (z if size <= radius else z * (radius / size))
