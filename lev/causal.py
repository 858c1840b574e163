"""The causal sketch: after each row the keys that can matter to it or to any later query.

The cache after row i is U_i = {j <= i : score of key j among rows 0..i >= epsilon}.  :mod:`lev.lifetimes` keeps it
for one stream, block by block; here is what a user meets: checked input, ids, heads, questions, files.
Theory: 06, causal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, Self

import numpy as np

from lev import backend, store
from lev.checks import check_answerable, check_integer
from lev.ids import Ids
from lev.incoming import Fed, asked_for
from lev.lifetimes import ALIVE, Lifetimes, Members
from lev.rows import Rows, concatenate, stacked

__all__ = ["ALIVE", "CausalSketch", "Lifetimes"]

_SMALLEST_BLOCK, _BLOCK_PER_COLUMN = 256, 2
_ARGUMENTS = ("dim", "epsilon", "heads", "payload_dim", "intercept")


class CausalSketch(Fed, store.Stored):
    """A sketch of keys that arrive while queries are asked: the bounded cache after each row.

    Parameters
    ----------
    dim, epsilon, heads, start, payload_dim, intercept : as for :class:`lev.Sketch`

    Guarantee: row by row, a superset.  For every i, each key that query i or any later one can give a weight
    <q,k>^2 / sum_{l <= i} <q,k_l>^2 >= epsilon is a member after row i.  A key is dropped late only while its
    score is above epsilon (1 - :data:`lev.bounds.PREFIX_SHARE`) less the margin, so about rank / epsilon keys
    at most are held after each row.  Rows wait until a block is full, so any split into updates gives the same
    bits; ``admit`` and ``attend`` end a block and keep to the guarantee.
    Cost, for each head: O(d^2) a row and O(d^3 + d^3 / epsilon) for a block of 2 d rows, at least 256, or fewer where
    a call ends it; rows that raise the rank among others that do not go one by one, at that cost each.
    Memory: O(d^2 + d^2 / epsilon), and three integers for each key that was ever a member.
    Raises TypeError and ValueError for bad arguments.

    >>> import numpy as np, lev
    >>> sketch = lev.CausalSketch(1, 0.5).update([[1.0], [1.0], [1.0], [3.0]])
    >>> sketch.lifetimes().admitted, sketch.lifetimes().dropped[:2]
    (array([0, 1, 3]), array([2, 2]))
    >>> sketch.universal_set().indices
    array([3])

    """

    def __init__(
        self,
        dim: int,
        epsilon: float,
        *,
        heads: tuple[int, ...] = (),
        start: int = 0,
        payload_dim: int = 0,
        intercept: bool = False,
    ) -> None:
        super().__init__(dim, epsilon, heads, start, payload_dim, intercept)
        none = Members.none(self.epsilon, self.dim + self.intercept, self._no_rows())
        self._streams = [none] * len(self._masked)

    @property
    def count(self) -> int:
        """The number of rows seen, padding included (of each head)."""
        return self._streams[0].form.rows + self._waiting

    @property
    def retained(self) -> int:
        """The number of rows in the cache, of all heads."""
        return sum(len(stream.kept) for stream in self._settle()._streams)

    @property
    def nbytes(self) -> int:
        """Bytes of the forms, the cache, the rows that wait for their block and the lifetimes."""
        return sum(stream.nbytes for stream in self._streams) + sum(rows.nbytes for rows in self._pending)

    def __repr__(self) -> str:
        heads = f", heads={self.heads}" if self.heads else ""
        return (
            f"CausalSketch(dim={self.dim}, epsilon={self.epsilon:g}{heads}, count={self.count}, "
            f"retained={self.retained})"
        )

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any, indices: Any = None, payload: Any = None, mask: Any = None) -> CausalSketch:
        """Add rows and return the sketch.  Arguments and errors are those of :meth:`lev.Sketch.update`."""
        rows, known = self._checked(keys, indices, payload, mask)
        self.__dict__.update(known)
        start, size = -self._waiting, self._block_rows()
        while len(rows) - start >= size:
            end = start + size
            self._absorb(concatenate([*self._pending, rows.take(slice(max(start, 0), end))]))
            self._pending, self._waiting, start = [], 0, end
        self._pend(rows.take(slice(max(start, 0), None)))
        return self

    def admit(self, keys: Any, indices: Any = None, payload: Any = None, mask: Any = None) -> Any:
        """Add rows and return for each whether it became a member: bool, (*heads, m), in the family of the keys.

        For append-only caches, where a row once skipped is gone and one once kept stays: a row answered False
        cannot receive epsilon over the rows up to itself, nor later.  Arguments and errors are those of
        :meth:`update`.
        """
        rows, known = self._checked(keys, indices, payload, mask)
        self.__dict__.update(known)
        self._flush()
        none = np.zeros((len(self._streams), 0), bool)
        entered = np.hstack([none, *(self._absorb(block) for block in self._blocks(rows))])
        return self._family.out(entered.reshape(*self.heads, len(rows)))

    def attend(self, keys: Any, queries: Any, indices: Any = None, payload: Any = None, mask: Any = None) -> Any:
        """Add rows and return the heavy entries of ``queries``, query i over the rows up to ``keys[i]`` only.

        ``queries`` is (*heads, m, dim) like ``keys``, or as :meth:`lev.Sketch.heavy_hitters` has them for grouped
        queries and an intercept.  The result is a float64 ``scipy.sparse.csr_array`` (m, width) of
        every entry <q,k>^2 / sum_{l <= i} <q,k_l>^2 >= epsilon with its exact value, sorted columns, column = id
        of the key, width = 1 + the largest id seen; with heads a list of them, in C order.  Arguments and errors are
        those of :meth:`update`.  Cost: (rank + |U| + block) d a query beside the update.
        """
        asked, groups = asked_for(queries, self.heads, self.dim, self.intercept)
        rows, known = self._checked(keys, indices, payload, mask)
        if asked.shape[1] != len(rows):
            raise ValueError(f"queries must have one row for each of the {len(rows)} keys; got {asked.shape[1]}")
        self.__dict__.update(known)
        self._flush()
        found: list[list[np.ndarray]] = [[np.zeros((3, 0))] for _ in asked]
        first = 0
        for block in self._blocks(rows):
            with backend.single_blas():
                for head, part in enumerate(asked[:, first : first + len(block)]):
                    query, key, weight = self._streams[head // groups].entries(block.head(head // groups), part)
                    found[head].append(np.array([query + first, key, weight]))
            self._absorb(block)
            first += len(block)
        shape = (len(rows), self._ids.following)
        hits = [_csr(np.concatenate(parts, axis=1), shape) for parts in found]
        return hits if self.heads else hits[0]

    def merge(self, other: Any) -> NoReturn:
        """Refuse: what a row scores among the rows before it depends on all of them, not on its own part."""
        raise ValueError(
            "causal sketches do not merge: a part does not know the rows before it; update one sketch in order"
        )

    def _checked(self, keys: Any, indices: Any, payload: Any, mask: Any) -> tuple[Rows, dict[str, Any]]:
        """Return rows that nothing can refuse any more, and what is known of them."""
        rows, known = super()._checked(keys, indices, payload, mask)
        backend.check_finite("keys", rows.keys)
        return rows, known

    def _kept(self) -> Iterable[Rows]:
        return (stream.kept for stream in self._streams)

    def _block_rows(self) -> int:
        return max(_SMALLEST_BLOCK, _BLOCK_PER_COLUMN * self.dim)

    def _blocks(self, rows: Rows) -> list[Rows]:
        size = self._block_rows()
        return [rows.take(slice(first, first + size)) for first in range(0, len(rows), size)]

    def _absorb(self, rows: Rows) -> np.ndarray:
        """Add one block row by row and return which of its rows became members, (heads, m)."""
        heads = range(len(self._streams))
        streams, entered = zip(
            *backend.run(lambda head: self._streams[head].absorb(rows.head(head)), heads), strict=True
        )
        self._streams = list(streams)
        return np.stack(entered)

    # -- reads are of the settled state, so that they change nothing ---------------------------------------

    def _settle(self) -> Self:
        """Return the twin in which no row waits for its block."""
        if self._settled is None:
            twin = self.copy()
            twin._flush()
            self._settled = twin._settled = twin
        return self._settled

    def _flush(self) -> None:
        if self._waiting:
            self._absorb(concatenate(self._pending))
            self._pending, self._waiting = [], 0

    def lifetimes(self) -> Any:
        """Return when each key that was ever a member entered the cache and when it left: :class:`Lifetimes`.

        With heads a list of them, in C order.
        """
        lives = [stream.lifetimes() for stream in self._settle()._streams]
        return lives if self.heads else lives[0]

    def universal_set(self, epsilon: float | None = None) -> Any:
        """Return the present cache: the universal set of all rows so far, with heads a list of them in C order.

        For ``epsilon``, by default the sketch's own; raises ValueError for a smaller one.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        counts = self.count - self._masked
        streams = self._settle()._streams
        sets = [s.universal_set(self._family, epsilon, int(n)) for s, n in zip(streams, counts, strict=True)]
        return sets if self.heads else sets[0]

    def stack(self, k: int) -> tuple[Any, Any, Any]:
        """Return (indices, scores, mask), each (*heads, k), of the present cache, as :meth:`lev.Sketch.stack`."""
        k = check_integer("k", k, 0)
        arrays = stacked([stream.kept for stream in self._settle()._streams], k)
        return tuple(self._family.out(array.reshape(*self.heads, k)) for array in arrays)

    def heavy_hitters(self, queries: Any, epsilon: float | None = None) -> Any:
        """Return every entry >= epsilon of queries that stand at the last row, over all rows so far.

        As :meth:`lev.Sketch.heavy_hitters`; :meth:`attend` answers each query of a chunk over its own prefix.
        Raises TypeError and ValueError.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        asked, groups = asked_for(queries, self.heads, self.dim, self.intercept)
        streams, width = self._settle()._streams, self._ids.following
        hits = [streams[head // groups].heavy_hitters(part, epsilon, width) for head, part in enumerate(asked)]
        return hits if self.heads else hits[0]

    # -- files ---------------------------------------------------------------------------------------------

    def _taken_apart(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = [stream.parts() for stream in self._settle()._streams]
        fields = {name: getattr(self, name) for name in _ARGUMENTS}
        fields |= {"next": self._ids.following, "spans": self._ids.spans, "masked": self._masked.tolist()}
        return fields | {"streams": [part for part, _ in parts]}, store.numbered(tensors for _, tensors in parts)

    @classmethod
    def _put_together(cls, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> CausalSketch:
        arguments = {name: fields[name] for name in _ARGUMENTS}
        sketch = cls(**{**arguments, "heads": tuple(arguments["heads"])})
        parts = store.parts_of(tensors, len(sketch._streams))
        sketch._streams = [
            empty.of_parts(scalars, part, sketch.payload_dim)
            for empty, scalars, part in zip(sketch._streams, fields["streams"], parts, strict=True)
        ]
        masked = [check_integer("masked", count, 0) for count in fields["masked"]]
        sketch._masked = np.array(masked, np.int64).reshape(len(parts))
        sketch._ids = Ids.of(fields["next"], fields["spans"])
        return sketch


def _csr(triples: np.ndarray, shape: tuple[int, int]) -> Any:
    """Return the CSR array of (row, column, value) triples, columns sorted."""
    from scipy import sparse  # a fifth of a second that `import lev` need not spend

    rows, columns, values = triples
    built = sparse.csr_array((values, (rows.astype(np.int64), columns.astype(np.int64))), shape=shape)
    built.sort_indices()
    return built
