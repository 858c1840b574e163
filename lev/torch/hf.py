"""Hugging Face transformers: attention over the universal keys by name, and a cache with a budget for generation.

Tested with transformers 4.56 and 5.23.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

try:
    from transformers import AttentionInterface
    from transformers.cache_utils import Cache, DynamicLayer
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
except ImportError as error:
    raise ImportError("lev.torch.hf needs transformers >= 4.56: pip install 'lev-attention[hf]'") from error

from lev.checks import check_integer
from lev.torch.attention import lev_attention
from lev.torch.cache import BoundedCache, bounded_attention
from lev.torch.select import check_size, resolve
from lev.torch.selectors import Selector

_CHANGES_LOGITS = ("position_bias", "softcap", "s_aux")
"""What some models hand to their attention, and what would be lost without a word."""


def register(
    name: str = "lev",
    *,
    top_k: int | None = None,
    epsilon: float | None = None,
    selector: str | Selector = "leverage",
    sinks: int = 4,
    recent: int = 64,
) -> str:
    """Make ``model.set_attn_implementation(name)`` attend to the universal keys only, and return the name.

    The budget belongs to the name, so that nothing of it enters a model's saved configuration and several can be
    compared on one model: ``register("lev-256", top_k=256)``, ``register("lev-1024", top_k=1024)``.

    Attention that is not causal, and any with ``epsilon``, goes through :func:`lev.torch.lev_attention`: one set of
    ``top_k`` keys a key head, or those whose score reaches ``epsilon``.  Causal attention with ``top_k`` goes through
    :func:`lev.torch.cache.bounded_attention`, where each query sees the ``sinks`` first tokens, up to ``recent`` latest
    ones, and the best of the rest, ``top_k`` in all.  Up to ``top_k`` keys the model is as before.  The masks are
    those that transformers makes for its own "sdpa", so that padding and sliding windows hold.

    Guarantee: none for the output, since the models are softmax models; the choice is a heuristic.
    Raises TypeError and ValueError for bad arguments; when the model runs, ValueError for a position bias, soft cap
    or learned sink and for ``top_k`` that cannot hold ``sinks`` and ``recent``, TypeError for a mask that is not bool.

    >>> from lev.torch.hf import register
    >>> register("lev-32", top_k=32, recent=16)
    'lev-32'
    """
    check_size(epsilon, top_k)
    resolve(selector)
    check_integer("sinks", sinks, 0)
    check_integer("recent", recent, 1)
    # without a mask function of the same name the causal mask would be dropped in silence
    AttentionMaskInterface.register(name, sdpa_mask)
    size: dict[str, Any] = {"top_k": top_k, "selector": selector}
    causal = functools.partial(bounded_attention, **size, sinks=sinks, recent=recent)
    everywhere: dict[str, Any] = {"crossover": 0}  # what was asked for, however short
    general = functools.partial(lev_attention, **size, **everywhere, epsilon=epsilon)
    AttentionInterface.register(name, _Named(top_k, causal, general))
    return name


@dataclass(frozen=True)
class _Named:
    """An attention function in the shape that transformers wants."""

    top_k: int | None
    causal: Callable[..., Tensor]
    general: Callable[..., Tensor]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Return (batch, l, heads, c), and no weights."""
        _refuse_what_would_be_lost(attention_mask, kwargs)
        forward = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if forward and query.shape[-2] < key.shape[-2]:
            n = _filled(attention_mask, query.shape[-2], key.shape[-2])
            key, value = key[..., :n, :], value[..., :n, :]
            attention_mask = None if attention_mask is None else attention_mask[..., :n]
        forward = forward and not _looks_ahead(attention_mask, query.shape[-2], key.shape[-2])
        options = {"attn_mask": attention_mask, "dropout_p": dropout, "scale": scaling}
        return self._attend(query, key, value, forward, options).transpose(1, 2).contiguous(), None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, forward: bool, options: dict[str, Any]) -> Tensor:
        length, n, grouped = query.shape[-2], key.shape[-2], query.shape[1] != key.shape[1]
        if self.top_k is not None and n <= self.top_k:
            alone = forward and options["attn_mask"] is None and length > 1
            return scaled_dot_product_attention(query, key, value, **options, is_causal=alone, enable_gqa=grouped)
        if self.top_k is not None and forward:
            return self.causal(query, key, value, **options)
        ordered = forward and length == n > 1
        return self.general(query, key, value, **options, is_causal=ordered, enable_gqa=grouped)


def _refuse_what_would_be_lost(mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    for name in _CHANGES_LOGITS:
        if kwargs.get(name) is not None:
            raise ValueError(f"attention over universal keys has no {name}; this model needs another implementation")
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4):
        raise TypeError(f"attention_mask must be bool (batch, 1, l, n); got {mask.dtype} {tuple(mask.shape)}")


def _filled(mask: Tensor | None, length: int, n: int) -> int:
    """Return how many of n keys there are: a static cache has empty slots behind the last query's own."""
    if mask is None:
        return n if length == 1 else length  # transformers leaves the mask out only of a first pass, or of one token
    seen = mask.flatten(0, 2).any(0).nonzero()
    return max(length, int(seen[-1]) + 1 if len(seen) else 0)


def _looks_ahead(mask: Tensor | None, length: int, n: int) -> bool:
    """Return whether some query may see a later key, as in a prefix of images."""
    if mask is None or length == 1:
        return False
    later = torch.ones(length, n, dtype=torch.bool, device=mask.device).triu(n - length + 1)
    return bool((mask & later).any())


class LevCache(Cache):
    """A cache that never holds more than ``budget`` tokens a head while ``generate`` runs, each layer for itself.

    For any attention implementation: ``model.generate(**inputs, past_key_values=LevCache(512))``.  The arguments are
    those of :class:`lev.torch.cache.BoundedCache`, and so is what is promised of the tokens dropped; positions go on
    counting all tokens.  New tokens see each other and what was held; then the cache falls back to its budget.  So a
    prompt is attended to in full unless it comes in chunks.  A layer with a sliding window sees the latest of the
    tokens held, which may be older than its window: as before only if ``recent`` is the window or more.

    ``attention_mask`` (batch, n): that of the prompts, needed where they are padded (on the left, as generation
    wants it), so that padding is dropped first; ``reset`` forgets it with the prompts.  Beam search and repeated or
    chosen batches work; what needs dropped tokens back, such as assisted decoding, raises NotImplementedError.
    Raises TypeError and ValueError for bad arguments.

    >>> from lev.torch.hf import LevCache
    >>> LevCache(512, recent=128).get_seq_length()
    0
    """

    def __init__(
        self,
        budget: int,
        *,
        sinks: int = 4,
        recent: int = 64,
        selector: str | Selector = "leverage",
        attention_mask: Tensor | None = None,
    ) -> None:
        held = functools.partial(BoundedCache, budget, sinks=sinks, recent=recent, selector=selector)
        held()  # bad arguments are refused now, not in the first layer
        mask = None if attention_mask is None else attention_mask.bool()
        super().__init__(layer_class_to_replicate=functools.partial(_BoundedLayer, held, mask))

    @property
    def omitted(self) -> list[Tensor]:
        """For each layer the highest score a token had when it was dropped, (batch, heads); -inf if none was."""
        return [layer.held.omitted for layer in self.layers]


class _BoundedLayer(DynamicLayer):
    """One layer's :class:`BoundedCache`, in the shape that transformers wants."""

    is_croppable = False

    def __init__(self, held: Callable[[], BoundedCache], mask: Tensor | None) -> None:
        super().__init__()
        self.held, self.mask = held(), mask

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states)
        if self.mask is not None and not self.held.seen and len(key_states) % len(self.mask) == 0:
            # beams, which the mask knows nothing of
            self.mask = self.mask.repeat_interleave(len(key_states) // len(self.mask), 0)
        visible = self.held.update(key_states, value_states, self._real(key_states.shape[-2]))
        self._show()
        return visible.keys, visible.values

    def _real(self, length: int) -> Tensor | None:
        """Return which of the next tokens are not padding; all are after the prompt."""
        if self.mask is None or self.held.seen >= self.mask.shape[1]:
            return None
        part = self.mask[:, self.held.seen : self.held.seen + length]
        return torch.nn.functional.pad(part, (0, length - part.shape[1]), value=True)

    def _show(self) -> None:
        self.keys, self.values = self.held.keys, self.held.values

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # as if the tokens held were the latest ones: earlier than any query, and padding, dropped first, in front
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return len(self.held) + length, self.held.seen - len(self.held)

    def get_seq_length(self, *args: Any) -> int:
        return self.held.seen

    def reset(self) -> None:
        self.held.reset()
        self.mask = None  # that of the prompts that are forgotten
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False

    def crop(self, *args: Any) -> None:
        raise NotImplementedError("tokens that a bounded cache has dropped cannot come back: no assisted decoding")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._over_batch(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._over_batch(lambda part: part.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._over_batch(lambda part: part[indices])

    def _over_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.held.seen:
            self.held.over_batch(change)
            self.mask = None if self.mask is None else change(self.mask)
            self._show()
