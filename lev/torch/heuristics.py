"""Selectors without a proof, to be compared with those that have one; for softmax none has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lev.checks import check_integer
from lev.torch.leverage import gram
from lev.torch.selectors import Heuristic, Selector, Streamed, affine


@dataclass(frozen=True)
class Norm(Streamed):
    """The norm of the key.

    >>> import torch, lev.torch as lt
    >>> lt.Norm().scores(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [5.0, 1.0]
    """

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the norms."""
        return key.double().norm(dim=-1)


class _Mean(Streamed):
    """Selectors that need the mean key: the summary is the sum of the keys and their count, (..., 1, d + 1)."""

    def summary(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the sum of the keys with a 1 appended, (..., 1, d + 1)."""
        return affine(key, mask).sum(-2, keepdim=True)


@dataclass(frozen=True)
class CentredNorm(_Mean):
    """The distance of the key from the mean key; for rotary models best on the keys before rotation.

    >>> import torch, lev.torch as lt
    >>> lt.CentredNorm().scores(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).tolist()
    [2.0, 2.0]
    """

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the distances."""
        return (key.double() - summary[..., :-1] / summary[..., -1:]).norm(dim=-1)


@dataclass(frozen=True)
class KeyDifference(_Mean):
    """Minus the cosine similarity of the key to the mean key.

    >>> import torch, lev.torch as lt
    >>> lt.KeyDifference().scores(torch.tensor([[4.0, 0.0], [0.0, 3.0]])).round(decimals=6).tolist()
    [-0.8, -0.6]
    """

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return minus the cosines."""
        return -torch.nn.functional.cosine_similarity(key.double(), summary[..., :-1], dim=-1)


@dataclass(frozen=True)
class Random(Streamed):
    """A uniform number in [0, 1) made of seed, head and position alone: the control that others must beat.

    The same on every device, in any blocks, and for every item of a batch.

    >>> import torch, lev.torch as lt
    >>> torch.equal(lt.Random().scores(torch.ones(4, 2)), lt.Random().scores(torch.zeros(4, 2)))
    True
    """

    seed: int = 0

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the numbers."""
        heads = key.shape[-3] if key.dim() > 2 else 1
        head = torch.arange(heads, device=key.device)[:, None]
        position = torch.arange(start, start + key.shape[-2], device=key.device)
        drawn = _mix(_mix(_mix(head + self.seed * 0x1F123BB5) ^ position))
        uniform = (drawn >> 11 & (1 << 53) - 1).double().mul(2.0**-53)
        return (uniform if key.dim() > 2 else uniform[0]).expand(key.shape[:-1])


@dataclass(frozen=True)
class Recent(Streamed):
    """The position of the key: the last ones are kept.

    >>> import torch, lev.torch as lt
    >>> lt.Recent().scores(torch.ones(3, 2)).tolist()
    [0.0, 1.0, 2.0]
    """

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the positions."""
        position = torch.arange(start, start + key.shape[-2], device=key.device, dtype=torch.float64)
        return position.expand(key.shape[:-1])


@dataclass(frozen=True)
class ExpectedAttention(Streamed):
    """The logarithm of E exp(s <q,k>) = exp(s mu k + s^2 k^T Sigma k / 2) over Gaussian queries.

    ``mu`` and ``Sigma`` are those of the queries seen; ``scale`` s is 1 / sqrt(d) by default.

    >>> import torch, lev.torch as lt
    >>> key, query = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> lt.ExpectedAttention().scores(key, query=query).round(decimals=4).tolist()
    [3.8284, 0.0]
    """

    scale: float | None = None
    of_queries = True

    def summary(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the moments of the queries, (..., d + 1, d + 1).  Raises ValueError if there are none."""
        if query is None:
            raise ValueError("query must be given to the selector ExpectedAttention; got None")
        return gram(affine(query))[0]

    def rank(self, key: Tensor, summary: Tensor, start: int = 0) -> Tensor:
        """Return the logarithms."""
        rows, scale = key.double(), key.shape[-1] ** -0.5 if self.scale is None else self.scale
        moments = summary / summary[..., -1:, -1:]
        mean = moments[..., -1:, :-1]
        spread = moments[..., :-1, :-1] - mean.mT @ mean
        return scale * (rows * mean).sum(-1) + scale**2 / 2 * ((rows @ spread) * rows).sum(-1)


@dataclass(frozen=True)
class KMeans(Heuristic):
    """The keys nearest to the centres of a few rounds of Lloyd's algorithm from seeded keys.

    First the nearest key of each cluster, then the second nearest, and so on: minus a key's rank in its cluster,
    and within a rank the nearer ones first.  Cost: O(n clusters d) a round; memory n clusters.

    >>> import torch, lev.torch as lt
    >>> lt.KMeans(clusters=2).scores(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).tolist()
    [-0.0, -0.0, -1.0]
    """

    clusters: int = 64
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("clusters", self.clusters, 1)
        check_integer("rounds", self.rounds, 0)

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return minus the ranks, less a number in [0, 1) that grows with the distance."""
        rows = key.double()
        real = torch.ones_like(rows[..., 0]) if mask is None else mask.double().expand(rows.shape[:-1])
        drawn, first = Random(self.seed).scores(key).masked_fill(real == 0, -1).sort(dim=-1, descending=True)
        first, unused = first[..., : self.clusters], drawn[..., : self.clusters] < 0
        centres = rows.gather(-2, first[..., None].expand(*first.shape, rows.shape[-1]))
        for _ in range(self.rounds):
            cluster = _nearest(rows, centres, unused).indices
            share = torch.zeros(*rows.shape[:-1], centres.shape[-2], dtype=rows.dtype, device=rows.device)
            share.scatter_(-1, cluster[..., None], real[..., None])
            count = share.sum(-2)[..., None]
            centres = torch.where(count > 0, share.mT @ rows / count.clamp(min=1), centres)
        distance, cluster = _nearest(rows, centres, unused)
        distance = distance.masked_fill(real == 0, math.inf)
        return -_rank_within(cluster, distance) - distance / (1 + distance.nan_to_num(posinf=1e300))


@dataclass(frozen=True)
class Keep:
    """Another selector, and besides always the ``first`` keys (sinks) and the ``last`` (a recent window).

    Their scores are infinite; they count towards ``top_k``.

    >>> import torch, lev.torch as lt
    >>> lt.Keep(lt.Norm(), first=1).scores(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [inf, 1.0]
    """

    selector: Selector
    first: int = 0
    last: int = 0

    @property
    def power(self) -> float | None:
        """That of the selector within."""
        return self.selector.power

    @property
    def online(self) -> bool:
        """That of the selector within."""
        return self.selector.online

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the scores of the selector within, infinite at both ends of the unpadded keys."""
        inner = self.selector.scores(key, query=query, mask=mask)
        real = torch.ones_like(inner, dtype=torch.bool) if mask is None else mask.expand(inner.shape)
        place = real.cumsum(-1)  # from 1
        ends = (place <= self.first) | (place > place[..., -1:] - self.last)
        return inner.masked_fill(ends & real, math.inf)


class Held(Heuristic):
    """The scores of another selector, computed once for ``calls`` calls with keys of one shape.

    Between, the last scores stand for keys that they were not computed from: a heuristic, whatever is within.
    A forward pass done again, :func:`again`, has the scores of the last one.
    """

    def __init__(self, selector: Selector, calls: int) -> None:
        self.selector, self.calls = selector, calls
        self._left, self._scores = 0, torch.zeros(0)

    def __repr__(self) -> str:
        return f"Held({self.selector!r}, {self.calls})"

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the scores of the selector within, of these keys or of earlier ones."""
        fits = (self._scores.shape, self._scores.device) == (key.shape[:-1], key.device)
        if fits and again():
            return self._scores
        if self._left == 0 or not fits:
            self._scores, self._left = self.selector.scores(key, query=query, mask=mask), self.calls
        self._left -= 1
        return self._scores


def again() -> bool:
    """Say whether a forward pass is done again within the backward pass, as activation checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _nearest(rows: Tensor, centres: Tensor, unused: Tensor) -> Any:
    """Return the distances and indices of the nearest centres that are in use."""
    distances = torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(unused[..., None, :], math.inf).min(-1)


def _rank_within(cluster: Tensor, distance: Tensor) -> Tensor:
    """Return how many rows of the same cluster are nearer, float64 (..., n); ties: the earlier one first."""
    order = distance.argsort(dim=-1, stable=True)
    order = order.gather(-1, cluster.gather(-1, order).argsort(dim=-1, stable=True))
    sorted_cluster = cluster.gather(-1, order).contiguous()
    begin = torch.searchsorted(sorted_cluster, sorted_cluster)
    place = torch.arange(cluster.shape[-1], device=cluster.device).expand_as(cluster)
    return torch.zeros_like(distance).scatter(-1, order, (place - begin).double())


def _mix(state: Tensor) -> Tensor:
    """Return the splitmix64 hash of int64 numbers (its sums and products wrap around)."""
    state = state - 0x61C8864680B583EB
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return state ^ (state >> 31 & (1 << 33) - 1)
