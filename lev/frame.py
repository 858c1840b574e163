"""Frames: coordinates in which a Gram matrix of the rows is accurate, and the QR that finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from lev import backend, bounds


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
        return scipy.linalg.solve_triangular(self.square, np.eye(self.rank), check_finite=False)

    @cached_property
    def basis(self) -> np.ndarray:
        """[T | N], (D, D): x T whitens the rows that the triangle stands for, and x N vanishes for them."""
        rank, dim = self.matrix.shape
        basis = np.zeros((dim, dim))
        basis[self.pivots[:rank], :rank] = self.inverse
        basis[self.pivots[:rank], rank:] = -self.inverse @ self.matrix[:, rank:]
        basis[self.pivots[rank:], rank:] = np.eye(dim - rank)
        return basis

    @cached_property
    def null_level(self) -> float:
        """The size of x N, relative to x, that is still rounding."""
        rank, dim = self.matrix.shape
        return float(np.linalg.norm(self.basis[:, rank:])) * bounds.null_level(dim)

    @cached_property
    def root(self) -> np.ndarray:
        """The triangle with its columns back in their places, (r, D)."""
        root = np.zeros(self.matrix.shape)
        root[:, self.pivots] = self.matrix
        return root


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
        return np.ldexp(1.0, -self.exponents)

    @property
    def whitener(self) -> np.ndarray:
        """T, (D, r)."""
        return np.eye(self.dim) if self.triangle is None else self.triangle.basis[:, : self.rank]

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
        if self.triangle is None:
            return x, x[:, :0]
        both = x @ self.triangle.basis
        return both[:, : self.rank], both[:, self.rank :]

    def leaves(self, outside: np.ndarray, norms: np.ndarray, tail: float) -> bool:
        """Say whether a row with part ``outside`` and squared norm ``norms`` leaves the span by more than rounding."""
        if self.triangle is None or not outside.size:
            return False
        level = self.triangle.null_level * np.maximum(np.sqrt(norms), tail)
        return not np.all(np.einsum("ij,ij->i", outside, outside) <= level**2)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Rows * 2^exponents on their way into a QR; ``tail`` is the root energy of the rows they stand for."""

    rows: np.ndarray
    exponents: np.ndarray
    tail: float

    def tail_at(self, exponents: np.ndarray) -> float:
        """Return the tail when columns are measured in 2^exponents instead."""
        used = self.rows.any(axis=0)
        return self.tail * float(np.ldexp(1.0, (self.exponents - exponents)[used]).max(initial=0))


def whitening_frame(parts: Sequence[Stacked]) -> tuple[Frame, float] | None:
    """Return the frame that whitens the stacked parts, and its tail; None if all are zero.

    Rows are sorted by norm, which makes Householder QR stable row by row, so one huge row does not blur the
    small ones.  Pivot j is null when it is within the rounding of the rows that are left after the j largest;
    the tail is the root energy of those.  Theory: 04, frames and resolution.
    """
    exponents = _joint_exponents(parts)
    if exponents is None:
        return None
    stack = np.vstack([np.ldexp(part.rows, part.exponents - exponents) for part in parts])
    tail = math.hypot(*(part.tail_at(exponents) for part in parts))
    norms = np.linalg.norm(stack, axis=1)
    order = np.argsort(-norms, kind="stable")
    matrix, pivots = scipy.linalg.qr(stack[order], mode="r", pivoting=True, overwrite_a=True, check_finite=False)
    diagonal = np.abs(np.diagonal(matrix))
    left = np.append(np.sqrt(np.cumsum(norms[order][::-1] ** 2)[::-1] + tail**2), tail)[: len(diagonal) + 1]
    null = np.flatnonzero(diagonal <= np.maximum(bounds.null_level(stack.shape[1]) * left[:-1], bounds.SMALLEST_PIVOT))
    rank = int(null[0]) if null.size else len(diagonal)
    return Frame(exponents, Triangle(np.triu(matrix[:rank]), np.asarray(pivots, np.int64))), float(left[rank])


def _joint_exponents(parts: Sequence[Stacked]) -> np.ndarray | None:
    """Return for each column the power of two of its largest entry over all parts; None if all are zero."""
    never = -(2**20)
    each = []
    for part in parts:
        largest = np.abs(part.rows).max(axis=0, initial=0)
        each.append(np.where(largest > 0, np.frexp(largest)[1] + part.exponents, never))
    joint = np.max(each, axis=0)
    if np.all(joint == never):
        return None
    return np.where(joint == never, 0, np.clip(joint, -1000, 1000)).astype(np.int64)
