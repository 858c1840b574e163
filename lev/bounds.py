"""Every size, guarantee and tolerance of the library, one function a theorem.

No other module holds a tolerance.  The notes in ``theory/`` prove what stands here.
"""

from __future__ import annotations

import math

import numpy as np

UNIT = 2.0**-53
"""Unit roundoff of float64, the arithmetic in which every form is kept."""


UNIT_SINGLE = 2.0**-24
"""Unit roundoff of float32, in which float32 rows are filtered."""

SMALLEST_PIVOT = 2.0**-450
"""Pivots below this, relative to the largest entry of their column, would overflow when inverted and squared."""

DWARFED = 2.0**-10
"""Rows are only excused from their rounding where what is left is smaller than this.  Theory: 04, QR row by row."""

PREFIX_SHARE = 2.0**-10
"""How much of epsilon a score in a prefix may be blurred by before the block is halved.  Theory: 06, causal."""

MOST_EXCUSE = 2.0**10
"""The most that excused rows may cost the others, now and later.  Theory: 04, QR row by row."""

LEWIS_RESIDUAL = 1e-11
"""Relative residual of a Lewis fixed point, times 2 / p for p < 2, which it may grow to in the weights."""

SHARE = 2.0**-10
"""t in (a + b)^2 <= (1 + t) a^2 + (1 + 1/t) b^2, for filters whose rounding b is small.  Theory: 04, sound filters."""

SMALLEST_ODDS = 2.0**-1000
"""What the odds of a row that is not zero are taken for at least: they may underflow, small powers of them do not."""

LEAST_WEIGHT = float(np.finfo(np.float64).tiny)
"""What the weight of a row that is not zeros is taken for at least, for it may underflow, and a sum of weights too."""

SCALE_ERROR = 2.0**-41
"""Relative rounding of the scale of a row that decayed.  Theory: 12, online Lewis weights and decay."""

SINGLE_BLUR = 0.1
"""Float32 filters are only used while their rounding is less than this part of the mean score."""

BRACKET_TOLERANCE = 1e-6
"""How close the two proved ends of a sensitivity are brought.  Theory: 05, duality."""


LARGEST_POWER = 900
"""The powers of two, either way, that entries of lifted rows may reach, so that their squares can be scaled."""


def max_members(total: float, epsilon: float, p: float = 2.0) -> float:
    """Return the most keys that can have sensitivity >= epsilon: total^max(1, p/2) / epsilon.

    ``total`` is the rank, or the sum of the weights that prove the bounds of a stream.
    Theory: 01, universal sets (the leverage scores sum to the rank); 05, Lewis weights.
    """
    with np.errstate(over="ignore"):
        return float(np.float64(total) ** max(1.0, p / 2) / epsilon)


def odds_below(epsilon: float) -> float:
    """Return a with a / (1 + a) < epsilon for all odds below it, rounded down.  Theory: 02, a row not in the form."""
    return min(epsilon / (1 - epsilon) * (1 - dot_error(4)), 2.0**50) if epsilon < 1 else 2.0**50


def dot_error(length: int, unit: float = UNIT) -> float:
    """Return the relative rounding error of a sum of ``length`` products, in any order.

    Theory: 04, rounding margin.
    """
    return length * unit / (1 - length * unit)


def single_error(dim: int) -> float:
    """Return the relative rounding error of products of ``dim`` columns that are converted to float32 first.

    Theory: 04, sound filters.
    """
    return dot_error(dim + 4, UNIT_SINGLE)


def turned_error(dim: int) -> float:
    """Return the rounding of ||y L||, relative to |y| ||L||_F, with the QR factorisation that L came from.

    Theory: 04, frames.
    """
    return dot_error(3 * dim + 4)


def power_error(p: float, terms: int = 0) -> float:
    """Return the relative rounding error of p/2-th powers, per unit of their logarithms, and of sums of ``terms``.

    Theory: 12, online Lewis weights and decay.
    """
    return dot_error(terms + 16) * (1 + p)


def gram_error(length: int, sums: int) -> float:
    """Return c with |computed - exact| <= c * trace for Gram matrices of ``length`` rows, ``sums`` added.

    Theory: 04, rounding margin.
    """
    return dot_error(length + sums)


def prefix_error(length: int, energy: float) -> float:
    """Return a with |computed - exact| <= a max(1, |w|^2) for the scores of whitened rows w in every prefix of a block.

    ``length`` is the rows of the block and the rank together, ``energy`` the rows plus the sum of their squared
    whitened norms.  Theory: 06, causal.
    """
    return 8 * dot_error(length + 3) * energy


def margin(dtype: np.dtype) -> float:
    """Return the relative error of a score that rows of ``dtype`` are held to.

    Inputs of 32 bits or fewer carry rounding of their own that is far larger, so their Gram matrix may be
    summed for longer before it is whitened.  Theory: 04, rounding margin.
    """
    return 2.0**-18 if np.dtype(dtype).itemsize <= 4 else 2.0**-29


def null_level(dim: int) -> float:
    """Return the size, relative to the rows, below which a component is taken for rounding.

    Theory: 04, resolution.
    """
    return 4 * dim * UNIT


def resolution(dim: int) -> float:
    """Return rho: a weight w is held if sqrt(w) >= sqrt(epsilon) + rho ||K|| ||q|| / ||K q||.

    A null direction is judged against the Frobenius norm of columns scaled to one binade, which costs
    sqrt(dim) twice and 2 over the null level.  Theory: 04, resolution.
    """
    return 2 * dim * null_level(dim)


SCREENED = 2.0**-45, 2.0**60
"""Between these are the scales of columns and the limits of screened rows, so that no float32 square that matters
underflows or overflows.  Theory: 14, rounding on a device."""

FAST_MARGIN = 2.0**-4
"""The largest relative margin of scores from a Gram matrix that was summed on tensor cores."""


def underflow(rows: int, tensor: bool) -> float:
    """Return what products that underflow may take from an entry of a Gram matrix.  Theory: 14."""
    return rows * (2.0**-126 if tensor else 2.0**-1022)


def batch_gram_error(rows: int, tensor: bool) -> float:
    """Return c with |computed - exact| <= c |K|^T |K| for Gram matrices of batches of heads.

    With ``tensor`` 32 products at a time are summed on tensor cores, in float32.  Theory: 14, rounding on a device.
    """
    return (36 * 2 * UNIT_SINGLE if tensor else 0.0) + dot_error(rows // 16 + 2176)


def screen_error(dim: int, kind: str) -> float:
    """Return c: a screened root |X k| is off by at most c ||X||_F |k|.  Theory: 14, rounding on a device."""
    return dot_error(5 * dim + 64, UNIT if kind == "float64" else UNIT_SINGLE)


def screen_blur(dim: int) -> float:
    """Return the relative rounding of the side that is compared with a limit.  Theory: 14, rounding on a device."""
    return dot_error(2 * dim + 64, UNIT_SINGLE)


def coreset_rate(delta: float, failure: float) -> float:
    """Return c: with probabilities min(1, c sigma_j) a fixed query's sum is within 1 +- delta, but for ``failure``.

    Bernstein's inequality; sigma_j may be any upper bound on the sensitivity.  Theory: 11, coresets.
    """
    return 2 * (1 + delta / 3) * math.log(2 / failure) / delta**2


def coreset_error(rate: float, failure: float) -> float:
    """Return the delta of :func:`coreset_rate` for a given rate; 0 for an infinite one.  Theory: 11, coresets."""
    share = math.log(2 / failure) / rate
    return share / 3 + math.sqrt(share * (share / 9 + 2))
