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


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def screen(parts, y_norms, x_norms, following, pad, growth, out):
    """Write into ``out`` an upper bound on the score of each row that is not yet in the form.

    sum_i parts_i^2 + |y|^2 / ``following`` bounds the score against the form; ``pad`` |x| is what rounding may
    add to its root, and (a + b)^2 <= (1 + t) a^2 + (1 + 1/t) b^2 saves the roots.  One pass saves eight temporaries.
    """
    share = 2.0**-10
    own, rounding = growth * (1 + share), growth * (1 + 1 / share) * pad * pad
    m, w = parts.shape
    for i in range(m):
        bound = y_norms[i] / following
        for j in range(w):
            bound += np.float64(parts[i, j]) * np.float64(parts[i, j])
        odds = own * bound + rounding * x_norms[i]
        # float32 overflow gives NaN or infinity here, which must pass
        out[i] = min(odds / (1 + odds) * (1 + 2.0**-52), 1.0) if odds < 1e300 else 1.0
