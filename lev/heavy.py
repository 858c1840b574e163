"""Heavy hitters: which (query, key) entries reach epsilon, from the universal set or by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lev import backend, bounds
from lev.candidates import Candidates
from lev.checks import check_epsilon, check_power
from lev.form import Form
from lev.frame import NEVER, aged

if TYPE_CHECKING:
    from scipy import sparse

_CHUNK = 2**22  # numbers of one dense block of entries: 32 MB
_LEAST_POWER = -4000  # of two: less is nothing


def in_one_binade(queries: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return queries * 2^exponents with each row brought to one binade, and the powers of two taken out.

    The exponents of columns that hold zeros alone are NEVER: what a query has there would hide the rest of it.
    A column that queries lack holds zeros.
    """
    if queries.shape[1] < len(exponents):
        queries = np.hstack([queries, np.zeros((len(queries), 1))])
    fraction, power = np.frexp(queries.astype(np.float64))
    power = np.where(fraction == 0, NEVER, power + exponents)
    top = power.max(axis=1, initial=NEVER, keepdims=True)
    return np.ldexp(fraction, np.maximum(power - top, -2000)), top[:, 0]


def column_powers(keys: np.ndarray) -> np.ndarray:
    """Return the power of two of the largest entry of each column, (d,) int; NEVER for zeros."""
    return np.where(keys.any(axis=0), np.frexp(np.abs(keys).max(axis=0, initial=0))[1], NEVER)


def times_power(values: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Return values * 2^powers, which may be any numbers; 0 or infinite where float64 ends."""
    whole = np.floor(powers)
    with np.errstate(over="ignore"):
        return np.ldexp(values * np.exp2(powers - whole), whole.astype(np.int64))


def roots_of(form: Form, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the queries in the form's columns, ||K q|| for them, and the powers of two taken out."""
    root = form.root()
    scaled, powers = in_one_binade(queries, np.where(root.any(axis=0), form.frame.exponents, NEVER))
    return scaled, np.linalg.norm(scaled @ root.T, axis=1), powers


def normalizer(stream: Candidates, queries: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper), each (m,): the normaliser sum_l decay^(now-l) |<q,k_l>|^p lies between."""
    scaled, roots, powers = roots_of(stream.form, queries)
    weighting, number = stream.weighting, np.finfo(np.float64)
    # of queries that are nearly orthogonal to all keys no more is known than rounding leaves
    blur = bounds.dot_error(2 * scaled.shape[1]) * np.linalg.norm(scaled, axis=1) * np.linalg.norm(stream.form.root())
    least, most = (_sizes(stream, ends, powers, now) for ends in (np.maximum(roots - blur, 0), roots + blur))
    low, high = _sandwich(stream)
    slack = 0.0 if weighting.p == 2 and weighting.decay == 1 else bounds.power_error(weighting.p, -_LEAST_POWER)
    with np.errstate(over="ignore", invalid="ignore"):
        lower = np.where(least < number.tiny, 0.0, np.minimum(least, number.max)) * low * (1 - slack)
        upper = np.maximum(most, number.tiny) * high * (1 + slack)
    # what is below the normal numbers has few bits
    lower = np.where(lower < number.tiny, 0.0, np.minimum(lower, number.max))
    return lower, np.where(roots + blur > 0, np.maximum(upper, number.tiny), 0.0)


def _sizes(stream: Candidates, roots: np.ndarray, powers: np.ndarray, now: int) -> np.ndarray:
    """Return ||M^(1/2) q||^p at the time ``now``, (m,); it may be 0 or infinite where float64 ends."""
    weighting = stream.weighting
    age = float(weighting.exponents(np.array([max(now, 0)]), stream.epoch)[0])
    fraction, power = np.frexp(roots)
    shift = np.maximum(weighting.p * (powers + power) - min(weighting.p, 2.0) * age, _LEAST_POWER)
    return times_power(fraction**weighting.p, shift)


def _sandwich(stream: Candidates) -> tuple[float, float]:
    """Return the factors between which the normaliser lies of ||M^(1/2) q||^p as computed."""
    slack, p = min(stream.factor.slack, 1.0), stream.weighting.p
    low, high = stream.weighting.sandwich(stream.mass, stream.form.rows, stream.epoch)
    return low * (1 - slack) ** (p / 2), high * (1 + slack) ** (p / 2)


def slack(stream: Candidates) -> float:
    """Return the most that the ends of a normaliser, and so those of a sensitivity, can be apart, as a factor."""
    low, high = _sandwich(stream)
    with np.errstate(over="ignore"):
        return high / low if low > 0 else math.inf


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # an entry that float64 cannot tell lies in [0, 1]
def heavy_hitters(
    stream: Candidates,
    queries: np.ndarray,
    epsilon: float,
    width: int,
    now: int = 0,
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> sparse.csr_array:
    """Return the entries decay^(now-j) |<q,k_j>|^p / sum that may reach epsilon, as a (queries, width) CSR array.

    For p != 2, and for a sample of the rows, they are upper ends, and the attribute ``lower`` holds the lower ends.
    ``known`` are ends of the sums at the time ``now``, (queries,) each, known from elsewhere: they narrow the ends of
    entries but leave none out.
    Cost: (r + number of kept rows) d a query.
    """
    p, rows = stream.weighting.p, stream.kept[0]
    exact = stream.weighting.plain
    if exact:
        rows = rows.take(rows.upper >= epsilon)
    rows = rows.take(np.argsort(rows.ids))
    keys, norms = np.empty((len(rows), stream.form.frame.dim)), np.empty(len(rows))
    ages = stream.weighting.exponents(rows.ids, stream.epoch) * min(1.0, 2 / p)
    for places, frame, scales in aged(stream.form.frame, ages):
        keys[places], norms[places] = frame.widen(rows.keys[places], scales)
    scaled, roots, powers = roots_of(stream.form, queries)
    low, high = _sandwich(stream)
    totals = None if known is None else _shares(known, _sizes(stream, roots, powers, now), p)
    blurs = (bounds.dot_error(keys.shape[1] + 8) + stream.weighting.scale_error) * np.sqrt(norms)

    def entries(part: slice) -> list[np.ndarray]:
        root, logits = roots[part, None], np.abs(scaled[part] @ keys.T)
        ratios = np.divide(logits, root, out=np.zeros_like(logits), where=root > 0)
        if exact:
            return [np.where(ratios**2 < epsilon * low, 0, np.fmin(ratios**2, 1))]
        # a small power of what is only rounding is not small; and the rows kept are a part of the normaliser
        blur = np.linalg.norm(scaled[part], axis=1, keepdims=True) * blurs
        blur = np.divide(blur, root, out=np.zeros_like(logits), where=root > 0)
        least, most = np.maximum(ratios - blur, 0) ** p, (ratios + blur) ** p
        total = np.maximum(low, least.sum(axis=1, keepdims=True) * (1 - bounds.power_error(p, len(rows))))
        upper = np.minimum(np.nan_to_num(most / total, nan=1.0), rows.upper)
        lower, held = np.minimum(np.nan_to_num(least / high, nan=0.0), upper), upper >= epsilon
        if totals is not None:
            lower, upper = _narrowed(lower, upper, least, most, [end[part, None] for end in totals])
        return [np.where(held, upper, 0), lower]

    return _sparse(entries, len(scaled), width, rows.ids)


def _shares(known: tuple[np.ndarray, np.ndarray], sizes: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ends of normalisers in units of ``sizes``; where float64 cannot say, they say nothing."""
    slack = bounds.power_error(p, -_LEAST_POWER)
    sizes = np.where(sizes < np.finfo(np.float64).tiny, np.nan, sizes)  # of few bits
    low, high = known[0] / sizes * (1 - slack), known[1] / sizes * (1 + slack)
    return np.where(np.isfinite(low), low, 0.0), np.where(high > 0, high, math.inf)


def _narrowed(
    lower: np.ndarray, upper: np.ndarray, least: np.ndarray, most: np.ndarray, totals: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of entries, within those proved, for numerators and normalisers between the given ends."""
    high = np.clip(np.nan_to_num(most / totals[0], nan=1.0), np.maximum(lower, np.finfo(np.float64).tiny), upper)
    return np.clip(np.nan_to_num(least / totals[1], nan=0.0), lower, high), high


def heavy_entries(queries: Any, keys: Any, epsilon: float, p: float = 2.0) -> sparse.csr_array:
    """Return every attention entry |<q,k>|^p / sum_l |<q,k_l>|^p >= epsilon, by brute force.

    The reference that everything faster is held to: float64, straight from the definition, O(m n d).
    ``queries`` is (m, d), ``keys`` (n, d); the result is a float64 ``scipy.sparse.csr_array`` (m, n) with
    sorted columns.  A query that is orthogonal to every key has no entries.  Entries of a key count as 0 where float64
    cannot hold them beside the largest of their column (2^-1000 of it, which shows for p far below 1 only).
    Raises TypeError and ValueError for bad input.

    >>> import lev
    >>> lev.heavy_entries([[1.0, 0.0]], [[3.0, 0.0], [1.0, 1.0], [0.0, 5.0]], 0.5).toarray()
    array([[0.9, 0. , 0. ]])
    """
    epsilon, p = check_epsilon(epsilon), check_power(p)
    keys = backend.finite_matrix("keys", keys, None)[0].astype(np.float64)
    queries = backend.finite_matrix("queries", queries, keys.shape[1])[0].astype(np.float64)
    exponents = column_powers(keys)
    keys, (queries, _) = np.ldexp(keys, -exponents), in_one_binade(queries, exponents)

    def entries(part: slice) -> list[np.ndarray]:
        logits = np.abs(queries[part] @ keys.T)
        largest = logits.max(axis=1, initial=0, keepdims=True)
        powers = np.divide(logits, largest, out=np.zeros_like(logits), where=largest > 0) ** p
        total = powers.sum(axis=1, keepdims=True)
        weights = np.divide(powers, total, out=powers, where=total > 0)
        return [np.where(weights >= epsilon, weights, 0)]

    return _sparse(entries, len(queries), len(keys), np.arange(len(keys)))


def _sparse(
    entries: Callable[[slice], list[np.ndarray]], height: int, width: int, columns: np.ndarray
) -> sparse.csr_array:
    """Return the (height, width) CSR array of which ``entries`` gives some dense rows at a time.

    A second dense array gives values at the places where the first is not zero; they become ``lower``.
    """
    from scipy import sparse  # a fifth of a second that `import lev` need not spend

    step = max(1, _CHUNK // max(1, len(columns)))
    starts, places, values = [np.zeros(1, np.int64)], [], []
    for start in range(0, height, step):
        dense = entries(slice(start, start + step))
        row, column = np.nonzero(dense[0])
        starts.append(starts[-1][-1] + np.cumsum(np.bincount(row, minlength=len(dense[0]))))
        places.append(columns[column])
        values.append([array[row, column] for array in dense])
    if not height:
        return sparse.csr_array((0, width))
    indptr, indices = np.concatenate(starts), np.concatenate(places)
    arrays = [
        sparse.csr_array((np.concatenate(data), indices, indptr), shape=(height, width))
        for data in zip(*values, strict=True)
    ]
    if len(arrays) == 2:
        setattr(arrays[0], "lower", arrays[1])  # noqa: B010, a name that csr_array does not declare
    return arrays[0]
