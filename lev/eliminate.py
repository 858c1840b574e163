"""Coordinates in which l_p norms of graded and ill-conditioned keys can be computed, with their error.

Sensitivities do not change when K becomes K T with T invertible.  Gaussian elimination K = L U with row pivoting
provides such coordinates: the pivot rows of L carry no error at all, however the keys differ in size, and L is
well conditioned.  What the other rows lost is bounded row by row.  Theory: 05, coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy  # its parts load when they are first used

from lev import bounds
from lev.form import Form


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The rows of L that are not zero."""

    rows: np.ndarray  # (n, r), of full column rank
    blur: np.ndarray  # (n,) the norm of what rounding may have cost a row
    where: np.ndarray  # (n,) int64, the keys that they stand for
    count: int  # of keys, zero rows included

    @property
    def rank(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def norms(self) -> np.ndarray:
        return np.linalg.norm(self.rows, axis=1)

    @cached_property
    def even(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows brought to one binade, for squares of small ones would underflow, and their powers of two."""
        powers = np.frexp(np.abs(self.rows).max(axis=1, initial=0))[1]
        return np.ldexp(self.rows, -powers[:, None]), powers

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


def eliminate(keys: np.ndarray) -> Coordinates:
    """Return the coordinates of finite keys (n, d).  Cost: O(n d^2)."""
    form, _ = Form.empty(keys.shape[1]).add(keys, None, 1.0)
    frame = form.frame
    columns = np.arange(frame.dim) if frame.triangle is None else frame.triangle.pivots
    scaled = np.ldexp(keys.astype(np.float64), -frame.exponents)[:, columns[: frame.rank]]
    if frame.rank == 0:
        return Coordinates(scaled[:0], np.zeros(0), np.zeros(0, np.int64), len(keys))
    # row i of the keys is row order[i] of lower
    order, lower, upper = scipy.linalg.lu(scaled, p_indices=True, check_finite=False)
    top, eye = lower[: frame.rank], np.eye(frame.rank)
    undo = np.abs(scipy.linalg.solve_triangular(top, eye, lower=True, unit_diagonal=True, check_finite=False))
    back = np.abs(scipy.linalg.solve_triangular(upper, eye, check_finite=False))
    error = bounds.dot_error(frame.rank) * (eye + undo @ np.abs(top)) @ np.abs(upper) @ back
    blur = np.linalg.norm(np.abs(lower) @ error, axis=1)
    blur[: frame.rank] = 0
    rows, blur = lower[order], blur[order]
    where = np.flatnonzero(rows.any(axis=1))
    return Coordinates(rows[where], blur[where], where, len(keys))
