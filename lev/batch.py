"""Forms and kept rows of many heads, on the device that holds the keys: add a block, filter it, keep what passes.

Of a block the Gram matrices are added and factored, the block and the rows kept so far are filtered by the factor, and
the few that pass are scored in float64.  One answer comes back to the host: how many passed, and which heads are
proved.  The same lines run over NumPy and CuPy.  Theory: 13, 14.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import bounds, whitening
from lev.candidates import Candidates
from lev.form import Form
from lev.frame import Frame
from lev.place import Place, host
from lev.rows import Rows
from lev.weighting import Weighting
from lev.whitening import Screen, Whitener


@dataclass(frozen=True, eq=False)
class Batch:
    """The immutable state of all heads; rows beyond those kept by a head are zeros with id -1."""

    place: Place
    kind: str  # of keys
    fast: bool  # whether scores may be as wide as tensor cores make them
    white: Whitener
    gram: Any  # (heads, d, d) float64
    keys: Any  # (heads, most, d)
    ids: Any  # (heads, most) int64
    lower: Any  # (heads, most)
    upper: Any  # (heads, most)
    dropped: Any  # (heads,) the largest bound of a row that was dropped
    rows: int = 0  # of each head, in the forms
    error: float = 0.0  # of the Gram matrices, relative to the trace
    underflow: float = 0.0
    sums: int = 0

    @classmethod
    def empty(cls, place: Place, kind: str, fast: bool, block: Any) -> Batch:
        """Return the state before any row, for heads and columns like those of ``block``."""
        xp, (many, _, d) = place.arrays, block.shape
        gram, none = xp.zeros((many, d, d)), xp.zeros((many, 0))
        white = whitening.whitener(place.kernels, gram, 0.0, 0.0, xp.zeros(many), 0.0)
        return cls(place, kind, fast, white, gram, block[:, :0], none.astype("int64"), none, none, xp.zeros(many))

    # -- add -----------------------------------------------------------------------------------------------

    def absorb(self, block: Any, first: int, epsilon: float, tensor: bool) -> tuple[Batch, np.ndarray, bool]:
        """Return the state with a block whose ids count from ``first``, which heads are proved, and if all is finite.

        Of a head that is not proved the state says nothing.  ``tensor`` allows tensor cores.
        """
        xp = self.place.arrays
        grown = self._grown(block, tensor)
        screen = whitening.screen(self.place.kernels, grown.white, epsilon, self.kind)
        parts = [self._screened(part, screen) for part in (self.keys, block)]
        finite = xp.isfinite(xp.diagonal(grown.gram, axis1=1, axis2=2)).all(axis=1)
        answers = [screen.proved, finite, *(count for _, count, _ in parts)]
        told = host(xp.stack([answer.astype("int64") for answer in answers]))  # the one wait for the device
        proved = told[0] == 1
        own = xp.broadcast_to(xp.arange(first, first + block.shape[1]), block.shape[:2])
        one = xp.broadcast_to(xp.ones(1), block.shape[:2])
        before = self._taken(parts[0][0], told[2] * proved, self.keys, self.ids, self.upper)
        after = self._taken(parts[1][0], told[3] * proved, block, own, one)
        keys, ids, upper = (xp.concatenate(pair, axis=1) for pair in zip(before, after, strict=True))
        lower, now = grown.white.ends(self.place.kernels.wide(keys, self.kind))
        peaks = xp.stack([peak.astype("float64") * screen.unit for _, _, peak in parts]).max(axis=0)
        dropped = xp.maximum(self.dropped, xp.minimum(peaks**2, epsilon))
        upper = xp.minimum(now, upper)
        kept = replace(grown, keys=keys, ids=ids, lower=lower, upper=upper, dropped=dropped)
        return kept, proved, bool(told[1].all())

    def _grown(self, block: Any, tensor: bool) -> Batch:
        """Return the state with the block in its forms."""
        kernels, m = self.place.kernels, block.shape[1]
        tensor = tensor and kernels.tensor(self.kind, block.shape[2])
        gram = self.gram + kernels.gram(block, self.kind, tensor)
        error, underflow = bounds.batch_gram_error(m, tensor), self.underflow + bounds.underflow(m, tensor)
        error, sums = max(self.error, error), self.sums + 1
        limit = bounds.FAST_MARGIN if self.fast else self.finest
        none = self.place.arrays.zeros(len(gram))
        white = whitening.whitener(kernels, gram, error + bounds.dot_error(sums), underflow, none, limit)
        rows = self.rows + m
        return replace(self, gram=gram, white=white, rows=rows, error=error, underflow=underflow, sums=sums)

    def _screened(self, keys: Any, screen: Screen) -> tuple[Any, Any, Any]:
        return self.place.kernels.screen(keys, self.kind, screen.parts, screen.scale, screen.limit)

    def _taken(self, found: Any, counts: np.ndarray, keys: Any, ids: Any, upper: Any) -> tuple[Any, Any, Any]:
        """Return the rows (heads, most) that were found, in their order, zeros with id -1 after them."""
        xp, n = self.place.arrays, keys.shape[1]
        some = found[:, : int(counts.max(initial=0))]
        real = xp.arange(some.shape[1]) < self.place.bring(counts)[:, None]
        some = xp.sort(xp.where(real, some, n), axis=1)
        real = some < n
        each, some = xp.arange(len(some))[:, None], xp.where(real, some, 0)
        keys = keys[each, some] * real[:, :, None].astype(keys.dtype)
        return keys, xp.where(real, ids[each, some], -1), xp.where(real, upper[each, some], 0.0)

    # -- read ----------------------------------------------------------------------------------------------

    @property
    def finest(self) -> float:
        """The relative margin that scores of such keys are held to."""
        return bounds.margin(np.dtype("float32" if self.kind == "bfloat16" else self.kind))

    def members(self, epsilon: float) -> list[tuple[Any, Any, Any, bool, float]]:
        """Return for each head (ids, keys, scores, exact, omitted) of its universal set, ids ascending."""
        xp = self.place.arrays
        member = (self.ids >= 0) & (self.upper >= epsilon)
        order = xp.argsort(xp.where(member, self.ids, 2**53), axis=1)
        sure = (~member | (self.lower >= epsilon * (1 - 2 * self.finest))).all(axis=1)
        left = xp.concatenate([xp.where(member, 0.0, self.upper), self.dropped[:, None]], axis=1).max(axis=1)
        told = host(xp.stack([answer.astype("float64") for answer in (member.sum(axis=1), sure, left)]))
        found = []
        for head, (count, exact, omitted) in enumerate(told.T):
            some = order[head, : int(count)]
            ids, keys, upper = (part[head][some] for part in (self.ids, self.keys, self.upper))
            found.append((ids, keys, upper, bool(exact), float(omitted)))
        return found

    def stream(self, head: int, epsilon: float) -> Candidates:
        """Return one proved head as the CPU has it."""
        white = self.white
        exponents = -(np.frexp(host(white.scale[head]))[1].astype(np.int64) - 1)
        gram = np.ldexp(host(self.gram[head]), -(exponents[:, None] + exponents))
        margin = float(white.margin[head])
        tail = np.sqrt(np.diagonal(gram)) * (1 + margin)
        form = Form(Frame(exponents), gram, tail, self.rows, 1, inherited=margin / (1 - 2 * margin), limit=self.finest)
        real = np.flatnonzero(host(self.ids[head]) >= 0)
        ids, lower, upper = (host(part[head])[real] for part in (self.ids, self.lower, self.upper))
        rows = Rows(self.numpy(self.keys[head])[real], ids, np.zeros((len(ids), 0)), lower, upper)
        return Candidates(epsilon, Weighting(), form, (rows,), dropped=float(self.dropped[head]))

    def numpy(self, keys: Any) -> np.ndarray:
        """Return keys of the device as the CPU takes them: bfloat16 as float32."""
        keys = host(keys)
        return (keys.astype(np.uint32) << 16).view(np.float32) if self.kind == "bfloat16" else keys
