"""Coresets: weighted rows that stand for all, ||Kx||_p^p to (1 +- delta), for regression and normalisers.

Every row has one uniform number, a hash of the seed and its id, and is held while that number is at most its
probability.  Probabilities only fall, so coresets are merged and reduced in any order.  Theory: 11, coresets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.checks import check_fraction, check_integer, check_positive, check_power
from lev.ids import Ids
from lev.lewis import sensitivities


@dataclass(frozen=True, eq=False)
class Coreset:
    """Weighted rows of ``count`` keys: sum_l weights_l |<q,k_l>|^p estimates the sum over all keys, without bias.

    Keys of any array family come in; what goes out is NumPy.

    Attributes
    ----------
    indices : (m,) int64, ascending; the ids of the rows
    keys : (m, d), the rows in the dtype in which they came
    weights : (m,) float64, one over the probability with which each row was held
    p, seed, count : the power, the seed and the number of keys stood for

    """

    indices: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    p: float
    seed: int
    count: int

    def __len__(self) -> int:
        return len(self.indices)

    def normalizer(self, queries: Any) -> np.ndarray:
        """Return the estimates of sum_l |<q,k_l>|^p, float64 (m,), for ``queries`` (m, d).

        Raises TypeError and ValueError for bad input.
        """
        rows, _ = backend.finite_matrix("queries", queries, self.keys.shape[1])
        return np.abs(rows.astype(np.float64) @ self.keys.astype(np.float64).T) ** self.p @ self.weights

    def merge(self, other: Coreset) -> Coreset:
        """Return the coreset of both sets of keys: all rows of both.  Raises TypeError and ValueError.

        If each part's sum is within 1 +- delta, so is the whole's.
        """
        if not isinstance(other, Coreset):
            raise TypeError(f"other must be a Coreset; got {type(other).__name__}")
        for name, mine, theirs in (
            ("p", self.p, other.p),
            ("seed", self.seed, other.seed),
            ("columns", self.keys.shape[1], other.keys.shape[1]),
        ):
            if mine != theirs:
                raise ValueError(f"other has {name}={theirs!r}; merging needs {name}={mine!r}")
        if (known := np.intersect1d(self.indices, other.indices)).size:
            raise ValueError(f"other holds id {known[0]}, which this coreset holds already; its row would count twice")
        order = np.argsort(np.concatenate([self.indices, other.indices]))
        indices, keys, weights = (
            np.concatenate([getattr(self, name), getattr(other, name)])[order]
            for name in ("indices", "keys", "weights")
        )
        return replace(self, indices=indices, keys=keys, weights=weights, count=self.count + other.count)

    def reduced(self, *, delta: float | None = None, size: int | None = None, failure: float = 0.01) -> Coreset:
        """Return a coreset of fewer rows, sampled again from these.

        Either ``delta``, for which each query's estimate is, with probability 1 - ``failure``, within 1 +- delta of
        what it is now, or the expected ``size``.  Guarantee: for a query fixed beforehand, by Bernstein's inequality
        with proved sensitivities; nothing is proved for all queries at once.  Cost: Lewis weights of the rows held.
        Raises TypeError and ValueError for bad input, NotConverged as :func:`lev.lewis_weights` does.
        """
        if (delta is None) == (size is None):
            raise ValueError(f"give either delta or size; got delta={delta!r} and size={size!r}")
        # in units of the largest weight, lest the roots for small p overflow
        scaled = (self.weights / self.weights.max(initial=1.0))[:, None] ** (1 / self.p) * self.keys
        shares = sensitivities(scaled, self.p, tolerance=1.0)[1]
        if size is not None:
            kept = _filled(shares, check_integer("size", size, 1))
        else:
            rate = bounds.coreset_rate(check_positive("delta", delta), check_fraction("failure", failure))
            kept = np.minimum(1, rate * shares)
        probability = kept / self.weights
        held = np.flatnonzero(_uniform(self.seed, self.indices) <= probability)
        return replace(
            self, indices=self.indices[held], keys=self.keys[held], weights=np.maximum(1, 1 / probability[held])
        )


def coreset(
    keys: Any,
    p: float,
    *,
    delta: float | None = None,
    size: int | None = None,
    seed: int = 0,
    indices: Any = None,
    failure: float = 0.01,
) -> Coreset:
    """Return an l_p coreset: rows sampled by bounds on their sensitivities, with weights.

    ``keys`` is (n, d), any real dtype, ``indices`` (n,) their ids, by default 0 .. n - 1: which rows are held depends
    on ``seed``, the ids and the keys alone.  ``delta``, ``size`` and ``failure`` as in :meth:`Coreset.reduced`, which
    says what is guaranteed.  About 2 log(2 / failure) r^max(1, p/2) / delta^2 rows, r the rank.
    Raises TypeError and ValueError for bad input, NotConverged as :func:`lev.lewis_weights` does.
    Theory: 11, coresets.

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((20_000, 3))
    >>> small = lev.coreset(keys, 1, delta=0.1)
    >>> query = np.ones((1, 3))
    >>> bool(abs(small.normalizer(query)[0] / np.abs(keys @ query[0]).sum() - 1) < 0.1), len(small) < 4000
    (True, True)
    """
    rows, _ = backend.finite_matrix("keys", keys, None)
    if rows.shape[1] == 0:
        raise ValueError(f"keys must have at least one column; got shape {rows.shape}")
    known = Ids(0)
    ids, _ = known.count_on(len(rows)) if indices is None else known.take(indices, len(rows), np.zeros(0, np.int64))
    order = np.argsort(ids)
    seed = check_integer("seed", seed, 0)
    whole = Coreset(ids[order], rows[order], np.ones(len(rows)), check_power(p), seed, len(rows))
    return whole.reduced(delta=delta, size=size, failure=failure)


def _filled(shares: np.ndarray, size: int) -> np.ndarray:
    """Return min(1, c * shares) with the c for which they sum to ``size``, or 1 for every share above 0."""
    largest = np.sort(shares[shares > 0])[::-1]
    if len(largest) <= size:
        return (shares > 0).astype(np.float64)
    rest = np.cumsum(largest[::-1])[::-1]
    rates = (size - np.arange(size)) / rest[:size]  # with the i largest held for sure
    sure = int(np.argmax(rates * largest[:size] <= 1))
    return np.minimum(1, rates[sure] * shares)


def _uniform(seed: int, ids: np.ndarray) -> np.ndarray:
    """Return one number in (0, 1) for each id, a hash of it and the seed (splitmix64)."""
    seeded = _mixed(np.array([seed % 2**64], np.uint64))
    return ((_mixed(_mixed(ids.astype(np.uint64)) ^ seeded) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))
