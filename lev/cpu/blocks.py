"""Kernels for a block of many heads: a Gram matrix each, its factor, and the scores of the rows by it.

The rows of all heads are one matrix, (n, d), of which head h has those from ``starts[h]`` to ``starts[h + 1]``.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from lev.cpu.rows import CHUNK, fold, held, scored, widen
from lev.cpu.tile import BYTES, HIGH, WIDE, add_gram, add_product, from_tiles, padded, tiles

# compiled code is cached by file: this line changes with tile.py and rows.py, which are inlined here; now b3408220
_FAST = {"reassoc", "contract"}


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def grams(rows, factors, starts, fresh, scale, chain, out):
    """Write the Gram matrix of each head's ``factors[:, None] * rows * scale`` into ``out``, (heads, D, D).

    Where ``fresh``, the scale comes as ones and becomes the powers of two that bring the columns' norms to [1/2, 1).
    No product passes through more than ``chain`` additions before the sum so far is added up.
    """
    heads, dim = scale.shape
    x, norms, part = np.zeros((CHUNK, padded(dim))), np.empty(CHUNK), tiles(dim)
    for head in range(heads):
        whole = tiles(dim)
        for first in range(starts[head], starts[head + 1], chain):
            last = min(first + chain, starts[head + 1])
            for start in range(first, last, CHUNK):
                some = slice(start, min(start + CHUNK, last))
                widen(rows[some], factors[some], scale[head], x, norms)
                add_gram(x, some.stop - start, dim, part)
            fold(part.ravel(), whole.ravel())
        from_tiles(whole, out[head])
        if fresh[head]:
            for i in range(dim):
                scale[head, i] = math.ldexp(1.0, -math.frexp(math.sqrt(out[head, i, i]))[1])
            for i in range(dim):
                for j in range(dim):
                    out[head, i, j] *= scale[head, i] * scale[head, j]


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def whiteners(gram, out, sizes):
    """Write W, lower triangular with (W W^T)^-1 = ``gram``, of each head into ``out``, and ||W||_F^2 into ``sizes``.

    Both are NaN where the matrix is not positive definite.
    """
    heads, dim, _ = gram.shape
    width = padded(dim)
    root, minus, inverse = np.zeros((width, width)), np.zeros((width, width)), np.zeros((width, width))
    for head in range(heads):
        for i in range(dim):
            for j in range(dim):
                root[i, j] = gram[head, i, j]
        definite = factor(root, dim, minus)
        if definite:
            invert(root, dim, minus, inverse)
        total = 0.0
        for i in range(dim):
            for j in range(dim):
                out[head, i, j] = inverse[i, j] if definite else np.nan
                total += out[head, i, j] ** 2
        sizes[head] = total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def factor(root, dim, minus):
    """Write L, lower triangular with L^T L = ``root``, over root and -L into ``minus``; say whether there is one.

    From the last rows up, HIGH at a time: a product takes off them what the rows below make of them.  Above the
    diagonal are parts of no meaning.
    """
    for top in range((dim - 1) // HIGH * HIGH, -1, -HIGH):
        end = min(top + HIGH, dim)
        if end < dim:
            add_product(minus.T, end, dim, root, root, top, end)
        for k in range(end - 1, top - 1, -1):
            if not root[k, k] > 0:
                return False
            divide(root[k], np.sqrt(root[k, k]), end)
            for j in range(vectors(end)):
                minus[k, j] = -root[k, j]
            for i in range(top, k):
                subtract(root[k, i], root[k], root[i], end)
    return True


@numba.njit(cache=True, nogil=True, error_model="numpy")
def invert(root, dim, minus, out):
    """Write the inverse W of the lower triangle L = ``root`` into ``out``, given -L, by L W = I."""
    for top in range(0, dim, HIGH):
        end = min(top + HIGH, dim)
        for k in range(top, end):
            for j in range(vectors(end)):
                out[k, j] = 0.0
            out[k, k] = 1.0
        if top:
            add_product(minus, 0, top, out, out, top, top)
        for k in range(top, end):
            for i in range(top, k):
                subtract(root[k, i], out[i], out[k], end)
            divide(out[k], root[k, k], end)


@numba.njit(cache=True, nogil=True)
def vectors(count):
    """Return ``count`` rounded up to unrolled vectors: what is beyond is cheaper to compute than to leave out."""
    return (count + 15) // 16 * 16


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def subtract(factor, row, out, count):
    for j in range(vectors(count)):
        out[j] -= factor * row[j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def divide(row, divisor, count):
    for j in range(vectors(count)):
        row[j] /= divisor


@numba.njit(cache=True, nogil=True)
def bound(rows, factors, starts, scale, whiten, squares, norms):
    """Write |x W|^2 of the rows x = ``factors[:, None] * rows * scale`` into ``squares`` and |x|^2 into ``norms``.

    ``scale`` (heads, D) and the lower triangles W = ``whiten``, (heads, D, D), are those of each row's head.
    """
    products(rows, factors, starts, scale, whiten, np.float64, squares, norms)


@numba.njit(cache=True, nogil=True)
def products(rows, factors, starts, scale, whiten, kind, squares, norms):
    """Do what :func:`bound` does with products in the precision ``kind``."""
    heads, dim = scale.shape
    x, right = held(dim, kind), np.zeros((dim, padded(dim)), kind)
    first = np.arange(0, dim, WIDE * (BYTES // right.itemsize))  # above the diagonal W has zeros
    for head in range(heads):
        for i in range(dim):
            for j in range(i + 1):
                right[i, j] = whiten[head, i, j]
        some = slice(starts[head], starts[head + 1])
        scored(rows[some], factors[some], scale[head], right, first, x, squares[some], norms[some])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def screen(rows, factors, starts, scale, whiten, kind, terms, epsilon, upper, most):
    """Write own |x W|^2 + others |x|^2 + least of the rows x, 0 for zeros, into ``upper``, as :func:`bound` takes them.

    The products are taken in the precision ``kind``; ``terms``, (3, heads), are own, others and least; ``most`` gets
    the largest of each head that is below epsilon.
    """
    norms = np.empty(len(rows))
    products(rows, factors, starts, scale, whiten, kind, upper, norms)
    for head in range(len(scale)):
        most[head] = 0.0
        own, others, least = terms[:, head]
        for i in range(starts[head], starts[head + 1]):
            found = own * upper[i] + others * norms[i] + (least if norms[i] > 0 else 0.0)
            upper[i] = found if found < np.inf else np.inf  # what overflowed may be NaN, and must pass
            if found < epsilon:
                most[head] = max(most[head], found)
