"""Attention over the universal keys: they are gathered, so time and memory are those of the subset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lev import bounds
from lev.checks import check_power
from lev.torch.powers import check_shapes, power_attention, power_sums, scaled
from lev.torch.select import UniversalKeys, check_broadcast, check_size, resolve, universal_keys
from lev.torch.selectors import Selector

CROSSOVER = 700
"""Up to this many keys, or a third as many queries, softmax attention over all keys is taken instead: it is faster.

Measured on a CPU, float32, d = 64, by ``asv_benchmarks/attention_report.py``; on other machines pass your own.
"""


def lev_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    top_k: int | None = None,
    epsilon: float | None = None,
    f: str | float = "softmax",
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    selector: str | Selector = "leverage",
    crossover: int = CROSSOVER,
) -> Tensor:
    """Return attention of every query over the universal keys of its head, (..., heads, l, c).

    Arguments are those of ``torch.nn.functional.scaled_dot_product_attention`` and of
    :func:`lev.torch.universal_keys`: one set a key head among the keys that some query may use.  ``attn_mask`` and
    ``is_causal`` may both be given: both must allow a key.

    ``f="softmax"``: softmax over the chosen keys, a heuristic; over all keys if n <= ``top_k``, or if n or 3 l is at
    most ``crossover``, where that is faster.
    ``f=p``: the sum of |<q,k>|^p / Z v over the chosen keys, Z exact over *all* keys that the query may use, so what
    is left out is not shared among the rest; ``attn_mask`` is then bool, and ``scale`` cancels.

    Guarantee for f=p with ``epsilon``: a key to which a query gives epsilon or more is used, if the mask is the same
    for all queries of the key's head.  Causal: query i uses the members j <= i of the union over time,
    {j : score of j among the keys up to it >= epsilon}, and ``top_k`` ranks those scores; selectors other than the
    leverages see later keys too.
    Cost: O(n d^2 + l m (d + c)) a head for m chosen keys; Z for p != 2, or for masks that differ between queries,
    O(l n d) time and linear memory.  Raises TypeError, ValueError.  Theory: 01, universal sets; 13.4, causal attention.

    >>> import torch, lev.torch
    >>> lev.torch.lev_attention(*torch.randn(3, 2, 4, 100, 8), top_k=16).shape
    torch.Size([2, 4, 100, 8])
    """
    p, epsilon = _check_function(f, attn_mask), check_size(epsilon, top_k)
    check_shapes(query, key, value, enable_gqa)
    attn_mask, selector, chosen = _check_mask(attn_mask, query, key), resolve(selector, p or 2.0, is_causal), None
    short = p is None and min(key.shape[-2], 3 * query.shape[-2]) <= crossover
    if key.shape[-2] > (top_k or 0) and not short:
        chosen = _choose(query, key, attn_mask, is_causal, p, selector, (epsilon, top_k))
    if p is not None:
        return _powers(query, key, value, chosen, attn_mask, is_causal, p, dropout_p)
    options: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    return _softmax(query, key, value, chosen, attn_mask, is_causal, options)


def _softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: UniversalKeys | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    options: dict[str, Any],
) -> Tensor:
    if chosen is None and (attn_mask is None or not is_causal):
        return scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, **options)
    mask = _mask_at(chosen, attn_mask, is_causal, query, key)
    return scaled_dot_product_attention(query, *_gathered(chosen, key, value), mask, **options)


def _powers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: UniversalKeys | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    p: float,
    dropout_p: float,
) -> Tensor:
    mask, usable = _mask_at(chosen, attn_mask, is_causal, query, key), _usable(query, key, attn_mask, is_causal)
    margin = bounds.margin(np.dtype(np.float64 if key.dtype == torch.float64 else np.float32))
    key = key if usable is None else key.masked_fill(~usable[..., None], 0)  # whatever stands there
    query, key = scaled(query, (-1,)), scaled(key, (-2, -1))  # the size of neither matters, and squares stay in range
    keys, values = (_spread(rows, query) for rows in _gathered(chosen, key, value))
    sums = power_sums(query, _spread(key, query), p, attn_mask, is_causal, margin)
    return power_attention(query, keys, values, sums, p, mask, dropout_p)


def _gathered(chosen: UniversalKeys | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return (key, value) if chosen is None else (chosen.gather(key), chosen.gather(value))


def _choose(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    p: float | None,
    selector: Selector,
    size: tuple[float | None, int | None],
) -> UniversalKeys:
    """Return one set a key head among the keys that some query may use."""
    epsilon, top_k = size
    if epsilon is not None and is_causal and not selector.online:
        raise ValueError(f"epsilon with is_causal needs a selector that scores keys in their prefix; got {selector!r}")
    usable, power = _usable(query, key, attn_mask, is_causal), p or selector.power or 2.0
    pooled = query.unflatten(-3, (key.shape[-3], -1)).flatten(-3, -2) if _groups(key, query) > 1 else query
    return universal_keys(key, epsilon=epsilon, top_k=top_k, p=power, selector=selector, query=pooled, mask=usable)


def _usable(query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Return which keys some query may use, broadcastable to (..., key heads, n), or None for all."""
    usable = None
    if attn_mask is not None:
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -math.inf
        if is_causal and allowed.shape[-2] > 1:
            allowed = allowed & allowed.new_ones(allowed.shape[-2], key.shape[-2]).tril()
        usable = allowed.any(-2).expand(*query.shape[:-2], key.shape[-2])
        usable = usable.unflatten(-2, (key.shape[-3], -1)).any(-2) if _groups(key, query) > 1 else usable
    if is_causal and query.shape[-2] < key.shape[-2]:
        seen = torch.arange(key.shape[-2], device=key.device) < query.shape[-2]
        usable = seen if usable is None else usable & seen
    return usable


def _mask_at(
    chosen: UniversalKeys | None, attn_mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
) -> Tensor | None:
    """Return the mask of the chosen keys, broadcastable to (..., heads, l, m), or None if it hides nothing."""
    allowed, mask = None, attn_mask
    if chosen is not None:
        groups = _groups(key, query)
        indices, held = (x if groups == 1 else x.repeat_interleave(groups, -2) for x in (chosen.indices, chosen.mask))
        allowed = None if held.all() else held[..., None, :]
        if mask is not None and mask.shape[-1] > 1:
            full = mask.expand(*query.shape[:-2], *mask.shape[-2:])
            mask = full.gather(-1, indices[..., None, :].expand(*full.shape[:-1], indices.shape[-1]))
    if is_causal:
        places = torch.arange(key.shape[-2], device=key.device) if chosen is None else indices
        past = places[..., None, :] <= torch.arange(query.shape[-2], device=key.device)[:, None]
        allowed = past if allowed is None else past & allowed
    if mask is None or allowed is None:
        return allowed if mask is None else mask
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -math.inf)


def _groups(rows: Tensor, query: Tensor) -> int:
    """Return how many query heads share a key head."""
    return query.shape[-3] // rows.shape[-3] if query.dim() > 2 and rows.shape[-3] else 1


def _spread(rows: Tensor, query: Tensor) -> Tensor:
    """Return the rows of key heads for each of their query heads."""
    groups = _groups(rows, query)
    return rows if groups == 1 else rows.repeat_interleave(groups, -3)


def _check_function(f: str | float, attn_mask: Tensor | None) -> float | None:
    """Return p of weights |x|^p, None for softmax."""
    if isinstance(f, str):
        if f != "softmax":
            raise ValueError(f"f must be 'softmax' or a power p > 0; got {f!r}")
        return None
    try:
        p = check_power(f)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("p must", "f must", 1)) from None
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise TypeError(f"attn_mask must be bool for weights |x|^p; got {attn_mask.dtype}")
    return p


def _check_mask(attn_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Return the mask with at least two dimensions."""
    if attn_mask is None:
        return None
    if attn_mask.dtype not in (torch.bool, query.dtype):
        raise TypeError(f"attn_mask must be bool or {query.dtype}; got {attn_mask.dtype}")
    check_broadcast("attn_mask", attn_mask, (*query.shape[:-1], key.shape[-2]))
    return torch.atleast_2d(attn_mask)
