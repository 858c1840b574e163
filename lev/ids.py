"""Row ids: int64 in [0, 2^53), unique; by default a running count."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from lev import backend
from lev.checks import check_integer

_END = 2**53


@dataclass(frozen=True)
class Ids:
    """Which ids were given: ``following`` is the next by default, ``spans`` the runs [first, end) given by default."""

    following: int
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, following: Any, spans: Any) -> Ids:
        """Return what a file says of ids.  Raises TypeError and ValueError."""
        pairs = tuple((check_integer("spans", first, 0), check_integer("spans", end, 0)) for first, end in spans)
        edges = [edge for pair in pairs for edge in pair] + [check_integer("next", following, 0) + 1]
        if edges != sorted(set(edges)):
            raise ValueError(f"spans must be disjoint, in order and below next, {following}; got {spans}")
        return cls(following, pairs)

    @property
    def counted(self) -> int:
        """How many ids were given by default."""
        return sum(end - first for first, end in self.spans)

    def count_on(self, m: int) -> tuple[np.ndarray, Ids]:
        """Return m ids by default, and what is known then.  Raises ValueError."""
        end = self.following + m
        _check_end(end)
        spans = _joined([*self.spans, (self.following, end)]) if m else self.spans
        return np.arange(self.following, end, dtype=np.int64), Ids(end, spans)

    def take(self, indices: Any, m: int, held: np.ndarray) -> tuple[np.ndarray, Ids]:
        """Return ``indices`` as m ids, and what is known then.  Raises TypeError and ValueError."""
        ids, _ = backend.intake("indices", indices)
        if ids.shape != (m,):
            raise ValueError(f"indices must have shape ({m},); got {ids.shape}")
        if m == 0:
            return ids.astype(np.int64), self
        if ids.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers; got dtype {ids.dtype}")
        ids = ids.astype(np.int64)
        if ids.min() < 0:
            raise ValueError(f"indices must be >= 0; got {ids.min()}")
        _check_end(int(ids.max()) + 1)
        values, counts = np.unique(ids, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"indices must be unique; {values[counts.argmax()]} came {counts.max()} times")
        if ids.min() < self.following:
            self.refuse_known("indices", ids, held)
        return ids, Ids(max(self.following, int(ids.max()) + 1), self.spans)

    def refuse_known(self, name: str, ids: np.ndarray, held: np.ndarray) -> None:
        """Raise ValueError if one of ``ids`` is held or in a span."""
        known = np.isin(ids, held)
        for first, end in self.spans:
            known |= (ids >= first) & (ids < end)
        if known.any():
            hint = "; give each its own start" if name == "other" else ""
            raise ValueError(f"{name} holds id {ids[known.argmax()]}, which this sketch has seen already{hint}")

    def merge(self, other: Ids) -> Ids:
        """Return what is known of both.  Raises ValueError if their spans overlap."""
        ordered = sorted(self.spans + other.spans)
        for (_, end), (first, _) in itertools.pairwise(ordered):
            if first < end:
                raise ValueError(f"other holds id {first}, which this sketch has seen already; give each its own start")
        return Ids(max(self.following, other.following), _joined(ordered))


def mixed(bits: np.ndarray) -> np.ndarray:
    """Return a hash of each of the uint64 ``bits``: near ids give numbers that look random (splitmix64)."""
    out = np.empty_like(bits)
    backend.kernels_of(bits).mixed(bits, out)
    return out


def _check_end(end: int) -> None:
    if end > _END:
        raise ValueError(f"indices must be below 2**53; got {end - 1}")


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return disjoint spans in order, with neighbours made one."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return tuple(joined)
