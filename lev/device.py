"""The sketch of many heads whose state stays on the device that holds the keys.

A head that is not proved there, for it is ill-conditioned or not of full rank, goes on at the CPU as one stream of
:class:`lev.Sketch`, which can do everything.  Theory: 13, 14.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np

from lev import backend
from lev.batch import Batch, narrowed
from lev.candidates import Candidates
from lev.checks import check_answerable, check_epsilon, check_heads, check_integer, check_power
from lev.form import Form
from lev.ids import Ids
from lev.place import Place, arrive, host
from lev.rows import Rows, stacked
from lev.sketch import Sketch, load
from lev.universal import UniversalSet
from lev.weighting import Weighting

_BLOCK = 2048  # rows that a block has at least, so that it is of full rank and worth its factorisation
_WIDEST = 256


class DeviceSketch:
    """A :class:`lev.Sketch` of many heads, on the device of the keys that come.

    Parameters
    ----------
    dim : number of columns of a key, at most 256
    epsilon : the threshold in (0, 1]
    p : the exponent of the weights, in [2^-10, 2^10]
    heads : a shape, such as (batch, heads), of independent streams that are fed together
    start : the id of the first row
    fast : (p = 2) sum products of 16-bit keys on tensor cores, in float32: scores are then known to within
        ``bounds.FAST_MARGIN`` only, so the set may be larger

    Keys are torch CUDA tensors, CuPy arrays, or arrays on the CPU (by the NumPy twins of the kernels).
    Guarantee: as for :class:`lev.Sketch`; ``exact`` is True only where every member is proved to reach epsilon.  How
    a stream is split into updates may change bits of the scores, never the guarantee.
    Cost: a block is read twice, for p != 2 four times, and the first block and such as the forms know little of some
    sixteen times more; memory O(d^2) and the kept rows for each head.
    Raises TypeError and ValueError for bad arguments.

    >>> import numpy as np
    >>> from lev.device import DeviceSketch
    >>> keys = np.random.default_rng(0).standard_normal((2, 10_000, 4)).astype(np.float32)
    >>> keys[:, 1234] *= 100
    >>> [u.indices.tolist() for u in DeviceSketch(4, 0.1, heads=(2,)).update(keys).universal_set()]
    [[1234], [1234]]

    """

    def __init__(
        self,
        dim: int,
        epsilon: float,
        p: float = 2.0,
        *,
        heads: tuple[int, ...] = (),
        start: int = 0,
        fast: bool = False,
    ) -> None:
        self.dim = check_integer("dim", dim, 1)
        if self.dim > _WIDEST:
            raise ValueError(f"dim must be at most {_WIDEST} on a device; got {dim}")
        self.epsilon = check_epsilon(epsilon)
        self.p = check_power(p)
        self.heads = check_heads(heads)
        self.fast = bool(fast)
        if self.fast and self.p != 2:
            raise ValueError(f"fast must be False for p != 2; got fast={fast!r}, p={p!r}")
        self.syncs = 0
        """How often an update waited for the device."""
        self._ids = Ids(check_integer("start", start, 0))
        self._state: Batch | None = None
        self._fallen: dict[int, Candidates] = {}
        self._pending: list[Any] = []
        self._waiting = 0
        self._place = Place()
        self._kind = ""

    # -- what it holds -------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of rows seen (of each head)."""
        return self._waiting + (self._state.rows if self._state else 0)

    @property
    def fallen(self) -> int:
        """The number of heads that went on at the CPU."""
        return len(self._fallen)

    @property
    def _many(self) -> int:
        return math.prod(self.heads)

    def __repr__(self) -> str:
        return (
            f"DeviceSketch(dim={self.dim}, epsilon={self.epsilon:g}, p={self.p:g}, heads={self.heads}, "
            f"count={self.count}, device={self._place.device}, fallen={self.fallen})"
        )

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any) -> DeviceSketch:
        """Add rows, (*heads, m, dim), and return the sketch; the device and kind of keys stay what they were first.

        Rows wait for a block; one answer of the device is awaited for a block, two for p != 2, and one for rows that
        wait.
        Raises TypeError, ValueError (for NaN and infinity with the first bad row), RuntimeError where CuPy is missing
        or the card too old, and MemoryError; then nothing has changed.
        """
        self._take(*self._arrived(keys))
        return self

    def _take(self, block: Any, kind: str, place: Place) -> None:
        """Add rows that have arrived, or change nothing."""
        draft = self._copy()
        draft._ids, draft._place, draft._kind = self._ids.count_on(block.shape[1])[1], place, kind
        if block.shape[1]:
            with place.current():
                draft._add(block)
        self.__dict__.update(draft.__dict__)

    def admit(self, keys: Any) -> Any:
        """Add rows and return for each whether it was kept: bool, (*heads, m), on the device of the keys.

        For append-only caches while a model decodes: a row answered False can never receive epsilon, now or later.
        Rows are judged by the forms of the blocks so far, which takes one read of a factor for each head; until the
        first block is full all are kept.  Arguments and errors are those of :meth:`update`.
        """
        block, kind, place = self._arrived(keys)
        self._take(block, kind, place)
        with place.current():
            kept = place.arrays.ones(block.shape[:2], bool)
            if self._state is not None and block.shape[1]:
                kept = self._state.passing(block, self.epsilon)
            kept[list(self._fallen)] = True
            return place.out(kept.reshape(*self.heads, block.shape[1]))

    def _arrived(self, keys: Any) -> tuple[Any, str, Place]:
        """Return keys as (heads, m, dim), their kind, and their place.  Raises as :meth:`update` does."""
        array, kind, place = arrive("keys", keys)
        shape = array.shape
        if len(shape) != len(self.heads) + 2 or shape[:-2] != self.heads or shape[-1] != self.dim:
            wanted = ", ".join(map(str, (*self.heads, "m", self.dim)))
            raise ValueError(f"keys must have shape ({wanted}); got {shape}")
        if self.count and (kind, place.device) != (self._kind, self._place.device):
            was = f"{self._kind} on device {self._place.device}"
            raise TypeError(f"keys must be {was}, as before; got {kind} on device {place.device}")
        with place.current():
            return place.arrays.ascontiguousarray(array.reshape(self._many, *shape[-2:])), kind, place

    def _copy(self) -> DeviceSketch:
        twin = object.__new__(DeviceSketch)
        twin.__dict__.update(self.__dict__)
        twin._pending, twin._fallen = list(self._pending), dict(self._fallen)
        return twin

    def _add(self, block: Any) -> None:
        m = block.shape[1]
        if self._waiting + m >= _BLOCK:
            self._absorb(self._place.arrays.concatenate([*self._pending, block], axis=1) if self._pending else block)
            self._pending, self._waiting = [], 0
            return
        self.syncs += 1
        self._refuse_bad(block, 0)
        self._pending.append(block.copy())
        self._waiting += m

    def _refuse_bad(self, block: Any, before: int) -> None:
        """Raise ValueError for the first row that is not finite; ``before`` rows of the block came earlier."""
        finite = host(self._place.arrays.isfinite(self._place.kernels.wide(block, self._kind)).all(axis=(0, 2)))
        if not finite.all():
            raise ValueError(f"keys must be finite; row {int(finite.argmin()) - before} holds NaN or infinity")

    def _absorb(self, block: Any) -> None:
        """Add one block on the device, and again at the CPU for heads that are not proved there."""
        old = self._state or Batch.empty(self._place, self._kind, self.fast, self.p, block)
        m = block.shape[1]
        first = self._ids.following - m
        for tensor in [True, False] if self.fast else [False]:
            new, proved, finite = old.absorb(block, first, self.epsilon, tensor)
            self.syncs += 1 if self.p == 2 else 2
            if not finite:
                self._refuse_bad(block, self._waiting)
            unproved = [head for head in np.flatnonzero(~proved).tolist() if head not in self._fallen]
            if not unproved:
                break
        for head in unproved:
            self._fallen[head] = self._stream(head)
        for head, stream in self._fallen.items():
            keys = new.numpy(block[head])
            self._fallen[head] = stream.absorb(Rows.of(keys, np.arange(first, first + m), np.zeros((m, 0))))
        self._state = new

    def merge(self, other: DeviceSketch) -> DeviceSketch:
        """Add all rows of ``other``, which stays as it is, and return the sketch.

        The larger epsilon holds from then on.
        Raises TypeError, and ValueError for a sketch of other arguments or one that has seen the same ids.
        Theory: 03, one pass and merging.
        """
        if not isinstance(other, DeviceSketch):
            raise TypeError(f"other must be a DeviceSketch; got {type(other).__name__}")
        for name in ("dim", "p", "heads", "fast", "_kind", "_place"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and ((self.count and other.count) or name[0] != "_"):
                raise ValueError(f"other has {name.strip('_')}={theirs!r}; merging needs {name.strip('_')}={mine!r}")
        ids = self._ids.merge(other._ids)
        draft, their = self._settled(), other._settled()
        draft._ids, draft.epsilon = ids, max(self.epsilon, other.epsilon)
        if draft._state is None or their._state is None:
            some = draft if their._state is None else their
            draft._place, draft._kind, draft._state = some._place, some._kind, some._state
            fallen = some._fallen.items()
            draft._fallen = {h: replace(stream, epsilon=draft.epsilon, current=False) for h, stream in fallen}
        else:
            with draft._place.current():
                state, proved = draft._state.merge(their._state, draft.epsilon)
                draft._join(their, state, proved)
        self.__dict__.update(draft.__dict__)
        return self

    def _join(self, other: DeviceSketch, state: Batch, proved: np.ndarray) -> None:
        """Become ``state``; heads that are not proved in it go on at the CPU, as both sketches have them."""
        self.syncs += 2
        unproved = {*np.flatnonzero(~proved).tolist(), *self._fallen, *other._fallen}
        self._fallen = {head: self._stream(head).merge(other._stream(head), self.epsilon) for head in sorted(unproved)}
        self._state = state

    # -- reads are of a settled twin, so that they change nothing ------------------------------------------

    def _settled(self) -> DeviceSketch:
        """Return a twin of which no row waits."""
        twin = self._copy()
        if twin._waiting:
            with twin._place.current():
                block = twin._place.arrays.concatenate(twin._pending, axis=1)
                twin._pending, twin._waiting = [], 0
                twin._absorb(block)
        return twin

    def universal_set(self, epsilon: float | None = None) -> Any:
        """Return the universal set, with heads a list of them, on the device of the keys.

        A smaller epsilon than the sketch's is refused.  Raises ValueError.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        twin = self._settled()
        with twin._place.current():
            sets = twin._sets(epsilon)
        return sets if self.heads else sets[0]

    def _sets(self, epsilon: float) -> list[UniversalSet]:
        if self._state is None:
            return [self._set_of(self._stream(head), epsilon) for head in range(self._many)]
        sets, out = [], self._place.out
        for head, (ids, keys, upper, exact, omitted) in enumerate(self._state.members(epsilon)):
            if head in self._fallen:
                sets.append(self._set_of(self._fallen[head], epsilon))
                continue
            rows = out(ids), out(keys, self._kind), out(upper)
            sets.append(UniversalSet(*rows, None, epsilon, self.p, self.count, exact, omitted))
        return sets

    def _set_of(self, stream: Candidates, epsilon: float) -> UniversalSet:
        """Return the set of a head that is at the CPU."""
        stream, place = stream.pruned(), self._place
        (rows,) = stream.kept
        exact = bool(np.all(rows.lower[rows.upper >= epsilon] >= epsilon * (1 - 2 * stream.form.limit)))
        found = UniversalSet.of(
            rows, backend.NUMPY, epsilon=epsilon, count=self.count, exact=exact, omitted=stream.dropped, p=self.p
        )
        keys = place.out(place.bring(narrowed(found.keys, self._kind or "float64")), self._kind)
        ids, scores = (place.out(place.bring(part)) for part in (found.indices, found.scores))
        return replace(found, indices=ids, keys=keys, scores=scores)

    def stack(self, k: int) -> tuple[Any, Any, Any]:
        """Return (indices, scores, mask), each (*heads, k): the k highest scores of each head, the best first.

        As :meth:`lev.Sketch.stack`, on the device of the keys.  Raises TypeError and ValueError.
        """
        k, twin = check_integer("k", k, 0), self._settled()
        with twin._place.current():
            arrays = twin._place.arrays
            ids, scores = arrays.full((self._many, k), -1), arrays.zeros((self._many, k))
            if twin._state is not None:
                ids, scores = twin._state.best(k, twin.epsilon)
            for head, stream in twin._fallen.items():
                own = stacked(stream.pruned().kept, k)
                ids[head], scores[head] = (twin._place.bring(part[0]) for part in own[:2])
            found = ids, scores, ids >= 0
            return tuple(twin._place.out(part.reshape(*self.heads, k)) for part in found)

    # -- the same sketch on the CPU ------------------------------------------------------------------------

    def to_host(self) -> Sketch:
        """Return the :class:`lev.Sketch` of the same rows: for files, merges, and every other question."""
        twin = self._settled()
        sketch = Sketch(self.dim, self.epsilon, self.p, heads=self.heads)
        with twin._place.current():
            sketch._streams = [twin._stream(head) for head in range(self._many)]
        sketch._ids = self._ids
        return sketch

    @classmethod
    def of(cls, sketch: Sketch, like: Any, *, fast: bool = False) -> DeviceSketch:
        """Return a sketch of the CPU on the device, and for keys of the family and dtype, of ``like``.

        That is an array, or another sketch on the device.  The rows that the sketch kept must be of that dtype already.
        Heads that cannot be proved there stay at the CPU.
        Raises TypeError, and ValueError for a sketch with what a device has not: decay, payload, padding, an intercept,
        a sample, or ids that were given; and for one to be like to which no key came.
        """
        _check_fits(sketch)
        made = cls(sketch.dim, sketch.epsilon, sketch.p, heads=sketch.heads, fast=fast)
        if isinstance(like, DeviceSketch):
            made._kind, made._place = like._kind, like._place
        else:
            _, made._kind, made._place = arrive("like", like)
        if not made._kind:
            raise ValueError("like must have been given keys, for they say where the rows go")
        made._ids = sketch._ids
        streams = sketch._settle()._streams
        kinds = {stream.kept[0].keys.dtype.name for stream in streams if stream.retained}
        held = "float32" if made._kind == "bfloat16" else made._kind
        if kinds - {held}:
            raise TypeError(f"like must be {kinds.pop()}, as the rows that the sketch kept; got {made._kind}")
        if sketch.count:
            with made._place.current():
                made._state, proved = Batch.of(made._place, made._kind, fast, made.p, streams, made.epsilon)
            made._fallen = {head: streams[head] for head in np.flatnonzero(~proved).tolist()}
        return made

    @classmethod
    def load(cls, path: str | os.PathLike[str], like: Any, *, fast: bool = False) -> DeviceSketch:
        """Return the sketch in a file on the device of ``like``; see :meth:`of` and :func:`lev.load`."""
        return cls.of(load(path), like, fast=fast)

    def _stream(self, head: int) -> Candidates:
        """Return one head as the CPU has it."""
        if head in self._fallen:
            return self._fallen[head]
        if self._state is not None:
            return self._state.stream(head, self.epsilon)
        none = Rows.of(np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, 0)))
        return Candidates(self.epsilon, Weighting(self.p), Form.empty(self.dim), (none,))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sketch to ``path``, where :func:`lev.load` reads it.  Raises OSError."""
        self.to_host().save(path)


def _check_fits(sketch: Any) -> None:
    """Raise TypeError or ValueError unless a device can hold the sketch."""
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch; got {type(sketch).__name__}")
    given = sketch._ids.counted != sketch.count
    wanted = {"decay": 1.0, "payload_dim": 0, "intercept": False, "sample": 1.0}
    for name, value in wanted.items():
        if getattr(sketch, name) != value:
            raise ValueError(f"sketch has {name}={getattr(sketch, name)!r}; a device needs {name}={value!r}")
    if given or sketch._masked.any():
        raise ValueError("sketch has ids that were given, or padding; a device counts its rows")
