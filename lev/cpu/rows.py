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
def screen(parts, y_norms, x_norms, values, following, gain, pad, growth, out):
    """Write into ``out`` an upper bound on the score of each row that is not yet in the form.

    ``parts`` (m, w) are a row's components z along the w weakest eigenvectors over their root eigenvalues
    ``values``; sum z_i^2 + (|y|^2 - sum values_i z_i^2) / ``following`` bounds the score.  ``gain`` and ``pad``
    are what rounding of ``parts`` may add.  One pass saves ten temporaries.
    """
    m, w = parts.shape
    for i in range(m):
        bound, seen = 0.0, 0.0
        for j in range(w):
            square = np.float64(parts[i, j]) * np.float64(parts[i, j])
            bound += square
            seen += values[j] * square
        blur = 2 * gain * np.sqrt(y_norms[i] * x_norms[i]) + gain * gain * x_norms[i]
        bound += (max(y_norms[i] - seen, 0.0) + blur) / following
        root = np.sqrt(bound) + pad * np.sqrt(x_norms[i])
        odds = root * root * growth
        # float32 overflow gives NaN or infinity here, which must pass
        out[i] = min(odds / (1 + odds) * (1 + 2.0**-52), 1.0) if odds < 1e300 else 1.0
