"""Many streams at once."""

from __future__ import annotations

from collections.abc import Sequence

from lev.candidates import Candidates
from lev.rows import Rows


def absorb_all(streams: Sequence[Candidates], rows: Rows) -> list[Candidates]:
    """Return each stream with its part of the block, (m, heads, d), absorbed.  Raises NonFiniteRow."""
    return [stream.absorb(rows.head(head)) for head, stream in enumerate(streams)]


def prune_all(streams: Sequence[Candidates]) -> list[Candidates]:
    """Return each stream with its kept rows scored by its present form."""
    return [stream.pruned() for stream in streams]
