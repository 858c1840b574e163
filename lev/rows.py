"""Rows that travel together: keys, their ids, their payload, and what is known of their scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

_NOTHING, _EVERYTHING = (np.broadcast_to(end, 2**53) for end in (0.0, 1.0))  # one number each: cheap to cut from


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a stream and a bracket of each one's sensitivity; rows of many heads are (m, heads, d)."""

    keys: np.ndarray  # (m, d)
    ids: np.ndarray  # (m,) int64
    payload: np.ndarray  # (m, payload_dim)
    lower: np.ndarray  # (m,) float64
    upper: np.ndarray  # (m,) float64

    @classmethod
    def of(cls, keys: np.ndarray, ids: np.ndarray, payload: np.ndarray) -> Rows:
        """Return rows of which nothing is known yet."""
        return cls(keys, ids, payload, _NOTHING[: len(ids)], _EVERYTHING[: len(ids)])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in _COLUMNS)

    def take(self, which: np.ndarray | slice) -> Rows:
        """Return the chosen rows: views for a slice, copies otherwise."""
        return Rows(self.keys[which], self.ids[which], self.payload[which], self.lower[which], self.upper[which])

    def head(self, head: int | slice) -> Rows:
        """Return the rows of one head or of some."""
        return replace(self, keys=self.keys[:, head], payload=self.payload[:, head])

    def copy(self) -> Rows:
        return Rows(*(np.array(getattr(self, name)) for name in _COLUMNS))


_COLUMNS = tuple(field.name for field in fields(Rows))


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts in order."""
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of some heads, one head after the other."""

    rows: Rows  # (n,)
    owners: np.ndarray  # (n,), the head of each, ascending
    heads: int

    @classmethod
    def of_block(cls, block: Rows) -> Ragged:
        """Return the rows of (m, heads, d); a view of keys that lie head by head."""
        m, heads, _ = block.keys.shape
        keys, payload = (
            np.moveaxis(part, 1, 0).reshape(m * heads, part.shape[2]) for part in (block.keys, block.payload)
        )
        return cls(Rows.of(keys, np.tile(block.ids, heads), payload), np.repeat(np.arange(heads), m), heads)

    @classmethod
    def of_heads(cls, parts: Sequence[Sequence[Rows]]) -> Ragged:
        """Return the rows of each head, which are in some parts each, at least one."""
        held = [rows for head in parts for rows in head if len(rows)] or [parts[0][-1]]
        counts = [sum(map(len, head)) for head in parts]
        return cls(concatenate(held), np.repeat(np.arange(len(parts)), counts), len(parts))

    @property
    def starts(self) -> np.ndarray:
        """Where the rows of each head begin and the last end, (heads + 1,)."""
        return np.searchsorted(self.owners, np.arange(self.heads + 1))

    def take(self, which: np.ndarray) -> Ragged:
        """Return the chosen rows, which stay in the order of heads."""
        return replace(self, rows=self.rows.take(which), owners=self.owners[which])

    def most(self, which: np.ndarray) -> np.ndarray:
        """Return the largest upper end of each head's chosen rows, (heads,), 0 for none."""
        most = np.zeros(self.heads)
        np.maximum.at(most, self.owners[which], self.rows.upper[which])
        return most

    def parts(self) -> list[slice]:
        """Return which rows are those of each head."""
        return [slice(*ends) for ends in itertools.pairwise(self.starts.tolist())]

    def split(self) -> list[Rows]:
        """Return the rows of each head, as views."""
        return [self.rows.take(own) for own in self.parts()]


def joined(first: Ragged, second: Ragged) -> Ragged:
    """Return the rows of both, of each head those of the first before those of the second."""
    parts = [part.rows for part in (first, second) if len(part.rows)] or [second.rows]
    owners = np.concatenate([first.owners, second.owners])
    return Ragged(concatenate(parts), owners, first.heads).take(np.argsort(owners, kind="stable"))


def stacked(parts: Sequence[Rows], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, upper ends, whether there is one), each (len(parts), k), of the k best rows of each part.

    The best come first, ties by the lower id; what is not there has id -1 and upper end 0.
    """
    shape = (len(parts), k)
    ids, upper, there = np.full(shape, -1, np.int64), np.zeros(shape), np.zeros(shape, bool)
    for i, rows in enumerate(parts):
        best = np.lexsort((rows.ids, -rows.upper))[:k]
        ids[i, : len(best)], upper[i, : len(best)], there[i, : len(best)] = rows.ids[best], rows.upper[best], True
    return ids, upper, there
