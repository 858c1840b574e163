"""A cache of keys and values that never outgrows its budget: sinks, a recent window, and the best of the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lev.checks import check_integer
from lev.torch.select import check_broadcast, check_tensors, resolve
from lev.torch.selectors import Selector, Streamed


class Visible(NamedTuple):
    """What new queries may look at: the tokens held before and the new ones, in the order they came.

    Attributes
    ----------
    keys : (batch, heads, m, d)
    values : (batch, heads, m, c)
    positions : (batch, heads, m) int64, their places among all tokens seen, padding included

    """

    keys: Tensor
    values: Tensor
    positions: Tensor


class BoundedCache:
    """The keys and values of at most ``budget`` tokens a head, chosen anew as tokens arrive.

    Always held are the ``sinks`` first tokens and the ``recent`` last ones; the other places go to the highest
    scores among the tokens held and the new ones, by a selector with a running summary
    (:class:`lev.torch.Streamed`) of all tokens seen, those that were dropped included.  All heads hold equally many.

    Guarantee, for ``selector="leverage"`` and weights <q,k>^2 / sum_l <q,k_l>^2 over all tokens seen: no token that
    was dropped can receive more than :attr:`omitted` from any query, then or later, since scores only fall.  So
    where ``omitted`` is below epsilon the causal universal set is held whole.  For softmax attention, and for every
    other selector, the choice is a heuristic.
    Cost: O(d^2) a token, new or held; memory O((budget + d) d) a head.
    Raises TypeError and ValueError for bad arguments.  Theory: 02, monotonicity.

    >>> import torch
    >>> from lev.torch.cache import BoundedCache
    >>> cache = BoundedCache(4, sinks=1, recent=2)
    >>> for key in torch.tensor([[1.0, 0], [9, 0], [1, 0], [0, 1], [1, 1], [1, 0]]):
    ...     visible = cache.update(key.view(1, 1, 1, 2), key.view(1, 1, 1, 2))
    >>> cache.positions
    tensor([[[0, 1, 4, 5]]])
    """

    def __init__(self, budget: int, *, sinks: int = 4, recent: int = 64, selector: str | Selector = "leverage") -> None:
        self.budget = check_integer("budget", budget, 1)
        self.sinks = check_integer("sinks", sinks, 0)
        self.recent = check_integer("recent", recent, 0)
        if self.sinks + self.recent > self.budget:
            raise ValueError(f"budget must hold {sinks} sinks and {recent} recent tokens, or pass fewer; got {budget}")
        chosen = resolve(selector)
        if not isinstance(chosen, Streamed) or chosen.of_queries:
            raise ValueError(f"selector must be a Streamed one of keys, to score tokens as they come; got {selector!r}")
        self.selector = chosen
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.seen = 0
        self._tokens: dict[str, Tensor] = {}  # of those held: (batch, heads, m) or (batch, heads, m, ...)
        self._totals: dict[str, Tensor] = {}  # of all seen: (batch, heads, ...)

    @property
    def keys(self) -> Tensor:
        """The keys held, (batch, heads, m, d), m <= budget, in the order they came.

        Like all that is known of tokens, it raises ValueError as long as none came.
        """
        return self._known(self._tokens, "keys")

    @property
    def values(self) -> Tensor:
        """The values held, (batch, heads, m, c)."""
        return self._known(self._tokens, "values")

    @property
    def positions(self) -> Tensor:
        """The places of the tokens held among all seen, padding included: int64 (batch, heads, m), ascending."""
        return self._known(self._tokens, "positions")

    @property
    def omitted(self) -> Tensor:
        """The highest score a token had when it was dropped, float64 (batch, heads); -inf if none was."""
        return self._known(self._totals, "omitted")

    @staticmethod
    def _known(parts: dict[str, Tensor], name: str) -> Tensor:
        if name not in parts:
            raise ValueError(f"{name} are those of tokens that came; none did")
        return parts[name]

    def __len__(self) -> int:
        """Return the number of tokens held for each head."""
        return self.keys.shape[-2] if self._tokens else 0

    def update(self, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Visible:
        """Add tokens; return those held before and the new ones.

        ``keys`` is (batch, heads, l, d), ``values`` (batch, heads, l, c); ``mask`` bool (batch, l), False at
        padding, which is dropped first.  What is returned, at most budget + l tokens, is what the new queries may
        look at.  Gradients flow through keys and values, not through the choice.
        Raises ValueError for shapes that do not match.
        """
        self._check(keys, values, mask)
        real = (
            torch.ones_like(keys[..., 0], dtype=torch.bool) if mask is None else mask[:, None].expand(keys.shape[:-1])
        )
        ages, totals = self._counted(keys, real)
        every = self._extended(keys, values, ages, totals)
        held = self._within_budget(every, totals) if every["keys"].shape[-2] > self.budget else every
        self.seen, self._tokens, self._totals = self.seen + keys.shape[-2], held, totals
        return Visible(every["keys"], every["values"], every["positions"])

    def over_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply ``change`` to all that is held, along the batch axis: to reorder, repeat or choose sequences."""
        self._tokens = {name: change(part) for name, part in self._tokens.items()}
        self._totals = {name: change(part) if part.dim() else part for name, part in self._totals.items()}

    def _check(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        check_tensors("mask", keys=keys, values=values, mask=mask)
        if keys.dim() != 4 or values.dim() != 4 or values.shape[:3] != keys.shape[:3]:
            raise ValueError(
                "keys and values must have shapes (batch, heads, l, d) and (batch, heads, l, c); "
                f"got {tuple(keys.shape)} and {tuple(values.shape)}"
            )
        for name, new in (("keys", keys), ("values", values)):
            held = self._tokens.get(name, new)
            if (new.shape[:2], new.shape[3]) != (held.shape[:2], held.shape[3]):
                raise ValueError(f"{name} must fit those held, {tuple(held.shape)}; got {tuple(new.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (keys.shape[0], keys.shape[2])):
            expected = (keys.shape[0], keys.shape[2])
            raise ValueError(f"mask must be bool of shape {expected}; got {mask.dtype} {tuple(mask.shape)}")

    @torch.no_grad()
    def _counted(self, keys: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ages of the new tokens, from 0 for the first real one, -1 for padding, and totals with them."""
        none = torch.full(keys.shape[:2], -math.inf, dtype=torch.float64, device=keys.device)
        count = real.new_zeros(keys.shape[:2], dtype=torch.int64)
        before = self._totals or {"omitted": none, "real": count, "summary": keys.new_zeros(())}
        summary = before["summary"] + self.selector.summary(keys.masked_fill(~real[..., None], 0), mask=real)
        ages = (real.cumsum(-1) + before["real"][..., None] - 1).masked_fill(~real, -1)
        return ages, before | {"summary": summary, "real": before["real"] + real.sum(-1)}

    def _extended(self, keys: Tensor, values: Tensor, ages: Tensor, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return all that is known of the tokens held and the new ones."""
        places = torch.arange(self.seen, self.seen + keys.shape[-2], device=keys.device).expand_as(ages)
        every = {"keys": keys, "values": values, "positions": places, "ages": ages}
        if self._tokens:
            every = {name: torch.cat([self._tokens[name], part], 2) for name, part in every.items()}
        scores = self._scores(every["keys"], keys, totals["summary"])
        return every | {"scores": scores.masked_fill(every["ages"] < 0, -math.inf)}

    @torch.no_grad()
    def _scores(self, every: Tensor, new: Tensor, summary: Tensor) -> Tensor:
        if summary.dim():
            return self.selector.rank(every, summary)
        fresh = self.selector.rank(new, summary, self.seen)  # without a summary no score ever changes
        return torch.cat([self._tokens["scores"], fresh], -1) if self._tokens else fresh

    def _within_budget(self, every: dict[str, Tensor], totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tokens that stay; the totals learn of the others."""
        ages, scores = every["ages"], every["scores"]
        safe = (ages < self.sinks) | (ages >= totals["real"][..., None] - self.recent)
        order = scores.masked_fill(safe & (ages >= 0), math.inf).sort(dim=-1, descending=True, stable=True).indices
        kept = order[..., : self.budget].sort(dim=-1).values
        dropped = scores.gather(-1, order[..., self.budget :]).amax(-1)
        totals["omitted"] = torch.maximum(totals["omitted"], dropped)
        return {name: _take(part, kept) for name, part in every.items()}


def _take(part: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen tokens of (batch, heads, n) or (batch, heads, n, c)."""
    return part.gather(2, chosen if part.dim() == 3 else chosen[..., None].expand(*chosen.shape, part.shape[-1]))


def bounded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    top_k: int,
    sinks: int = 4,
    recent: int = 64,
    selector: str | Selector = "leverage",
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Return causal softmax attention in which no query sees more than ``top_k`` keys, (batch, heads, l, c).

    The tokens go through a :class:`BoundedCache` in blocks of recent / 2.  A query sees the ``sinks`` first tokens,
    the latest ones (at least recent / 2, at most ``recent``), and the best of those between.  ``query`` is
    (batch, heads, l, d), and stands at the last l of the n keys (batch, key heads, n, d); query heads are a multiple
    of key heads.  ``attn_mask`` bool, broadcastable to (batch, 1, l, n), may hide more: keys that it hides from
    every query count as padding.  With ``top_k`` >= n this is ``scaled_dot_product_attention``.

    Guarantee: that of :class:`BoundedCache` for the choice; for softmax a heuristic.
    Cost: O(n (top_k + d) d) time a head, O(top_k) memory a query of one block.
    Raises TypeError and ValueError for bad input.

    >>> import torch
    >>> from lev.torch.cache import bounded_attention
    >>> q, k, v = torch.randn(3, 1, 2, 100, 8)
    >>> bounded_attention(q, k, v, top_k=40, recent=20).shape
    torch.Size([1, 2, 100, 8])
    """
    if check_integer("sinks", sinks, 0) + check_integer("recent", recent, 1) > check_integer("top_k", top_k, 2):
        raise ValueError(f"top_k must hold {sinks} sinks and {recent} recent tokens, or pass fewer; got {top_k}")
    check_tensors("attn_mask", query=query, key=key, value=value, attn_mask=attn_mask)
    past, step = key.shape[-2] - query.shape[-2], max(1, recent // 2)
    budget = top_k - step if key.shape[-2] > top_k else top_k
    cache = BoundedCache(budget, sinks=sinks, recent=recent - step, selector=selector)
    mask, real = _expanded(attn_mask, (len(key), 1, query.shape[-2], key.shape[-2]))
    starts = [0] * (past > 0) + list(range(past, key.shape[-2], step))
    parts = [query.new_zeros(*query.shape[:2], 0, value.shape[-1])]
    for first, last in itertools.pairwise([*starts, key.shape[-2]]):
        block = slice(first, last)
        visible = cache.update(key[:, :, block], value[:, :, block], None if real is None else real[:, block])
        if first >= past:
            new = slice(first - past, last - past)
            seen = _allowed(visible.positions, first, last, None if mask is None else mask[:, :, new])
            parts.append(_attend(query[:, :, new], visible, seen, dropout_p, scale))
    return torch.cat(parts, -2)


def _expanded(attn_mask: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask in full and which keys it shows to any query, (batch, n)."""
    if attn_mask is None:
        return None, None
    check_broadcast("attn_mask", attn_mask, shape)
    mask = attn_mask.expand(shape)
    return mask, mask.any(-2)[:, 0]


def _attend(query: Tensor, visible: Visible, seen: Tensor, dropout_p: float, scale: float | None) -> Tensor:
    groups = query.shape[1] // seen.shape[1]
    seen = seen.repeat_interleave(groups, 1)
    keys, values = visible.keys, visible.values
    return scaled_dot_product_attention(query, keys, values, seen, dropout_p, scale=scale, enable_gqa=groups > 1)


def _allowed(positions: Tensor, first: int, last: int, mask: Tensor | None) -> Tensor:
    """Return whether the query at each place from first to last may look at those positions, (batch, heads, l, m)."""
    past = positions[:, :, None] <= torch.arange(first, last, device=positions.device)[:, None]
    if mask is None:
        return past
    columns = positions[:, :, None].expand(*past.shape)
    return past & mask.expand(*past.shape[:3], -1).gather(-1, columns)
