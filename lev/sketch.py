"""The sketch: a quadratic form plus the few rows that still might matter.

A bound on a key's sensitivity, once proved, stays true as rows arrive.  So one pass is enough: add rows to the
form, bound them against it, drop those that are below epsilon for good, and merge by adding forms and joining
the rows that were kept.  Theory: 02, monotonicity; 03, one pass and merging.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lev import backend, bounds, heavy, store
from lev.checks import check_epsilon, check_integer, check_power, check_square
from lev.factor import Factor
from lev.form import Form, NonFiniteRow
from lev.frame import Frame, Triangle
from lev.ids import Ids
from lev.lewis import lp_universal_set
from lev.rows import Rows, concatenate
from lev.universal import UniversalSet

if TYPE_CHECKING:
    from scipy import sparse

_SMALLEST_BLOCK, _BLOCK_NUMBERS = 256, 2**21


class Sketch:
    """A one-pass, mergeable sketch of a stream of keys that holds its universal set.

    Parameters
    ----------
    dim : number of columns of a key
    epsilon : the threshold in (0, 1]: every key that any query can ever give a weight
        <q,k>^2 / sum_l <q,k_l>^2 >= epsilon is kept
    p : the exponent of the weights; 2.0 in this release
    heads : () in this release
    start : the id of the first row, if ids are not given
    decay : 1.0 in this release
    payload_dim : columns of the rows that may travel with the keys, such as the values of a cache
    intercept : also for affine queries <q,k> + b, that is, centred scores (Theory: 01)

    Guarantee: exact up to rounding.  {score >= epsilon} is always in the universal set, and every member of an
    ``exact`` one reaches epsilon (1 - 2 margin), margin as in :func:`lev.bounds.margin`.  At most rank / epsilon
    rows are retained, whatever the length of the stream, its order and its split into updates and sketches.
    Cost: O(d^2) a row; memory O(d^2 + d^2 / epsilon) and one block.
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

    __hash__ = None  # type: ignore[assignment]

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
    ) -> None:
        self.dim = check_integer("dim", dim, 1)
        self.epsilon = check_epsilon(epsilon)
        self.p = check_square(p)
        if tuple(heads) != ():
            raise ValueError(f"heads must be () in this release; got {heads!r}")
        if decay != 1:
            raise ValueError(f"decay must be 1.0 in this release; got {decay!r}")
        self.heads, self.decay = (), 1.0
        self.payload_dim = check_integer("payload_dim", payload_dim, 0)
        self.intercept = bool(intercept)
        self._ids = Ids(check_integer("start", start, 0))
        self._form = Form.empty(self.dim + self.intercept)
        self._judge: Factor | None = None  # a factor of the form, perhaps of an earlier state of it
        self._kept: list[Rows] = []  # rows that may still reach epsilon
        self._dropped = 0.0  # the largest bound of a row that was dropped
        self._pending: list[Rows] = []  # rows short of a block: a stream's blocks do not depend on its updates
        self._waiting = 0
        self._family = backend.NUMPY
        self._settled: Sketch | None = None

    # -- what it holds -------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of rows seen."""
        return self._form.rows + self._waiting

    @property
    def retained(self) -> int:
        """The number of rows kept: at most rank / epsilon."""
        return sum(map(len, self._settle()._kept))

    @property
    def rank(self) -> int:
        """The numerical rank of the rows seen (of the rows with a 1 appended, with an intercept)."""
        return self._settle()._form.rank

    @property
    def nbytes(self) -> int:
        """Bytes of the form, the kept rows and the rows that wait for their block."""
        triangle = self._form.frame.triangle
        square = self._form.gram.nbytes + (0 if triangle is None else triangle.matrix.nbytes)
        return square + sum(rows.nbytes for rows in self._kept + self._pending)

    @property
    def resolution(self) -> float:
        """rho: a weight w is held if sqrt(w) >= sqrt(epsilon) + rho ||K|| ||q|| / ||K q||.  Theory: 04, resolution.

        The last term is only that large where the keys are nearly dependent, and their weak directions dropped.
        """
        return bounds.resolution(self._form.frame.dim)

    def __repr__(self) -> str:
        return (
            f"Sketch(dim={self.dim}, epsilon={self.epsilon:g}, p={self.p:g}, count={self.count}, "
            f"retained={self.retained})"
        )

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any, indices: Any = None, payload: Any = None) -> Sketch:
        """Add rows and return the sketch.

        ``keys`` is (m, dim) of any real dtype, memory order and array family, m >= 0; ``indices`` (m,) int64
        ids, by default a running count; ``payload`` (m, payload_dim).  Nothing is aliased, and a refused update
        changes nothing.  Any split of the same rows into updates gives the same sketch, bit for bit.
        Raises TypeError and ValueError; for NaN and infinity with the first bad row.
        """
        rows, ids, family = self._checked(keys, indices, payload)
        if self._waiting + len(rows) < self._block_rows():
            backend.check_finite("keys", rows.keys)
            draft = self
            draft._pend(rows)
        else:
            draft = self.copy()
            with backend.single_blas():
                draft._stream(rows)
        draft._ids, draft._family, draft._settled = ids, family, None
        self.__dict__.update(draft.__dict__)
        return self

    def admit(self, keys: Any, indices: Any = None, payload: Any = None) -> Any:
        """Add rows and return for each whether it was kept: bool, (m,), in the family of the keys.

        For append-only caches: a row answered False can never receive epsilon, now or later.  The answer is
        given at once, so the call ends a block.  Arguments and errors are those of :meth:`update`.
        """
        draft = self.copy().update(keys, indices, payload)
        if indices is None:
            ids = np.arange(self._ids.following, draft._ids.following)
        else:
            ids = backend.intake("indices", indices)[0]
        with backend.single_blas():
            draft._flush()
            draft._prune()
        self.__dict__.update(draft.__dict__)
        return self._family.out(np.isin(ids, self._kept[0].ids))

    def _checked(self, keys: Any, indices: Any, payload: Any) -> tuple[Rows, Ids, backend.Family]:
        array, family = backend.matrix("keys", keys, self.dim)
        m = len(array)
        numbers, ids = self._ids.count_on(m) if indices is None else self._ids.take(indices, m, self._held_ids())
        if payload is None and self.payload_dim and m:
            raise ValueError(f"payload must have shape ({m}, {self.payload_dim}); got None")
        extra = np.zeros((m, 0)) if payload is None else backend.matrix("payload", payload, self.payload_dim)[0]
        if len(extra) != m:
            raise ValueError(f"payload must have shape ({m}, {self.payload_dim}); got {extra.shape}")
        return Rows.of(array, numbers, extra), ids, family

    def _held_ids(self) -> np.ndarray:
        parts = [rows.ids for rows in self._kept + self._pending]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _block_rows(self) -> int:
        """Return the length of the next block: about the rows so far, so that early bounds are fresh too."""
        largest = max(_SMALLEST_BLOCK, _BLOCK_NUMBERS // self.dim)
        return min(largest, max(_SMALLEST_BLOCK, 1 << (self._form.rows.bit_length() - 1) if self._form.rows else 0))

    def _pend(self, rows: Rows) -> None:
        if len(rows):
            self._pending.append(rows.copy())
            self._waiting += len(rows)

    def _stream(self, rows: Rows) -> None:
        """Absorb the pending rows and ``rows`` block by block; what is short of a block waits."""
        start = -self._waiting
        while len(rows) - start >= self._block_rows():
            end = start + self._block_rows()
            try:
                self._absorb(concatenate([*self._pending, rows.take(slice(max(start, 0), end))]))
            except NonFiniteRow as error:
                raise ValueError(f"keys must be finite; row {start + error.row} holds NaN or infinity") from None
            self._pending, self._waiting, start = [], 0, end
        backend.check_finite("keys", rows.keys[start:], start)
        self._pend(rows.take(slice(start, None)))

    def _absorb(self, rows: Rows) -> None:
        """Add one block to the form and keep its rows that may reach epsilon."""
        judge = self._judge
        self._form, upper = self._form.add(rows.keys, judge, self.epsilon)
        if judge is None or upper is None:
            self._judge = judge = self._form.factor()
            upper = judge.bracket(rows.keys)[1]
        self._keep(rows, upper)
        crowded = sum(map(len, self._kept)) > 2 * bounds.max_members(self._form.rank, self.epsilon) + len(rows)
        if crowded or self._form.rows >= 2 * judge.rows:
            self._prune()

    def _keep(self, rows: Rows, upper: np.ndarray, lower: np.ndarray | None = None) -> None:
        chosen = upper >= self.epsilon
        self._dropped = float(upper[~chosen].max(initial=self._dropped))
        lower = rows.lower if lower is None else lower
        self._kept.append(Rows(rows.keys, rows.ids, rows.payload, lower, upper).take(np.flatnonzero(chosen)))

    # -- reads are of the settled state, so that they change nothing ---------------------------------------

    def _settle(self) -> Sketch:
        """Return the canonical twin: no row waits for its block, every kept row is scored by the present form."""
        if self._settled is None:
            twin = self.copy()
            with backend.single_blas():
                twin._flush()
                twin._prune()
            self._settled = twin._settled = twin
        return self._settled

    def _flush(self) -> None:
        if self._waiting:
            self._absorb(concatenate(self._pending))
            self._pending, self._waiting = [], 0

    def _prune(self) -> None:
        """Score the kept rows by the present form and drop those that can no longer reach epsilon."""
        self._form = self._form.simplified()
        self._judge = self._form.factor()
        empty = Rows.of(np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, self.payload_dim)))
        rows = concatenate([part for part in self._kept if len(part)] or self._kept[:1] or [empty])
        lower, upper = self._judge.bracket(rows.keys)
        self._kept = []
        self._keep(rows, np.minimum(upper, rows.upper), lower)

    def universal_set(self, epsilon: float | None = None) -> UniversalSet:
        """Return the universal set for ``epsilon``, by default the sketch's own; a smaller one is refused.

        Raises ValueError.
        """
        epsilon = self._answerable(epsilon)
        settled = self._settle()
        rows = settled._kept[0]
        rows = rows.take(np.argsort(rows.ids))
        member = rows.upper >= epsilon
        omitted = float(rows.upper[~member].max(initial=settled._dropped))
        rows = rows.take(member)
        return UniversalSet(
            indices=self._family.out(rows.ids),
            keys=self._family.out(rows.keys, rows=True),
            scores=self._family.out(rows.upper),
            payload=self._family.out(rows.payload) if self.payload_dim else None,
            epsilon=epsilon,
            p=self.p,
            count=self.count,
            exact=bool(np.all(rows.lower >= epsilon * (1 - 2 * settled._form.limit))),
            omitted=omitted,
        )

    def heavy_hitters(
        self, queries: Any, epsilon: float | None = None, *, width: int | None = None
    ) -> sparse.csr_array:
        """Return every entry <q,k>^2 / sum_l <q,k_l>^2 >= epsilon with its exact value, over all rows seen.

        ``queries`` is (m, dim), or (m, dim + 1) with an intercept, the last column being b of <q,k> + b.  The
        result is a float64 ``scipy.sparse.csr_array`` (m, width), sorted columns, column = id of the key;
        ``width`` is 1 + the largest id seen by default.  Cost: (rank + |U|) d a query.
        Raises TypeError and ValueError.  Theory: 01, universal sets.
        """
        members = self.universal_set(epsilon)
        queries = self._checked_queries(queries)
        least = 1 + int(self._settle()._kept[0].ids.max(initial=-1))
        width = self._ids.following if width is None else check_integer("width", width, least)
        keys, ids = backend.intake("keys", members.keys)[0], backend.intake("indices", members.indices)[0]
        found = heavy.heavy_hitters(self._settle()._form, keys, queries, members.epsilon)
        return type(found)((found.data, ids[found.indices], found.indptr), shape=(len(queries), width))

    def normalizer(self, queries: Any) -> tuple[Any, Any]:
        """Return (lower, upper), each float64 (m,): sum_l <q,k_l>^2 over all rows seen lies between.

        ``queries`` as in :meth:`heavy_hitters`.  Raises TypeError and ValueError.
        """
        lower, upper = heavy.normalizer(self._settle()._form, self._checked_queries(queries))
        return self._family.out(lower), self._family.out(upper)

    def _answerable(self, epsilon: float | None) -> float:
        epsilon = self.epsilon if epsilon is None else check_epsilon(epsilon)
        if epsilon < self.epsilon:
            raise ValueError(
                f"epsilon must be at least the sketch's {self.epsilon:g}, for keys below it are gone; got {epsilon:g}"
            )
        return epsilon

    def _checked_queries(self, queries: Any) -> np.ndarray:
        array, _ = backend.intake("queries", queries)
        affine = self.intercept and array.ndim == 2 and array.shape[1] == self.dim + 1
        return backend.finite_matrix("queries", array, self.dim + affine)[0]

    # -- merge ---------------------------------------------------------------------------------------------

    def merge(self, other: Sketch) -> Sketch:
        """Add all rows of ``other``, which stays as it is, and return the sketch.

        The larger epsilon holds from then on.  Raises TypeError, and ValueError for a sketch of other arguments,
        the sketch itself, or one that has seen the same ids (their rows would count twice).
        Theory: 03, one pass and merging.
        """
        self._check_mergeable(other)
        draft, theirs = self.copy(), other._settle()
        draft._flush()
        draft.epsilon = max(self.epsilon, other.epsilon)
        draft._form = draft._form.merge(theirs._form)
        draft._kept = draft._kept + theirs._kept
        draft._dropped = max(draft._dropped, theirs._dropped)
        draft._ids = self._ids.merge(other._ids) if other.count else self._ids
        draft._settled = None
        draft._prune()
        self.__dict__.update(draft.__dict__)
        return self

    def _check_mergeable(self, other: Any) -> None:
        if not isinstance(other, Sketch):
            raise TypeError(f"other must be a Sketch; got {type(other).__name__}")
        if other is self or (other._form is self._form and self._form.rows):
            raise ValueError("other is this sketch itself or its copy; its rows would count twice")
        for name in ("dim", "p", "decay", "heads", "payload_dim", "intercept"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other has {name}={getattr(other, name)!r}; merging needs {name}={getattr(self, name)!r}"
                )
        mine, theirs = self._held_ids(), other._held_ids()
        self._ids.refuse_known("other", theirs, mine)
        other._ids.refuse_known("other", mine, theirs)
        self._ids.merge(other._ids)

    # -- files, copies, equality ---------------------------------------------------------------------------

    def copy(self) -> Sketch:
        """Return an independent twin.  Cheap: arrays are shared, for none is ever written to."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._kept, twin._pending = list(self._kept), list(self._pending)
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Sketch:
        return self.copy()

    def __reduce__(self) -> tuple:
        return Sketch.from_bytes, (self.to_bytes(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and (self is other or self.to_bytes() == other.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical state in the format of :mod:`lev.store`."""
        settled = self._settle()
        form, rows = settled._form, settled._kept[0]
        rows = rows.take(np.argsort(rows.ids))
        fields = {name: getattr(self, name) for name in _ARGUMENTS}
        fields |= {name: getattr(form, name) for name in _FORM_SCALARS}
        fields |= {"next": self._ids.following, "spans": self._ids.spans, "dropped": settled._dropped}
        tensors = {"form.gram": form.gram, "form.tail": form.tail, "form.exponents": form.frame.exponents}
        if form.frame.triangle is not None:
            tensors |= {"form.triangle": form.frame.triangle.matrix, "form.pivots": form.frame.triangle.pivots}
        tensors |= {"kept.ids": rows.ids, "kept.keys": rows.keys, "kept.upper": rows.upper}
        if self.payload_dim:
            tensors["kept.payload"] = rows.payload
        return store.pack(fields, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Return the sketch of :meth:`to_bytes`.  Raises TypeError, and SketchFileError (a ValueError)."""
        fields, tensors = store.unpack(data)
        try:
            return cls._from_parts(fields, tensors)
        except (KeyError, IndexError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise store.SketchFileError(f"the sketch file does not describe a sketch: {error}") from None

    @classmethod
    def _from_parts(cls, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Sketch:
        arguments = {name: fields[name] for name in _ARGUMENTS}
        sketch = cls(**{**arguments, "heads": tuple(arguments["heads"])}, start=fields["next"])
        triangle = None
        if "form.triangle" in tensors:
            triangle = Triangle(tensors["form.triangle"], tensors["form.pivots"])
        scalars = {name: fields[name] for name in _FORM_SCALARS}
        frame = Frame(tensors["form.exponents"], triangle)
        sketch._form = Form(frame, tensors["form.gram"], tensors["form.tail"], **scalars)
        sketch._form.check(sketch.dim + sketch.intercept)
        sketch._judge = sketch._form.factor()
        keys, ids, upper = (tensors[f"kept.{name}"] for name in ("keys", "ids", "upper"))
        payload = tensors.get("kept.payload", np.zeros((len(ids), 0)))
        shapes = [keys.shape, payload.shape, upper.shape]
        if shapes != [(len(ids), sketch.dim), (len(ids), sketch.payload_dim), (len(ids),)] or ids.dtype != np.int64:
            raise ValueError(f"kept rows have shapes {shapes} for {ids.shape} ids")
        if not (np.isfinite(keys).all() and np.isfinite(upper).all()):
            raise ValueError("kept rows must be finite")
        sketch._kept = [Rows(keys, ids, payload, sketch._judge.bracket(keys)[0], upper)]
        sketch._dropped = float(fields["dropped"])
        sketch._ids = Ids(fields["next"], tuple((int(first), int(end)) for first, end in fields["spans"]))
        sketch._settled = twin = sketch.copy()
        twin._settled = twin
        return sketch

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sketch to ``path``; a reader never sees half of it.  Raises OSError."""
        store.write(path, self.to_bytes())


_ARGUMENTS = ("dim", "epsilon", "p", "heads", "decay", "payload_dim", "intercept")
_FORM_SCALARS = ("rows", "sums", "excuse", "turns", "inherited", "limit")


def load(path: str | os.PathLike[str]) -> Sketch:
    """Return the sketch saved at ``path``.  Raises OSError, and SketchFileError (a ValueError)."""
    with open(path, "rb") as file:
        return Sketch.from_bytes(file.read())


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Return one sketch of all rows of ``sketches``, folded as a tree; they stay as they are.

    Raises TypeError and ValueError as :meth:`Sketch.merge` does, and ValueError if there are none.

    >>> import numpy as np, lev
    >>> halves = [lev.Sketch(1, 0.5, start=10 * i).update([[1.0], [i]]) for i in range(2)]
    >>> lev.merge(halves).count
    4
    """
    level = [sketch.copy() if isinstance(sketch, Sketch) else sketch for sketch in sketches]
    if not level:
        raise ValueError("sketches must hold at least one sketch; got none")
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def universal_set(keys: Any, epsilon: float, p: float = 2.0) -> UniversalSet:
    """Return the universal set of all keys at once: those with sensitivity >= epsilon.

    ``keys`` is (n, d).  Guarantee and cost as for :class:`Sketch` or, for p != 2, as for
    :func:`lev.lewis.lp_universal_set`.  Raises TypeError, ValueError and, for p != 2, NotConverged.

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
