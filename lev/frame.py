"""Frames: coordinates in which a Gram matrix of the rows is accurate, and the QR that finds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # its parts load when they are first used

from lev import backend, bounds

NEVER = -(2**20)  # the power of two of zero
LARGEST = 1000  # the powers of two, either way, that a column can be scaled by in one multiplication
FADED = -2 * LARGEST  # the power of two of a column, in units of the latest rows, below which it sinks and is released
ERA = 448
"""Powers of two that the scales of rows of one block may span: twice that is far from underflow."""

_NO_PIVOTS, _NO_FACTORS = np.zeros(0, np.int64), np.zeros(0)


@dataclass(frozen=True, eq=False)
class Triangle:
    """The R factor of a column-pivoted QR, cut at its numerical rank.

    Of a row in its span only the entries at the first r pivots are needed to find its coordinates; the other
    entries must then agree, and what they differ by is the row's part outside the span.
    """

    matrix: np.ndarray  # (r, D), columns in the order of pivots
    pivots: np.ndarray  # (D,) int64

    @property
    def rank(self) -> int:
        return len(self.matrix)

    @property
    def square(self) -> np.ndarray:
        """The leading (r, r) triangle."""
        return self.matrix[:, : self.rank]

    @cached_property
    def inverse(self) -> np.ndarray:
        """The inverse of the leading triangle, (r, r)."""
        inverse = scipy.linalg.solve_triangular(self.square, np.eye(self.rank), check_finite=False)
        return np.ascontiguousarray(inverse)

    @cached_property
    def whitener(self) -> np.ndarray:
        """T, (D, r): x T whitens the rows that the triangle stands for."""
        whitener = np.zeros(self.matrix.shape[::-1])
        whitener[self.pivots[: self.rank]] = self.inverse
        return whitener

    @cached_property
    def null(self) -> np.ndarray:
        """N, (D, D - r): x N vanishes for the rows that the triangle stands for."""
        rank, dim = self.matrix.shape
        null = np.zeros((dim, dim - rank))
        null[self.pivots[:rank]] = -self.inverse @ self.matrix[:, rank:]
        null[self.pivots[rank:]] = np.eye(dim - rank)
        return null

    @cached_property
    def blur(self) -> np.ndarray:
        """What rounding may leave of x N for an x of absolute values 1 in one column and 0 elsewhere, (D, D - r)."""
        return bounds.null_level(self.matrix.shape[1]) * np.abs(self.null)

    @cached_property
    def root(self) -> np.ndarray:
        """The triangle with its columns back in their places, (r, D)."""
        root = np.zeros(self.matrix.shape)
        root[:, self.pivots] = self.matrix
        return root


@dataclass(frozen=True, eq=False)
class Groups:
    """Upper bounds on the odds of rows, one for ``size`` rows at a time: on the sum of their odds."""

    size: int
    precision: np.ndarray  # (r, r): the inverse of the form, its upper triangle, twice what is above the diagonal
    own: float
    rounding: float  # of a row of unit norm

    @classmethod
    def none(cls, rank: int) -> Groups:
        """Return groups that bound nothing."""
        return cls(backend.GROUPS[1], np.zeros((rank, rank)), 1.0, math.inf)

    def rows(self, which: np.ndarray, count: int) -> np.ndarray:
        """Return the places, among ``count`` rows, of those in some groups."""
        places = (which[:, None] * self.size + np.arange(self.size)).ravel()
        return places[places < count]


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates y = (k * 2^-exponents) T, where T whitens ``triangle`` or, without one, is the identity."""

    exponents: np.ndarray  # (D,) int64
    triangle: Triangle | None = None

    @classmethod
    def empty(cls, dim: int) -> Frame:
        """Return the frame of no rows, of rank 0."""
        return cls(np.zeros(dim, np.int64), Triangle(np.zeros((0, dim)), np.arange(dim)))

    @property
    def dim(self) -> int:
        return len(self.exponents)

    @property
    def rank(self) -> int:
        return self.dim if self.triangle is None else self.triangle.rank

    @cached_property
    def scale(self) -> np.ndarray:
        """What columns are multiplied by, (D,), but for those that are far."""
        with np.errstate(over="ignore"):
            return np.ldexp(1.0, -self.exponents)

    @cached_property
    def far(self) -> np.ndarray:
        """Which columns take more than one multiplication to scale."""
        return np.flatnonzero(np.abs(self.exponents) > LARGEST)

    def _given(self, rows: np.ndarray, factors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows and factors for kernels, and the scale that is left to them: far columns have theirs already.

        Beside a column long faded what comes may be infinite.
        """
        rows, factors = for_kernels(rows, factors)
        far = self.far[self.far < rows.shape[1]]  # the constant of an intercept is not far
        if not len(far):
            return rows, factors, self.scale
        rows, scale = rows.astype(np.float64), self.scale.copy()
        with np.errstate(over="ignore"):
            rows[:, far], scale[far] = np.ldexp(rows[:, far], -self.exponents[far]), 1.0
        return rows, factors, scale

    def widen(self, rows: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled float64 rows x, (m, D), each times its factor, and their squared norms."""
        rows, factors, scale = self._given(rows, factors)
        x, norms = np.empty((len(rows), self.dim)), np.empty(len(rows))
        backend.kernels_of(rows).widen(rows, factors, scale, x, norms)
        return x, norms

    def scores(self, rows: np.ndarray, factors: np.ndarray | None, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return |x R|^2, (m,), and |x|^2 of the scaled rows x, each times its factor, R a (D, w) matrix.

        The products are taken in the precision of the matrix; a lower triangle takes half as many.
        """
        rows, factors, scale = self._given(rows, factors)
        squares, norms = np.empty(len(rows)), np.empty(len(rows))
        backend.kernels_of(rows).scores(rows, factors, scale, matrix, squares, norms)
        return squares, norms

    def coordinates(self, x: np.ndarray) -> np.ndarray:
        """Return y, (m, r)."""
        return x if self.triangle is None else x @ self.triangle.whitener

    def grams(
        self, rows: np.ndarray, factors: np.ndarray | None, groups: Groups
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return of rows, each times its factor, y^T y, (r, r), and the energy of the scaled columns, (D,).

        Also what ``groups`` bounds: the odds of each.
        """
        rows, factors, scale = self._given(rows, factors)
        rank, triangle = self.rank, self.triangle
        gram, energy, odds = np.empty((rank, rank)), np.zeros(self.dim), np.empty(-(-len(rows) // groups.size))
        turn = (_NO_PIVOTS, np.zeros((0, 0))) if triangle is None else (triangle.pivots[:rank], triangle.inverse)
        given = groups.precision, (groups.own, groups.rounding), groups.size, backend.GROUPS[1]
        backend.kernels_of(rows).gram(rows, factors, scale, *turn, *given, gram, energy, odds)
        return gram, energy, odds

    def leaves(self, x: np.ndarray, charges: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
        """Say which scaled rows leave the span by more than rounding may: their own and that of the rows behind a tail.

        ``charges`` are pairs of a tail and its excuse; each of them bounds the rounding.
        """
        leaves = np.zeros(len(x), bool)
        if self.triangle is None or self.rank == self.dim:
            return leaves
        outside, blur = np.abs(x @ self.triangle.null), self.triangle.blur
        for tail, excuse in charges:
            theirs = tail @ blur
            doubtful = np.flatnonzero(~np.all(outside <= theirs, axis=1))
            own = (1 + excuse) * np.abs(x[doubtful]) @ blur
            leaves[doubtful] |= ~np.all(outside[doubtful] <= own + theirs, axis=1)
        return leaves

    def hidden(self, x: np.ndarray, charges: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
        """Return the odds, (m,), of the parts of scaled rows outside the span, for directions that would just not be.

        Those have the energy of the level below which the next QR takes a pivot for rounding; what the row's own
        rounding may be is left out.  Infinite for rows that leave the span, ``charges`` as for :meth:`leaves`.
        Theory: 12, rows within the resolution.
        """
        odds, triangle = np.zeros(len(x)), self.triangle
        if triangle is None or self.rank == self.dim:
            return odds
        outside, sizes = np.abs(x @ triangle.null), np.abs(x) @ triangle.blur
        for tail, excuse in charges:
            least = max(bounds.null_level(self.dim) * float(np.linalg.norm(tail)), bounds.SMALLEST_PIVOT)
            own = (1 + excuse) * sizes
            odds = np.maximum(odds, np.square(np.maximum(outside - own, 0) / least).sum(axis=1))
            odds[~np.all(outside <= own + tail @ triangle.blur, axis=1)] = np.inf
        return np.where(np.isnan(odds), np.inf, odds)  # of rows that overflow beside the frame nothing is known

    def shifted(self, power: int) -> Frame:
        """Return the frame of all rows times 2^-power; what falls below NEVER is nothing beside later rows."""
        return Frame(np.maximum(self.exponents - power, NEVER), self.triangle)


def aged(frame: Frame, ages: np.ndarray) -> Iterator[tuple[slice | np.ndarray, Frame, np.ndarray | None]]:
    """Yield rows of a form, which come with scales 2^ages of at most 2, in groups in which none leaves float64.

    Which they are, the frame in units half way between theirs and its own, and their scales in these, None for ones.
    """
    if near(frame, ages):
        yield slice(None), frame, np.exp2(ages) if ages.any() else None
        return
    eras = np.floor(ages / ERA)
    for era in np.unique(eras):
        places = np.flatnonzero(eras == era)
        power = int(ages[places].max() + frame.exponents.max()) // 2
        yield places, frame.shifted(power), np.exp2(ages[places] - power)


def near(frame: Frame, ages: np.ndarray) -> bool:
    """Say whether neither scales of rows, 2^ages, nor those of the frame are near the ends of float64."""
    return bool(ages.min(initial=0) > -2 * ERA and frame.exponents.max() >= -LARGEST)


def for_kernels(rows: np.ndarray, factors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in C order as float32 or float64, and a factor for each or, for ones, none."""
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)
    return np.ascontiguousarray(rows), _NO_FACTORS if factors is None else factors


@dataclass(frozen=True, eq=False)
class Stacked:
    """Rows * 2^exponents on their way into a QR; ``tail`` (D,) as in a form, in the same columns."""

    rows: np.ndarray
    exponents: np.ndarray
    tail: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, factors: np.ndarray | None) -> Stacked:
        """Return rows, each times its factor: by their powers of two, for products may leave the range of float64."""
        fraction, power = np.frexp(rows)
        if factors is not None:
            part, shift = np.frexp(factors[:, None])
            fraction, power = fraction * part, power + shift
        top = np.where(fraction == 0, NEVER, power).max(axis=0, initial=NEVER)
        return cls(np.ldexp(fraction, power - top), top.astype(np.int64), np.zeros(rows.shape[1]))


def whitening_frame(parts: Sequence[Stacked], excuse: float) -> tuple[Frame, np.ndarray, float] | None:
    """Return the frame that whitens the stacked parts, its tail and its excuse; None if all are zero.

    Rows are sorted by norm, which makes Householder QR stable row by row, so one huge row does not blur the
    small ones.  A pivot within the rounding of the rows that are charged is null.
    Theory: 04, frames and resolution.
    """
    exponents = _joint_exponents(parts)
    if exponents is None:
        return None
    stack = np.vstack([np.ldexp(part.rows, part.exponents - exponents) for part in parts])
    tails = np.sum([np.ldexp(part.tail, part.exponents - exponents) ** 2 for part in parts], axis=0)
    stack = stack[np.argsort(-np.linalg.norm(stack, axis=1), kind="stable")]
    matrix, pivots = scipy.linalg.qr(stack, mode="r", pivoting=True, check_finite=False)
    # row i of the stack is row p[i] of L: the inverse permutation puts the rows that elimination pivots on first
    p = scipy.linalg.lu(stack[:, pivots], p_indices=True, check_finite=False)[0]
    stack = stack[np.argsort(p)]
    cut, excuse = _excused(stack[:, pivots], excuse, math.sqrt(tails.sum()))
    charged = np.square(stack[cut:]).sum(axis=0)
    tails = tails + (1 + excuse) ** 2 * charged if cut else charged  # all rows are in the stack
    diagonal, noise = np.abs(np.diagonal(matrix)), math.sqrt(tails.sum())
    null = np.flatnonzero(diagonal <= max(bounds.null_level(stack.shape[1]) * noise, bounds.SMALLEST_PIVOT))
    rank = int(null[0]) if null.size else len(diagonal)
    triangle = Triangle(np.triu(matrix[:rank]), np.asarray(pivots, np.int64))
    return Frame(exponents, triangle), np.sqrt(tails), excuse


def _excused(rows: np.ndarray, excuse: float, tail: float) -> tuple[int, float]:
    """Return how many of the leading rows are not charged for their rounding, and what that costs the others.

    The rounding of independent rows X is a common factor, X + E = X (I + X^-1 E), which scores do not see; any
    other row x then is off by at most |x| g u, g = || |X^-1| |X| ||.  That pays where X dwarfs the rest and ``tail``,
    what was charged before; else every row is charged, and none has to pay.
    """
    norms = np.linalg.norm(rows, axis=1)
    left = np.sqrt(np.cumsum(norms[::-1] ** 2)[::-1])
    best, cut, paid = left[0] / 2, 0, 0.0
    for j in range(1, min(rows.shape[0], rows.shape[1] + 1)):
        if not 0 < left[j] <= bounds.DWARFED * left[j - 1]:
            continue
        try:
            undo = np.abs(np.linalg.inv(rows[:j, :j]))
        except np.linalg.LinAlgError:  # dependent rows have no common factor to be excused by
            continue
        gain = max(excuse, float(np.linalg.norm(undo @ norms[:j])))
        charge = math.hypot(tail, (1 + gain) * left[j])
        if gain <= bounds.MOST_EXCUSE and charge < best:
            best, cut, paid = charge, j, gain
    return cut, paid


def _joint_exponents(parts: Sequence[Stacked]) -> np.ndarray | None:
    """Return for each column the power of two of its norm over all parts, FADED or more; None if all are zero."""
    largest = [np.abs(part.rows).max(axis=0, initial=0) for part in parts]
    tops = [
        np.where(top > 0, np.frexp(top)[1] + part.exponents, NEVER) for top, part in zip(largest, parts, strict=True)
    ]
    joint = np.max(tops, axis=0)
    if np.all(joint == NEVER):
        return None
    joint = np.where(joint == NEVER, 0, joint)
    energy = sum(np.square(np.ldexp(part.rows, part.exponents - joint)).sum(axis=0) for part in parts)
    return np.maximum(joint + np.frexp(np.sqrt(energy))[1], FADED).astype(np.int64)
