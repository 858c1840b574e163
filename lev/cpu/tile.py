"""Matrix products tile by tile, each held in vector registers: rows need not be transposed, packed or many.

A compiler that vectorises loops does not keep 12 sums in registers over a loop of its own accord, and BLAS, made for
large matrices, copies what it reads.  So this one loop is spelled out, as instructions for LLVM, for either width.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BYTES, HIGH, WIDE = 32, 6, 2  # a tile is HIGH rows of WIDE vectors: 12 sums, 2 columns and 1 factor in 16 registers
LANES = BYTES // 8  # of float64
_INT, _INT32, _DOUBLE = ir.IntType(64), ir.IntType(32), ir.DoubleType()


class _Matrix:
    """An array in C order, as instructions see it."""

    def __init__(self, context, build, kind, value):
        array = context.make_array(kind)(context, build, value)
        self.build, self.data, self.width = build, array.data, cgutils.unpack_tuple(build, array.shape)[1]
        self.vector = ir.VectorType(context.get_value_type(kind.dtype), 8 * BYTES // kind.dtype.bitwidth)

    def entry(self, row, column, steps=0):
        place = self.build.add(self.build.mul(row, self.width), self.build.add(column, _INT(steps)))
        return self.build.gep(self.data, [place])

    def vectors(self, row, column, count):
        places = [self.entry(row, column, k * self.vector.count) for k in range(count)]
        return [self.build.bitcast(place, self.vector.as_pointer()) for place in places]


def _load(build, places):
    return [build.load(place, align=4) for place in places]


def _add_products(build, before, first, last, factor, columns):
    """Return the tile ``before`` plus factor(k, h) * columns(k) over k = first .. last - 1, at least one."""
    entry, loop, done = build.block, build.append_basic_block(), build.append_basic_block()
    build.branch(loop)
    build.position_at_end(loop)
    k, tile = build.phi(_INT), [[build.phi(vector.type) for vector in line] for line in before]
    right, after = _load(build, columns(k)), []
    for h, line in enumerate(tile):
        left = _repeated(build, build.load(factor(k, h)), right[0].type)
        products = [build.fmul(left, vector, flags=("contract",)) for vector in right]
        after.append([build.fadd(*pair, flags=("contract",)) for pair in zip(products, line, strict=True)])
    following = build.add(k, _INT(1))
    incoming = [(k, first, following)]
    for lines in zip(tile, before, after, strict=True):
        incoming += zip(*lines, strict=True)
    for value, start, end in incoming:
        value.add_incoming(start, entry)
        value.add_incoming(end, loop)
    build.cbranch(build.icmp_signed("<", following, last), loop, done)
    build.position_at_end(done)
    return after


def _repeated(build, value, vector):
    empty = ir.Constant(vector, ir.Undefined)
    first = build.insert_element(empty, value, _INT32(0))
    return build.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count))


def _widened(build, vector):
    """Return the numbers of a vector as vectors of float64."""
    if vector.type.element == _DOUBLE:
        return [vector]
    some, wide = ir.VectorType(_INT32, LANES), ir.VectorType(_DOUBLE, LANES)
    starts = range(0, vector.type.count, LANES)
    masks = [ir.Constant(some, list(range(start, start + LANES))) for start in starts]
    return [build.fpext(build.shuffle_vector(vector, vector, mask), wide) for mask in masks]


@intrinsic
def _add_product(_typing, left, first, last, right, i, j, out, row, column):
    """Add the tile left[i : i + HIGH, first:last] @ right[first:last, j :] to out[row:, column:].

    ``left`` has any strides.
    """

    def generate(context, build, signature, arguments):
        factors = context.make_array(signature.args[0])(context, build, arguments[0])
        down, across = cgutils.unpack_tuple(build, factors.strides)
        matrix, sums = (_Matrix(context, build, signature.args[k], arguments[k]) for k in (3, 6))
        first, last, i, j, row, column = (arguments[k] for k in (1, 2, 4, 5, 7, 8))
        places = [sums.vectors(build.add(row, _INT(h)), column, WIDE) for h in range(HIGH)]
        before = [_load(build, line) for line in places]

        def factor(k, h):
            place = build.add(build.mul(build.add(i, _INT(h)), down), build.mul(k, across))
            byte = build.gep(build.bitcast(factors.data, ir.IntType(8).as_pointer()), [place])
            return build.bitcast(byte, factors.data.type)

        tile = _add_products(build, before, first, last, factor, lambda k: matrix.vectors(k, j, WIDE))
        for line, to in zip(tile, places, strict=True):
            for vector, place in zip(line, to, strict=True):
                build.store(vector, place, align=4)
        return context.get_dummy_value()

    return types.void(left, first, last, right, i, j, out, row, column), generate


@intrinsic
def _add_squares(_typing, x, row, matrix, j, first, last, out):
    """Add the squares of the tile x[row : row + HIGH, first:last] @ matrix[first:last, j :] to out[:, :LANES]."""

    def generate(context, build, signature, arguments):
        rows, right, sums = (_Matrix(context, build, signature.args[k], arguments[k]) for k in (0, 2, 6))
        row, j, first, last = arguments[1], arguments[3], arguments[4], arguments[5]
        zeros = [[ir.Constant(right.vector, None)] * WIDE] * HIGH
        lines = [build.add(row, _INT(h)) for h in range(HIGH)]
        tile = _add_products(
            build, zeros, first, last, lambda k, h: rows.entry(lines[h], k), lambda k: right.vectors(k, j, WIDE)
        )
        for h, line in enumerate(tile):
            (place,) = sums.vectors(_INT(h), _INT(0), 1)
            (total,) = _load(build, [place])
            for vector in (part for each in line for part in _widened(build, each)):
                total = build.fadd(build.fmul(vector, vector, flags=("contract",)), total, flags=("contract",))
            build.store(total, place, align=4)
        return context.get_dummy_value()

    return types.void(x, row, matrix, j, first, last, out), generate


@numba.njit(cache=True, nogil=True)
def padded(dim):
    """Return how many columns, zeros beyond ``dim``, tiles may read: whole vectors, unrolled."""
    return (dim + 22) // 16 * 16


@numba.njit(cache=True, nogil=True)
def tops(dim):
    """Return the first row, in :func:`tiles`, of the tiles that hold each column, and the row behind the last."""
    step, out = WIDE * LANES, np.zeros(dim + 1, np.int64)
    for j in range(1, dim + 1):
        reach = min((j - 1) // step * step + step, dim)  # of the diagonal in these tiles
        ends = j % step == 0 or j == dim
        out[j] = out[j - 1] + ((reach + HIGH - 1) // HIGH * HIGH if ends else 0)
    return out


@numba.njit(cache=True, nogil=True)
def tiles(dim):
    """Return zeros for the upper triangle of a matrix of ``dim`` rows: tiles one after the other, half a square.

    Below the diagonal, and beyond the matrix, they get parts of no meaning.
    """
    return np.zeros((tops(dim)[dim], WIDE * LANES))


@numba.njit(cache=True, nogil=True)
def add_gram(x, m, dim, out):
    """Add the Gram matrix of the first m >= 1 rows and ``dim`` columns of x, ``padded`` of them, to the ``tiles``."""
    row, step = 0, WIDE * LANES
    for j in range(0, dim, step):
        for i in range(0, min(j + step, dim), HIGH):
            _add_product(x.T, 0, m, x, i, j, out, row, 0)
            row += HIGH


@numba.njit(cache=True, nogil=True)
def to_tiles(matrix, out):
    """Write the upper triangle of a square matrix into ``out``, the ``tiles``."""
    top = tops(len(matrix))
    for j in range(len(matrix)):
        for i in range(j + 1):
            out[top[j] + i, j % (WIDE * LANES)] = matrix[i, j]


@numba.njit(cache=True, nogil=True)
def from_tiles(found, out):
    """Write the upper triangle that the ``tiles`` hold to both sides of ``out``."""
    top = tops(len(out))
    for j in range(len(out)):
        for i in range(j + 1):
            out[i, j] = out[j, i] = found[top[j] + i, j % (WIDE * LANES)]


@numba.njit(cache=True, nogil=True)
def firsts(matrix, columns):
    """Return the first row other than zeros of each tile's ``columns``, or the row behind the last where none is."""
    dim, step = len(matrix), WIDE * (BYTES // matrix.itemsize)
    out = np.full((columns + step - 1) // step, dim)
    for tile in range(len(out)):
        for i in range(dim):
            if matrix[i, tile * step : tile * step + step].any():
                out[tile] = i
                break
    return out


@numba.njit(cache=True, nogil=True)
def squares(x, right, first, out):
    """Write |x_i R|^2 of each row of x into ``out``, R being ``right`` and ``first`` what :func:`firsts` says of it.

    Both are ``padded`` columns wide, float32 or float64; x holds a multiple of HIGH rows at least as long as ``out``.
    """
    step, dim = WIDE * (BYTES // x.itemsize), len(right)
    sums = np.empty((HIGH, LANES))
    for row in range(0, len(out), HIGH):
        sums[:] = 0
        for tile in range(len(first)):
            if first[tile] < dim:
                _add_squares(x, row, right, tile * step, first[tile], dim, sums)
        for i in range(row, min(row + HIGH, len(out))):
            out[i] = sums[i - row].sum()


@numba.njit(cache=True, nogil=True)
def add_product(left, first, last, right, out, row, columns):
    """Add left[row:, first:last] @ right[first:last, :columns] to ``out`` at [row, 0], HIGH rows of it; first < last.

    ``left`` has any strides; right and out are ``padded`` columns wide, and out gets parts of no meaning beyond.
    """
    for j in range(0, columns, WIDE * LANES):
        _add_product(left, first, last, right, row, j, out, row, j)


@numba.njit(cache=True, nogil=True)
def turned(x, m, right, out):
    """Write the first m rows of x times ``right``, an upper triangle, into ``out``.

    Right and out are ``padded`` columns wide; x and out hold as many rows, a multiple of HIGH.
    """
    step, dim = WIDE * LANES, len(right)
    out[:m] = 0
    for i in range(0, m, HIGH):
        for j in range(0, dim, step):
            _add_product(x, 0, min(j + step, dim), right, i, j, out, i, j)
