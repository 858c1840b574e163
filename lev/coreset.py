"""Coresets: weighted rows that stand for all, ||Kx||_p^p to (1 +- delta), for regression and normalisers.

Every row has one uniform number, a hash of the seed and its id, and is held while that number is at most its
probability.  Probabilities only fall, so coresets are merged and reduced in any order.  Theory: 11, coresets.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.candidates import Candidates
from lev.checks import check_dim, check_fraction, check_integer, check_positive, check_power
from lev.form import Form
from lev.heavy import column_powers, in_one_binade, times_power
from lev.ids import Ids, mixed
from lev.incoming import incoming
from lev.lewis import sensitivities
from lev.rows import Rows, concatenate
from lev.weighting import Weighting

_NEGLIGIBLE = 2.0**-1000  # rows whose sensitivity is below this are not scored
_SHORTEST, _LONGEST = 256, 2**15  # rows of a block
_BEYOND = 4000  # a power of two that is infinite, or nothing


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
    rates : for each time that rows were sampled, the c with probability >= min(1, c sensitivity)

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((1000, 2))
    >>> small = lev.coreset(keys, 2, size=100)
    >>> len(small) < 200, small.count, bool((small.weights >= 1).all())
    (True, 1000, True)

    """

    indices: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    p: float
    seed: int
    count: int
    rates: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Coreset({len(self)} of {self.count} keys, p={self.p:g}, seed={self.seed})"

    def normalizer(self, queries: Any) -> np.ndarray:
        """Return the estimates of sum_l |<q,k_l>|^p, float64 (m,), for ``queries`` (m, d); infinite beyond float64.

        Raises TypeError and ValueError for bad input.
        """
        responses, _, powers = self._responses(queries)
        return self._sums(responses, powers, 1.0)

    def bracket(self, queries: Any, failure: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), each float64 (m,): sum_l |<q,k_l>|^p over all keys lies between.

        Guarantee: for each query fixed beforehand, with probability 1 - ``failure`` over seeds, as if the hash of seed
        and id were random.  Where every key is held it is certain.  Raises TypeError and ValueError for bad input.
        Theory: 11, coresets.

        >>> import numpy as np, lev
        >>> keys = np.random.default_rng(0).standard_normal((5000, 2))
        >>> low, high = lev.coreset(keys, 1, delta=0.1).bracket([[1.0, 2.0]])
        >>> bool(low[0] <= np.abs(keys @ [1.0, 2.0]).sum() <= high[0]), bool(high[0] / low[0] < 1.25)
        (True, True)
        """
        failure = check_fraction("failure", failure) / max(1, len(self.rates))
        errors = [bounds.coreset_error(rate, failure) for rate in self.rates]
        responses, blur, powers = self._responses(queries)
        slack = bounds.power_error(self.p, len(self) + _BEYOND)
        low = self._sums(np.maximum(responses - blur, 0), powers, (1 - slack) / math.prod(1 + e for e in errors))
        least = math.prod(1 - error for error in errors) if max(errors, default=0.0) < 1 else 0.0
        if not least:
            return np.nextafter(low, 0), np.full(len(low), math.inf)
        high = self._sums(responses + blur, powers, (1 + slack) / least)
        some = (responses + blur).any(axis=1)  # which a sum that underflows does not show
        return np.nextafter(low, 0), np.where(some, np.nextafter(high, math.inf), 0.0)

    def _responses(self, queries: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return |<q,k>|, (m, rows), what rounding may have made of them, and the powers of two taken out, (m,)."""
        rows, keys = backend.finite_matrix("queries", queries, self.keys.shape[1])[0], self.keys.astype(np.float64)
        exponents = column_powers(keys)
        products = (rows != 0).astype(np.float64) @ (keys != 0).T  # how many there are to underflow
        keys, (rows, powers) = np.ldexp(keys, -exponents), in_one_binade(rows, exponents)
        blur = bounds.dot_error(keys.shape[1] + 8) * (np.abs(rows) @ np.abs(keys).T)
        return np.abs(rows @ keys.T), blur + 2 * np.finfo(np.float64).smallest_subnormal * products, powers

    def _sums(self, sizes: np.ndarray, powers: np.ndarray, factor: float) -> np.ndarray:
        """Return factor * sum_l weights_l (sizes_l 2^powers)^p, (m,), with powers taken of ratios to the largest."""
        top = sizes.max(axis=1, initial=0)
        ratios = np.divide(sizes, top[:, None], out=np.zeros_like(sizes), where=top[:, None] > 0)
        with np.errstate(over="ignore", divide="ignore"):
            shift = np.clip(self.p * (powers + np.log2(top)), -_BEYOND, _BEYOND)
            return times_power(ratios**self.p @ self.weights * factor, shift)

    def merge(self, other: Coreset) -> Coreset:
        """Return the coreset of both sets of keys: all rows of both.  Raises TypeError and ValueError.

        Sensitivities in a part are no smaller than in the whole, so what was promised of each part holds of the whole.
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
        rates = tuple(map(min, *zip(*itertools.zip_longest(self.rates, other.rates, fillvalue=math.inf), strict=True)))
        count = self.count + other.count
        return replace(self, indices=indices, keys=keys, weights=weights, count=count, rates=rates)

    def reduced(self, *, delta: float | None = None, size: int | None = None, failure: float = 0.01) -> Coreset:
        """Return a coreset of fewer rows, sampled again from these.

        Either ``delta``, for which each query's estimate is, with probability 1 - ``failure``, within 1 +- delta of
        what it is now, or the expected ``size``.  Guarantee: for a query fixed beforehand, by Bernstein's inequality
        with proved sensitivities; nothing is proved for all queries at once.  Cost: Lewis weights of the rows held.
        Raises TypeError and ValueError for bad input.
        """
        if (delta is None) == (size is None):
            raise ValueError(f"give either delta or size; got delta={delta!r} and size={size!r}")
        # in units of the largest weight, lest the roots for small p overflow
        scaled = (self.weights / self.weights.max(initial=1.0))[:, None] ** (1 / self.p) * self.keys
        shares = sensitivities(scaled, self.p, tolerance=1.0)[1]
        shares[((np.abs(scaled) < bounds.LEAST_WEIGHT) & (self.keys != 0)).any(axis=1)] = 1.0  # roots that underflow
        if size is not None:
            rate = _rate(shares, check_integer("size", size, 1))
        else:
            rate = bounds.coreset_rate(check_positive("delta", delta), check_fraction("failure", failure))
        probability = _held(rate, shares) / self.weights
        held = np.flatnonzero(_uniform(self.seed, self.indices) <= probability)
        weights = np.maximum(1, 1 / probability[held])
        rates = (*self.rates, rate)
        return replace(self, indices=self.indices[held], keys=self.keys[held], weights=weights, rates=rates)


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
    Raises TypeError and ValueError for bad input.
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


class CoresetSketch:
    """A one-pass, mergeable coreset of a stream: rows sampled by online Lewis weights as they come.

    Parameters
    ----------
    dim : number of columns of a key
    p : the power of |<q,k>|^p, in [2^-10, 2^10]
    delta, failure : for a query fixed beforehand the sum over all keys is within 1 +- delta but for ``failure``
    seed : which rows are held depends on it, on ids and on keys alone, not on the split of the stream into updates
    start : the id of the first row, if ids are not given

    Guarantee: as for :meth:`Coreset.bracket`, after any updates and merges.  About
    2 log(2 / failure) V^max(1, p/2) log(n) / delta^2 rows, V as in :class:`lev.Sketch`.
    Cost: O(d^2) a row; memory O(d^2) and the rows held.  Raises TypeError and ValueError for bad arguments.
    Theory: 11, coresets; 12, online Lewis weights and decay.

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((40_000, 2))
    >>> sketch = lev.CoresetSketch(2, 1, delta=0.2)
    >>> for block in np.array_split(keys, 9):
    ...     sketch = sketch.update(block)
    >>> small = sketch.coreset()
    >>> query = np.ones((1, 2))
    >>> bool(abs(small.normalizer(query)[0] / np.abs(keys @ query[0]).sum() - 1) < 0.2), len(small) < 20_000
    (True, True)

    """

    def __init__(
        self, dim: int, p: float, *, delta: float, failure: float = 0.01, seed: int = 0, start: int = 0
    ) -> None:
        self.dim, self.p, self.seed = check_dim(dim), check_power(p), check_integer("seed", seed, 0)
        self.rate = bounds.coreset_rate(check_positive("delta", delta), check_fraction("failure", failure))
        self._ids = Ids(check_integer("start", start, 0))
        self._pending = Rows.of(np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, 0)))
        self._stream = Candidates(_NEGLIGIBLE, Weighting(self.p), Form.empty(self.dim), (self._pending,))
        self._held = [self._pending]  # with the bound by which each row was sampled

    def __repr__(self) -> str:
        return f"CoresetSketch(dim={self.dim}, p={self.p:g}, count={self.count})"

    @property
    def count(self) -> int:
        """The number of rows seen."""
        return self._stream.form.rows + len(self._pending)

    def update(self, keys: Any, indices: Any = None) -> CoresetSketch:
        """Add rows, (m, dim) of any real dtype, and return the sketch; a refused update changes nothing.

        ``indices`` are (m,) int64 ids, by default a running count.  Raises TypeError and ValueError.
        """
        rows, ids, _ = incoming(
            keys, indices, None, dim=self.dim, payload_dim=0, ids=self._ids, held=lambda: self.coreset().indices
        )
        backend.check_finite("keys", rows.keys)
        with backend.single_blas():
            rows = concatenate([self._pending, rows.head(0)])
            while len(rows) >= (block := self._block_rows()):
                self._absorb(rows.take(slice(block)))
                rows = rows.take(slice(block, None))
        self._pending, self._ids = rows.copy(), ids
        return self

    def _block_rows(self) -> int:
        """Return the length of the next block, which does not depend on how rows came."""
        seen = self._stream.form.rows
        return min(_LONGEST, max(_SHORTEST, 1 << (seen.bit_length() - 1) if seen else 0))

    def _absorb(self, rows: Rows) -> None:
        stream = self._stream.absorb(rows)
        scored = concatenate(stream.kept)
        self._stream = replace(stream, kept=(scored.take(slice(0)),))
        self._held = [*self._held, scored.take(_uniform(self.seed, scored.ids) <= _held(self.rate, scored.upper))]

    def merge(self, other: CoresetSketch) -> CoresetSketch:
        """Add all rows of ``other``, which stays as it is, and return the sketch.  Raises TypeError and ValueError."""
        if not isinstance(other, CoresetSketch):
            raise TypeError(f"other must be a CoresetSketch; got {type(other).__name__}")
        for name in ("dim", "p", "rate", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other has {name}={getattr(other, name)!r}; merging needs {name}={getattr(self, name)!r}"
                )
        ids = self._ids.merge(other._ids) if other.count else self._ids
        mine, theirs = self._settled(), other._settled()
        mine.coreset().merge(theirs.coreset())  # raises where an id is held by both
        self._stream = mine._stream.merge(theirs._stream, _NEGLIGIBLE)
        self._held, self._pending, self._ids = mine._held + theirs._held, mine._pending, ids
        return self

    def _settled(self) -> CoresetSketch:
        """Return a twin in which no row waits for its block."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        if len(self._pending):
            with backend.single_blas():
                twin._absorb(self._pending)
            twin._pending = self._pending.take(slice(0))
        return twin

    def coreset(self) -> Coreset:
        """Return the coreset of all rows seen; the sketch stays as it is and goes on."""
        rows = concatenate(self._settled()._held)
        rows = rows.take(np.argsort(rows.ids))
        weights = 1 / _held(self.rate, rows.upper)
        return Coreset(rows.ids, rows.keys, weights, self.p, self.seed, self.count, (self.rate,))


def _rate(shares: np.ndarray, size: int) -> float:
    """Return the c for which min(1, c * shares) sums to ``size``; infinite if there are no more shares above 0."""
    largest = np.sort(shares[shares > 0])[::-1]
    if len(largest) <= size:
        return math.inf
    rest = np.cumsum(largest[::-1])[::-1]
    rates = (size - np.arange(size)) / rest[:size]  # with the i largest held for sure
    return float(rates[int(np.argmax(rates * largest[:size] <= 1))])


def _held(rate: float, shares: np.ndarray) -> np.ndarray:
    """Return the probability with which each row is held."""
    return np.minimum(1, np.where(shares > 0, shares, 1) * rate) * (shares > 0)


def _uniform(seed: int, ids: np.ndarray) -> np.ndarray:
    """Return one number in (0, 1) for each id, a hash of it and the seed (splitmix64)."""
    seeded = mixed(np.array([seed % 2**64], np.uint64))
    return ((mixed(mixed(ids.astype(np.uint64)) ^ seeded) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
