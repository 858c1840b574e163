"""Selectors: each gives every key a score, and the keys of the highest scores are kept.  Here: those with a proof.

A selector whose ``power`` is a number proves that its scores bound the sensitivities for that p from above; for all
others ``power`` is None and they are heuristics, offered to be compared.  For softmax attention every selector is a
heuristic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lev import bounds
from lev.torch.leverage import gram, leverage_bounds, online_bounds, sensitivity_bounds, whitener


@runtime_checkable
class Selector(Protocol):
    """Scores keys: the higher, the sooner kept.

    Any object with these three will do, as :class:`lev.torch.Leverage`, or one of your own:

    >>> import torch, lev.torch as lt
    >>> class First:
    ...     power, online = None, False
    ...
    ...     def scores(self, key, *, query=None, mask=None):
    ...         return -torch.arange(key.shape[-2], dtype=torch.float64).expand(key.shape[:-1])
    >>> lt.universal_keys(torch.ones(1, 5, 2), top_k=2, selector=First()).indices.tolist()
    [[0, 1]]
    """

    @property
    def power(self) -> float | None:
        """The p for which scores are proved upper bounds on sensitivities; None: a heuristic."""

    @property
    def online(self) -> bool:
        """Whether that proof is among the keys up to each key itself, as causal attention needs it."""

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return float64 (..., n) scores of the keys (..., n, d).

        ``query`` is (..., l, d) with the leading shape of the keys; ``mask`` (..., n) is False at padding, whose
        keys are zero and whose scores are ignored.
        """


class Heuristic:
    """What selectors without a proof have in common."""

    power: float | None = None
    online: bool = False


class Streamed(Heuristic):
    """A selector of two steps: a summary of rows that adds up, and scores against it.

    The summary of all rows is the sum of the summaries of any parts, in any order, so that streams, caches and
    workers need no more than ``+``.

    >>> import torch, lev.torch as lt
    >>> key, leverage = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), lt.Leverage()
    >>> summary = leverage.summary(key[:2]) + leverage.summary(key[2:])
    >>> leverage.rank(key, summary).round(decimals=6).tolist()
    [1.0, 0.5, 0.5]
    """

    of_queries: bool = False
    """Whether the summary is one of queries, which not all who stream keys have."""

    def summary(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return what the scores need to know of these rows."""
        return key.new_zeros(())

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the scores, (..., n), of rows that stand at ``start``, ``start`` + 1, ..., given a summary."""
        raise NotImplementedError

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the scores of all keys at once."""
        return self.rank(key, self.summary(key, query=query, mask=mask))


def affine(key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the keys in float64 with a column of ones appended; a padded row is zero throughout."""
    ones = key.new_ones(key.shape[:-1], dtype=torch.float64)
    ones = ones if mask is None else ones * mask
    return torch.cat([key.double() * ones[..., None], ones[..., None]], -1)


@dataclass(frozen=True)
class Leverage(Streamed):
    """The leverage score: the most weight <q,k>^2 / sum_l <q,k_l>^2 that any query can give a key.

    ``intercept``: the centred score, for queries <q,k> + b.  Guarantee: proved upper bounds, within the margin of
    :func:`lev.bounds.margin` in :meth:`scores`; :meth:`rank` knows only a sum and says 1 where that proves nothing.

    >>> import torch, lev.torch as lt
    >>> lt.Leverage().scores(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).round(decimals=6).tolist()
    [1.0, 0.5, 0.5]
    """

    intercept: bool = False
    power = 2.0

    def summary(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the Gram matrix of the rows with a 1 appended, (..., d + 1, d + 1)."""
        return gram(affine(key, mask))[0]

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return proved upper bounds, also for rows that are not in the summary yet."""
        rows = affine(key) if self.intercept else key.double()
        count, d = summary[..., -1, -1], rows.shape[-1]
        most = int(count.max()) if count.numel() else 0
        return whitener(summary[..., :d, :d], most + 64).bound(rows)

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return proved upper bounds."""
        return leverage_bounds(affine(key, mask) if self.intercept else key, key.dtype)


@dataclass(frozen=True)
class Sensitivity(Heuristic):
    """Upper ends of :func:`lev.sensitivities` for weights |<q,k>|^p: head by head on the CPU.

    Guarantee: proved upper bounds, at most a factor r^|p/2-1| above for rank r; ``tolerance`` below 1 refines each
    row until its bracket is that narrow, at the cost of many rounds a row.

    >>> import torch, lev.torch as lt
    >>> key = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> lt.Sensitivity(4.0, tolerance=1e-3).scores(key).round(decimals=3).tolist()
    [1.0, 0.5, 0.5]
    """

    power: float = 2.0
    intercept: bool = False
    tolerance: float = 1.0

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return proved upper bounds."""
        rows = affine(key, mask) if self.intercept else key.double()
        return sensitivity_bounds(rows, self.power, self.tolerance)


@dataclass(frozen=True)
class OnlineLeverage(Heuristic):
    """The most weight |<q,k>|^p that any query can give a key among the keys up to it: for causal attention.

    The keys above epsilon are the union over time of the universal sets of all prefixes; later keys only lower a
    weight.  Guarantee: proved upper bounds.  With t the leverage score in the prefix of length j they are t^{p/2}
    for p <= 2 and j^{p/2-1} t^{p/2} for p > 2, by Hoelder; 1 until the keys span all d directions.
    Theory: 13.2-3.

    >>> import torch, lev.torch as lt
    >>> lt.OnlineLeverage().scores(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).round(decimals=6).tolist()
    [1.0, 1.0, 0.5]
    """

    power: float = 2.0
    intercept: bool = False
    online = True

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return proved upper bounds."""
        rows = affine(key, mask) if self.intercept else key.double()
        upper, p = online_bounds(rows), self.power
        if p == 2:
            return upper
        count = torch.arange(1, key.shape[-2] + 1, device=key.device, dtype=torch.float64)
        # by logarithms, for the factors may leave the range of float64
        spread, high = max(0.0, p / 2 - 1) * count.log(), p / 2 * upper.clamp(min=bounds.SMALLEST_ODDS).log()
        slack = bounds.power_error(p) * (1 + spread + high.abs())
        return (spread + high + slack).exp().clamp(max=1).masked_fill((rows == 0).all(-1), 0)
