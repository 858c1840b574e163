"""Row kernels: the one pass that reads the keys."""

from __future__ import annotations

import numba
import numpy as np

from lev.cpu.tile import HIGH, add_gram, firsts, from_tiles, padded, squares, tiles, to_tiles, turned

# compiled code is cached by file: this line changes with tile.py, which is inlined here; now ed37dc2f
CHUNK = 64  # rows that are widened at a time: they stay in the first cache
_HELD = (CHUNK + HIGH - 1) // HIGH * HIGH


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def widen(rows, factors, scale, out, norms):
    """Write ``factors[:, None] * rows * scale`` into ``out`` and squared row norms into ``norms``.

    ``scale`` may be one longer than the rows: the last column is then the constant 1 of affine queries.  No factors at
    all are ones.  One pass saves the float64 temporary, the scaled temporary and a second read for the norms.
    """
    m, d = rows.shape
    for i in range(m):
        factor, total = factors[i] if len(factors) else 1.0, 0.0
        for j in range(d):
            value = rows[i, j] * scale[j] * factor
            out[i, j] = value
            total += value * value
        if len(scale) > d:
            value = scale[d] * factor
            out[i, d] = value
            total += value * value
        norms[i] = total


@numba.njit(cache=True, nogil=True)
def gram(rows, factors, scale, pivots, triangle, precision, terms, size, chain, out, energy, odds):
    """Write the Gram matrix of y = x[:, pivots] T into ``out``, for x = ``factors[:, None] * rows * scale``.

    T is ``triangle``, upper; y is x where there are no pivots.  The sum of squares of each column of x is added to
    ``energy``.  ``chain`` rows at a time are summed, a multiple of ``size``; ``odds`` gets, of each ``size`` rows, with
    (a, b) = ``terms``, a times the sum of y ``precision`` y^T, given the upper triangle with what stands above the
    diagonal doubled, plus b times the sum over their chain of the larger of |x|^2 and |y|^2.
    """
    m, dim = len(rows), len(out)
    norms = np.empty(_HELD)
    x = np.zeros((_HELD, padded(len(scale))))
    y = np.zeros((_HELD, padded(dim))) if len(pivots) else x
    picked = np.zeros((_HELD, len(pivots)))
    right, part, whole, inverse = np.zeros((dim, padded(dim))), tiles(dim), tiles(dim), tiles(dim)
    right[: len(pivots), : len(pivots)] = triangle
    to_tiles(precision, inverse)
    for first in range(0, m, chain):
        before, norm, last = 0.0, 0.0, min(first + chain, m)
        for group in range(first, last, size):
            end = min(group + size, last)
            for start in range(group, end, CHUNK):
                some = slice(start, min(start + CHUNK, end))
                count = some.stop - start
                widen(rows[some], factors[some], scale, x, norms)
                if len(pivots):
                    turn(x, count, pivots, picked, right, y, energy, norms)
                add_gram(y, count, dim, part)
                norm += norms[:count].sum()
            total = dot(inverse.ravel(), part.ravel())
            odds[group // size] = terms[0] * (total - before)
            before = total
        odds[first // size : (last + size - 1) // size] += terms[1] * norm
        fold(part.ravel(), whole.ravel())
    from_tiles(whole, out)
    if not len(pivots):
        energy += np.diag(out)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def turn(x, m, pivots, picked, right, y, energy, norms):
    """Write x[:, pivots], ``picked``, times ``right`` into y for the first m rows, and raise ``norms`` to |y|^2.

    The squares of x are added to ``energy``, of each column.
    """
    for i in range(m):
        for j in range(len(energy)):
            energy[j] += x[i, j] * x[i, j]
        for j in range(len(pivots)):
            picked[i, j] = x[i, pivots[j]]
    turned(picked, m, right, y)
    for i in range(m):
        total = 0.0
        for j in range(len(pivots)):
            total += y[i, j] * y[i, j]
        norms[i] = max(norms[i], total)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def dot(first, second):
    """Return the product of two vectors."""
    total = 0.0
    for k in range(len(first)):
        total += first[k] * second[k]
    return total


@numba.njit(cache=True, nogil=True)
def fold(part, whole):
    """Move ``part`` to what ``whole`` holds; both are vectors."""
    for k in range(len(part)):
        whole[k] += part[k]
        part[k] = 0.0


@numba.njit(cache=True, nogil=True)
def scores(rows, factors, scale, matrix, out, norms):
    """Write |x R|^2 of the rows x = ``factors[:, None] * rows * scale`` into ``out`` and |x|^2 into ``norms``.

    ``matrix`` (dim, w) is R, float32 or float64, in which the products are then taken; the squares are summed in
    float64.  Rows of zeros on top of its columns are left out, so a lower triangle takes half the work of a square; and
    no product is ever written.
    """
    dim, columns = matrix.shape
    x, right = held(dim, matrix.dtype), np.zeros((dim, padded(columns)), matrix.dtype)
    for i in range(dim):
        for j in range(columns):
            right[i, j] = matrix[i, j]
    scored(rows, factors, scale, right, firsts(right, columns), x, out, norms)


@numba.njit(cache=True, nogil=True)
def held(dim, kind):
    """Return zeros for the rows that :func:`scored` widens at a time."""
    return np.zeros((CHUNK // HIGH * HIGH, padded(dim)), kind)


@numba.njit(cache=True, nogil=True)
def scored(rows, factors, scale, right, first, x, out, norms):
    """Do what :func:`scores` does, given R ``padded`` wide, what ``firsts`` says of it, and room for rows ``held``."""
    for start in range(0, len(rows), len(x)):
        some = slice(start, min(start + len(x), len(rows)))
        widen(rows[some], factors[some], scale, x, norms[some])
        squares(x, right, first, out[some])


@numba.njit(cache=True, nogil=True)
def mix(bits):
    """Return a hash of the uint64 ``bits`` (splitmix64)."""
    bits += np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def mixed(bits, out):
    """Write into ``out`` a hash of each of the uint64 ``bits``."""
    for i in range(len(bits)):
        out[i] = mix(bits[i])


@numba.njit(cache=True, nogil=True)
def sift(odds, ids, limit, share, out):
    """Write into ``out`` the places of rows whose odds reach ``limit`` or whose id has a hash below ``share``.

    Returns how many there are, and the sum and the largest of the other odds.
    """
    count, total, most = 0, 0.0, 0.0
    for i in range(len(odds)):
        if odds[i] < limit and mix(np.uint64(ids[i])) >= share:
            total += odds[i]
            most = max(most, odds[i])
        else:
            out[count] = i
            count += 1
    return count, total, most


@numba.njit(cache=True, nogil=True)
def above(values, limit, out):
    """Write into ``out`` the places of values that are not below ``limit``.

    Returns how many there are, and the largest of the other values, at least 0.
    """
    count, most = 0, 0.0
    for i in range(len(values)):
        if values[i] < limit:
            most = max(most, values[i])
        else:
            out[count] = i
            count += 1
    return count, most


@numba.njit(cache=True, nogil=True)
def lewis_roots(odds, p, out):
    """Write into ``out`` the root v in [0, 1] of v^(2/p) + a v = a for each odds a, or a little more.

    In z = v for p < 2, z = v^(2/p) for p > 2, the equation is z (1 + a z^s) = a or z (z^s + a) = a: convex, so Newton's
    method from above stays above.  A power a step is what it costs.
    """
    s = 2 / p - 1 if p < 2 else p / 2 - 1
    for i in range(len(odds)):
        a = odds[i]
        z = min(1.0, a if p > 2 else a ** (p / 2))
        if a == np.inf:
            z = 1.0
        elif z > 2.0**-5:  # below, the root is less than 4 % under z
            for _ in range(60):
                power = z**s
                left, right = (power, a) if p < 2 else (1.0, a * power)  # the equation is z (left + right) = a
                rise = (1 + s) * left + right if p < 2 else left + (1 + s) * right
                step = (z * (left + right) - a) / rise
                z -= max(step, 0.0)
                if not step > 2.0**-10 * z:
                    break
        out[i] = z if p < 2 else z ** (p / 2)
