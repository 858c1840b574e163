"""kvpress: exact leverage, Lewis and causal scores as a press of its own kind, for its harness.

Tested with kvpress 0.5.5, which needs an older transformers than :mod:`lev.torch.hf` may be used with: install it in
an environment of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

try:
    from kvpress import ScorerPress
    from kvpress.utils import get_prerope_key_states
except ImportError as error:
    raise ImportError("lev.torch.kvpress needs kvpress >= 0.5: pip install 'lev-attention[kvpress]'") from error

from lev.lewis import lewis_weights
from lev.torch.select import resolve
from lev.torch.selectors import Heuristic, Selector


@dataclass(frozen=True)
class LewisWeights(Heuristic):
    """The l_p Lewis weights of the keys, head by head on the CPU."""

    p: float = 1.0

    def scores(self, key: Tensor, *, query: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the weights, float64 (..., n).  Raises NotConverged."""
        heads = key.detach().double().cpu().flatten(0, -3)
        return torch.stack([lewis_weights(head, self.p) for head in heads]).view(key.shape[:-1]).to(key.device)


@dataclass
class LevPress(ScorerPress):
    """A press that keeps the keys of the highest scores of a :class:`lev.torch.Selector`.

    ``compression_ratio`` is the share of keys removed, as everywhere in kvpress.  ``selector`` is a name in
    ``lev.torch.SELECTORS`` or a selector, such as ``Leverage()`` (exact, the same in every run, for any scale of the
    keys), :class:`LewisWeights`, or ``OnlineLeverage()``, the causal score.  ``before_rotation`` scores the keys before
    their rotary embedding.  All tokens are scored, padding too, as by every press of kvpress.

    Guarantee: none for softmax models.  Raises TypeError and ValueError for an unknown selector.

    >>> from lev.torch.kvpress import LevPress
    >>> LevPress(0.5).selector
    'leverage'
    """

    selector: str | Selector = "leverage"
    before_rotation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve(self.selector)

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return the scores, float64 (batch, key heads, n)."""
        rows = get_prerope_key_states(module, hidden_states) if self.before_rotation else keys
        return resolve(self.selector).scores(rows)
