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
    """Return R, upper triangular, with R^T R = X^T X for X = factors[:, None] * rows, (n, r).

    It is the Cholesky factor of the Gram matrix where that is proved to be within the relative margin ``limit``; else
    it comes from a QR factorisation of the rows sorted by norm, where small ones keep their digits beside large ones.
    Cost: n r^2 / 2 multiply-adds on all cores; for QR some twenty times as long.
    """
    if limit and (found := _by_cholesky(rows, factors, limit)) is not None:
        return found
    weighted = factors[:, None] * rows
    order = np.argsort(-np.linalg.norm(weighted, axis=1), kind="stable")
    return np.asarray(np.linalg.qr(weighted[order], mode="r"))


def _by_cholesky(rows: np.ndarray, factors: np.ndarray, limit: float) -> np.ndarray | None:
    rank = rows.shape[1]
    plain, none = _plain(rank), Groups.none(rank)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = backend.run(lambda part: plain.grams(*part, none)[0], backend.pieces(rows, factors))
    gram = np.sum(parts, axis=0)
    try:
        triangle = scipy.linalg.cholesky(gram)
    except (np.linalg.LinAlgError, ValueError):  # not definite, or not finite
        return None
    with np.errstate(over="ignore"):
        size, inverse = np.trace(gram), np.square(inverse_of(triangle)).sum()
    return triangle if rounding.root_margin(rank, len(parts), size, inverse) <= limit else None


def inverse_of(triangle: np.ndarray) -> np.ndarray:
    """Return R^{-1}."""
    return scipy.linalg.solve_triangular(triangle, np.eye(len(triangle)), check_finite=False)


def squares_by(triangle: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what takes rows, times their factors, to |R^{-T} k|^2 of each.  Cost: r^2 / 2 multiply-adds a row."""
    upper = np.asarray(np.linalg.qr(inverse_of(triangle).T, mode="r"))
    lower, plain = np.ascontiguousarray(upper.T), _plain(len(triangle))  # L L^T = R^{-1} R^{-T}
    return lambda rows, factors: plain.scores(rows, factors, lower)[0]


def _plain(rank: int) -> Frame:
    return Frame(np.zeros(rank, np.int64))
