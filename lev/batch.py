"""Forms and kept rows of many heads, on the device that holds the keys: add a block, filter it, keep what passes.

Of a block the Gram matrices are added and factored, the block and the rows kept so far are filtered by the factor, and
the few that pass are scored in float64.  One answer comes back to the host: how many passed, and which heads are
proved.  The same lines run over NumPy and CuPy.  Theory: 13, 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, bounds, whitening
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
    inherited: Any  # (heads,) relative margin of the Gram matrices from before they came to the device
    screen: Screen | None = None  # of the forms as they are, once they hold rows
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
        zeros = xp.zeros(many)
        return cls(place, kind, fast, white, gram, block[:, :0], none.astype("int64"), none, none, zeros, zeros)

    # -- add -----------------------------------------------------------------------------------------------

    def absorb(self, block: Any, first: int, epsilon: float, tensor: bool) -> tuple[Batch, np.ndarray, bool]:
        """Return the state with a block whose ids count from ``first``, which heads are proved, and if all is finite.

        Of a head that is not proved the state says nothing.  ``tensor`` allows tensor cores.
        """
        xp = self.place.arrays
        grown, screen = self._grown(block, tensor)._judged(epsilon)
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
        error, rows = max(self.error, error), self.rows + m
        return replace(self, gram=gram, rows=rows, error=error, underflow=underflow, sums=self.sums + 1)

    def _judged(self, epsilon: float) -> tuple[Batch, Screen]:
        """Return the state with its forms factored, and their filter."""
        limit, error = bounds.FAST_MARGIN if self.fast else self.finest, self.error + bounds.dot_error(self.sums)
        kernels = self.place.kernels
        white = whitening.whitener(kernels, self.gram, error, self.underflow, self.inherited, limit)
        screen = whitening.screen(kernels, white, epsilon, self.kind)
        return replace(self, white=white, screen=screen), screen

    def _screened(self, keys: Any, screen: Screen) -> tuple[Any, Any, Any]:
        return self.place.kernels.screen(keys, self.kind, screen.parts, screen.scale, screen.limit)

    def _taken(self, found: Any, counts: np.ndarray, keys: Any, ids: Any, upper: Any) -> tuple[Any, Any, Any]:
        """Return the rows (heads, most) that were found, in their order, zeros with id -1 after them."""
        xp, n = self.place.arrays, keys.shape[1]
        some = found[:, : int(counts.max(initial=0))]
        real = xp.arange(some.shape[1]) < self.place.bring(counts)[:, None]
        some = xp.sort(xp.where(real, some, n), axis=1)
        real = some < n
        return self._gathered(xp.where(real, some, 0), real, keys, (ids, -1), (upper, 0.0))

    def _gathered(self, places: Any, real: Any, keys: Any, *columns: tuple[Any, float]) -> tuple[Any, ...]:
        """Return the rows at ``places`` (heads, most) of keys and of columns; zeros and each one's none if not real."""
        xp, each = self.place.arrays, self.place.arrays.arange(len(places))[:, None]
        rows = keys[each, places] * real[:, :, None].astype(keys.dtype)
        return rows, *(xp.where(real, column[each, places], none) for column, none in columns)

    def passing(self, block: Any) -> Any:
        """Return which rows of a block, (heads, m) bool, are not proved to stay below epsilon.

        The forms need not hold them: k^T M^-1 k only falls, and is above the score, while they do not.
        """
        xp, (many, m, _) = self.place.arrays, block.shape
        if self.screen is None:
            return xp.ones((many, m), bool)
        found, count, _ = self._screened(block, self.screen)
        places = xp.where(xp.arange(m) < count[:, None], found, m)
        passed = xp.zeros((many, m + 1), bool)
        passed[xp.arange(many)[:, None], places] = True
        return passed[:, :m] | ~self.screen.proved[:, None]

    # -- merge, and from the CPU ---------------------------------------------------------------------------

    def merge(self, other: Batch, epsilon: float) -> tuple[Batch, np.ndarray]:
        """Return the state of the rows of both, and which heads are proved; of others it says nothing."""
        xp = self.place.arrays
        both = replace(
            self,
            gram=self.gram + other.gram,
            rows=self.rows + other.rows,
            error=max(self.error, other.error),
            underflow=self.underflow + other.underflow,
            sums=self.sums + other.sums + 1,
            inherited=xp.maximum(self.inherited, other.inherited),
            dropped=xp.maximum(self.dropped, other.dropped),
        )
        joined, screen = both._judged(epsilon)
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("keys", "ids", "upper"))
        keys, ids, upper = (xp.concatenate(pair, axis=1) for pair in pairs)
        lower, now = joined.white.ends(self.place.kernels.wide(keys, self.kind))
        whole = replace(joined, keys=keys, ids=ids, lower=lower, upper=xp.minimum(now, upper))
        return whole._pruned(epsilon), host(screen.proved)

    def _pruned(self, epsilon: float) -> Batch:
        """Return the state with rows below epsilon gone and the others in the order of their ids."""
        xp = self.place.arrays
        stays = (self.ids >= 0) & (self.upper >= epsilon)
        gone = xp.where(stays | (self.ids < 0), 0.0, self.upper).max(axis=1, initial=0.0)
        most = int(host(stays.sum(axis=1)).max(initial=0))
        order = xp.argsort(xp.where(stays, self.ids, 2**53), axis=1)[:, :most]
        real = xp.take_along_axis(stays, order, axis=1)
        columns = (self.ids, -1), (self.lower, 0.0), (self.upper, 0.0)
        keys, ids, lower, upper = self._gathered(order, real, self.keys, *columns)
        dropped = xp.maximum(self.dropped, gone)
        return replace(self, keys=keys, ids=ids, lower=lower, upper=upper, dropped=dropped)

    @classmethod
    def of(
        cls, place: Place, kind: str, fast: bool, streams: Sequence[Candidates], epsilon: float
    ) -> tuple[Batch, np.ndarray]:
        """Return the state of heads that were at the CPU, and which of them can be here; all have seen as many rows."""
        heads, dim = len(streams), streams[0].form.frame.dim
        most = max(stream.retained for stream in streams)
        gram, keys = np.zeros((heads, dim, dim)), np.zeros((heads, most, dim), _BITS.get(kind, kind))
        ids, lower, upper = np.full((heads, most), -1), np.zeros((heads, most)), np.zeros((heads, most))
        inherited, dropped = np.ones(heads), np.zeros(heads)
        for head, stream in enumerate(streams):
            form, (rows,) = stream.form, stream.kept
            dropped[head] = stream.dropped
            if form.frame.triangle is None:
                exponents = form.frame.exponents
                with np.errstate(over="ignore", under="ignore"):  # what leaves the range is not proved
                    gram[head] = np.ldexp(form.gram, exponents[:, None] + exponents)
                inherited[head] = min(1.0, stream.factor.slack)
            keys[head, : len(rows)] = narrowed(rows.keys, kind)
            ids[head, : len(rows)], lower[head, : len(rows)] = rows.ids, rows.lower
            upper[head, : len(rows)] = rows.upper
        arrays = (place.bring(part) for part in (gram, keys, ids, lower, upper, dropped, inherited))
        gram, keys, ids, lower, upper, dropped, inherited = arrays
        empty = cls.empty(place, kind, fast, keys)
        whole = replace(empty, gram=gram, keys=keys, ids=ids, lower=lower, upper=upper, dropped=dropped)
        whole = replace(whole, inherited=inherited, rows=streams[0].form.rows, sums=1)
        judged, screen = whole._judged(epsilon)
        return judged, host(screen.proved)

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

    def best(self, k: int) -> tuple[Any, Any]:
        """Return (ids, scores), (heads, k) each: the highest scores, ties by the lower id; id -1 where none is."""
        xp, missing = self.place.arrays, max(0, k - self.ids.shape[1])
        order = xp.argsort(-self.upper, axis=1, kind="stable")[:, :k]
        each, wider = xp.arange(len(order))[:, None], ((0, 0), (0, missing))
        ids, upper = xp.pad(self.ids[each, order], wider, constant_values=-1), xp.pad(self.upper[each, order], wider)
        return ids, xp.where(ids >= 0, upper, 0.0)

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
        return backend.widened(keys.view(backend.BFLOAT16)) if self.kind == "bfloat16" else keys


_BITS = {"bfloat16": "uint16"}


def narrowed(keys: np.ndarray, kind: str) -> np.ndarray:
    """Return keys at the CPU as they are on a device: what :meth:`Batch.numpy` undoes."""
    if kind != "bfloat16":
        return keys.astype(kind)
    return (np.ascontiguousarray(keys, np.float32).view(np.uint32) >> 16).astype(np.uint16)
