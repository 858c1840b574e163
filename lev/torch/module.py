"""A layer in the place of ``nn.MultiheadAttention``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lev.checks import check_integer, check_power
from lev.torch.attention import lev_attention
from lev.torch.heuristics import Held, again
from lev.torch.select import check_size, resolve
from lev.torch.selectors import Selector


class LevAttention(nn.MultiheadAttention):
    """Multi-head attention over the universal keys: ``nn.MultiheadAttention(batch_first=True)``, weights and all.

    Parameters
    ----------
    embed_dim, num_heads, dropout, bias, device, dtype : as for ``nn.MultiheadAttention``
    top_k, epsilon, f, selector : as for :func:`lev.torch.lev_attention`
    warm_start : this many forward passes in training use all keys, with weights f; ``steps`` counts them and is not
        part of the ``state_dict``, whose names stay those of ``nn.MultiheadAttention``.  Evaluation always selects

    recompute : in training with ``top_k`` the keys are scored anew only in every so many forward passes; between, the
        places of the last choice are used, which is cheaper and a heuristic, for the next batch has other keys.
        Evaluation always scores the keys it sees

    No gradient goes through the choice.  Under activation checkpointing each forward pass must have its backward pass
    before the next, for the part that is done again counts no step and uses the last choice.

    Guarantee: with ``top_k`` at least the number of keys the output is that of ``nn.MultiheadAttention``, up to
    rounding; otherwise as for :func:`lev.torch.lev_attention`.  Raises TypeError and ValueError for bad arguments.

    >>> import torch, lev.torch
    >>> layer = lev.torch.LevAttention(16, 4, top_k=8)
    >>> x = torch.randn(2, 100, 16)
    >>> layer(x, x, x)[0].shape
    torch.Size([2, 100, 16])

    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        top_k: int | None = None,
        epsilon: float | None = None,
        f: str | float = "softmax",
        selector: str | Selector = "leverage",
        warm_start: int = 0,
        recompute: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if check_integer("embed_dim", embed_dim, 1) % check_integer("num_heads", num_heads, 1):
            raise ValueError(f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}")
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first=True, device=device, dtype=dtype)
        self._qkv_same_embed_dim = False  # else nn.TransformerEncoderLayer calls its own kernel and not this forward
        self.epsilon, self.top_k = check_size(epsilon, top_k), top_k
        self.f, self.selector = f, selector
        self.warm_start, self.steps = check_integer("warm_start", warm_start, 0), 0
        self.recompute = check_integer("recompute", recompute, 1)
        if self.recompute > 1 and epsilon is not None:
            raise ValueError(
                f"recompute must be 1 with epsilon, for scores of other keys prove nothing; got {recompute}"
            )
        power = 2.0 if isinstance(f, str) else check_power(f)
        self._held = {causal: Held(resolve(selector, power, causal), self.recompute) for causal in (False, True)}

    def extra_repr(self) -> str:
        """Return what was asked for, for ``print``."""
        size = f"top_k={self.top_k}" if self.epsilon is None else f"epsilon={self.epsilon:g}"
        often = f"warm_start={self.warm_start}, recompute={self.recompute}"
        return f"{size}, f={self.f!r}, selector={self.selector!r}, {often}"

    def forward(  # type: ignore[override,unused-ignore]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return the output, (batch, l, embed_dim), and None in the place of the weights, which are never formed.

        Masks are those of ``nn.MultiheadAttention``: True, or -inf, hides a key.  ``is_causal`` stands for the
        causal mask and may come with or without it.  Raises ValueError for ``need_weights`` and bad shapes.
        """
        if need_weights:
            raise ValueError("need_weights must be False: the weights are never formed; got True")
        if query.dim() != 3:
            raise ValueError(f"query must have shape (batch, length, embed_dim); got {tuple(query.shape)}")
        heads = [
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in self._projected(query, key, value)
        ]
        size: dict[str, Any] = {"top_k": self.top_k, "epsilon": self.epsilon}
        self.steps += self.training and not again()
        if self.training and self.steps <= self.warm_start:
            size = {"top_k": max(key.shape[1], 1)}
        held = self.training and self.recompute > 1
        out = lev_attention(
            *heads,
            **size,
            f=self.f,
            selector=self._held[bool(is_causal)] if held else self.selector,
            attn_mask=self._mask(None if is_causal else attn_mask, key_padding_mask, heads[0]),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            crossover=0,  # what was asked for, however short: the model is trained with it
        )
        return self.out_proj(out.transpose(1, 2).flatten(-2)), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if query is key is value:
            return list(nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        rows = zip((query, key, value), weights, biases, strict=True)
        return [nn.functional.linear(x, weight, bias) for x, weight, bias in rows]

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """Return both masks as one of :func:`lev.torch.lev_attention`, where True allows a key."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask.unflatten(0, (-1, self.num_heads)) if attn_mask.dim() == 3 else attn_mask)
        if padding is not None:
            masks.append(padding[:, None, None, :])
        if self.f != "softmax":
            masks = [_as_bool(mask) for mask in masks]
        if all(mask.dtype == torch.bool for mask in masks):
            hidden = [~mask for mask in masks]
            return None if not hidden else hidden[0] if len(hidden) == 1 else hidden[0] & hidden[1]
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        return sum((zero.masked_fill(m, -math.inf) if m.dtype == torch.bool else m.to(query) for m in masks), zero)


def _as_bool(mask: Tensor) -> Tensor:
    """Return a mask of 0 and -inf alone, which torch's layers make of a bool one, as that again; others as they are."""
    hidden = mask if mask.dtype == torch.bool else mask == -math.inf
    return hidden if mask.dtype == torch.bool or bool((hidden | (mask == 0)).all()) else mask
