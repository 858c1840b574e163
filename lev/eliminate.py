"""Coordinates in which l_p norms of graded and ill-conditioned keys can be computed, with their error.

Sensitivities do not change when K becomes K T with T invertible.  Gaussian elimination K = L U with row pivoting
provides such coordinates: the pivot rows of L carry no error at all, however the keys differ in size, and L is
well conditioned.  What the other rows lost is bounded row by row.  Theory: 05, coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # its parts load when they are first used

from lev import backend, bounds
from lev.form import Form
from lev.frame import Frame


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The rows of L that are not zero."""

    rows: np.ndarray  # (n, r), of full column rank; float64 unless they are the keys as they came
    blur: np.ndarray  # (n,) the norm of what rounding may have cost a row
    where: np.ndarray  # (n,) int64, the keys that they stand for
    count: int  # of keys, zero rows included

    @property
    def rank(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def norms(self) -> np.ndarray:
        return self._each(lambda rows: np.linalg.norm(rows, axis=1))

    @cached_property
    def log_sizes(self) -> np.ndarray:
        """The logarithm of each row's largest entry."""
        return self._each(lambda rows: np.log(np.abs(rows).max(axis=1, initial=0)))

    def _each(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return what ``of`` makes of the rows, some at a time: what it writes on the way stays in cache."""
        return np.concatenate(backend.run(lambda part: of(part[0]), backend.pieces(self.rows, None, backend.PIECE)))

    @cached_property
    def powers(self) -> np.ndarray:
        """The powers of two that bring rows to one binade, or near it: squares of small rows would underflow."""
        return np.minimum(-np.frexp(np.exp(self.log_sizes))[1], 1000)

    def reach(self, p: float) -> float:
        """Return a bound on |x| / ||L x||_p over all x."""
        return len(self.rows) ** max(0.0, 0.5 - 1 / p) / self._least if self._least > 0 else math.inf

    @cached_property
    def _least(self) -> float:
        """The least singular value, less what rounding may have added to it."""
        least = float(np.linalg.svd(self.rows, compute_uv=False)[-1])
        unit = bounds.dot_error(len(self.rows) + self.rank)
        return least - float(np.linalg.norm(self.blur)) - unit * float(np.linalg.norm(self.norms))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Return ``values`` of these rows as values of all keys, 0 for zero rows."""
        spread = np.zeros(self.count)
        spread[self.where] = values
        return spread


def eliminate(keys: np.ndarray, close: float = 0.0) -> Coordinates:
    """Return the coordinates of finite keys (n, d).  Cost: O(n d^2).

    They are the keys themselves, as they came, where the relative margin of their Gram matrix is at most ``close``.
    """
    form, _ = Form.empty(keys.shape[1]).add(keys, None, 1.0)
    frame = form.frame
    if frame.triangle is None and np.abs(frame.exponents).max() <= 60 and form.margin() <= close:
        wide = np.float32 if keys.dtype == np.float32 else np.float64
        return _nonzero(keys.astype(wide, copy=False), np.zeros(len(keys)))
    if form.rank == 0:
        return Coordinates(np.zeros((0, 0)), np.zeros(0), np.zeros(0, np.int64), len(keys))
    space, pivots, (order, top, upper) = _eliminated(keys, frame)
    rank = len(pivots)
    rows, blur = np.empty((len(keys), rank)), np.empty(len(keys))
    eye = np.eye(rank)
    undo = np.abs(scipy.linalg.solve_triangular(top, eye, lower=True, unit_diagonal=True, check_finite=False))
    back = np.abs(scipy.linalg.solve_triangular(upper, eye, check_finite=False))
    error = bounds.dot_error(rank) * (eye + undo @ np.abs(top)) @ np.abs(upper) @ back

    def of(part: slice) -> None:
        solved = scipy.linalg.solve_triangular(upper, space.of(part).T, trans=1, check_finite=False)
        rows[part] = solved.T
        blur[part] = np.linalg.norm(np.abs(rows[part]) @ error, axis=1)

    backend.run(of, space.parts())
    rows[pivots], blur[pivots] = top[order], 0
    return _nonzero(rows, blur)


def _eliminated(keys: np.ndarray, frame: Frame) -> tuple[_Space, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the keys in columns that are independent, the rows that elimination pivots on, and their L U.

    A QR may take its own rounding for a direction; elimination finds nothing at all there.
    """
    columns = np.arange(frame.dim) if frame.triangle is None else frame.triangle.pivots[: frame.rank]
    while True:
        space = _Space(keys, columns, frame.exponents[columns])
        pivots = space.pivots()
        factors = scipy.linalg.lu(space.of(pivots), p_indices=True, check_finite=False)
        left = np.diagonal(factors[2]) != 0
        if left.all():
            return space, pivots, factors
        columns = columns[left]


def _nonzero(rows: np.ndarray, blur: np.ndarray) -> Coordinates:
    where = np.flatnonzero(rows.any(axis=1))
    some = where if len(where) < len(rows) else slice(None)  # all of them need no copy
    return Coordinates(rows[some], blur[some], where, len(rows))


@dataclass(frozen=True, eq=False)
class _Space:
    """The keys in some of their columns, in powers of two."""

    keys: np.ndarray
    columns: np.ndarray
    exponents: np.ndarray

    def of(self, part: slice | np.ndarray) -> np.ndarray:
        return np.ldexp(self.keys[part][:, self.columns].astype(np.float64), -self.exponents)

    def parts(self) -> list[slice]:
        return backend.slices(len(self.keys), backend.TASK)

    def pivots(self) -> np.ndarray:
        """Return the rows that elimination pivots on, (r,), in order: the best of the best of each part."""
        found = backend.run(lambda part: part.start + self._pivots(part), self.parts())
        some = np.concatenate(found)
        return some[self._pivots(some)] if len(found) > 1 else some

    def _pivots(self, part: slice | np.ndarray) -> np.ndarray:
        order = scipy.linalg.lu(self.of(part), p_indices=True, check_finite=False)[0]
        return np.argsort(order)[: len(self.columns)]
