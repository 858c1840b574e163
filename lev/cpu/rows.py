"""Row kernels: the one pass that reads the keys."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def widen(rows, scale, out, norms):
    """Write float64 ``rows * scale`` into ``out`` and squared row norms into ``norms``.

    ``out`` may have one column more than ``rows``: it holds the constant 1 of affine queries.  One pass saves
    the float64 temporary, the scaled temporary and a second read for the norms.
    """
    m, d = rows.shape
    for i in range(m):
        total = 0.0
        for j in range(d):
            value = rows[i, j] * scale[j]
            out[i, j] = value
            total += value * value
        if out.shape[1] > d:
            out[i, d] = scale[d]
            total += scale[d] * scale[d]
        norms[i] = total


@numba.njit(cache=True, nogil=True)
def first_nonfinite(rows):
    """Return the position of the first row that holds NaN or infinity, or -1."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            if not np.isfinite(rows[i, j]):
                return i
    return -1
