"""Kernels for many heads at once, in plain NumPy: what those of ``lev/gpu/heads.py`` are held to.

Keys are (heads, n, d) of one kind: "float16", "bfloat16" (its bits, as uint16), "float32" or "float64".
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np

_PIECE = 1024
_LEAST = 2.0**-1000  # bounds.SMALLEST_ODDS, as in lewis.cu


def arrays(array):
    """Return the library of an array, numpy or cupy."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def wide(keys, kind):
    """Return the keys as float64, without loss, on the device they are on."""
    if kind == "bfloat16":
        keys = (keys.astype("uint32") << 16).view("float32")
    return keys.astype("float64")


def tensor(kind, d):
    """Say whether :func:`gram` of such keys may be ``fast``, that is, summed on tensor cores."""
    return False


def gram(keys, kind, fast, factors=None):
    """Return K^T K of each head, (heads, d, d) float64, rows times their factors (heads, n) if there are any.

    Without factors ``fast`` lets tensor cores sum 32 rows at a time in float32.
    """
    heads, n, d = keys.shape
    total = np.zeros((heads, d, d))
    for start in range(0, n, _PIECE):
        piece = wide(keys[:, start : start + _PIECE], kind)
        if factors is not None:
            piece *= factors[:, start : start + _PIECE, None]
        total += piece.swapaxes(1, 2) @ piece
    return total


def factor(gram):
    """Return lower L and its inverse of L L^T = gram, (heads, d, d) each; NaN where gram is not positive definite."""
    lower = np.full_like(gram, np.nan)
    for head, matrix in enumerate(gram):
        with contextlib.suppress(np.linalg.LinAlgError):  # a batch would fail as a whole
            lower[head] = np.linalg.cholesky(matrix)
    inverse = np.linalg.inv(np.where(np.isnan(lower), np.eye(gram.shape[1]), lower))
    return lower, np.where(np.isnan(lower), np.nan, np.tril(inverse))


def probe(matrix, kind):
    """Return what :func:`screen` takes of lower triangular (heads, d, d), and what that stands for, in float64."""
    return matrix, matrix


def screen(keys, kind, parts, scale, limit):
    """Return (found, count, peak): which rows k do not have |X k| + pad |s k| < least; NaN passes.

    ``parts`` is X by :func:`probe`, ``scale`` s (heads, d) and ``limit`` (heads, 2) pad and least, float32.  Of found,
    (heads, n) int32, the first count[head] entries are rows, in any order; peak (heads,) float32 is the largest left
    side that fell short, 0 if none.
    """
    rows = wide(keys, kind)
    roots = np.linalg.norm(rows @ parts.swapaxes(1, 2), axis=2)
    sides = (roots + limit[:, :1] * np.linalg.norm(rows * scale[:, None], axis=2)).astype(np.float32)
    passed = ~(sides < limit[:, 1:])
    peak = np.where(passed, np.float32(0), sides).max(axis=1, initial=0)
    return np.argsort(~passed, axis=1, kind="stable").astype(np.int32), passed.sum(axis=1, dtype=np.int32), peak


def odds(keys, kind, matrix):
    """Return |X k|^2 of each row, (heads, n) float64, X lower triangular (heads, d, d).

    It is at least 2^-1000 of a row that is not zeros, which a small power must not hide.
    """
    keys = wide(keys, kind)
    squares = np.square(keys @ matrix.swapaxes(1, 2)).sum(axis=2)
    return np.where(keys.any(axis=2) & (squares < _LEAST), _LEAST, squares)


def lewis_roots(odds, p):
    """Return the root v of v^(2/p) + a v = a for each of the odds a, or a little more; NaN stays."""
    from lev.cpu import rows  # numba, which only this needs

    roots = np.empty(odds.size)
    rows.lewis_roots(odds.ravel(), p, roots)
    return np.where(np.isnan(odds), np.nan, roots.reshape(odds.shape))
