"""Attention with weights |<q,k>|^p: exact normalisers over all keys, and p = 2 in linear time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout, pad
from torch.utils.checkpoint import checkpoint

from lev import bounds
from lev.torch.leverage import gram, power_of_two
from lev.torch.select import check_tensors

_CHUNK = 256  # queries of one step
_UNDERFLOWS = 2.0**-64  # far below, products of numbers near 1 lose digits in float32
_CANCELS = 2.0**-10  # of p |q| |k|: products below make weights that float32 knows to less than some 2^-14


def power_attention(
    query: Tensor, key: Tensor, value: Tensor, sums: Sums, p: float, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Return sum_j |<q,k_j>|^p v_j / Z over the keys that the mask allows, for queries and keys by :func:`scaled`.

    In float64, or in float32 for narrower values, which takes half as long: but for queries of which all products
    underflow or cancel.
    """
    if value.dtype == torch.float64 or p < 1:
        return _summed(torch.float64, query, key, value, sums, p, mask, dropout_p).to(value.dtype)
    out = _summed(torch.float32, query, key, value, sums, p, mask, dropout_p)
    again = _lost(query, key, sums, p)
    if len(again):
        seen = mask if mask is None or mask.shape[-2] == 1 else mask[..., again, :]
        some = Sums(*(part[..., again, :] for part in sums))
        parts = _summed(torch.float64, query[..., again, :], key, value, some, p, seen, dropout_p)
        out = out.index_copy(-2, again, parts.to(out.dtype))
    return out.to(value.dtype)


def _summed(
    wide: torch.dtype, query: Tensor, key: Tensor, value: Tensor, sums: Sums, p: float, mask: Tensor | None, lost: float
) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):  # the normalisers know of no narrower products
        shares = (query.to(wide) @ key.to(wide).mT).abs() / sums.unit.to(wide)
        if mask is not None:
            shares = shares.masked_fill(~mask, 0)
        weights = dropout(shares.pow(p) / sums.total.to(wide), lost, lost > 0)
        return weights @ value.to(wide)


@torch.no_grad()
def _lost(query: Tensor, key: Tensor, sums: Sums, p: float) -> Tensor:
    """Return the places of queries that in some head have no product large enough for float32."""
    if not key.numel():
        return torch.zeros(0, dtype=torch.int64, device=key.device)
    sizes = query.norm(dim=-1, keepdim=True) * key.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
    lost = sums.unit <= (_CANCELS * p * sizes).clamp(min=_UNDERFLOWS)
    return lost.flatten(0, -3).any(0)[:, 0].nonzero()[:, 0] if lost.dim() > 2 else lost[:, 0].nonzero()[:, 0]


class Sums(NamedTuple):
    """The normalisers of queries, Z = total unit^p, of which neither leaves the range of float64: (..., l, 1) each."""

    unit: Tensor
    total: Tensor


def power_sums(query: Tensor, key: Tensor, p: float, mask: Tensor | None, is_causal: bool, margin: float) -> Sums:
    """Return Z = sum_j |<q,k_j>|^p over all keys that a query may use, or 1 for 0.  Queries and keys are float64.

    ``mask`` is bool, broadcastable to (..., l, n).  For p = 2 and a mask that is the same for every query Z is
    q^T G q, prefix by prefix if causal: O(d^2) a query.  Otherwise, or where rounding may take more than ``margin`` of
    that, all keys are gone through, some queries at a time: O(n d) a query, and memory linear in n, also backwards.
    """
    one = torch.ones_like(query[..., :1])
    if key.shape[-2] == 0:
        return Sums(one, one)
    if p == 2 and (mask is None or mask.shape[-2] == 1):
        total, error = _square_sums(query, key if mask is None else key.masked_fill(~mask.mT, 0), is_causal)
        if bool((error <= margin * total).all()):
            return Sums(torch.where(total > 0, total, 1).sqrt(), one)
    parts = []
    for i, part in enumerate(query.split(_CHUNK, -2)):
        seen = mask if mask is None or mask.shape[-2] == 1 else mask.split(_CHUNK, -2)[i]
        parts.append(checkpoint(_sums, part, key, p, seen, i * _CHUNK if is_causal else None, use_reentrant=False))
    return Sums(*(torch.cat(each, -2) for each in zip(*parts, strict=True)))


def _sums(query: Tensor, key: Tensor, p: float, mask: Tensor | None, first: int | None) -> Sums:
    size = (query @ key.mT).abs()
    if mask is not None:
        size = size.masked_fill(~mask, 0)
    if first is not None:
        size = size.tril(first)
    largest = size.detach().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    total = (size / largest).pow(p).sum(-1, keepdim=True)
    return Sums(largest, torch.where(total > 0, total, 1))


def _square_sums(query: Tensor, key: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return sum_j <q,k_j>^2 by second moments, and what rounding may have made of it."""
    if not is_causal:
        return _by_moments(query, *gram(key))
    key = pad(key, (0, 0, 0, query.shape[-2] - key.shape[-2]))  # zeros weigh nothing
    before, parts = torch.zeros_like(key[..., :1, :].mT @ key[..., :1, :]), []
    for i, (part, block) in enumerate(zip(query.split(_CHUNK, -2), key.split(_CHUNK, -2), strict=True)):
        total, blur = _by_moments(part, before, _CHUNK + i)
        parts.append((total + (part @ block.mT).square().tril().sum(-1, keepdim=True), blur))
        before = before + block.mT @ block
    totals, blurs = zip(*parts, strict=True)
    return torch.cat(totals, -2), torch.cat(blurs, -2)


def _by_moments(query: Tensor, moments: Tensor, roundings: int) -> tuple[Tensor, Tensor]:
    """Return q^T G q for G = K^T K, and what its roundings and those of G may have made of it, by |q|^2 tr G."""
    size = moments.detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    blur = bounds.dot_error(roundings + 3 * query.shape[-1]) * query.detach().square().sum(-1, keepdim=True) * size
    return ((query @ moments) * query).sum(-1, keepdim=True), blur


def scaled(rows: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the rows as float64, times powers of two that bring the largest number along ``dims`` near 1."""
    rows = rows.double()
    if not rows.numel():
        return rows
    largest = rows.detach().abs().amax(dims, keepdim=True)
    return rows * power_of_two(-torch.frexp(largest).exponent)


def square_attention(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, enable_gqa: bool = False
) -> Tensor:
    """Return sum_j <q,k_j>^2 v_j / sum_j <q,k_j>^2 over all keys, in linear time.

    Shapes are those of ``torch.nn.functional.scaled_dot_product_attention``.  A key of zeros has no weight, which
    is how to leave out padding; where all weights are zero the output is zero.  Both sums come from second
    moments of the keys, so this less ``lev_attention(..., f=2)`` is what the keys outside the universal set add.
    Guarantee: exact up to float64 rounding, relative to |q|^2 sum_j |k_j|^2 |v_j|.
    Cost: O(d^2 c / 2) a token for values of c columns; memory d^2 c / 2 numbers a head, and one chunk.
    Raises ValueError for shapes that do not match.  Theory: 01, universal sets.

    >>> import torch, lev.torch
    >>> q, k, v = torch.ones(1, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [6.0]])
    >>> lev.torch.square_attention(q, k, v)
    tensor([[5.]])
    """
    check_shapes(query, key, value, enable_gqa)
    q, k = query.double(), key.double()
    v = pad(value.double(), (0, 1), value=1)  # the last column adds up the weights
    if enable_gqa:
        q, k, v = q.unflatten(-3, (key.shape[-3], -1)), k.unsqueeze(-3), v.unsqueeze(-3)
    both = _prefix_moments(q, k, v) if is_causal else _moments(q, k, v)
    both = both.flatten(-4, -3) if enable_gqa else both
    total = both[..., -1:]
    return (both[..., :-1] / torch.where(total > 0, total, 1)).to(value.dtype)


def _moments(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return sum_j <q,k_j>^2 v_j of every query."""
    moments = key.new_zeros(())
    for block, values in zip(key.split(_CHUNK, -2), value.split(_CHUNK, -2), strict=True):
        moments = moments + _moment(block, values)
    return torch.cat([_products(part) @ moments for part in query.split(_CHUNK, -2)], -2)


def _prefix_moments(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return sum_{j <= i} <q_i,k_j>^2 v_j of every query i."""
    key, value = (pad(rows, (0, 0, 0, query.shape[-2] - rows.shape[-2])) for rows in (key, value))
    moments, parts = None, []
    for part, block, values in zip(*(rows.split(_CHUNK, -2) for rows in (query, key, value)), strict=True):
        near, own = (part @ block.mT).square().tril() @ values, _moment(block, values)
        parts.append(near if moments is None else near + _products(part) @ moments)
        moments = own if moments is None else moments + own
    return torch.cat(parts, -2)


def _products(rows: Tensor) -> Tensor:
    """Return the d (d + 1) / 2 products x_i x_j, i <= j, of every row."""
    i, j = torch.triu_indices(rows.shape[-1], rows.shape[-1], device=rows.device)
    return rows[..., i] * rows[..., j]


def _moment(key: Tensor, value: Tensor) -> Tensor:
    """Return M with S(q) M = sum_j <q,k_j>^2 v_j, S(q) being the products of q: those of i < j count twice."""
    i, j = torch.triu_indices(key.shape[-1], key.shape[-1], device=key.device)
    return (2 - (i == j).to(key.dtype))[:, None] * (_products(key).mT @ value)


def check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """Raise ValueError or TypeError unless the three go together as scaled_dot_product_attention has it."""
    named = {"query": query, "key": key, "value": value}
    check_tensors(**named)
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
    if min(query.dim(), key.dim(), value.dim()) < (3 if enable_gqa else 2):
        raise ValueError(f"query, key and value must be (..., heads, length, width); got {shapes}")
    lead, heads = (-3, query.shape[-3] % key.shape[-3] == 0) if enable_gqa else (-2, True)
    if not heads or query.shape[:lead] != key.shape[:lead] or key.shape[:-1] != value.shape[:-1]:
        hint = "" if enable_gqa else "; query heads may be a multiple of key heads with enable_gqa=True"
        raise ValueError(f"the leading shapes of query, key and value do not go together: {shapes}{hint}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same width; got {shapes}")
    if not (query.dtype == key.dtype == value.dtype and query.is_floating_point()):
        got = f"{query.dtype}, {key.dtype}, {value.dtype}"
        raise TypeError(f"query, key and value must have one floating dtype; got {got}")
