"""Proved upper bounds on leverage scores, for every head at once, in float64: compiled on the CPU, on any device.

A factor is checked, not trusted: what a Cholesky factor and its inverse are off by is measured by multiplying them
out, so the bounds rest on matrix products that round as usual and on nothing else.  Where that leaves too wide a
margin nothing is proved, and the bound is 1.  Theory: 13, scores of many heads at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import lev
from lev import backend, bounds
from lev.heads import bounds_all

_BLOCK = 128  # rows of one block of online scores
_PIECE = 2**24  # numbers that are float64 at a time


def gram(rows: Tensor) -> tuple[Tensor, int]:
    """Return K^T K, (..., d, d), of float64 rows (..., n, d), and how many roundings an entry went through.

    Pieces of about sqrt(n) rows are summed, and then the pieces: 2 sqrt(n) roundings instead of n.  A column that
    is not zero but whose squares are is NaN, for the zero would be taken for its true size.
    """
    n = rows.shape[-2]
    piece = max(64, math.isqrt(n))
    parts, rest = rows[..., : n - n % piece, :].unflatten(-2, (-1, piece)), rows[..., n - n % piece :, :]
    total = (parts.mT @ parts).sum(-3) + rest.mT @ rest
    vanished = total.diagonal(dim1=-2, dim2=-1) == 0
    if vanished.any():  # seldom, and asking saves a pass over the rows
        total.diagonal(dim1=-2, dim2=-1).masked_fill_(vanished & (rows != 0).any(-2), math.nan)
    return total, piece + parts.shape[-3] + 1


@dataclass(frozen=True, eq=False)
class Whitener:
    """An inverse square root W of Gram matrices: the score of a row k against one is ||W k||^2."""

    scale: Tensor  # (..., d) powers of two that bring the columns to one binade
    dead: Tensor  # (..., d) columns that are zero so far
    inverse: Tensor  # (..., d, d)
    reach: Tensor  # (...) its Frobenius norm
    margin: Tensor  # (...) relative rounding margin of a score; 1 or more: nothing is proved

    def whiten(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return W k of every row, (..., n, d), and what rounding may have taken from its norm, (..., n)."""
        scaled = rows * self.scale[..., None, :]
        pad = bounds.dot_error(rows.shape[-1] + 2) * self.reach
        return scaled @ self.inverse.mT, pad[..., None] * scaled.norm(dim=-1)

    def leaves(self, rows: Tensor) -> Tensor:
        """Say which rows have a part in a dead column, bool (..., n)."""
        return ((rows != 0) & self.dead[..., None, :]).any(-1)

    def bound(self, rows: Tensor) -> Tensor:
        """Return upper bounds on the scores k^T G^+ k, (..., n), at most 1; 1 for a row that leaves the span."""
        white, pad = self.whiten(rows)
        return self.settle(rows, self.grown((white.norm(dim=-1) + pad).square()))

    def grown(self, upper: Tensor) -> Tensor:
        """Return ``upper`` raised by the margin."""
        return upper / (1 - self.margin).clamp(min=0)[..., None]

    def settle(self, rows: Tensor, upper: Tensor) -> Tensor:
        """Return ``upper``, at most 1: exactly 1 where nothing is proved, and 0 for a zero row."""
        upper, proved = upper.clamp(max=1), self.margin < 1
        if proved.all() and not self.dead.any():  # nearly always, and asking saves two passes over the rows
            return upper
        unproved = self.leaves(rows) | ~proved[..., None]
        return upper.masked_fill(unproved, 1).masked_fill((rows == 0).all(-1), 0)


def whitener(gram: Tensor, roundings: int) -> Whitener:
    """Return the whitener of computed Gram matrices (..., d, d).

    With L L^T ~ G and X ~ L^{-1}, x = ||X L - I|| and e = ||L L^T - G|| + the rounding of G are measured.  Then
    lambda_min(L L^T) >= l = ((1 - x) / ||X||)^2 and k^T G^+ k <= ||X k||^2 / ((1 - x)^2 (1 - e / l)).  Theory: 13.1.
    """
    d, diagonal = gram.shape[-1], gram.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    within = (diagonal > bounds.SMALLEST_PIVOT**2) & (diagonal < bounds.SMALLEST_PIVOT**-2)
    healthy = (within | dead).all(-1) & gram.isfinite().flatten(-2).all(-1)
    eye = torch.eye(d, dtype=gram.dtype, device=gram.device)
    scale = _root_scale(diagonal.masked_fill(dead | ~healthy[..., None], 1))
    gram = torch.where(healthy[..., None, None], gram * scale[..., None] * scale[..., None, :], eye)
    gram = gram + torch.diag_embed((dead & healthy[..., None]).to(gram.dtype))
    lower, failed = torch.linalg.cholesky_ex(gram)
    lower = torch.where((failed == 0)[..., None, None], lower, eye)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    unit, size, reach = bounds.dot_error(d + 2), _frobenius(lower), _frobenius(inverse)
    off = _frobenius(inverse @ lower - eye) + unit * size * reach
    # the trace is rounded too, which d + 8 roundings more pay for
    spread = bounds.gram_error(roundings, d + 8) * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    error = _frobenius(lower @ lower.mT - gram) + unit * size.square() + spread
    kept = ((1 - off).square() - error * reach.square()) / (1 + bounds.dot_error(8 * d + 64))
    proved = healthy & (failed == 0) & (off < 1)
    return Whitener(scale, dead, inverse, reach, torch.where(proved, 1 - kept, math.inf))


def leverage_bounds(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return proved upper bounds on the leverage score of every row (..., n, d), float64 (..., n).

    ``dtype`` is that in which they came.  Relative margin: :func:`lev.bounds.margin`.  Heads that are too
    ill-conditioned for a Gram matrix are whitened twice, and those that are nearly dependent go one by one through
    :func:`lev.sensitivities` on the CPU, with its margin.  Cost: O(n d^2) a head.
    """
    limit = bounds.margin(np.dtype(np.float64 if dtype == torch.float64 else np.float32))
    if not rows.numel():
        return rows.new_zeros(rows.shape[:-1], dtype=torch.float64)
    heads = rows.reshape(-1, *rows.shape[-2:])
    upper, wide = _on_cpu(heads.detach()) if rows.is_cpu else _checked(heads, limit)
    if wide.any():
        some = heads[wide].double()
        upper[wide], margin = _twice_whitened(some)
        worse = ~(margin <= limit)
        if worse.any():
            upper[wide.nonzero()[worse, 0]] = sensitivity_bounds(some[worse], 2.0)
    return upper.reshape(rows.shape[:-1])


@torch.library.custom_op("lev::leverage_bounds", mutates_args=())
def _on_cpu(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Return upper bounds, (heads, n), by compiled kernels, and for which heads they do not hold."""
    narrow = heads.float() if heads.dtype == torch.bfloat16 else heads
    upper, accurate = bounds_all(narrow.resolve_neg().numpy())
    return torch.from_numpy(upper), torch.from_numpy(~accurate)


@_on_cpu.register_fake
def _(heads: Tensor) -> tuple[Tensor, Tensor]:
    return heads.new_empty(heads.shape[:-1], dtype=torch.float64), heads.new_empty(heads.shape[:1], dtype=torch.bool)


def _checked(heads: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return upper bounds, (heads, n), by checked factors, and for which heads their margin is above the limit."""
    parts = heads.split(max(64, _PIECE * heads.shape[-2] // max(1, heads.numel())), -2)
    sums, roundings = zip(*(gram(part.double()) for part in parts), strict=True)
    whiten = whitener(sum(sums[1:], sums[0]), max(roundings) + len(parts))
    return torch.cat([whiten.bound(part.double()) for part in parts], -1), ~(whiten.margin <= limit)


def _twice_whitened(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds on the scores of float64 rows (heads, n, d), (heads, n), and their relative margins, (heads,).

    Scores do not change with the basis, and in the one that a first factor whitens the Gram matrix is nearly the
    identity, however ill-conditioned the rows are (CholeskyQR2).  What rounding makes of the whitened rows is charged
    to each and to all.  Theory: 13.5.
    """
    first = whitener(*gram(rows))
    white, pads = first.whiten(rows)
    second = whitener(*gram(white))
    again, pad = second.whiten(white)
    blur = second.reach * second.scale.amax(-1)
    left = (1 - second.margin).clamp(min=0)
    left = left * (1 - blur * pads.norm(dim=-1) / left.sqrt()).clamp(min=0).square()
    left = (left / (1 + bounds.dot_error(2 * rows.shape[-2] + 32))).nan_to_num(0)
    upper = (again.norm(dim=-1) + pad + blur[:, None] * pads).square() / left[:, None]
    return upper.clamp(max=1).masked_fill((left == 0)[:, None], 1), 1 - left


def sensitivity_bounds(rows: Tensor, p: float, tolerance: float = 1.0) -> Tensor:
    """Return the upper ends of :func:`lev.sensitivities`, (..., n): each head by itself, on the CPU, for any p."""
    if not rows.numel():
        return rows.new_zeros(rows.shape[:-1], dtype=torch.float64)
    heads = rows.detach().reshape(-1, *rows.shape[-2:])
    return _sensitivity_bounds(heads, p, tolerance).reshape(rows.shape[:-1])


@torch.library.custom_op("lev::sensitivity_bounds", mutates_args=())
def _sensitivity_bounds(heads: Tensor, p: float, tolerance: float) -> Tensor:
    upper = backend.run(lambda head: lev.sensitivities(head, p, tolerance=tolerance)[1], heads.cpu())
    return torch.stack(upper).to(heads.device)


@_sensitivity_bounds.register_fake
def _(heads: Tensor, p: float, tolerance: float) -> Tensor:
    return heads.new_empty(heads.shape[:-1], dtype=torch.float64)


def online_bounds(rows: Tensor) -> Tensor:
    """Return proved upper bounds on the leverage score of every row among the rows up to itself, (..., n).

    Before a block of rows Z, whitened by the rows before it, L L^T = I + Z Z^T gives row i the score
    1 - 1 / L_ii^2 in its own prefix.  Rows before the prefix has full rank score 1.  Cost: O(n d^2) a head, one
    step of the loop for a block of all heads.  Theory: 13.2.
    """
    before, upper, start, steps = rows.new_zeros(*rows.shape[:-2], rows.shape[-1], rows.shape[-1]), [], 0, 0
    while start < rows.shape[-2]:
        # blocks grow with what is known, so that few rows are scored before the rank is full
        block = rows[..., start : start + min(_BLOCK, max(start, rows.shape[-1])), :]
        upper.append(_block_bounds(whitener(before, _BLOCK + steps), block))
        before, start, steps = before + gram(block)[0], start + block.shape[-2], steps + 1
    return torch.cat(upper, -1) if upper else rows.new_zeros(rows.shape[:-1])


def _block_bounds(whiten: Whitener, rows: Tensor) -> Tensor:
    """Return bounds on the score of each row among those behind ``whiten`` and the block up to itself.

    A row that leaves the span is no help to those after it: it is taken out.
    """
    white, pad = whiten.whiten(rows)
    white = white.masked_fill(whiten.leaves(rows)[..., None], 0)
    energy, pads, (b, d) = white.square().sum((-2, -1)), pad.norm(dim=-1), rows.shape[-2:]
    eye = torch.eye(b, dtype=rows.dtype, device=rows.device)
    sums = white @ white.mT + eye
    lower, failed = torch.linalg.cholesky_ex(sums.nan_to_num())
    error = bounds.dot_error(d + 2) * (energy + b) + (2 * energy.sqrt() + pads) * pads
    error = error + _frobenius(lower @ lower.mT - sums) + bounds.dot_error(b + 2) * _frobenius(lower).square()
    left = torch.where((failed == 0) & (error < 1), (1 - error) / (1 + bounds.dot_error(8)), 0)
    among = lower.diagonal(dim1=-2, dim2=-1).square() / left[..., None] - 1
    alone = (white.norm(dim=-1) + pad).square()
    score = whiten.grown(torch.minimum(alone, among.nan_to_num(math.inf, math.inf)))
    return whiten.settle(rows, (1 + bounds.dot_error(8)) / (1 + 1 / score))


def _frobenius(matrix: Tensor) -> Tensor:
    return matrix.flatten(-2).norm(dim=-1)


def _root_scale(values: Tensor) -> Tensor:
    """Return exact powers of two near 1 / sqrt(values)."""
    return power_of_two(-torch.frexp(values).exponent.div(2, rounding_mode="floor"))


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent, put together from its bits, for integers clamped to [-1000, 1000]."""
    return ((1023 + exponent.to(torch.int64).clamp(-1000, 1000)) << 52).view(torch.float64)
