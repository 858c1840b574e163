"""Lifts: weights <phi(q), psi(k)>^2 are squares in lifted space, so the sketch for p = 2 serves them as it is.

The symmetric power lifts to all monomials of degree p / 2, <Phi(q), Phi(k)> = <q,k>^{p/2}: for even p the normaliser
is then exact.  Theory: 10, even powers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from lev import backend, bounds, lewis
from lev.checks import check_dim, check_integer, check_power
from lev.sketch import Sketch
from lev.universal import UniversalSet

if TYPE_CHECKING:
    from scipy import sparse

_CHUNK = 2**22  # numbers of one block of lifted rows


@runtime_checkable
class Lift(Protocol):
    """What a :class:`LiftedSketch` asks of a lift; two sketches merge if their lifts are equal.

    >>> import numpy as np, lev
    >>> isinstance(lev.lift.SymmetricPower(4), lev.lift.Lift), isinstance(np.sin, lev.lift.Lift)
    (True, False)
    """

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return psi of finite float64 rows (m, d): (m, D)."""

    def queries(self, rows: np.ndarray) -> np.ndarray:
        """Return phi of finite float64 rows (m, d): (m, D)."""


@dataclass(frozen=True)
class FeatureMap:
    """Weights <phi(q), psi(k)>^2 for functions of rows: (m, d) -> (m, D).

    >>> import numpy as np, lev
    >>> lift = lev.lift.FeatureMap(phi=np.exp, psi=np.exp)
    >>> lev.LiftedSketch(2, 0.9, lift).update([[5.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).universal_set().indices
    array([0])
    """

    phi: Callable[[np.ndarray], np.ndarray]
    psi: Callable[[np.ndarray], np.ndarray]

    def keys(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.psi(rows), np.float64)

    def queries(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.phi(rows), np.float64)


@dataclass(frozen=True)
class SymmetricPower:
    """The lift for |<q,k>|^p with p even: D = C(d + p/2 - 1, p/2) monomials, <Phi(q), Phi(k)> = <q,k>^{p/2}.

    ``exponent``: keys are divided by 2^exponent before they are lifted, which changes no weight and keeps their
    powers within float64.  Rows that would overflow, or lose an entry, even so are refused with ValueError.

    >>> import numpy as np, lev
    >>> lift = lev.lift.SymmetricPower(4)
    >>> lift.dim(2), lift.keys(np.array([[1.0, 2.0]])).round(6)
    (3, array([[1.      , 2.828427, 4.      ]]))
    """

    p: int
    exponent: int = 0

    def __post_init__(self) -> None:
        if check_power(self.p) % 2:
            raise ValueError(f"p must be an even integer for the symmetric-power lift; got {self.p!r}")
        object.__setattr__(self, "p", int(self.p))
        check_integer("exponent", self.exponent, -2000)

    def dim(self, d: int) -> int:
        """Return D for rows of ``d`` columns."""
        return math.comb(d + self.p // 2 - 1, self.p // 2)

    def keys(self, rows: np.ndarray) -> np.ndarray:
        return self._monomials(self._in_range("keys", rows, -self.exponent))

    def queries(self, rows: np.ndarray) -> np.ndarray:
        return self._monomials(self._in_range("queries", rows, self.exponent))

    def _in_range(self, name: str, rows: np.ndarray, shift: int) -> np.ndarray:
        """Return rows * 2^shift if none of their powers overflows or vanishes."""
        fraction, power = np.frexp(rows)
        power = np.where(fraction == 0, 0, power + shift)
        bad = np.abs(power).max(axis=1, initial=0) * (self.p // 2) > bounds.LARGEST_POWER
        if bad.any():
            raise ValueError(
                f"{name} must stay within the range of float64 when raised to the power {self.p // 2}; row "
                f"{int(bad.argmax())} does not, divided by 2^{-shift}: scale all keys by another exponent of the lift"
            )
        return np.ldexp(fraction, power)

    def _monomials(self, rows: np.ndarray) -> np.ndarray:
        half = self.p // 2
        factors = np.array(list(itertools.combinations_with_replacement(range(rows.shape[1]), half)))
        repeats = [[math.factorial(term.count(i)) for i in set(term)] for term in map(tuple, factors.tolist())]
        lifted = np.sqrt([math.factorial(half) / math.prod(counts) for counts in repeats]) * rows[:, factors[:, 0]]
        for column in factors.T[1:]:
            lifted *= rows[:, column]
        return lifted


class LiftedSketch:
    """A one-pass, mergeable sketch for weights <phi(q), psi(k)>^2 / sum_l <phi(q), psi(k_l)>^2.

    Parameters
    ----------
    dim : number of columns of a key
    epsilon : the threshold in (0, 1]
    lift : :class:`SymmetricPower` for |<q,k>|^p with p even, or a :class:`FeatureMap`
    start : the id of the first row, if ids are not given
    most_bytes : the largest form, D^2 numbers, that may be made

    Guarantee: superset.  Every key that a query can give a weight of epsilon is kept, at most D / epsilon rows; for
    the symmetric power a row that its Lewis certificate among the rows kept excludes is left out too.  The
    arithmetic is float64 on lifted rows, with the ``resolution`` of a :class:`lev.Sketch` of D columns.
    Heavy hitters and normalisers are exact.  Cost: O(D^2) a row, memory O(D^2).
    Raises TypeError and ValueError for bad arguments; where D^2 is out of reach, naming the memory it needs.
    Theory: 10, even powers.

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((5000, 4))
    >>> keys[123] *= 30
    >>> sketch = lev.LiftedSketch(4, 0.2, lev.lift.SymmetricPower(4)).update(keys)
    >>> sketch.universal_set().indices
    array([123])
    >>> sketch.heavy_hitters(keys[123:124]).nnz
    1

    """

    def __init__(self, dim: int, epsilon: float, lift: Lift, *, start: int = 0, most_bytes: int = 2**30) -> None:
        if not isinstance(lift, Lift):
            raise TypeError(f"lift must have keys and queries; got {type(lift).__name__}")
        self.dim, self.lift = check_dim(dim), lift
        if isinstance(lift, SymmetricPower):
            lifted = lift.dim(self.dim)
            if 8 * lifted**2 > check_integer("most_bytes", most_bytes, 0):
                raise ValueError(
                    f"p={lift.p} lifts {dim} columns to {lifted}, whose form needs {8 * lifted**2:.2e} bytes; "
                    f"most_bytes is {most_bytes:.2e}"
                )
        else:
            lifted = _matrix("psi", lift.keys(np.zeros((1, self.dim))), 1, None).shape[1]
        self._sketch = Sketch(lifted, epsilon, start=start, payload_dim=self.dim)
        self._family = backend.NUMPY

    @property
    def epsilon(self) -> float:
        """The threshold."""
        return self._sketch.epsilon

    @property
    def count(self) -> int:
        """The number of rows seen."""
        return self._sketch.count

    @property
    def retained(self) -> int:
        """The number of rows kept: at most D / epsilon."""
        return self._sketch.retained

    @property
    def resolution(self) -> float:
        """What :attr:`lev.Sketch.resolution` says of the lifted rows."""
        return self._sketch.resolution

    def update(self, keys: Any, indices: Any = None) -> LiftedSketch:
        """Add rows, (m, dim) of any real dtype, and return the sketch; a refused update changes nothing.

        Raises TypeError and ValueError as :meth:`lev.Sketch.update` does.
        """
        rows, family = backend.finite_matrix("keys", keys, self.dim)
        draft, step = self._sketch.copy(), max(1, _CHUNK // self._sketch.dim)
        if indices is not None:
            indices, _ = backend.intake("indices", indices)
            if indices.shape != (len(rows),):
                raise ValueError(f"indices must have shape ({len(rows)},); got {indices.shape}")
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            lifted = _matrix("psi", self.lift.keys(part.astype(np.float64)), len(part), self._sketch.dim)
            draft.update(lifted, None if indices is None else indices[start : start + step], part)
        self._sketch, self._family = draft, family
        return self

    def merge(self, other: LiftedSketch) -> LiftedSketch:
        """Add all rows of ``other`` and return the sketch.  Raises as :meth:`lev.Sketch.merge` does."""
        if not isinstance(other, LiftedSketch):
            raise TypeError(f"other must be a LiftedSketch; got {type(other).__name__}")
        for name in ("dim", "lift"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"other has {name}={getattr(other, name)!r}; merging needs {getattr(self, name)!r}")
        self._sketch.merge(other._sketch)
        return self

    def universal_set(self, epsilon: float | None = None) -> UniversalSet:
        """Return a superset of the universal set for ``epsilon``, by default the sketch's own.  Raises ValueError."""
        found = self._sketch.universal_set(epsilon)
        scores, p = found.scores, 2.0
        if isinstance(self.lift, SymmetricPower):
            # rows only lower scores, so what holds among the rows kept holds among all
            scores = np.minimum(scores, lewis.sensitivities(found.payload, self.lift.p, tolerance=1.0)[1])
            p = float(self.lift.p)
        member = scores >= found.epsilon
        return replace(
            found,
            indices=self._family.out(found.indices[member]),
            keys=self._family.out(found.payload[member], rows=True),
            scores=self._family.out(scores[member]),
            payload=None,
            p=p,
            exact=found.exact and self.lift == SymmetricPower(2),
            omitted=max(found.omitted, float(scores[~member].max(initial=0))),
        )

    def heavy_hitters(
        self, queries: Any, epsilon: float | None = None, *, width: int | None = None
    ) -> sparse.csr_array:
        """Return every entry >= epsilon with its exact value, as :meth:`lev.Sketch.heavy_hitters` does."""
        return self._sketch.heavy_hitters(self._lifted(queries), epsilon, width=width)

    def normalizer(self, queries: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), each float64 (m,): sum_l <phi(q), psi(k_l)>^2 lies between.

        They differ by rounding and bound the sum over the lifted rows as computed, not over the exact monomials.
        Raises TypeError and ValueError.
        """
        return self._sketch.normalizer(self._lifted(queries))

    def _lifted(self, queries: Any) -> np.ndarray:
        rows, _ = backend.finite_matrix("queries", queries, self.dim)
        return _matrix("phi", self.lift.queries(rows.astype(np.float64)), len(rows), self._sketch.dim)


def _matrix(name: str, lifted: Any, height: int, width: int | None) -> np.ndarray:
    """Return what a lift gave, which is the user's code, as a finite (height, width) array."""
    rows, _ = backend.finite_matrix(name, lifted, width)
    if len(rows) != height or not rows.shape[1]:
        raise ValueError(f"{name} must return ({height}, {width or 'D'}) for {height} rows; got {rows.shape}")
    return rows
