"""Heavy hitters: which (query, key) entries reach epsilon, from the universal set or by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lev import backend
from lev.checks import check_epsilon, check_power
from lev.form import Form

if TYPE_CHECKING:
    from scipy import sparse

_CHUNK = 2**22  # numbers of one dense block of entries: 32 MB
_NEVER = -(2**20)  # the power of two of zero


def _scaled(queries: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return queries * 2^exponents with each row brought to one binade, and the powers of two taken out."""
    fraction, power = np.frexp(queries)
    power = np.where(fraction == 0, _NEVER, power + exponents)
    top = power.max(axis=1, initial=_NEVER, keepdims=True)
    return np.ldexp(fraction, np.maximum(power - top, -2000)), top[:, 0]


def _roots(form: Form, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the queries in the form's columns, ||K q|| for them, and the powers of two taken out."""
    if queries.shape[1] < form.frame.dim:
        queries = np.hstack([queries, np.zeros((len(queries), 1))])
    scaled, powers = _scaled(queries.astype(np.float64), form.frame.exponents)
    return scaled, np.linalg.norm(scaled @ form.root().T, axis=1), powers


def normalizer(form: Form, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper), each (m,): the p = 2 normaliser ||K q||^2 lies between."""
    _, roots, powers = _roots(form, queries)
    exact = np.ldexp(roots**2, np.maximum(2 * powers, -4000))
    slack = min(form.factor().slack, 1.0)
    return exact * (1 - slack), exact * (1 + slack)


def heavy_hitters(form: Form, keys: np.ndarray, queries: np.ndarray, epsilon: float) -> sparse.csr_array:
    """Return the entries <q,k>^2 / ||K q||^2 >= epsilon as a (queries, keys) CSR array.

    ``keys`` are the rows of a universal set for epsilon or less, so no other key has such an entry.
    Cost: (r + |U|) d a query.
    """
    rows, _ = form.frame.widen(keys)
    scaled, roots, _ = _roots(form, queries)
    keep = epsilon * (1 - min(form.factor().slack, 1.0))

    def entries(part: slice) -> np.ndarray:
        root, logits = roots[part, None], scaled[part] @ rows.T
        weights = np.square(np.divide(logits, root, out=np.zeros_like(logits), where=root > 0))
        return np.where(weights >= keep, np.minimum(weights, 1), 0)

    return _sparse(entries, len(scaled), len(rows))


def heavy_entries(queries: Any, keys: Any, epsilon: float, p: float = 2.0) -> sparse.csr_array:
    """Return every attention entry |<q,k>|^p / sum_l |<q,k_l>|^p >= epsilon, by brute force.

    The reference that everything faster is held to: float64, straight from the definition, O(m n d).
    ``queries`` is (m, d), ``keys`` (n, d); the result is a float64 ``scipy.sparse.csr_array`` (m, n) with
    sorted columns.  A query that is orthogonal to every key has no entries.
    Raises TypeError and ValueError for bad input.

    >>> import lev
    >>> lev.heavy_entries([[1.0, 0.0]], [[3.0, 0.0], [1.0, 1.0], [0.0, 5.0]], 0.5).toarray()
    array([[0.9, 0. , 0. ]])
    """
    epsilon, p = check_epsilon(epsilon), check_power(p)
    keys = backend.finite_matrix("keys", keys, None)[0].astype(np.float64)
    queries = backend.finite_matrix("queries", queries, keys.shape[1])[0].astype(np.float64)
    exponents = np.frexp(np.abs(keys).max(axis=0, initial=0))[1]
    keys, (queries, _) = np.ldexp(keys, -exponents), _scaled(queries, exponents)

    def entries(part: slice) -> np.ndarray:
        logits = np.abs(queries[part] @ keys.T)
        largest = logits.max(axis=1, initial=0, keepdims=True)
        powers = np.divide(logits, largest, out=np.zeros_like(logits), where=largest > 0) ** p
        total = powers.sum(axis=1, keepdims=True)
        weights = np.divide(powers, total, out=powers, where=total > 0)
        return np.where(weights >= epsilon, weights, 0)

    return _sparse(entries, len(queries), len(keys))


def _sparse(entries: Callable[[slice], np.ndarray], height: int, width: int) -> sparse.csr_array:
    """Return the (height, width) CSR array of which ``entries`` gives some dense rows at a time."""
    from scipy import sparse  # a fifth of a second that `import lev` need not spend

    step = max(1, _CHUNK // max(1, width))
    blocks = [sparse.csr_array(entries(slice(start, start + step))) for start in range(0, height, step)]
    if not blocks:
        return sparse.csr_array((height, width))
    stacked = sparse.csr_array(sparse.vstack(blocks, format="csr"))
    stacked.sort_indices()
    return stacked
