"""lev in a model: which keys an attention layer needs, and attention over them alone.  Needs ``torch``.

For weights |<q,k>|^p the leverage selectors prove that no key is missed.  For softmax every selector is a
heuristic.  Nothing here is tied to a device: tensors stay where they are.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("lev.torch needs torch: pip install 'lev-attention[torch]'") from error

from lev.torch.attention import CROSSOVER, lev_attention
from lev.torch.cache import BoundedCache, bounded_attention
from lev.torch.heuristics import CentredNorm, ExpectedAttention, Keep, KeyDifference, KMeans, Norm, Random, Recent
from lev.torch.module import LevAttention
from lev.torch.powers import square_attention
from lev.torch.select import SELECTORS, UniversalKeys, universal_keys
from lev.torch.selectors import Leverage, OnlineLeverage, Selector, Sensitivity, Streamed

__all__ = [
    # the choice
    "universal_keys",
    "UniversalKeys",
    # attention over it
    "lev_attention",
    "square_attention",
    "LevAttention",
    "BoundedCache",
    "bounded_attention",
    "CROSSOVER",
    # what it goes by
    "SELECTORS",
    "Selector",
    "Streamed",
    "Leverage",
    "Sensitivity",
    "OnlineLeverage",
    "CentredNorm",
    "ExpectedAttention",
    "Keep",
    "KeyDifference",
    "KMeans",
    "Norm",
    "Random",
    "Recent",
]
