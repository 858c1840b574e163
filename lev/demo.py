"""The demonstration: find the universal set of real keys in one pass, and check it against brute force."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from lev.heavy import heavy_entries
from lev.readers import Reader, open_rows
from lev.sketch import Sketch

EPSILON = 0.0125
"""1.6 times the mean score d/n of the sample: real keys are nearly equal, so a larger one finds none."""

_SAMPLE = "smollm2_layer14_head0.safetensors"
_BLOCK = 1024
_ADVERSE = 2048


@dataclass(frozen=True)
class Outcome:
    """What :func:`demonstrate` saw.  ``found`` and ``missed`` count heavy entries of ``queries`` by brute force."""

    sketch: Sketch
    queries: int  # all that were tried
    natural: int  # those of them that the model itself asked
    natural_top: float  # the heaviest weight one of these gives to a key
    found: int  # entries >= epsilon by brute force
    missed: int  # those of them whose key is not in the universal set
    wrong: int  # entries on which the sketch's answer and brute force differ by more than 1e-9
    witnessed: int  # members that some query does give epsilon

    @property
    def holds(self) -> bool:
        """Whether nothing was missed and the sketch's own answers agree with brute force."""
        return self.missed == 0 and self.wrong == 0


def sample() -> AbstractContextManager[Path]:
    """Return a context whose value is the path of the sample that comes with the package."""
    return resources.as_file(resources.files("lev") / "data" / _SAMPLE)


def demonstrate(epsilon: float = EPSILON) -> Outcome:
    """Return what a sketch of the sample holds beside what brute force finds.

    The queries are the model's own and, for the keys j of highest score as NumPy alone computes it, the one that
    gives key j the most: q = (K^T K)^+ k_j.
    """
    with sample() as path:
        reader = open_rows(path, tensor="key", block_rows=_BLOCK)
        sketch = Sketch(reader.dim, epsilon)
        for block in reader:
            sketch.update(block)
        keys = _whole(reader)
        natural = np.concatenate([_whole(open_rows(path, tensor="query", head=head)) for head in range(3)])
    gram = keys.astype(np.float64).T @ keys.astype(np.float64)
    adverse = keys @ np.linalg.pinv(gram, hermitian=True)
    worst = np.argsort(np.sum(adverse * keys, axis=1))[-_ADVERSE:]
    queries = np.vstack([natural, adverse[worst]])
    heavy, reported = heavy_entries(queries, keys, epsilon), sketch.heavy_hitters(queries, width=len(keys))
    members = sketch.universal_set().indices
    return Outcome(
        sketch=sketch,
        queries=len(queries),
        natural=len(natural),
        natural_top=_top(natural, gram, keys),
        found=heavy.nnz,
        missed=int(np.sum(~np.isin(heavy.indices, members))),
        wrong=int(np.sum(abs(heavy - reported).data > 1e-9)),
        witnessed=len(np.intersect1d(heavy.indices, members)),
    )


def _whole(reader: Reader) -> np.ndarray:
    return np.concatenate(list(reader))


def _top(queries: np.ndarray, gram: np.ndarray, keys: np.ndarray) -> float:
    """Return the heaviest weight that one of the queries gives to a key."""
    largest = np.abs(queries @ keys.T).max(axis=1).astype(np.float64)
    return float(np.max(largest**2 / np.sum(queries @ gram * queries, axis=1)))
