"""Kernels for many heads at once: the launches of ``gram.cu``, ``factor.cu``, ``screen.cu`` and ``lewis.cu``.

What each returns is said by its twin in ``lev/cpu/heads.py``.  CuPy compiles a source when it is first used.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from lev.cpu.heads import arrays
from lev.cpu.heads import wide as wide

_SHORT = {"float16", "bfloat16"}
_TENSOR = 128  # the most columns that the tensor core kernels take
_SHARED = 96 * 1024  # bytes of shared memory of a block that every card since compute capability 8.0 has


def source(name):
    """Return the text of the kernels in ``name``.cu with what they share."""
    here = Path(__file__).parent
    return "\n".join((here / f"{part}.cu").read_text() for part in ("common", name))


@functools.cache
def _module(name):
    import cupy

    return cupy.RawModule(code=source(name), options=("--std=c++17",))


@functools.cache
def _kernel(name, entry, shared):
    kernel = _module(name).get_function(entry)
    if shared > 48 * 1024:
        kernel.max_dynamic_shared_size_bytes = shared
    return kernel


def _launch(name, entry, grid, threads, shared, *arguments):
    whole = (np.int32(value) if isinstance(value, int) else value for value in arguments)
    _kernel(name, entry, shared)(grid, (threads, 1, 1), tuple(whole), shared_mem=shared)


def tensor(kind, d):
    return kind in _SHORT and d <= _TENSOR


def _width(kind, d):
    """Return the padded width of the tensor core kernels, or 0 where they do not serve."""
    return 0 if not tensor(kind, d) else 64 if d <= 64 else 128


def gram(keys, kind, fast, factors=None):
    heads, n, d = keys.shape
    width = _width(kind, d) if fast and factors is None else 0
    slices = max(1, min(64, -(-n // 512), 1024 // heads))
    span = -(-n // slices)
    partial = arrays(keys).empty((heads, slices, d, d))
    if width:
        side = width // 32
        shared = 32 * (width + 8) * 4
        _launch(
            "gram",
            f"gram_{kind}_{width}",
            (slices, heads, 1),
            16 * side * (side + 1),
            shared,
            keys,
            partial,
            n,
            d,
            span,
        )
    else:
        side = -(-d // 64)
        grid = (side * (side + 1) // 2, slices, heads)
        name, given = (f"gram_{kind}", ()) if factors is None else (f"weighted_{kind}", (factors,))
        _launch("gram", name, grid, 256, 2 * 16 * 64 * 8, keys, *given, partial, n, d, span)
    return partial.sum(axis=1)


def factor(gram):
    heads, d, _ = gram.shape
    lower, inverse = arrays(gram).empty_like(gram), arrays(gram).empty_like(gram)
    row, triangle = 8 * d, 4 * d * (d + 1)
    packed = int(row + triangle <= _SHARED)
    _launch("factor", "factor", (heads, 1, 1), 512, row + packed * triangle, gram, lower, inverse, d, packed)
    return lower, inverse


def probe(matrix, kind):
    xp, (heads, d, _) = arrays(matrix), matrix.shape
    width = _width(kind, d)
    if not width:
        parts = matrix.astype("float64" if kind == "float64" else "float32")
        return parts, parts.astype("float64")
    parts, seen = xp.zeros((heads, 2, width, width), "uint16"), xp.zeros_like(matrix)
    for part in range(2):
        rest = (matrix - seen).astype("float32")
        if kind == "float16":
            bits = rest.astype("float16").view("uint16")
        else:  # rounded to the nearest by adding half of what is cut off
            bits = ((rest.view("uint32") + np.uint32(1 << 15)) >> np.uint32(16)).astype("uint16")
        parts[:, part, :d, :d] = bits
        seen += wide(bits.view("float16") if kind == "float16" else bits, kind)
    return parts, seen


def screen(keys, kind, parts, scale, limit):
    xp, (heads, n, d) = arrays(keys), keys.shape
    found, count, peak = xp.empty((heads, n), "int32"), xp.zeros(heads, "int32"), xp.zeros(heads, "uint32")
    width = _width(kind, d)
    if n == 1:
        name, shared = f"one_{kind}_{width}" if width else f"one_{kind}", (d + 8) * (8 if kind == "float64" else 4)
        _launch("screen", name, (heads, 1, 1), 128, shared, keys, parts, scale, limit, found, count, peak, d)
        return found, count, peak.view("float32")
    if n and width:
        blocks = max(1, min(-(-n // 256), 1024 // heads))
        shared = 2 * width * (width // 2 + 4) * 4 + width * 4
        name, grid = f"screen_{kind}_{width}", (blocks, heads, 1)
    elif n:
        shared = 2 * 16 * 65 * (8 if kind == "float64" else 4)
        name, grid = f"screen_{kind}", (-(-n // 64), heads, 1)
    if n:
        _launch("screen", name, grid, 256, shared, keys, parts, scale, limit, found, count, peak, n, d)
    return found, count, peak.view("float32")


def odds(keys, kind, matrix):
    heads, n, d = keys.shape
    found = arrays(keys).empty((heads, n))
    if n:
        grid, shared = (-(-n // 64), heads, 1), 2 * 16 * 65 * 8
        _launch("lewis", f"odds_{kind}", grid, 256, shared, keys, matrix, found, n, d)
    return found


def lewis_roots(odds, p):
    xp = arrays(odds)
    roots, power = xp.empty(odds.shape), xp.full(1, float(p))
    if odds.size:
        _launch("lewis", "lewis_roots", (-(-odds.size // 256), 1, 1), 256, 0, odds, power, roots, odds.size)
    return roots
