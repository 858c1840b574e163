"""Triangular factors of weighted rows, and what they make of rows: the step of every iteration that reweights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # its parts load when they are first used

from lev import backend, rounding
from lev.frame import Frame, Groups

LOOSE = 2.0**-12
"""A margin for solutions that are corrected, and checked."""


def triangle_of(rows: np.ndarray, factors: np.ndarray, limit: float = 0.0) -> np.ndarray:
    """Return T, lower triangular, with T^T T = X^T X for X = factors[:, None] * rows, (n, r).

    It is a Cholesky factor of the Gram matrix where that is proved to be within the relative margin ``limit``; else
    it comes from a QR factorisation of the rows sorted by norm, where small ones keep their digits beside large ones.
    Either is of the columns in reverse: so T^{-1} is lower as well, as the kernels take it.
    Cost: n r^2 / 2 multiply-adds on all cores; for QR some twenty times as long.
    """
    if limit and (found := _by_cholesky(rows, factors, limit)) is not None:
        return found
    weighted = factors[:, None] * rows
    order = np.argsort(np.linalg.norm(weighted, axis=1), kind="stable")
    return _reversed(np.asarray(np.linalg.qr(_reversed(weighted[order]), mode="r")))


def _by_cholesky(rows: np.ndarray, factors: np.ndarray, limit: float) -> np.ndarray | None:
    rank = rows.shape[1]
    plain, none = _plain(rank), Groups.none(rank)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = backend.run(lambda part: plain.grams(*part, none)[0], backend.pieces(rows, factors))
    gram = np.sum(parts, axis=0)
    try:
        triangle = _reversed(scipy.linalg.cholesky(_reversed(gram)))
    except (np.linalg.LinAlgError, ValueError):  # not definite, or not finite
        return None
    with np.errstate(over="ignore"):
        size, inverse = np.trace(gram), np.square(inverse_of(triangle)).sum()
    return triangle if rounding.root_margin(rank, len(parts), size, inverse) <= limit else None


def inverse_of(triangle: np.ndarray) -> np.ndarray:
    """Return T^{-1}."""
    return scipy.linalg.solve_triangular(triangle, np.eye(len(triangle)), lower=True, check_finite=False)


def solved(triangle: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return x with T^T T x = ``right``."""
    half = scipy.linalg.solve_triangular(triangle, right, trans=1, lower=True, check_finite=False)
    return scipy.linalg.solve_triangular(triangle, half, lower=True, check_finite=False)


def squares_by(triangle: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what takes rows, times their factors, to |T^{-T} k|^2 of each.  Cost: r^2 / 2 multiply-adds a row."""
    inverse, plain = np.ascontiguousarray(inverse_of(triangle)), _plain(len(triangle))
    return lambda rows, factors: plain.scores(rows, factors, inverse)[0]


def _reversed(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix[::-1, ::-1])


def _plain(rank: int) -> Frame:
    return Frame(np.zeros(rank, np.int64))
