"""The sketch: a quadratic form plus the few rows that still might matter.

A bound on a key's sensitivity, once proved, stays true as rows arrive.  So one pass is enough: add rows to the
form, bound them against it, drop those that are below epsilon for good, and merge by adding forms and joining
the rows that were kept.  :mod:`lev.candidates` does that for one stream, block by block; here is what a user
meets: checked input, ids, blocks, heads, questions, files.  Theory: 02, monotonicity; 03, one pass and merging.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self

import numpy as np

from lev import backend, bounds, heavy, store
from lev.candidates import Candidates
from lev.causal import CausalSketch
from lev.checks import check_answerable, check_fraction, check_integer, check_power
from lev.form import Form, NonFiniteRow
from lev.heads import absorb_all, prune_all
from lev.ids import Ids
from lev.incoming import Fed, asked_for, known_ends, wide
from lev.lewis import lp_universal_set
from lev.rows import Rows, concatenate, stacked
from lev.second import Replay, complete, tighten
from lev.universal import UniversalSet, universal_sets
from lev.weighting import Weighting
from lev.window import SlidingWindowSketch

_SMALLEST_BLOCK, _BLOCK_NUMBERS = 256, backend.BLOCK


class Sketch(Fed, store.Stored):
    """A one-pass, mergeable sketch of a stream of keys that holds its universal set.

    Parameters
    ----------
    dim : number of columns of a key
    epsilon : the threshold in (0, 1]: every key that any query can ever give a weight
        |<q,k>|^p / sum_l |<q,k_l>|^p >= epsilon is kept
    p : the exponent of the weights, in [2^-10, 2^10]
    heads : a shape, such as (batch, heads), of independent streams that are fed together
    start : the id of the first row, if ids are not given
    decay : entries fall by this factor with each id: the weights are decay^(t-j) |<q,k_j>|^p at time t
    payload_dim : columns of the rows that may travel with the keys, such as the values of a cache
    intercept : also for affine queries <q,k> + b, that is, centred scores (Theory: 01)
    sample : the share in (0, 1] of the rows that enter the form; below 1 the set is larger and its scores are upper
        ends, for fewer operations a row (p = 2, no heads).  Theory: 15, sampled forms

    Guarantee: exact up to rounding for p = 2, a superset for other p and for a sample.  {sensitivity >=
    epsilon} is always in the universal set, and every member of an ``exact`` one reaches epsilon (1 - 2 margin), margin
    as in :func:`lev.bounds.margin`.  For p = 2 at most rank / epsilon rows are retained, whatever the length of the
    stream, its order and its split into updates and sketches; for other p at most V^max(1, p/2) / epsilon, where V
    grows with the logarithm of the stream's length.  With decay, directions not seen for so long that they sink
    below the resolution are released, and the rank falls.
    Cost: O(d^2) a row; memory O(d^2 + d^2 / epsilon) and one block, for each head.
    Raises TypeError and ValueError for bad arguments.

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((10_000, 4))
    >>> keys[1234] *= 100
    >>> sketch = lev.Sketch(4, 0.1)
    >>> for block in np.array_split(keys, 7):
    ...     sketch = sketch.update(block)
    >>> sketch.universal_set().indices
    array([1234])

    """

    _narrow = True

    def __init__(
        self,
        dim: int,
        epsilon: float,
        p: float = 2.0,
        *,
        heads: tuple[int, ...] = (),
        start: int = 0,
        decay: float = 1.0,
        payload_dim: int = 0,
        intercept: bool = False,
        sample: float = 1.0,
    ) -> None:
        super().__init__(dim, epsilon, heads, start, payload_dim, intercept)
        self.p = check_power(p)
        self.decay = check_fraction("decay", decay)
        self.sample = check_fraction("sample", sample)
        if self.sample < 1 and (self.p != 2 or self.heads):
            raise ValueError(f"sample must be 1 with heads or p != 2; got sample={sample!r}, p={p!r}, heads={heads!r}")
        weighting = Weighting(self.p, self.decay, self.sample)
        form = Form.empty(self.dim + self.intercept, 4 * weighting.scale_error)  # of rows in it, and of those scored
        self._streams = [Candidates(self.epsilon, weighting, form, (self._no_rows(),))] * len(self._masked)

    # -- what it holds -------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of rows seen, padding included (of each head)."""
        return self._streams[0].seen + self._waiting

    @property
    def retained(self) -> int:
        """The number of rows kept, of all heads: for p = 2 at most rank / epsilon of each."""
        return sum(stream.retained for stream in self._settle()._streams)

    @property
    def rank(self) -> Any:
        """The numerical rank of the rows seen (of the rows with a 1 appended, with an intercept); (*heads,) with heads.

        With decay it falls when a direction was not seen for so long that it sank below the resolution.
        """
        ranks = [stream.form.rank for stream in self._settle()._streams]
        return np.reshape(ranks, self.heads) if self.heads else ranks[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the forms, the kept rows and the rows that wait for their block."""
        held = (*self._kept(), *self._pending)
        return sum(stream.form.nbytes for stream in self._streams) + sum(rows.nbytes for rows in held)

    @property
    def resolution(self) -> float:
        """rho: a weight w is held if sqrt(w) >= sqrt(epsilon) + rho ||K|| ||q|| / ||K q||.  Theory: 04, resolution.

        The last term is only that large where the keys are nearly dependent, and their weak directions dropped.  Proved
        for rows of one factorisation; for those of m, with sqrt(m) times the growth of their pivots.
        For p != 2 and with decay K stands for the weighted rows of the form, and any <q,k> is only known up to
        rho ||K|| ||q||, in a weight and in its normaliser: for p < 1 many such errors add up.
        """
        return bounds.resolution(self.dim + self.intercept)

    @property
    def slack(self) -> Any:
        """By what factor scores may be above sensitivities, and the ends of a normaliser apart; (*heads,) with heads.

        For p = 2 it is 1 but for rounding or, with a sample, a proof that holds for any stream: rows in no special
        order score about 1 / sample too high.  Theory: 12, online Lewis weights and decay; 15, sampled forms.
        """
        found = [heavy.slack(stream) for stream in self._settle()._streams]
        return np.reshape(found, self.heads) if self.heads else found[0]

    def __repr__(self) -> str:
        heads = f", heads={self.heads}" if self.heads else ""
        decay = f", decay={self.decay:g}" if self.decay != 1 else ""
        sample = f", sample={self.sample:g}" if self.sample != 1 else ""
        return (
            f"Sketch(dim={self.dim}, epsilon={self.epsilon:g}, p={self.p:g}{heads}{decay}{sample}, count={self.count}, "
            f"retained={self.retained})"
        )

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any, indices: Any = None, payload: Any = None, mask: Any = None) -> Sketch:
        """Add rows and return the sketch.

        ``keys`` is (*heads, m, dim) of any real dtype, memory order and array family, m >= 0; ``indices`` (m,) int64
        ids, by default a running count; ``payload`` (*heads, m, payload_dim); ``mask`` (*heads, m) bool, True where a
        row is padding, the opposite of the attention_mask of a model.  Nothing is aliased, and a refused update changes
        nothing.  Any split of the same rows into updates gives the same sketch, bit for bit.
        Raises TypeError and ValueError; for NaN and infinity with the first bad row.  With decay a row cannot come
        after one so much later that of its scale less than 2^-896 is left.
        """
        rows, known = self._checked(keys, indices, payload, mask)
        if self.decay < 1 and (late := self._streams[0].weighting.late(rows.ids, self._ids.following - 1)).any():
            old = rows.ids[late.argmax()]
            raise ValueError(f"indices holds {old}, decayed too far beside rows before it; a sketch of it can merge")
        if self._waiting + len(rows) < self._block_rows():
            draft = self
            draft._pend(rows)
        else:
            draft = self.copy()
            with backend.single_blas():
                draft._stream(rows)
        self.__dict__.update(draft.__dict__ | known)
        return self

    def admit(self, keys: Any, indices: Any = None, payload: Any = None, mask: Any = None) -> Any:
        """Add rows and return for each whether it was kept: bool, (*heads, m), in the family of the keys.

        For append-only caches: a row answered False can never receive epsilon, now or later.  The answer is
        given at once, so the call ends a block.  Arguments and errors are those of :meth:`update`.
        """
        draft = self.copy().update(keys, indices, payload, mask)
        if indices is None:
            ids = np.arange(self._ids.following, draft._ids.following)
        else:
            ids = backend.intake("indices", indices)[0]
        with backend.single_blas():
            draft._flush()
            kept = draft._holds(ids)
            if kept.any() and not all(stream.current for stream in draft._streams):  # then by an earlier form
                draft._streams = prune_all(draft._streams)
                kept = draft._holds(ids)
        self.__dict__.update(draft.__dict__)
        return self._family.out(kept.reshape(*self.heads, len(ids)))

    def _holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of ``ids`` each stream holds, (streams, m) bool."""
        return np.array([np.isin(ids, np.concatenate([rows.ids for rows in s.kept])) for s in self._streams])

    def _kept(self) -> Iterable[Rows]:
        return (rows for stream in self._streams for rows in stream.kept)

    def _block_rows(self) -> int:
        """Return the length of the next block.

        p = 2: all are long, for the first rows are scored by the form with them in it; those of many heads not longer
        than makes their factorisation cheap, for what waits is copied.
        p != 2: a block is weighed by the rows before and is as long as what came.  The first, weighed against itself
        some ten times, has a third of that: the longer it is, the smaller are all weights.  With decay none is so long
        that a row leaves the range of float64 before it is bounded.
        Samples: four times as long as what came, once so many came that not all have to enter.
        """
        if self.heads and self.p == 2:
            cheap = min(32 * self.dim, 4 * _BLOCK_NUMBERS // self.dim // len(self._streams))
            return max(_SMALLEST_BLOCK, cheap)
        most = _BLOCK_NUMBERS * (2 if self.sample < 1 else 1)
        largest = max(_SMALLEST_BLOCK, most // self.dim // len(self._streams))
        if self.p == 2 and self.sample == 1:
            return largest
        length = self._streams[0].seen
        if self.p != 2:
            length = int(min(max(length, largest // 3), self._streams[0].weighting.span))
        else:
            length = 4 * length if length else int(min(largest, 2 * self.dim / self.epsilon))
        return min(largest, max(_SMALLEST_BLOCK, 1 << (length.bit_length() - 1) if length else 0))

    def _stream(self, rows: Rows) -> None:
        """Absorb the pending rows and ``rows`` block by block; what is short of a block waits."""
        start = -self._waiting
        while len(rows) - start >= self._block_rows():
            end = start + self._block_rows()
            block = concatenate([*self._pending, wide(rows.take(slice(max(start, 0), end)))])
            try:
                self._streams = absorb_all(self._streams, block)
            except NonFiniteRow as error:
                raise ValueError(f"keys must be finite; row {start + error.row} holds NaN or infinity") from None
            self._pending, self._waiting, start = [], 0, end
        self._pend(rows.take(slice(start, None)), start)

    # -- reads are of the settled state, so that they change nothing ---------------------------------------

    def _settle(self) -> Self:
        """Return the canonical twin: no row waits for its block, every kept row is scored by the present form."""
        if self._settled is None:
            twin = self.copy()
            with backend.single_blas():
                twin._flush()
                twin._streams = prune_all(twin._streams)
            self._settled = twin._settled = twin
        return self._settled

    def _flush(self) -> None:
        if self._waiting:
            self._streams = absorb_all(self._streams, concatenate(self._pending))
            self._pending, self._waiting = [], 0

    def universal_set(self, epsilon: float | None = None) -> Any:
        """Return the universal set for ``epsilon``, by default the sketch's own; a smaller one is refused.

        With heads it is a list of them, in C order of heads.  Raises ValueError.
        """
        sets = self._members(check_answerable(epsilon, self.epsilon))
        return sets if self.heads else sets[0]

    def _members(self, epsilon: float) -> list[UniversalSet]:
        streams = self._settle()._streams
        return universal_sets(
            [stream.kept for stream in streams],
            self._family,
            epsilon=epsilon,
            counts=self.count - self._masked,
            limits=np.array([stream.form.limit for stream in streams]),
            omitted=np.array([stream.dropped for stream in streams]),
            p=self.p,
        )

    def second_pass(self, keys: Any, epsilon: float | None = None) -> UniversalSet:
        """Return the universal set with its scores tightened by reading the same rows again; the sketch stays.

        ``keys`` are all rows seen, in order: an array (n, dim), or an iterable of blocks that can be read many times.
        With decay, in the order of their ids, which then have to be the sketch's own count.
        For p != 2 a sketch holds a superset; here the sensitivity of each row it holds is bounded from both sides
        until epsilon is decided or rounding forbids it, so ``exact`` is usually True.  For p = 2 with a sample all rows
        are added to the form in one pass, which makes the set exact; without one it is exact as it is, and no row is
        read.  Guarantee: as for :meth:`universal_set`.
        Cost: some passes, O(n d^2) for each row that the first pass left undecided; memory O(d^2).
        Raises TypeError, and ValueError for p < 1 (not convex), for heads, after rows with a mask, if the rows are not
        as many or those held are not among them (where the sketch counts ids), and for decay with ids that were given.
        Theory: 05, duality; 12, online Lewis weights and decay.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        if self.heads or self.p < 1:
            raise ValueError(f"second_pass needs heads=() and p >= 1; this sketch has heads={self.heads}, p={self.p:g}")
        if self.decay < 1 and self._ids.counted != self.count:
            given = self.count - self._ids.counted
            raise ValueError(f"second_pass with decay needs ids that the sketch counts; {given} of its ids were given")
        if self.p == 2 and self.sample == 1:
            return self._members(epsilon)[0]
        if self._masked.any():
            raise ValueError(f"second_pass needs rows without padding; {int(self._masked.sum())} came with mask")
        (stream,) = self._settle()._streams
        (kept,) = stream.kept
        known = np.argsort(kept.ids) if self._ids.counted == self.count else slice(0)
        replay = Replay(keys, self.dim, self._ids.spans, self.count, kept.take(known))
        twin = self._settle().copy()
        if self.p == 2:
            twin._streams = [complete(stream, replay)]
        else:
            twin._streams = [replace(stream, kept=(tighten(stream, replay, epsilon),))]
        twin._settled = twin
        return twin._members(epsilon)[0]

    def stack(self, k: int) -> tuple[Any, Any, Any]:
        """Return (indices, scores, mask), each (*heads, k): the k highest scores of each head, the best first.

        Heads with fewer members are padded with index -1, score 0 and mask False, for models want fixed shapes.
        What a head leaves out is what :meth:`UniversalSet.top` says it is.  Raises TypeError and ValueError.
        """
        k = check_integer("k", k, 0)
        arrays = stacked([stream.kept[0] for stream in self._settle()._streams], k)
        return tuple(self._family.out(array.reshape(*self.heads, k)) for array in arrays)

    def heavy_hitters(
        self, queries: Any, epsilon: float | None = None, *, width: int | None = None, normalizer: Any = None
    ) -> Any:
        """Return every entry |<q,k>|^p / sum_l |<q,k_l>|^p >= epsilon over all rows seen.

        ``queries`` is (*heads, m, dim), or (..., dim + 1) with an intercept, the last column being b of <q,k> + b;
        the last of ``heads`` may be a multiple of the keys', for grouped queries.  The result is a float64
        ``scipy.sparse.csr_array`` (m, width), sorted columns, column = id of the key; ``width`` is 1 + the largest id
        seen by default; with heads a list of them, in C order.  For p = 2 its data are the exact entries.  For other
        p, and with a sample, they are proved upper ends, so nothing is missed, and its attribute ``lower`` is a
        csr_array of the same entries' proved lower ends.  Cost: (rank + retained) d a query.
        ``normalizer``: ends (lower, upper), each (*heads, m), of the sums, for the same p and rows, where they are
        known better, as from :meth:`lev.Coreset.bracket` or :meth:`lev.LiftedSketch.normalizer`.  For p != 2 they
        narrow both ends of each entry, within what is proved, which then hold as far as they do; no entry is left out
        because of them.
        Raises TypeError and ValueError.  Theory: 01, universal sets; 12, online Lewis weights and decay; 11, coresets.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        asked, groups = asked_for(queries, self.heads, self.dim, self.intercept)
        settled = self._settle()
        held = [int(stream.kept[0].ids.max(initial=-1)) for stream in settled._streams]
        width = self._ids.following if width is None else check_integer("width", width, 1 + max(held))
        known = [None] * len(asked) if normalizer is None else known_ends(normalizer, asked.shape[:2])
        found = [
            heavy.heavy_hitters(settled._streams[head // groups], part, epsilon, width, self._ids.following - 1, ends)
            for head, (part, ends) in enumerate(zip(asked, known, strict=True))
        ]
        return found if self.heads else found[0]

    def normalizer(self, queries: Any) -> tuple[Any, Any]:
        """Return (lower, upper), each float64 (*heads, m): sum_l |<q,k_l>|^p over all rows seen lies between.

        With decay rows count as of the largest id seen, t; for p > 2 the upper end then grows by decay^(-t (p/2 - 1)).
        ``queries`` as in :meth:`heavy_hitters`.  Raises TypeError and ValueError.
        """
        asked, groups = asked_for(queries, self.heads, self.dim, self.intercept)
        streams, now = self._settle()._streams, self._ids.following - 1
        ends = [heavy.normalizer(streams[head // groups], part, now) for head, part in enumerate(asked)]
        shape = (*self.heads[:-1], self.heads[-1] * groups, -1) if self.heads else (-1,)
        lower, upper = (np.reshape([end[i] for end in ends], shape) for i in (0, 1))
        return self._family.out(lower), self._family.out(upper)

    # -- merge ---------------------------------------------------------------------------------------------

    def merge(self, other: Sketch) -> Sketch:
        """Add all rows of ``other``, which stays as it is, and return the sketch.

        The larger epsilon holds from then on.  Raises TypeError, and ValueError for a sketch of other arguments,
        the sketch itself, or one that has seen the same ids (their rows would count twice).
        Theory: 03, one pass and merging.
        """
        self._check_mergeable(other)
        draft, theirs = self.copy(), other._settle()
        draft.epsilon = max(self.epsilon, other.epsilon)
        with backend.single_blas():
            draft._flush()
            pairs = zip(draft._streams, theirs._streams, strict=True)
            draft._streams = [mine.merge(their, draft.epsilon) for mine, their in pairs]
        draft._masked = self._masked + other._masked
        draft._ids = self._ids.merge(other._ids) if other.count else self._ids
        draft._settled = None
        self.__dict__.update(draft.__dict__)
        return self

    def _check_mergeable(self, other: Any) -> None:
        if not isinstance(other, Sketch):
            raise TypeError(f"other must be a Sketch; got {type(other).__name__}")
        absorbed = other._streams[0].form is self._streams[0].form and self._streams[0].form.rows
        if other is self or absorbed or {*map(id, self._pending)} & {*map(id, other._pending)}:
            raise ValueError("other is this sketch itself or its copy; its rows would count twice")
        for name in ("dim", "p", "decay", "heads", "payload_dim", "intercept", "sample"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other has {name}={getattr(other, name)!r}; merging needs {name}={getattr(self, name)!r}"
                )
        mine, theirs = self._held_ids(), other._held_ids()
        self._ids.refuse_known("other", theirs, mine)
        other._ids.refuse_known("other", mine, theirs)
        self._ids.merge(other._ids)

    # -- files, equality -----------------------------------------------------------------------------------

    def _taken_apart(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = [store.take_apart(stream) for stream in self._settle()._streams]
        streams = [{**fields, "masked": int(self._masked[head])} for head, (fields, _) in enumerate(parts)]
        fields = {name: getattr(self, name) for name in _ARGUMENTS}
        fields |= {"sample": self.sample} if self.sample < 1 else {}
        fields |= {"next": self._ids.following, "spans": self._ids.spans, "streams": streams}
        return fields, store.numbered(tensors for _, tensors in parts)

    @classmethod
    def _put_together(cls, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Sketch:
        arguments = {name: fields[name] for name in _ARGUMENTS} | {"sample": fields.get("sample", 1.0)}
        sketch = cls(**{**arguments, "heads": tuple(arguments["heads"])})
        parts = store.parts_of(tensors, len(sketch._streams))
        sketch._streams = [
            store.put_together(empty, scalars, part, sketch.dim, sketch.payload_dim)
            for empty, scalars, part in zip(sketch._streams, fields["streams"], parts, strict=True)
        ]
        sketch._masked = np.array([check_integer("masked", part["masked"], 0) for part in fields["streams"]], np.int64)
        sketch._ids = Ids.of(fields["next"], fields["spans"])
        sketch._settled = twin = sketch.copy()
        twin._settled = twin
        return sketch


_ARGUMENTS = ("dim", "epsilon", "p", "heads", "decay", "payload_dim", "intercept")


def load(path: str | os.PathLike[str]) -> Any:
    """Return the sketch saved at ``path``, of the class that it was saved from.

    Raises TypeError, OSError, and SketchFileError (a ValueError).

    >>> import os, tempfile, numpy as np, lev
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "keys.lev")
    ...     lev.Sketch(2, 0.5).update(np.eye(2)).save(path)
    ...     lev.load(path).count
    2
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be that of a file; got {type(path).__name__}")
    with open(path, "rb") as file:
        return store.read(file.read(), [Sketch, CausalSketch, SlidingWindowSketch])


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Return one sketch of all rows of ``sketches``, folded as a tree; they stay as they are.

    Raises TypeError and ValueError as :meth:`Sketch.merge` does, and ValueError if there are none.

    >>> import numpy as np, lev
    >>> halves = [lev.Sketch(1, 0.5, start=10 * i).update([[1.0], [i]]) for i in range(2)]
    >>> lev.merge(halves).count
    4
    """
    if not isinstance(sketches, Iterable):
        raise TypeError(f"sketches must be sketches; got {type(sketches).__name__}")
    level = list(sketches)
    for sketch in level:
        if not isinstance(sketch, Sketch):
            raise TypeError(f"sketches must hold Sketch alone; got {type(sketch).__name__}")
    level = [sketch.copy() for sketch in level]
    if not level:
        raise ValueError("sketches must hold at least one sketch; got none")
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def universal_set(keys: Any, epsilon: float, p: float = 2.0) -> UniversalSet:
    """Return the universal set of all keys at once: those with sensitivity >= epsilon.

    ``keys`` is (n, d).  Guarantee and cost as for :class:`Sketch` or, for p != 2, as for
    :func:`lev.lewis.lp_universal_set`.  Raises TypeError and ValueError.

    >>> import lev
    >>> lev.universal_set([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], 0.5).indices
    array([0])
    """
    array, family = backend.matrix("keys", keys, None)
    if array.shape[1] == 0:
        raise ValueError(f"keys must have at least one column; got shape {array.shape}")
    if check_power(p) != 2:
        return lp_universal_set(keys, epsilon, p)
    sketch = Sketch(array.shape[1], epsilon, p).update(array)
    sketch._family = family
    return sketch.universal_set()
