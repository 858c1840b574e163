"""Any power p: Lewis weights, certified sensitivities, and the universal set of all keys at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # its parts load when they are first used

from lev import backend, bounds
from lev.checks import check_epsilon, check_fraction, check_power
from lev.eliminate import Coordinates, eliminate
from lev.refine import refine
from lev.triangle import inverse_of, squares_by, triangle_of
from lev.universal import UniversalSet, select

_MOST_ROUNDS = 20_000
_SPREAD = 600.0  # of the logarithms of factors: squares and inverses stay in range
CLOSE = 2.0**-24
"""Proved margin of a triangle; what it is off by is less than a thousandth of that, and than the residual."""


class NotConverged(ArithmeticError):
    """An iteration ended before its residual was small enough; no result is returned."""


def lewis_weights(keys: Any, p: float) -> Any:
    """Return the l_p Lewis weights w of the keys: w_j = (k_j^T (K^T W^{1-2/p} K)^+ k_j)^{p/2}.

    ``keys`` is (n, d), any real dtype; the result is float64 (n,) in the same array family.  The weights lie in
    [0, 1] and sum to the rank r; zero keys have weight 0; for p = 2 they are the leverage scores.  With
    c = r^|p/2 - 1| the sensitivity of key j is between w_j / c and w_j for p <= 2, and between w_j and c w_j for
    p >= 2.  Guarantee: the fixed point holds to a relative residual of 1e-11 for keys that are, row by row, within
    about 2^-53 cond(K) of those given; the iteration converges for every p.
    Cost: O(n d^2) a round, about 7 max(p, 4 / p) rounds.
    Raises TypeError and ValueError for bad input, NotConverged (an ArithmeticError) where rounding, or a p far
    from 2, keeps the residual up.  Theory: 05, Lewis weights.

    >>> import lev
    >>> lev.lewis_weights([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]], 4).round(12)
    array([1. , 0.5, 0.5])
    """
    array, family, p = *backend.finite_keys(keys), check_power(p)
    with backend.single_blas():
        found = eliminate(array, CLOSE)
        log_weights, residual = _log_weights(found, p)
    if not residual <= bounds.LEWIS_RESIDUAL:
        raise NotConverged(f"the Lewis weights for p={p!r} did not converge: relative residual {residual:.1e}")
    return family.out(found.spread(np.exp(log_weights)))


def sensitivities(
    keys: Any, p: float, rows: Any = None, *, tolerance: float = bounds.BRACKET_TOLERANCE
) -> tuple[Any, Any]:
    """Return (lower, upper), each float64 (m,): proved bounds on max_q |<q,k_j>|^p / sum_l |<q,k_l>|^p.

    ``keys`` is (n, d), any real dtype, and ``rows`` (m,) the indices of the keys asked for, by default all.
    Guarantee: lower <= sensitivity <= upper, rounding included, but directions below :func:`lev.bounds.resolution`
    count as null, and as 0 what float64 cannot hold beside the largest entry of its column (2^-1000 of it, which
    shows for p far below 1 only).  For p >= 1 bounds are refined until
    lower >= (1 - tolerance) upper; where rounding forbids that, or the rounds run out (p near 1 or above 6), the
    bracket stays wider.  For p < 1 the upper end is the Lewis weight and the lower end what some query gives, at
    worst a factor r^{1-p/2} below.
    Cost: Lewis weights once, then O(n d^2) a round and 5 to 60 rounds for each row (p = 1: a linear program).
    Where Lewis weights do not converge, as for p far below 1, their last values prove wider ends.
    Raises TypeError and ValueError for bad input.  Theory: 05, certificates and duality.

    >>> import lev
    >>> lower, upper = lev.sensitivities([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 1)
    >>> lower.round(6), upper.round(6)
    (array([0.5, 0.5, 0.5]), array([0.5, 0.5, 0.5]))
    """
    array, family, p = *backend.finite_keys(keys), check_power(p)
    tolerance = check_fraction("tolerance", tolerance)
    asked = np.arange(len(array)) if rows is None else backend.indices("rows", rows, len(array))
    with backend.single_blas():
        lower, upper = _brackets(array, p, asked, lambda low, high: low >= (1 - tolerance) * high)
    return family.out(lower[asked]), family.out(upper[asked])


def lp_universal_set(keys: Any, epsilon: float, p: float) -> UniversalSet:
    """Return the universal set of all keys at once for any p: those with sensitivity >= epsilon.

    ``keys`` is (n, d), any real dtype.  Guarantee: every key that any query can give a weight of epsilon is in it,
    rounding included, as for :func:`lev.sensitivities`; rows that their bracket leaves undecided are kept.
    Cost: Lewis weights once, then O(n d^2) a round for each row whose Lewis weight leaves it undecided.
    Raises TypeError and ValueError for bad input.  Theory: 05, certificates and duality.

    >>> import lev
    >>> lev.lewis.lp_universal_set([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], 0.5, 4.0).indices
    array([0])
    """
    array, family, p = *backend.finite_keys(keys), check_power(p)
    epsilon = check_epsilon(epsilon)

    def decided(low: float, high: float) -> bool:
        return high < epsilon or low >= epsilon or low >= (1 - bounds.BRACKET_TOLERANCE) * high

    with backend.single_blas():
        lower, upper = _brackets(array, p, np.arange(len(array)), decided)
    return select(array, family, lower, upper, epsilon, p)


# -- Lewis weights -----------------------------------------------------------------------------------------


def _log_weights(found: Coordinates, p: float) -> tuple[np.ndarray, float]:
    """Return log w, (n,), of the rows found, and the relative residual of the fixed point.

    The steps are damped by 4 / (2 + p), the best there is near the fixed point, and should the residual once fail
    to fall, by min(1, 2 / p), which is proved to converge from everywhere.  The logarithm of w^{2/p} is iterated:
    the weights of graded rows may underflow.  Where they leave float64 altogether, as for small p, it ends.
    """
    if not found.rank:
        return np.zeros(0), 0.0
    log_roots = 2 / p * np.maximum(log_leverages(found, np.zeros(len(found.rows))), math.log(bounds.UNIT))
    damping, before, residual = 4 / (2 + p), math.inf, math.inf
    for _ in range(min(_MOST_ROUNDS, int(100 + 100 * max(p, 1 / p)))):
        try:
            step = log_leverages(found, (p / 2 - 1) * log_roots) - log_roots
        except np.linalg.LinAlgError:
            break
        residual = max(1.0, p / 2) * float(np.abs(step).max())
        if residual <= bounds.LEWIS_RESIDUAL:
            return p / 2 * (log_roots + step), residual
        if not math.isfinite(residual):
            break
        if not residual < before:
            damping = min(1.0, 2 / p)
        log_roots, before = log_roots + damping * step, residual
    return p / 2 * log_roots, residual


def _triangle(found: Coordinates, log_weights: np.ndarray, limit: float = 0.0) -> tuple[np.ndarray, float]:
    """Return T and s with T^T T = exp(-2 s) K^T exp(log_weights) K; the scale s keeps all within range."""
    parts = backend.slices(len(log_weights), backend.TASK)
    shift = max(backend.run(lambda part: float(np.max(log_weights[part] / 2 + found.log_sizes[part])), parts))
    factors = np.concatenate(backend.run(lambda part: np.exp(log_weights[part] / 2 - shift), parts))
    return triangle_of(found.rows, factors, limit), shift


def log_leverages(found: Coordinates, log_weights: np.ndarray) -> np.ndarray:
    """Return the logarithm of k_j^T (K^T exp(log_weights) K)^{-1} k_j of every row."""
    triangle, shift = _triangle(found, log_weights, CLOSE)
    squares = squares_by(triangle)

    def of(part: slice) -> np.ndarray:
        powers = found.powers[part]
        even = squares(found.rows[part], np.ldexp(1.0, powers))
        with np.errstate(divide="ignore"):
            return np.log(even) - 2 * (math.log(2) * powers + shift)

    return np.concatenate(backend.run(of, backend.slices(len(log_weights), backend.TASK)))


# -- brackets ----------------------------------------------------------------------------------------------


def _brackets(
    keys: np.ndarray, p: float, asked: np.ndarray, enough: Callable[[float, float], bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper), (n,), by certificates and, for the rows asked for, refined until ``enough``."""
    found = eliminate(keys)
    log_weights, residual = _log_weights(found, p)
    if not residual <= bounds.LEWIS_RESIDUAL:
        log_weights = np.maximum(log_weights, log_weights.max() - _SPREAD / abs(1 - 2 / p))
    lower, upper = _certificates(found, p, log_weights)
    powers = (1 - 2 / p) * (log_weights - log_weights.max(initial=-math.inf))
    start = np.exp(np.minimum(powers, 600))  # any will do: they are refined

    def narrow(j: int) -> None:
        for low, high in refine(found, p, start, j):
            lower[j], upper[j] = max(lower[j], low), min(upper[j], high)
            if enough(lower[j], upper[j]):
                return

    wanted = np.flatnonzero(np.isin(found.where, asked)).tolist()
    threads = 1 if p == 1 else None  # the solver of linear programs has a scheduler of its own for the whole process
    backend.run(narrow, [j for j in wanted if not enough(lower[j], upper[j])], threads)
    return found.spread(lower), found.spread(upper)


def _certificates(found: Coordinates, p: float, log_v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return proved (lower, upper), (n,), from any positive v: a omega_j and b omega_j.

    Of gamma^{2/p-1} and V^{p/2-1} the smaller is a, the larger b, with gamma = max omega / v and V = sum v.  Rounding
    in the triangle costs a factor 1 - ``lost``, in the roots ``pad``.
    """
    n, rank = found.rows.shape
    if not rank:
        return np.zeros(0), np.zeros(0)
    triangle, shift = _triangle(found, (1 - 2 / p) * log_v)
    inverse = float(np.linalg.norm(inverse_of(triangle)))
    even = np.ldexp(found.rows, found.powers[:, None])
    solved = scipy.linalg.solve_triangular(triangle, even.T, trans=1, lower=True, check_finite=False)
    roots = np.ldexp(np.linalg.norm(solved, axis=0), -found.powers)
    pad = (found.blur + bounds.dot_error(4 * rank + 4) * found.norms) * inverse
    scale = np.exp((0.5 - 1 / p) * log_v - shift)
    lost = bounds.dot_error(n * rank) * float(np.linalg.norm(triangle)) + float(np.linalg.norm(scale * found.blur))
    lost *= inverse
    if not lost < 0.5:
        return np.zeros(n), np.ones(n)
    with np.errstate(divide="ignore"):
        low, high = (p * (np.log(np.maximum(ends, 0)) - shift) for ends in (roots - pad, roots + pad))
    ends = sorted(((2 / p - 1) * float((high - log_v).max()), (p / 2 - 1) * float(np.logaddexp.reduce(log_v))))
    slack = bounds.dot_error(n + 16) * (1 + p) * (1 + np.abs(high) + abs(ends[0]) + abs(ends[1]))
    lower = np.exp(low + ends[0] + p * math.log1p(-lost) - slack)
    return lower, np.minimum(1.0, np.exp(high + ends[1] - p * math.log1p(-lost) + slack))
