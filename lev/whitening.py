"""Proved brackets of leverage scores for many heads at once, in float64, on the device that holds the keys.

A factor is checked, not trusted: what L and its computed inverse are off by is measured by multiplying them out.
Where that, or the rounding of the Gram matrix, leaves too wide a margin, the head is not ``proved`` and is for the
CPU.  The same lines run over NumPy and CuPy.  Theory: 13.1, checked factor; 14, rounding on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lev import bounds
from lev.cpu.heads import arrays

_PIECE = 4096  # rows of a head that are scored at a time


@dataclass(frozen=True, eq=False)
class Whitener:
    """An inverse square root X of Gram matrices (heads, d, d): the score of a row k is near ||X (s k)||^2."""

    scale: Any  # s, (heads, d), powers of two that bring the columns to one binade
    inverse: Any  # X, (heads, d, d), lower triangular
    pad: Any  # (heads,) rounding of ||X x|| for a row x of unit norm
    low: Any  # (heads,) and
    high: Any  # (heads,) times the square of the computed root, they bracket the score
    margin: Any  # (heads,) relative, of the Gram matrix as well
    proved: Any  # (heads,) bool
    blur: Any  # (heads,) rounding of ||X x||, relative to it

    def odds(self, kernels: ModuleType, keys: Any, kind: str) -> tuple[Any, Any]:
        """Return (lower, upper) of k^T M^-1 k for rows (heads, m, d) that the form M may lack, (heads, m) each."""
        found = kernels.odds(keys, kind, self.inverse * self.scale[:, None, :])
        low, high = self.low * (1 - self.blur) ** 2, self.high * (1 + self.blur) ** 2
        return found * low[:, None], found * high[:, None]

    def ends(self, rows: Any) -> tuple[Any, Any]:
        """Return (lower, upper) of the scores of float64 rows (heads, m, d), (heads, m) each."""
        xp = arrays(rows)
        lower, upper = xp.zeros(rows.shape[:2]), xp.zeros(rows.shape[:2])
        for start in range(0, rows.shape[1], _PIECE):
            part = slice(start, start + _PIECE)
            scaled = rows[:, part] * self.scale[:, None]
            root = xp.linalg.norm(scaled @ self.inverse.swapaxes(1, 2), axis=2)
            pad = self.pad[:, None] * xp.linalg.norm(scaled, axis=2)
            lower[:, part] = xp.minimum(xp.maximum(root - pad, 0) ** 2 * self.low[:, None], 1)
            upper[:, part] = xp.minimum((root + pad) ** 2 * self.high[:, None], 1)
        return lower, upper


@dataclass(frozen=True, eq=False)
class Screen:
    """What the kernels need to drop the rows of a block whose score is proved to be below epsilon."""

    parts: Any  # the probe, of the kernels' own
    scale: Any  # (heads, d) float32
    limit: Any  # (heads, 2) float32
    unit: Any  # (heads,) what a compared side is to be multiplied by, to be the root of an upper bound
    proved: Any  # (heads,) bool


def whitener(kernels: ModuleType, gram: Any, error: float, underflow: float, inherited: Any, limit: float) -> Whitener:
    """Return the whitener of computed Gram matrices of which |gram - K^T K| <= error |K|^T |K| + underflow.

    ``inherited`` (heads,) is a relative margin from before; heads with a margin above ``limit`` are not proved.
    """
    xp, d = arrays(gram), gram.shape[1]
    diagonal = xp.diagonal(gram, axis1=1, axis2=2)
    healthy = xp.all((diagonal > bounds.SMALLEST_PIVOT**2) & (diagonal < bounds.SMALLEST_PIVOT**-2), axis=1)
    exponents = xp.frexp(xp.where(healthy[:, None], diagonal, 1.0))[1] // 2
    scale = xp.ldexp(xp.ones(diagonal.shape), -exponents)
    eye = xp.eye(d)
    gram = xp.where(healthy[:, None, None], gram * scale[:, :, None] * scale[:, None, :], eye)
    lower, inverse = kernels.factor(gram)
    healthy = healthy & xp.isfinite(inverse).all(axis=(1, 2)) & xp.isfinite(lower).all(axis=(1, 2))
    lower, inverse = (xp.where(healthy[:, None, None], matrix, eye) for matrix in (lower, inverse))
    unit, size, reach = bounds.dot_error(d + 2), _frobenius(lower), _frobenius(inverse)
    off = _frobenius(inverse @ lower - eye) + unit * size * reach
    # the trace is rounded too, and is that of the computed matrix
    spread = error * (1 + 2 * error + bounds.dot_error(d + 8)) * xp.trace(gram, axis1=1, axis2=2) + underflow * (
        scale**2
    ).sum(axis=1)
    spread = spread + _frobenius(lower @ lower.swapaxes(1, 2) - gram) + unit * size**2
    kept = ((1 - off) ** 2 - spread * reach**2) * (1 - inherited) / (1 + bounds.dot_error(8 * d + 64))
    margin = xp.where(healthy & (off < 1), 1 - kept, 1.0)
    proved = margin <= limit  # limit < 1/2, so that what follows is finite
    margin = xp.where(proved, margin, 0.5)
    low, high = (1 - margin) / (1 + off) ** 2, 1 / (1 - margin)
    blur = xp.where(proved, unit * size * reach / (1 - off), 0.5)  # |x| <= |L| |X x| / (1 - off)
    return Whitener(scale, inverse, unit * reach, low, high, margin, proved, blur)


def screen(kernels: ModuleType, white: Whitener, epsilon: float, kind: str) -> Screen:
    """Return the filter of rows of one kind that drops only what is proved to score below epsilon."""
    xp, d = arrays(white.inverse), white.inverse.shape[1]
    full = white.inverse * white.scale[:, None, :]
    unit = xp.ldexp(xp.ones(len(full)), xp.frexp(xp.abs(full).max(axis=(1, 2)))[1])
    full = full / unit[:, None, None]
    parts, seen = kernels.probe(full, kind)
    off = _frobenius((full - seen) / white.scale[:, None, :])
    pad = off + bounds.screen_error(d, kind) * _frobenius(full / white.scale[:, None, :])
    blur = bounds.screen_blur(d)
    least = xp.sqrt(epsilon / white.high) / unit
    low, most = bounds.SCREENED
    proved = white.proved & (least >= low) & (least <= most)
    proved = proved & ((white.scale >= low) & (white.scale <= most)).all(axis=1)
    limit = xp.stack([pad * (1 + blur), least * (1 - blur)], axis=1)
    limit = xp.where(proved[:, None], limit, 0.0).astype("float32")
    scale = xp.where(proved[:, None], white.scale, 1.0).astype("float32")
    return Screen(parts, scale, limit, unit * xp.sqrt(white.high) * (1 + 2 * blur), proved)


def _frobenius(matrix: Any) -> Any:
    return arrays(matrix).sqrt((matrix**2).sum(axis=(1, 2)))
