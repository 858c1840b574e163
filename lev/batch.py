"""Forms and kept rows of many heads, on the device that holds the keys: add a block, filter it, keep what passes.

Of a block the Gram matrices are added and factored, the block and the rows kept so far are filtered by the factor, and
the few that pass are scored in float64.  One answer comes back to the host: how many passed, and which heads are
proved; for p != 2, where rows enter with weights, one more before it: whether these are large.  The same lines run over
NumPy and CuPy.  Theory: 12, 13, 14.
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

_ROUNDS = 8  # of weighing a block against itself


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
    mass: Any  # (heads,) the sum of the weights, for p != 2
    weighting: Weighting
    screen: Screen | None = None  # of the forms as they are, once they hold rows, for p = 2
    rows: int = 0  # of each head, in the forms
    error: float = 0.0  # of the Gram matrices, relative to the trace
    underflow: float = 0.0
    sums: int = 0

    @classmethod
    def empty(cls, place: Place, kind: str, fast: bool, p: float, block: Any) -> Batch:
        """Return the state before any row, for heads and columns like those of ``block``."""
        xp, (many, _, d) = place.arrays, block.shape
        gram, none = xp.zeros((many, d, d)), xp.zeros((many, 0))
        white = whitening.whitener(place.kernels, gram, 0.0, 0.0, xp.zeros(many), 0.0)
        zeros, ids = xp.zeros(many), none.astype("int64")
        return cls(place, kind, fast, white, gram, block[:, :0], ids, none, none, zeros, zeros, zeros, Weighting(p))

    # -- add -----------------------------------------------------------------------------------------------

    def absorb(self, block: Any, first: int, epsilon: float, tensor: bool) -> tuple[Batch, np.ndarray, bool]:
        """Return the state with a block whose ids count from ``first``, which heads are proved, and if all is finite.

        Of a head that is not proved the state says nothing.  ``tensor`` allows tensor cores.
        """
        xp = self.place.arrays
        grown, proved = self._grown(block, tensor)._judged(epsilon)
        parts = [grown._screened(part, epsilon) for part in (self.keys, block)]
        finite = xp.isfinite(xp.diagonal(grown.gram, axis1=1, axis2=2)).all(axis=1)
        answers = [proved, finite, *(count for _, count, _ in parts)]
        told = host(xp.stack([answer.astype("int64") for answer in answers]))  # the one wait for the device
        proved = told[0] == 1
        own = xp.broadcast_to(xp.arange(first, first + block.shape[1]), block.shape[:2])
        one = xp.broadcast_to(xp.ones(1), block.shape[:2])
        before = self._taken(parts[0][0], told[2] * proved, self.keys, self.ids, self.upper)
        after = self._taken(parts[1][0], told[3] * proved, block, own, one)
        keys, ids, upper = (xp.concatenate(pair, axis=1) for pair in zip(before, after, strict=True))
        lower, now = grown._ends(keys)
        most = xp.maximum(parts[0][2], parts[1][2])
        dropped = xp.maximum(self.dropped, xp.minimum(most, epsilon))
        upper = xp.minimum(now, upper)
        kept = replace(grown, keys=keys, ids=ids, lower=lower, upper=upper, dropped=dropped)
        return kept, proved, bool(told[1].all())

    def _grown(self, block: Any, tensor: bool) -> Batch:
        """Return the state with the block in its forms."""
        kernels, m = self.place.kernels, block.shape[1]
        tensor, weighted = tensor and kernels.tensor(self.kind, block.shape[2]), self.weighting.p != 2
        # a row times its factor is rounded, and so is the factor
        error = max(self.error, bounds.batch_gram_error(m, tensor) + weighted * bounds.dot_error(4))
        underflow = self.underflow + bounds.underflow(m, tensor)
        grown = replace(self, rows=self.rows + m, error=error, underflow=underflow, sums=self.sums + 1)
        if weighted:
            return grown._weighed(block, grown._balanced(block, self._weights(block)))
        return replace(grown, gram=self.gram + kernels.gram(block, self.kind, tensor))

    def _weighed(self, block: Any, weights: Any) -> Batch:
        """Return the state with the block in its forms, each row with its weight."""
        xp, power = self.place.arrays, 0.5 - 1 / self.weighting.p
        factors = xp.where(weights == 0, 0.0, xp.where(weights == 0, 1.0, weights) ** power)
        gram = self.gram + self.place.kernels.gram(block, self.kind, False, factors)
        mass = self.mass + weights.sum(axis=1) * (1 + bounds.dot_error(block.shape[1]))
        return replace(self, gram=gram, mass=mass)

    def _weights(self, block: Any) -> Any:
        """Return weights that rows may enter with, (heads, m), by the forms as they are; 0 of heads not proved."""
        xp, kernels, p = self.place.arrays, self.place.kernels, self.weighting.p
        if not self.rows:  # the odds by no form at all are 0 for rows of zeros alone
            return xp.where(kernels.odds(block, self.kind, self.gram) == 0, 0.0, 1.0)
        odds = self.white.odds(kernels, block, self.kind)[1]
        weights = xp.minimum(kernels.lewis_roots(odds, p) * (1 + bounds.power_error(p)), 1.0)
        return xp.where(self.white.proved[:, None], weights, 0.0)

    def _own(self, white: Whitener, block: Any) -> Any:
        """Return (k^T M^-1 k)^(p/2) of rows, (heads, m), at most 1, for the form M of ``white``."""
        return self.weighting.own(white.odds(self.place.kernels, block, self.kind)[1])

    def _balanced(self, block: Any, weights: Any) -> Any:
        """Return weights, each at least its row's (k^T M^-1 k)^(p/2) in the form M that they make, that are not large.

        Where those that come are, for the forms before know too little of the rows, the block is weighed against
        itself.  The weights that come are such.  For p < 2 they still are where they fall to what that asks; for p > 2
        they are brought near that again and again, and the best are kept that hold once raised together.  Theory: 14.
        """
        xp, p, best = self.place.arrays, self.weighting.p, weights
        if host(weights.sum(axis=1)).max(initial=0.0) <= 2 * (1 + block.shape[2]):
            return weights
        for _ in range(_ROUNDS):
            white = self._weighed(block, weights)._whitened()
            own, proved = xp.where(weights == 0, 0.0, self._own(white, block)), white.proved[:, None]
            if p < 2:
                best = weights = xp.where(proved, xp.minimum(weights, own), weights)
                continue
            steps = own / xp.where(weights == 0, 1.0, weights)
            raised = xp.minimum(weights * xp.maximum(steps.max(axis=1, initial=1.0), 1.0)[:, None], 1.0)
            better = raised.sum(axis=1) < best.sum(axis=1)
            best = xp.where(proved & better[:, None] & (best > 0), raised, best)
            weights = xp.where(proved, weights * steps ** (4 / (2 + p)), xp.sqrt(weights * best))
        return best

    def _whitened(self) -> Whitener:
        limit, error = bounds.FAST_MARGIN if self.fast else self.finest, self.error + bounds.dot_error(self.sums)
        return whitening.whitener(self.place.kernels, self.gram, error, self.underflow, self.inherited, limit)

    def _judged(self, epsilon: float) -> tuple[Batch, Any]:
        """Return the state with its forms factored, and their filter, and which heads are proved, (heads,) bool."""
        white = self._whitened()
        if self.weighting.p != 2:  # rows are filtered by :meth:`Whitener.odds`
            return replace(self, white=white), white.proved
        screen = whitening.screen(self.place.kernels, white, epsilon, self.kind)
        return replace(self, white=white, screen=screen), screen.proved

    def _screened(self, keys: Any, epsilon: float) -> tuple[Any, Any, Any]:
        """Return (found, count, most): rows of the forms that may reach epsilon, and a bound on what others reach."""
        xp, kernels, screen = self.place.arrays, self.place.kernels, self.screen
        if screen is not None:
            found, count, peak = kernels.screen(keys, self.kind, screen.parts, screen.scale, screen.limit)
            return found, count, (peak.astype("float64") * screen.unit) ** 2
        odds = xp.minimum(self.white.odds(kernels, keys, self.kind)[1], 1.0)
        upper = self._sensitivities(odds, odds)[1]
        passed = ~(upper < epsilon)
        found = xp.argsort(xp.where(passed, 0, 1), axis=1, kind="stable")
        return found, passed.sum(axis=1), xp.where(passed, 0.0, upper).max(axis=1, initial=0.0)

    def _ends(self, keys: Any) -> tuple[Any, Any]:
        """Return (lower, upper) of the sensitivities of rows of the forms, (heads, m) each."""
        return self._sensitivities(*self.white.ends(self.place.kernels.wide(keys, self.kind)))

    def _sensitivities(self, lower: Any, upper: Any) -> tuple[Any, Any]:
        """Return their ends from those of k^T M^-1 k, (heads, m) each; for p = 2 they are the same."""
        return self.weighting.ends(lower, upper, self.mass[:, None], self.rows, 0.0)

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

    def passing(self, block: Any, epsilon: float) -> Any:
        """Return which rows of a block, (heads, m) bool, are not proved to stay below epsilon.

        Of a head that is not proved it says nothing.  The forms need not hold the rows: k^T M^-1 k only falls, and is
        above the score, while they do not; for p != 2 its power is a weight that they may enter with, if they have not.
        """
        xp, (many, m, _) = self.place.arrays, block.shape
        if not self.rows:
            return xp.ones((many, m), bool)
        if self.weighting.p != 2:
            weights = self._own(self.white, block)
            ends = self.weighting.certified(weights, self.mass[:, None] + weights, self.rows + 1, 0.0)
            return ~(ends < epsilon)
        found, count, _ = self._screened(block, epsilon)
        places = xp.where(xp.arange(m) < count[:, None], found, m)
        passed = xp.zeros((many, m + 1), bool)
        passed[xp.arange(many)[:, None], places] = True
        return passed[:, :m]

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
            mass=self.mass + other.mass,
        )
        joined, proved = both._shared(self, other)._judged(epsilon)
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("keys", "ids", "upper"))
        keys, ids, upper = (xp.concatenate(pair, axis=1) for pair in pairs)
        lower, now = joined._ends(keys)
        whole = replace(joined, keys=keys, ids=ids, lower=lower, upper=xp.minimum(now, upper))
        return whole._pruned(epsilon), host(proved)

    def _shared(self, *parts: Batch) -> Batch:
        """Return the state of both parts with weights that are no larger than needs be: in a part they had to be."""
        p, xp = self.weighting.p, self.place.arrays
        if p >= 2:
            return self
        white, share = self._whitened(), xp.zeros(len(self.gram))
        turn = white.inverse * white.scale[:, None, :]
        for part in parts:
            own = turn @ part.gram @ turn.swapaxes(1, 2)
            size = xp.trace(own, axis1=1, axis2=2)
            most = xp.linalg.eigvalsh(xp.where(white.proved[:, None, None], own, 0.0))[:, -1]
            share = xp.maximum(share, (most + bounds.dot_error(64 * own.shape[1]) * size) * white.high**2)
        share = xp.where(white.proved, xp.minimum(share * (1 + 2 * self.finest), 1.0), 1.0)
        share = xp.where(share > 0, share, 1.0)
        return replace(self, gram=self.gram * share[:, None, None] ** (1 - 2 / p), mass=self.mass * share)

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
        cls, place: Place, kind: str, fast: bool, p: float, streams: Sequence[Candidates], epsilon: float
    ) -> tuple[Batch, np.ndarray]:
        """Return the state of heads that were at the CPU, and which of them can be here; all have seen as many rows."""
        heads, dim = len(streams), streams[0].form.frame.dim
        most = max(stream.retained for stream in streams)
        gram, keys = np.zeros((heads, dim, dim)), np.zeros((heads, most, dim), _BITS.get(kind, kind))
        ids, lower, upper = np.full((heads, most), -1), np.zeros((heads, most)), np.zeros((heads, most))
        inherited, dropped = np.ones(heads), np.zeros(heads)
        mass = np.array([stream.mass for stream in streams])
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
        arrays = (place.bring(part) for part in (gram, keys, ids, lower, upper, dropped, inherited, mass))
        gram, keys, ids, lower, upper, dropped, inherited, mass = arrays
        empty = cls.empty(place, kind, fast, p, keys)
        whole = replace(empty, gram=gram, keys=keys, ids=ids, lower=lower, upper=upper, dropped=dropped, mass=mass)
        whole = replace(whole, inherited=inherited, rows=streams[0].form.rows, sums=1)
        judged, proved = whole._judged(epsilon)
        return judged, host(proved)

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

    def best(self, k: int, epsilon: float) -> tuple[Any, Any]:
        """Return (ids, scores), (heads, k) each: the members' highest, ties by the lower id; id -1 where none is."""
        xp, missing = self.place.arrays, max(0, k - self.ids.shape[1])
        member = (self.ids >= 0) & (self.upper >= epsilon)
        ids, upper = xp.where(member, self.ids, -1), xp.where(member, self.upper, 0.0)
        order = xp.argsort(-upper, axis=1, kind="stable")[:, :k]
        each, wider = xp.arange(len(order))[:, None], ((0, 0), (0, missing))
        return xp.pad(ids[each, order], wider, constant_values=-1), xp.pad(upper[each, order], wider)

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
        dropped, mass = float(self.dropped[head]), float(self.mass[head])
        return Candidates(epsilon, self.weighting, form, (rows,), dropped=dropped, mass=mass)

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
