"""The quadratic form q -> ||Kq||^2 of every row seen: add rows, bound rows, merge.

The form is a float64 Gram matrix of the rows in the coordinates of a :class:`Frame`.  While the keys are well
conditioned the frame is the identity (columns scaled by powers of two) and adding rows costs one ``Y.T @ Y``.
When the rounding margin of that Gram matrix would pass its limit, or a row leaves the span, the rows go
through a Householder QR instead, whose R factor becomes the next frame: its inverse whitens, so the Gram
matrix starts again as the identity and loses nothing.  Theory: 04, rounding margin and resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy.linalg

from lev import backend, bounds

PIECE = 4096
"""Rows of one Gram product: a float64 piece of usual width stays in cache."""


class NonFiniteRow(ValueError):
    """Row number ``row`` of a block holds NaN or infinity."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity")
        self.row = row


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates y = (k * 2^-exponents) T; T whitens ``triangle`` or, without one, is the identity.

    ``triangle`` is the (r, D) R factor of a column-pivoted QR, columns in the order ``pivots``.  Of each row
    only the first r pivot columns are needed to find y; the others must then agree, and what they differ by is
    the row's part outside the span.
    """

    exponents: np.ndarray
    triangle: np.ndarray | None = None
    pivots: np.ndarray | None = None

    @property
    def dim(self) -> int:
        return len(self.exponents)

    @property
    def rank(self) -> int:
        return self.dim if self.triangle is None else len(self.triangle)

    @cached_property
    def scale(self) -> np.ndarray:
        return np.ldexp(1.0, -self.exponents)

    @cached_property
    def basis(self) -> np.ndarray | None:
        """[T | N], (D, D): y = x T, and x N vanishes for rows in the span; None for the identity."""
        if self.triangle is None:
            return None
        rank, inverse = self.rank, self.inverse
        basis = np.zeros((self.dim, self.dim))
        basis[self.pivots[:rank], :rank] = inverse
        basis[self.pivots[:rank], rank:] = -inverse @ self.triangle[:, rank:]
        basis[self.pivots[rank:], rank:] = np.eye(self.dim - rank)
        return basis

    @cached_property
    def inverse(self) -> np.ndarray:
        """The inverse of the triangle's leading square, (r, r)."""
        rank = self.rank
        return scipy.linalg.solve_triangular(self.triangle[:, :rank], np.eye(rank), check_finite=False)

    @cached_property
    def null_gain(self) -> float:
        """How much the null map can amplify a row's own rounding."""
        return 1.0 if self.triangle is None else float(np.linalg.norm(self.basis[:, self.rank :]))

    def widen(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled float64 rows x, (m, D), and their squared norms."""
        kernels = backend.kernels_of(rows)
        if rows.dtype not in (np.float32, np.float64):
            rows = rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)
        x, norms = np.empty((len(rows), self.dim)), np.empty(len(rows))
        kernels.widen(np.ascontiguousarray(rows), self.scale, x, norms)
        return x, norms

    def coordinates(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return y, (m, r), and the part of x outside the span, (m, D - r)."""
        if self.basis is None:
            return x, x[:, :0]
        both = x @ self.basis
        return both[:, : self.rank], both[:, self.rank :]


@dataclass(frozen=True, eq=False)
class Factor:
    """An inverse square root of a form: brackets the leverage score of any row against it."""

    frame: Frame
    rows: int
    values: np.ndarray  # eigenvalues of the form in its frame, ascending, (r,)
    whiten: np.ndarray  # eigenvectors over root eigenvalues, (r, r)
    slack: float  # relative rounding margin of the form
    reach: float  # rounding of ||y W|| for a row of unit norm

    @property
    def rank(self) -> int:
        return len(self.values)

    def bracket(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), float64 (m,): the leverage score of each row lies between."""
        pieces = [rows[start : start + PIECE] for start in range(0, max(len(rows), 1), PIECE)]
        parts = backend.run(self._bracket, pieces)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _bracket(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, norms = self.frame.widen(rows)
        y, _ = self.frame.coordinates(x)
        root, pad = np.linalg.norm(y @ self.whiten, axis=1), self.reach * np.sqrt(norms)
        lower = np.maximum(root - pad, 0) ** 2 * max(0.0, 1 - self.slack)
        return np.minimum(lower, 1), np.minimum((root + pad) ** 2 * (1 + self.slack), 1)

    def width(self, epsilon: float) -> int:
        """Return how many of the weakest eigenvectors make a filter that few rows pass.

        Against w eigenvectors a typical row is bounded by (w + sum of the other eigenvalues / the next) / rows;
        all r of them give the score itself.  Cost: 2 d w operations a row.
        """
        rest = np.cumsum(self.values[::-1])[::-1]
        typical = (np.arange(self.rank) + rest / self.values) / max(self.rows, 1)
        few = np.flatnonzero(typical <= 0.6 * epsilon)
        return int(few[0]) if few.size else self.rank

    def filter(self, width: int, dtype: np.dtype) -> Filter:
        """Return the upper bound from the ``width`` weakest eigenvectors, in float32 for float32 rows if it can be."""
        frame = self.frame
        full = self.whiten if frame.basis is None else frame.basis[:, : frame.rank] @ self.whiten
        weak = full[:, :width]
        single = dtype == np.float32 and frame.basis is None and np.abs(frame.exponents).max() <= 60
        unit = bounds.dot_error(frame.dim + 2, bounds.UNIT_SINGLE if single else bounds.UNIT)
        return Filter(
            probe=(frame.scale[:, None] * weak).astype(np.float32) if single else weak,
            values=self.values,
            following=self.values[width] if width < self.rank else math.inf,
            gain=unit * float(np.linalg.norm(weak * np.sqrt(self.values[:width]))),
            pad=unit * float(np.linalg.norm(weak)) + self.reach,
            slack=self.slack,
        )


@dataclass(frozen=True, eq=False)
class Filter:
    """Upper bounds on the scores of rows that are not yet in a form.  Theory: 04, sound filters."""

    probe: np.ndarray  # (D, w), for x, or float32 for the rows as they came
    values: np.ndarray
    following: float
    gain: float
    pad: float
    slack: float

    def __call__(self, rows: np.ndarray, x: np.ndarray, x_norms: np.ndarray, y_norms: np.ndarray) -> np.ndarray:
        """Return the bounds, (m,); b against a form without the row is b / (1 + b) against one with it."""
        if self.probe.dtype == np.float32:
            d = rows.shape[1]
            parts = rows @ self.probe[:d] + self.probe[d:].sum(axis=0)
        else:
            parts = x @ self.probe
        upper = np.empty(len(rows))
        backend.kernels_of(rows).screen(
            parts, y_norms, x_norms, self.values, self.following, self.gain, self.pad, self.slack, upper
        )
        return upper


@dataclass(frozen=True)
class _Part:
    """What one piece of a block adds to a form."""

    gram: np.ndarray
    energy: float
    outside: bool
    upper: np.ndarray | None


@dataclass(frozen=True)
class _Stacked:
    """Rows * 2^exponents on their way into a QR, with the root energy of the rows they stand for."""

    rows: np.ndarray
    exponents: np.ndarray
    tail: float

    def tail_at(self, exponents: np.ndarray) -> float:
        """Return the tail when columns are measured in 2^exponents instead."""
        used = self.rows.any(axis=0)
        return self.tail * float(np.ldexp(1.0, (self.exponents - exponents)[used]).max(initial=0))


@dataclass(frozen=True, eq=False)
class Form:
    """An immutable quadratic form over rows of ``dim`` numbers.

    ``sums`` Gram products were added since the frame was made; ``tail`` is the root energy of the rows whose
    rounding may hide a null direction; ``inherited`` is the margin that earlier frames left behind, ``limit``
    the margin that the narrowest input so far asks for.
    """

    frame: Frame
    gram: np.ndarray
    rows: int = 0
    sums: int = 0
    tail: float = 0.0
    inherited: float = 0.0
    limit: float = field(default=bounds.margin(np.dtype(np.float32)))

    @classmethod
    def empty(cls, dim: int) -> Form:
        """Return the form of no rows."""
        frame = Frame(np.zeros(dim, np.int64), np.zeros((0, dim)), np.arange(dim))
        return cls(frame, np.zeros((0, 0)))

    @property
    def rank(self) -> int:
        return self.frame.rank

    def check(self, dim: int) -> None:
        """Raise ValueError unless shapes, dtypes and values are those of a form of ``dim`` columns."""
        frame, rank = self.frame, len(self.gram)
        arrays = [("exponents", frame.exponents, (dim,), np.int64), ("gram", self.gram, (rank, rank), np.float64)]
        if frame.triangle is None:
            rank_wanted = dim
        else:
            rank_wanted = len(frame.triangle)
            arrays += [("triangle", frame.triangle, (rank, dim), np.float64), ("pivots", frame.pivots, (dim,), np.int64)]
        for name, array, shape, dtype in arrays:
            if array is None or array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite {np.dtype(dtype)} of shape {shape}")
        if rank != rank_wanted or rank > dim or np.abs(frame.exponents).max(initial=0) > 1000:
            raise ValueError("the form's rank or exponents are out of range")
        if frame.pivots is not None and not np.array_equal(np.sort(frame.pivots), np.arange(dim)):
            raise ValueError("pivots must be a permutation")
        scalars = (self.rows, self.sums, self.tail, self.inherited, self.limit)
        if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in scalars):
            raise ValueError("the form's scalars must be finite and not negative")
        if rank and not np.linalg.eigvalsh(self.gram)[0] > 0:
            raise ValueError("gram must be positive definite")

    def add(self, block: np.ndarray, judge: Factor | None, epsilon: float) -> tuple[Form, np.ndarray | None]:
        """Return the form with ``block`` added and upper bounds on its rows by ``judge``.

        The bounds are None when the frame changed: the rows are then to be scored by the new form.
        ``judge`` is a factor of an earlier state of this form (a stale factor is a smaller form, so its bounds
        stay above).  Raises NonFiniteRow.
        """
        form = replace(self, limit=min(self.limit, bounds.margin(block.dtype)))
        if judge is None or self.rank == 0:
            return form._through_qr(block), None
        coarse = judge.filter(judge.width(epsilon), block.dtype)
        fine = judge.filter(judge.rank, np.dtype(np.float64))
        pieces = [block[start : start + PIECE] for start in range(0, len(block), PIECE)]

        def measure(piece: np.ndarray) -> _Part:
            # what overflows is infinite or NaN in the sums and sends the block through the QR, which scales
            with np.errstate(over="ignore", invalid="ignore"):
                return self._measure(piece, coarse, fine, epsilon)

        parts = backend.run(measure, pieces)
        energy = math.fsum(part.energy for part in parts)
        grown = replace(
            form,
            gram=self.gram + sum(part.gram for part in parts),
            rows=self.rows + len(block),
            sums=self.sums + len(parts),
            tail=math.hypot(self.tail, math.sqrt(energy)),
        )
        if not math.isfinite(energy) or any(part.outside for part in parts) or not grown._sound(judge):
            return form._through_qr(block), None
        return grown, np.concatenate([part.upper for part in parts])

    def _measure(self, piece: np.ndarray, coarse: Filter, fine: Filter, epsilon: float) -> _Part:
        x, x_norms = self.frame.widen(piece)
        y, outside = self.frame.coordinates(x)
        energy = float(x_norms.sum())
        if not math.isfinite(energy):
            return _Part(self.gram, energy, True, None)
        norms = x_norms if y is x else np.einsum("ij,ij->i", y, y)
        leaves = bool(outside.size) and self._leaves(outside, x_norms)
        upper = coarse(piece, x, x_norms, norms)
        passed = np.flatnonzero(upper >= epsilon)
        if passed.size:
            some = x[passed]
            upper[passed] = np.minimum(upper[passed], fine(some, some, x_norms[passed], norms[passed]))
        return _Part(y.T @ y, energy, leaves, upper)

    def _leaves(self, outside: np.ndarray, x_norms: np.ndarray) -> bool:
        level = self.frame.null_gain * bounds.null_level(self.frame.dim) * np.maximum(np.sqrt(x_norms), self.tail)
        return not np.all(np.einsum("ij,ij->i", outside, outside) <= level**2)

    def _margin(self, smallest: float) -> float:
        """Return the relative margin of the Gram matrix when its least eigenvalue is ``smallest``."""
        if not smallest > 0:
            return math.inf
        error = bounds.gram_error(PIECE, self.sums) + 4 * bounds.dot_error(self.frame.dim)
        return error * float(np.trace(self.gram)) / smallest

    def _sound(self, judge: Factor) -> bool:
        """Say whether the margin is within its limit; the eigenvalues only grow, so old ones are tried first."""
        if judge.frame is self.frame and self._margin(judge.values[0]) <= self.limit:
            return True
        trace = float(np.trace(self.gram))
        return math.isfinite(trace) and self._margin(np.linalg.eigvalsh(self.gram)[0]) <= self.limit

    def factor(self) -> Factor:
        """Return the form's inverse square root.  Cost: O(D^3)."""
        values, vectors = np.linalg.eigh(self.gram)
        whiten = vectors / np.sqrt(values)
        reach, slack = self._rounding(values, whiten)
        return Factor(self.frame, self.rows, values, whiten, self.inherited + slack, reach)

    def _rounding(self, values: np.ndarray, whiten: np.ndarray) -> tuple[float, float]:
        """Return (reach, slack): the rounding of ||y W|| for a row of unit norm, and of the form itself.

        T is only nearly the inverse of the triangle R.  What that costs is bounded either for the form as a
        whole or row by row; the second is far better when the rows differ in size by many orders.
        """
        if not self.rank:
            return 0.0, 0.0
        unit, margin = bounds.dot_error(self.frame.dim), self._margin(values[0])
        if self.frame.triangle is None:
            reach = unit * _spectral(np.abs(whiten))
            return reach, margin + _twice(reach * self.tail)
        inverse, square = np.abs(self.frame.inverse), np.abs(self.frame.triangle[:, : self.rank])
        product = inverse @ np.abs(whiten)
        whole = unit * _spectral(product)
        each = whole + unit * _spectral(inverse @ (square @ product))
        gap = _twice(unit * float(np.linalg.norm(square @ inverse))) / values[0]
        if gap <= _twice(each * self.tail) - _twice(whole * self.tail):
            return whole, margin + gap + _twice(whole * self.tail)
        return each, margin + _twice(each * self.tail)

    def root(self) -> np.ndarray:
        """Return F, (r, D), with ||F (q * 2^exponents)|| = ||K q||, in the form's scaled columns."""
        if self.frame.triangle is None:
            return scipy.linalg.cholesky(self.gram, check_finite=False)
        unpivoted = np.zeros((self.rank, self.frame.dim))
        unpivoted[:, self.frame.pivots] = self.frame.triangle
        if self.sums == 0:
            return unpivoted
        return scipy.linalg.cholesky(self.gram, check_finite=False) @ unpivoted

    def merge(self, other: Form) -> Form:
        """Return the form of both sets of rows."""
        limit = min(self.limit, other.limit)
        if other.rank == 0 or self.rank == 0:
            most, least = (self, other) if self.rank else (other, self)
            return replace(most, rows=self.rows + other.rows, limit=limit)
        both = replace(
            self,
            rows=self.rows + other.rows,
            limit=limit,
            tail=math.hypot(self.tail, other.tail),
            inherited=max(self._total_margin(), other._total_margin()),
        )
        same = self.frame.triangle is None and other.frame.triangle is None
        if same and np.array_equal(self.frame.exponents, other.frame.exponents):
            summed = replace(
                both,
                gram=self.gram + other.gram,
                sums=self.sums + other.sums,
                inherited=max(self.inherited, other.inherited),
            )
            if summed._margin(np.linalg.eigvalsh(summed.gram)[0]) <= limit:
                return summed
        return both._from_stack([self._weighed_root(), other._weighed_root()])

    def _weighed_root(self) -> _Stacked:
        return _Stacked(self.root(), self.frame.exponents, self.tail)

    def _total_margin(self) -> float:
        if self.sums == 0:
            return self.inherited
        return self.inherited + self._margin(np.linalg.eigvalsh(self.gram)[0])

    def _through_qr(self, block: np.ndarray) -> Form:
        """Return the form with ``block`` added through a QR factorisation of it and the present root."""
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise NonFiniteRow(int(finite.argmin()))
        rows = np.ones((len(block), self.frame.dim))
        rows[:, : block.shape[1]] = block
        grown = replace(self, rows=self.rows + len(block), inherited=self._total_margin())
        return grown._from_stack([self._weighed_root(), _Stacked(rows, np.zeros_like(self.frame.exponents), 0.0)])

    def _from_stack(self, parts: Sequence[_Stacked]) -> Form:
        """Return this form in the frame of the R factor of the stacked parts."""
        exponents = _joint_exponents(parts)
        if exponents is None:
            return self
        stack = np.vstack([np.ldexp(part.rows, part.exponents - exponents) for part in parts])
        tail = math.hypot(*(part.tail_at(exponents) for part in parts))
        triangle, pivots, tail = _pivoted_triangle(stack, tail)
        frame = Frame(exponents, triangle, pivots)
        whitened = replace(self, frame=frame, gram=np.eye(len(triangle)), sums=0, tail=tail)
        return whitened.simplified()

    def simplified(self) -> Form:
        """Return the form without its triangle if the plain Gram matrix is accurate enough, with room to grow."""
        if self.rank < self.frame.dim or self.frame.triangle is None:
            return self
        root = self.root()
        plain = replace(
            self, frame=Frame(self.frame.exponents), gram=root.T @ root, sums=0, inherited=self._total_margin()
        )
        return plain if plain._margin(np.linalg.eigvalsh(plain.gram)[0]) <= self.limit / 4 else self


def _spectral(matrix: np.ndarray) -> float:
    """Return a bound on the spectral norm of a matrix that is nowhere negative."""
    return math.sqrt(float(matrix.sum(axis=0).max()) * float(matrix.sum(axis=1).max()))


def _twice(error: float) -> float:
    """Return the relative error of a square whose root has relative error ``error``."""
    return 2 * error + error**2


def _joint_exponents(parts: Sequence[_Stacked]) -> np.ndarray | None:
    """Return for each column the power of two of its largest entry over all parts; None if all are zero."""
    never = -(2**20)
    largest = [np.abs(part.rows).max(axis=0, initial=0) for part in parts]
    each = [
        np.where(top > 0, np.frexp(top)[1] + part.exponents, never) for top, part in zip(largest, parts, strict=True)
    ]
    joint = np.max(each, axis=0)
    if np.all(joint == never):
        return None
    return np.where(joint == never, 0, np.clip(joint, -1000, 1000)).astype(np.int64)


def _pivoted_triangle(stack: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (R, pivots, tail) of a QR with rows sorted by norm and columns pivoted, cut at its numerical rank.

    Sorted rows make Householder QR stable row by row, so one huge row does not blur the small ones.  Pivot j is
    null when it is within the rounding of the rows that are left after the j largest.
    """
    norms = np.linalg.norm(stack, axis=1)
    order = np.argsort(-norms, kind="stable")
    triangle, pivots = scipy.linalg.qr(stack[order], mode="r", pivoting=True, overwrite_a=True, check_finite=False)
    diagonal = np.abs(np.diagonal(triangle))
    left = np.sqrt(np.cumsum(norms[order][::-1] ** 2)[::-1] + tail**2)
    left = np.append(left, tail)[: len(diagonal) + 1]
    null = np.flatnonzero(diagonal <= np.maximum(bounds.null_level(stack.shape[1]) * left[:-1], bounds.SMALLEST_PIVOT))
    rank = int(null[0]) if null.size else len(diagonal)
    return np.triu(triangle[:rank]), np.asarray(pivots, np.int64), float(left[rank])
