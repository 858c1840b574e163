"""A Gram product tile by tile, each held in vector registers: rows need not be transposed, packed or many.

A compiler that vectorises loops does not keep 12 sums in registers over a loop of its own accord, and BLAS, made for
large matrices, copies what it reads.  So this one loop is spelled out, as instructions for LLVM.
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES, HIGH, WIDE = 4, 6, 2  # a tile is HIGH rows of WIDE vectors: 12 sums, 2 columns and 1 factor in 16 registers
_VECTOR, _INT, _INT32 = ir.VectorType(ir.DoubleType(), LANES), ir.IntType(64), ir.IntType(32)


@intrinsic
def _add_tile(_typing, x, m, out, i, j):
    """Add x[:m, i : i + HIGH].T @ x[:m, j : j + WIDE * LANES] to ``out`` at [i, j]; both in C order, one width."""

    def generate(context, build, signature, arguments):
        rows, sums = (context.make_array(signature.args[k])(context, build, arguments[k]) for k in (0, 2))
        m, i, j = arguments[1], arguments[3], arguments[4]
        width = cgutils.unpack_tuple(build, rows.shape)[1]

        def vector(array, row, column, step):
            at = build.add(build.mul(row, width), build.add(column, _INT(step * LANES)))
            return build.bitcast(build.gep(array.data, [at]), _VECTOR.as_pointer())

        places = [[vector(sums, build.add(i, _INT(h)), j, w) for w in range(WIDE)] for h in range(HIGH)]
        before = [[build.load(place, align=8) for place in line] for line in places]
        entry, loop, done = build.block, build.append_basic_block(), build.append_basic_block()
        build.branch(loop)
        build.position_at_end(loop)
        row, tile = build.phi(_INT), [[build.phi(_VECTOR) for _ in line] for line in places]
        columns = [build.load(vector(rows, row, j, w), align=8) for w in range(WIDE)]
        for h in range(HIGH):
            at = build.add(build.mul(row, width), build.add(i, _INT(h)))
            factor = _repeated(build, build.load(build.gep(rows.data, [at])))
            for w in range(WIDE):
                product = build.fmul(factor, columns[w], flags=("contract",))
                tile[h][w].add_incoming(before[h][w], entry)
                before[h][w] = build.fadd(product, tile[h][w], flags=("contract",))
                tile[h][w].add_incoming(before[h][w], loop)
        following = build.add(row, _INT(1))
        row.add_incoming(_INT(0), entry)
        row.add_incoming(following, loop)
        build.cbranch(build.icmp_signed("<", following, m), loop, done)
        build.position_at_end(done)
        for h in range(HIGH):
            for w in range(WIDE):
                build.store(before[h][w], places[h][w], align=8)
        return context.get_dummy_value()

    return types.void(x, m, out, i, j), generate


def _repeated(build, value):
    empty = ir.Constant(_VECTOR, ir.Undefined)
    first = build.insert_element(empty, value, _INT32(0))
    return build.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


@numba.njit(cache=True, nogil=True)
def padded(dim):
    """Return how many columns, zeros beyond ``dim``, tiles may read: whole vectors, unrolled."""
    return (dim + 22) // 16 * 16


@numba.njit(cache=True, nogil=True)
def add_gram(x, m, dim, out):
    """Add the upper triangle of the Gram matrix of the first m >= 1 rows and ``dim`` columns of x to ``out``.

    Both are ``padded`` columns wide; below the diagonal ``out`` gets parts of no meaning.
    """
    step = WIDE * LANES
    for j in range(0, dim, step):
        for i in range(0, min(j + step, dim), HIGH):
            _add_tile(x, m, out, i, j)
