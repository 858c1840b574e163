"""A factor of a form judges rows: a bracket of their scores, and cheap filters from above."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lev import backend, bounds, rounding
from lev.frame import Frame, Groups

_HUGE = 1e300  # finite, so that a score of zero stays zero


@dataclass(frozen=True, eq=False)
class Factor:
    """An inverse square root W of a form: the score of a row with coordinates y is ||y W||^2."""

    frame: Frame
    rows: int
    energy: float  # trace of the form in its frame
    values: np.ndarray  # eigenvalues of the form in its frame, ascending, (r,), or numbers below them
    whiten: np.ndarray  # W: eigenvectors over root eigenvalues, (r, r), or another inverse root
    slack: float  # relative rounding margin of the form
    reach: float  # rounding of ||y W|| for a row of unit norm

    @property
    def rank(self) -> int:
        return len(self.values)

    @cached_property
    def inverse(self) -> float:
        """||W||_F^2, the trace of the form's inverse in its frame."""
        return float(np.square(self.whiten).sum())

    @cached_property
    def lower(self) -> np.ndarray:
        """L with L L^T = W W^T, a lower triangle: ||y L|| = ||y W|| for half the work."""
        if not np.triu(self.whiten, 1).any():
            return np.ascontiguousarray(self.whiten)
        upper = np.asarray(np.linalg.qr(self.whiten.T, mode="r"))
        return np.ascontiguousarray(upper.T)

    def bracket(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), float64 (m,): the leverage score of each row of the form lies between."""
        lower, upper = self.ends(rows)
        return np.minimum(lower, 1), np.minimum(upper, 1)

    def ends(self, rows: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), float64 (m,): k^T M^+ k of each row k, times its factor, lies between."""
        return proved_ends(*self._roots(rows, factors), self.slack)

    def shifted(self, frame: Frame, power: int) -> Factor:
        """Return the factor of the same form times 2^(-2 power), in a frame of 2^power times the unit."""
        return replace(
            self,
            frame=frame,
            energy=float(np.ldexp(self.energy, -2 * power)),
            values=np.ldexp(self.values, -2 * power),
            whiten=np.ldexp(self.whiten, power),
            reach=math.ldexp(self.reach, power),
        )

    def share(self, root: np.ndarray, exponents: np.ndarray) -> float:
        """Return an upper bound in [0, 1] on the largest part in this form of one with rows root * 2^exponents."""
        x = np.ldexp(root, exponents - self.frame.exponents)
        y = self.frame.coordinates(x)
        most = float(np.linalg.norm(y @ self.whiten, 2)) if y.size else 0.0
        error = (self.reach + bounds.dot_error(2 * self.frame.dim)) * float(np.linalg.norm(x))
        return min(1.0, (most * (1 + bounds.dot_error(2 * self.frame.dim)) + error) ** 2 * self.growth)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return the leverage score of each row, float64 (m,), as computed."""
        found = backend.run(lambda piece: self._squares(*piece)[0], backend.pieces(rows))
        return np.minimum(np.concatenate(found), 1)

    def _roots(self, rows: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ||y W||, (m,), and what rounding may have made of it."""
        found = backend.run(lambda piece: self._squares(*piece), backend.pieces(rows, factors))
        squares, norms = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return np.sqrt(squares), self.reach * np.sqrt(norms)

    def _squares(self, rows: np.ndarray, factors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return ||y W||^2 and |x|^2, (m,) each."""
        squares, _, norms = _sizes(self.frame, rows, factors, self.lower)
        return squares, norms

    def odds(self, rows: np.ndarray, factors: np.ndarray | None = None) -> np.ndarray:
        """Return upper bounds, (m,), on k^T M^+ k of each row k, times its factor, for a form M with or without it.

        They are the upper ends of :meth:`ends`, or close above them for float32 rows, which are multiplied as such
        where that is safe.  Cost: r^2 / 2 multiply-adds a row, 8 or 16 of them a cycle at best, as for the Gram matrix.
        """
        return np.concatenate(backend.run(lambda piece: self.piece_odds(*piece), backend.pieces(rows, factors)))

    def piece_odds(self, rows: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
        """Return what :meth:`odds` returns, computed here and now."""
        if self.single(rows.dtype):
            return self._single_odds(rows, factors)
        squares, norms = self._squares(rows, factors)
        return _passing(proved_ends(np.sqrt(squares), self.reach * np.sqrt(norms), self.slack)[1])

    @cached_property
    def _single_odds(self) -> Filter:
        return self._filter(self.lower, 0.0, single=True)

    def single(self, dtype: np.dtype) -> bool:
        """Say whether rows of ``dtype`` may be multiplied in float32."""
        return dtype == np.float32 and self._narrow

    @cached_property
    def _narrow(self) -> bool:
        if self.frame.triangle is not None or not self.rank:
            return False
        return bool(rounding.narrow(self.frame.exponents, self.energy, self.inverse))

    @property
    def growth(self) -> float:
        """What the margin of the form may add to a score, as a factor."""
        return rounding.growth(self.slack)

    def screen(self, epsilon: float) -> Screen:
        """Return upper bounds on the scores of rows to come whose Gram matrices are taken anyway."""
        return _screen(self, epsilon)

    def sieve(self, epsilon: float, dtype: np.dtype) -> Screen:
        """Return upper bounds on the scores of rows of ``dtype`` to come of which nothing is known."""
        return _sieve(self, epsilon, dtype)

    def groups(self, epsilon: float) -> Groups:
        """Return the bound by groups so large that most stay below epsilon, if there are such.

        The sum S of the scores of rows is the difference of two sums by Gram matrices of rows of the chain C, off by at
        most e |C|^2; with the roots of the scores off by a |x|, (1 + t) (S + e |C|^2) + (1 + 1/t) a^2 |C|^2 bounds it.
        Theory: 04, sound filters.
        """
        fewest, most = backend.GROUPS
        expected = min(most, int(0.9 * epsilon * self.rows / max(self.rank, 1)))
        if expected < fewest:
            return Groups.none(self.rank)
        precision = self.whiten @ self.whiten.T
        error = bounds.dot_error(most + self.rank**2 + 2 * self.rank) * self.inverse
        return Groups(
            size=1 << (expected.bit_length() - 1),
            precision=np.triu(precision) + np.triu(precision, 1),
            own=self.growth * (1 + bounds.SHARE),
            rounding=self.growth * ((1 + bounds.SHARE) * 4 * error + (1 + 1 / bounds.SHARE) * self.reach**2),
        )

    def width(self, epsilon: float, step: int) -> int:
        """Return how many of the weakest eigenvectors, a multiple of ``step``, make a filter that few rows pass.

        Over ``rows`` rows like those so far the bound by w eigenvectors has mean (w + sum_{i>w} l_i / l_w) / rows
        and, for Gaussian rows, variance 2 (w + sum_{i>w} l_i^2 / l_w^2) / rows^2: take the first w whose mean and
        deviation stay below epsilon.  Cost: d w multiply-adds a row, and d r / 2 more for a row that passes.
        """
        mean, variance = (
            np.arange(self.rank) + np.cumsum(powers[::-1])[::-1] / powers for powers in (self.values, self.values**2)
        )
        few = np.flatnonzero((mean + np.sqrt(2 * variance) <= epsilon * self.rows)[::step])
        return step * int(few[0]) if few.size else self.rank

    def filter(self, width: int, dtype: np.dtype) -> Filter:
        """Return the bound by the ``width`` weakest eigenvectors, in float32 for float32 rows where that is safe.

        With z the row's components along them and l the eigenvalue that follows, the score is at most
        sum (1 - l_i / l) z_i^2 + |y|^2 / l.  Theory: 04, sound filters.
        """
        following = self.values[width]
        weak = self.whiten[:, :width] * np.sqrt(1 - self.values[:width] / following)
        return self._filter(weak, 1 / following, self.single(dtype))

    def _filter(self, matrix: np.ndarray, level: float, single: bool) -> Filter:
        """Return the bound |y A|^2 + ``level`` |y|^2, A the matrix, made safe."""
        triangle = self.frame.triangle
        turned = 0.0 if triangle is None else float(np.linalg.norm(triangle.whitener))
        size = float(np.linalg.norm(matrix)) + turned * math.sqrt(level)
        terms = rounding.screen_terms(self.frame.dim, size, self.reach, self.slack, single)
        return Filter(self.frame, np.ascontiguousarray(matrix, np.float32 if single else np.float64), level, *terms)


Bound = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""What takes rows as they came and their factors, and returns upper bounds on their odds."""


@functools.lru_cache(maxsize=4)  # a judge serves many blocks
def _screen(judge: Factor, epsilon: float) -> Screen:
    return Screen(epsilon, judge.groups(epsilon), [judge.piece_odds])


@functools.lru_cache(maxsize=4)
def _sieve(judge: Factor, epsilon: float, dtype: np.dtype) -> Screen:
    # lev.cpu.tile multiplies so many columns at a time, at the cost of one
    screen, width = _screen(judge, epsilon), judge.width(epsilon, 16 if judge.single(dtype) else 8)
    if 2 * width >= judge.rank:  # the triangle of all is cheaper than a matrix so wide
        return screen
    return replace(screen, bounds=[judge.filter(width, dtype), *screen.bounds])


@dataclass(frozen=True, eq=False)
class Filter:
    """Upper bounds on the odds of rows: k^T M^+ k for a form M without them."""

    frame: Frame
    matrix: np.ndarray  # A, (r, w), in the precision of the products
    level: float
    own: float
    others: float
    least: float

    def __call__(self, rows: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
        """Return own (|y A|^2 + level |y|^2) + others |x|^2 + least of the rows as they came, times their factors."""
        squares, y_norms, x_norms = _sizes(self.frame, rows, factors, self.matrix)
        upper = self.own * squares + self.others * x_norms + self.least * (x_norms > 0)
        return _passing(upper + self.own * self.level * y_norms if self.level else upper)


def _sizes(
    frame: Frame, rows: np.ndarray, factors: np.ndarray | None, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return |y A|^2, A the matrix (r, w), |y|^2 and |x|^2 of rows as they came, each times its factor, (m,) each."""
    if frame.triangle is None:
        squares, norms = frame.scores(rows, factors, matrix)
        return squares, norms, norms
    # what overflows is infinite or NaN: a row that the form knows nothing of
    with np.errstate(over="ignore", invalid="ignore"):
        x, norms = frame.widen(rows, factors)
        plain = Frame(np.zeros(frame.rank, np.int64))
        return *plain.scores(frame.coordinates(x), None, matrix), norms


def _passing(upper: np.ndarray) -> np.ndarray:
    """Return the bounds; what overflowed may be NaN, and must pass."""
    return np.where(upper < _HUGE, upper, np.inf)


@dataclass(frozen=True, eq=False)
class Screen:
    """Upper bounds on the scores of rows that are not in the form yet: of groups, then of the rows of the others."""

    epsilon: float
    groups: Groups
    bounds: Sequence[Bound]  # each closer than the one before, and dearer

    def __call__(self, rows: np.ndarray, factors: np.ndarray | None, odds: np.ndarray) -> np.ndarray:
        """Return the bounds, (m,), for rows as they came, times their factors, and the odds of their groups."""
        upper = np.repeat(scores_of(odds), self.groups.size)[: len(rows)]
        open_ = np.flatnonzero(~(odds < bounds.odds_below(self.epsilon)))
        if len(open_):
            some = slice(None) if len(open_) == len(odds) else self.groups.rows(open_, len(rows))
            upper[some] = scores_of(self.alone(rows[some], None if factors is None else factors[some]))
        return upper

    def alone(self, rows: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
        """Return bounds on the odds, (m,), of rows of which nothing is known: close where they may reach epsilon."""
        first, *closer = self.bounds
        odds, limit = first(rows, factors), bounds.odds_below(self.epsilon)
        for bound in closer:
            open_ = np.flatnonzero(~(odds < limit))
            if len(open_):
                some = rows[open_], None if factors is None else factors[open_]
                odds[open_] = np.fmin(bound(*some), odds[open_])
        return odds


def scores_of(odds: np.ndarray) -> np.ndarray:
    """Return a / (1 + a), rounded up: the score of a row in a form from its odds a against the form without it."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.minimum(1 / (1 + 1 / odds) * (1 + 2.0**-51), 1.0)


def proved_ends(roots: np.ndarray, pads: np.ndarray, slack: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (lower, upper) of squares of ``roots`` that are off by ``pads``, in a form that is off by ``slack``."""
    with np.errstate(over="ignore", invalid="ignore"):
        lower = np.maximum(roots - pads, 0) ** 2 * np.maximum(0.0, 1 - slack)
        return lower, (roots + pads) ** 2 * rounding.growth(slack)
