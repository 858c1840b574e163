"""What rounding may have made of a form, and of the scores by its factors.  Theory: 04, rounding margin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.frame import Frame


def gram_margin(dim: int, sums: int, gram: np.ndarray, smallest: float | None = None) -> float:
    """Return the relative margin of a form's Gram matrix, given (a lower bound on) its least eigenvalue.

    It is infinite where products that count may have underflowed.
    """
    if not len(gram):
        return 0.0
    size = np.trace(gram)
    if smallest is None:
        smallest = float(np.linalg.eigvalsh(gram)[0])
    if not (smallest > 0 and size >= bounds.SMALLEST_PIVOT**2):
        return math.inf
    error = _gram_error(dim, sums) + 4 * bounds.dot_error(dim)
    with np.errstate(over="ignore"):
        return float(error * size / np.float64(smallest))


def root_margin(dim: int, sums: Any, size: Any, inverse: Any) -> Any:
    """Return the relative margin of inverted Cholesky factors, given the traces of G and of its inverse.

    Twice the square root of their product is the most that the inverted factor may be off, relatively.
    """
    error = _gram_error(dim, sums) + 4 * bounds.dot_error(dim)
    return error * size * inverse + 4 * bounds.dot_error(2 * dim) * np.sqrt(size * inverse)


def _gram_error(dim: int, sums: Any) -> Any:
    # a root of the form, of at most dim rows, is added in one go too
    return bounds.gram_error(max(backend.CHAIN, dim), sums)


def of_factor(
    frame: Frame, tail: float, turns: int, excuse: float, whiten: np.ndarray, least: float, margin: float
) -> tuple[float, float]:
    """Return (reach, slack): the rounding of ||y W|| for a row of unit norm, and of the form itself.

    ``tail`` (its norm), ``turns`` and ``excuse`` are the form's; ``least`` is no more than an eigenvalue, ``margin``
    what W makes of the Gram matrix's.  T is only nearly the inverse of the triangle R.  What that costs is bounded
    either for the form as a whole or row by row; the second is far better when the rows differ in size by many orders.
    """
    unit, excused, triangle = bounds.dot_error(frame.dim), turns * excuse, frame.triangle
    sizes = np.linalg.norm(whiten, axis=1)
    if triangle is None:
        once = unit * _spectral(np.abs(whiten))
        own = bounds.turned_error(frame.dim) * float(np.linalg.norm(sizes))
        return own + excused * once, margin + _squared((1 + turns) * once * tail)
    inverse, square = np.abs(triangle.inverse), np.abs(triangle.square)
    product = inverse @ np.abs(whiten)
    once = unit * _spectral(product)
    gap = _squared(unit * float(np.linalg.norm(square @ inverse))) / least
    whole = gap + _squared((1 + turns) * once * tail)
    turned = once + unit * _spectral(inverse @ (square @ product))
    each = _squared((turned + turns * once) * tail)
    own = bounds.turned_error(frame.dim) * float(np.linalg.norm(inverse @ sizes))
    own += once if whole <= each else turned
    return own + excused * once, margin + min(whole, each)


def of_plain_factors(
    turns: np.ndarray, inherited: np.ndarray, sums: Any, tail: np.ndarray, size: np.ndarray, inverse: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (reach, slack), (heads,) each, of forms in identity frames for inverted Cholesky factors.

    ``tail`` is (heads, D); ``size`` and ``inverse`` are the traces of the Gram matrices and of their inverses.
    """
    dim = tail.shape[1]
    once = bounds.dot_error(dim) * np.sqrt(inverse)
    each = _squared((1 + turns) * once * np.linalg.norm(tail, axis=1))
    return once, inherited + root_margin(dim, sums, size, inverse) + each


def narrow(exponents: np.ndarray, energy: Any, inverse: Any) -> Any:
    """Say of forms of full rank whether products in float32 are close enough: small beside the mean score.

    ``exponents`` (..., D) are those of their frames, ``energy`` and ``inverse`` the traces of their Gram matrices and
    of the inverses.  Nothing may leave its range: sizes are held to a power of two of 60, what underflows is charged.
    """
    inside = (np.abs(exponents).max(axis=-1) <= 60) & (np.abs(np.log2(inverse)) <= 120)
    blur = bounds.UNIT_SINGLE**2 / bounds.SHARE * energy * inverse
    return inside & (blur <= bounds.SINGLE_BLUR * exponents.shape[-1])


def screen_terms(dim: int, size: Any, reach: Any, slack: Any, single: bool) -> tuple[Any, Any, Any]:
    """Return (own, others, least): own |x A|^2 + others |x|^2 + least bounds what |x A|^2 was for a row x but zeros.

    A is a matrix of Frobenius norm ``size``, the products with it are taken in float32 if ``single``; ``reach`` and
    ``slack`` are the factor's.  Theory: 04, sound filters.
    """
    unit = bounds.single_error(dim) if single else bounds.dot_error(dim + 4)
    lost = bounds.underflow(dim, tensor=True) if single else 0.0
    own = growth(slack) * (1 + unit)
    others = own * (1 + 1 / bounds.SHARE) * 2
    rounded, lost = unit * size + reach, lost * (math.sqrt(dim) + size)
    return own * (1 + bounds.SHARE), others * rounded**2, others * lost**2


def growth(slack: Any) -> Any:
    """Return what a relative margin of a form may add to a score, as a factor."""
    return 1 / np.fmax(1 - slack, 1e-300)


def _spectral(matrix: np.ndarray) -> float:
    """Return a bound on the spectral norm of a matrix that is nowhere negative."""
    product = float(matrix.sum(axis=0).max()) * float(matrix.sum(axis=1).max())
    return min(math.sqrt(product), float(np.linalg.norm(matrix)))


def _squared(error: Any) -> Any:
    """Return the relative error of a square whose root has relative error ``error``, from either side."""
    with np.errstate(divide="ignore"):
        return 1 / np.fmax(1 - error, 0) ** 2 - 1
