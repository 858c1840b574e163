"""Universal key sets of attention heads, as indices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lev.checks import check_epsilon, check_integer, check_power
from lev.torch.heuristics import (
    CentredNorm,
    ExpectedAttention,
    Keep,
    KeyDifference,
    KMeans,
    Norm,
    Random,
    Recent,
)
from lev.torch.selectors import Leverage, OnlineLeverage, Selector, Sensitivity

SELECTORS: dict[str, Selector] = {
    "leverage": Leverage(),
    "centred_leverage": Leverage(intercept=True),
    "centred_norm": CentredNorm(),
    "norm": Norm(),
    "random": Random(),
    "key_difference": KeyDifference(),
    "kmeans": KMeans(),
    "sinks_recent": Keep(Recent(), first=4),
    "expected_attention": ExpectedAttention(),
}


class UniversalKeys(NamedTuple):
    """The keys chosen for every head, padded to the largest set.

    Attributes
    ----------
    indices : (..., m) int64, ascending; 0 where padded
    scores : (..., m) float64, those of the selector; 0 where padded
    mask : (..., m) bool, False where padded

    >>> import torch, lev.torch as lt
    >>> key = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> found = lt.universal_keys(key, epsilon=0.9)
    >>> found.indices.tolist(), found.mask.tolist(), found.gather(key).tolist()
    ([0], [True], [[2.0, 0.0]])

    """

    indices: Tensor
    scores: Tensor
    mask: Tensor

    def gather(self, rows: Tensor) -> Tensor:
        """Return the chosen rows, (..., m, c), of rows (..., n, c); gradients flow to them."""
        return rows.gather(-2, self.indices[..., None].expand(*self.indices.shape, rows.shape[-1]))


@torch.no_grad()
def universal_keys(
    key: Tensor,
    *,
    epsilon: float | None = None,
    top_k: int | None = None,
    p: float = 2.0,
    selector: str | Selector = "leverage",
    query: Tensor | None = None,
    mask: Tensor | None = None,
) -> UniversalKeys:
    """Return for every head the keys whose score reaches ``epsilon``, or the ``top_k`` of the highest scores.

    ``key`` is (..., n, d), as (batch, heads, n, d), of any float dtype, on any device; ``mask`` bool, broadcastable
    to (..., n), is False at padding.  ``selector`` is a name in ``lev.torch.SELECTORS`` or a
    :class:`lev.torch.Selector`; ``query`` (..., l, d) is for those that look at queries.  The choice has no gradient;
    :meth:`UniversalKeys.gather` has.

    Guarantee, for ``selector="leverage"``: whatever the query, every key with weight
    |<q,k>|^p / sum_l |<q,k_l>|^p >= epsilon is in the set, and the scores are proved upper bounds, rounding included,
    but directions below :func:`lev.bounds.resolution` count as null; with ``top_k`` no key outside can receive more
    than the lowest score inside.  ``epsilon`` needs a selector with such a proof; the others are heuristics, as all of
    them are for softmax.  Ties of scores as computed: the lower index first.
    Cost: O(n d^2) a head, all heads together, in float64; heads that are too ill-conditioned (such as n < d) and
    p != 2 go one by one through :func:`lev.sensitivities` on the CPU.
    Raises TypeError and ValueError for bad input.
    Theory: 01, universal sets; 05, certificates; 13.1, checked factors.

    >>> import torch, lev.torch
    >>> keys = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None, None, [0, 1, 2, 2]]
    >>> found = lev.torch.universal_keys(keys, epsilon=0.9)
    >>> found.indices
    tensor([[[0, 1]]])
    """
    chosen = resolve(selector, p)
    epsilon = check_size(epsilon, top_k)
    if epsilon is not None and chosen.power != p:
        raise ValueError(f"epsilon needs a selector that bounds sensitivities for p={p:g}; got {chosen!r}")
    check_tensors("query", "mask", key=key, query=query, mask=mask)
    key, mask = _clean(key, mask)
    if query is not None and (*query.shape[:-2], query.shape[-1]) != (*key.shape[:-2], key.shape[-1]):
        raise ValueError(f"query must have the shape of key but for its length; got {tuple(query.shape)}")
    if top_k is not None and top_k > key.shape[-2]:
        raise ValueError(f"top_k must be at most the number of keys, {key.shape[-2]}; got {top_k}")
    scores = chosen.scores(key, query=query, mask=mask)
    return _best(scores, mask, epsilon, top_k)


def check_size(epsilon: float | None, top_k: int | None) -> float | None:
    """Return epsilon; raise unless one of the two was given, and in its range."""
    if (epsilon is None) == (top_k is None):
        raise ValueError(f"exactly one of epsilon and top_k must be given; got epsilon={epsilon!r}, top_k={top_k!r}")
    if epsilon is not None:
        return check_epsilon(epsilon)
    check_integer("top_k", top_k, 1)
    return None


def resolve(selector: str | Selector, p: float = 2.0, causal: bool = False) -> Selector:
    """Return the selector of that name for weights |<q,k>|^p; a selector is returned as it is.

    Raises TypeError, ValueError.
    """
    p = check_power(p)
    if not isinstance(selector, str):
        if not isinstance(selector, Selector):
            raise TypeError(f"selector must be a name or a Selector; got {type(selector).__name__}")
        return selector
    if selector not in SELECTORS:
        raise ValueError(f"selector must be a Selector or one of {', '.join(SELECTORS)}; got {selector!r}")
    found = SELECTORS[selector]
    if not isinstance(found, Leverage):
        return found
    if causal:
        return OnlineLeverage(p, found.intercept)
    return found if p == 2 else Sensitivity(p, found.intercept)


def _best(scores: Tensor, mask: Tensor | None, epsilon: float | None, top_k: int | None) -> UniversalKeys:
    member = torch.ones_like(scores, dtype=torch.bool) if epsilon is None else scores >= epsilon
    if mask is not None:
        member = member & mask
    if top_k is not None:
        ranked = scores.masked_fill(~member, -math.inf).sort(dim=-1, descending=True, stable=True).indices
        member = member & torch.zeros_like(member).scatter(-1, ranked[..., :top_k], True)
    count, device = member.sum(-1, keepdim=True), scores.device
    m = top_k if top_k is not None else int(count.max()) if count.numel() else 0
    held = torch.arange(m, device=device) < count
    place = torch.where(member, member.cumsum(-1) - 1, m)  # of each member in its head; the others share the last
    number = torch.arange(place.shape[-1], device=device).expand_as(place)
    indices = torch.zeros((*held.shape[:-1], m + 1), dtype=torch.int64, device=device).scatter(-1, place, number)
    indices = indices[..., :m].contiguous()
    return UniversalKeys(indices, scores.gather(-1, indices).masked_fill(~held, 0), held)


def _clean(key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the keys, zero at padding, and the mask in full; raise for what cannot be scored."""
    if not key.is_floating_point():
        raise TypeError(f"key must be a tensor of floats; got {key.dtype}")
    if key.dim() < 2 or key.shape[-1] == 0:
        raise ValueError(f"key must have shape (..., n, d) with d > 0; got {tuple(key.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool; got {mask.dtype}")
        check_broadcast("mask", mask, tuple(key.shape[:-1]))
        mask = mask.expand(key.shape[:-1])
        key = key.masked_fill(~mask[..., None], 0)  # what stands in padding may be anything
    if key.numel() and not torch.stack(torch.aminmax(key)).isfinite().all():  # NaN is passed on
        bad = tuple((~key.isfinite().all(-1)).nonzero()[0].tolist())
        raise ValueError(f"key must be finite; the key at {bad} holds NaN or infinity")
    return key, mask


def check_tensors(*optional: str, **named: Any) -> None:
    """Raise TypeError unless all are tensors; those whose names are in ``optional`` may be None."""
    for name, value in named.items():
        if not isinstance(value, Tensor) and not (value is None and name in optional):
            raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")


def check_broadcast(name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the mask expands to ``shape``."""
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must be broadcastable to {shape}; got {tuple(mask.shape)}")
