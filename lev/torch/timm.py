"""timm: an attention layer for its vision transformers that loads their pretrained weights unchanged.

Tested with timm 1.0.31.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

try:
    from timm.layers.attention import Attention
except ImportError as error:
    raise ImportError("lev.torch.timm needs timm >= 1.0.31: pip install 'lev-attention[timm]'") from error

from lev.torch.attention import lev_attention
from lev.torch.select import check_size, resolve
from lev.torch.selectors import Selector


def attention_layer(
    *,
    top_k: int | None = None,
    epsilon: float | None = None,
    f: str | float = "softmax",
    selector: str | Selector = "leverage",
) -> type[Attention]:
    """Return a class for ``timm.create_model(name, attn_layer=...)`` that attends to the universal keys only.

    The arguments are those of :func:`lev.torch.lev_attention`.  The class is timm's own ``Attention`` with another
    middle, so parameters keep their names and pretrained weights load as they are; with ``top_k`` at least the number
    of keys, the model is as before.  timm wants a class: a function with some arguments filled in is refused there.

    Guarantee: that of :func:`lev.torch.lev_attention`; none for softmax.  Raises TypeError and ValueError.

    >>> from lev.torch.timm import attention_layer
    >>> attention_layer(top_k=32).__name__
    'UniversalAttention'
    """
    check_size(epsilon, top_k)
    resolve(selector)
    options = {"top_k": top_k, "epsilon": epsilon, "f": f, "selector": selector, "crossover": 0}
    return type("UniversalAttention", (_Universal,), {"options": options})


class _Universal(Attention):
    options: ClassVar[dict[str, Any]]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        out = lev_attention(
            self.q_norm(query),
            self.k_norm(key),
            value,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=dropout,
            **self.options,
        )
        out = self.norm(out.transpose(1, 2).flatten(-2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))
