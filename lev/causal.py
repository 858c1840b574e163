"""The causal sketch: after each row the keys that can matter to it or to any later query.

The cache after row i is U_i = {j <= i : score of key j among rows 0..i >= epsilon}.  Scores only fall as rows
arrive, so a key enters at its own row or never, and once out it stays out: each member has one lifetime.
Theory: 06, causal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from lev import backend, heavy
from lev.candidates import Candidates
from lev.checks import check_answerable, check_epsilon, check_integer
from lev.form import Form
from lev.ids import Ids
from lev.incoming import incoming
from lev.prefix import advance, entries
from lev.rows import Rows, concatenate
from lev.universal import UniversalSet
from lev.weighting import Weighting

if TYPE_CHECKING:
    from scipy import sparse

ALIVE = np.iinfo(np.int64).max
"""``dropped`` of a key that is still a member: later than every position."""

_SMALLEST_BLOCK, _BLOCK_PER_COLUMN = 64, 4


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """When each key was a member: after the rows at positions ``admitted`` <= i < ``dropped``.

    ``ids``, ``admitted``, ``dropped`` are (m,) int64, one for each key that was ever a member, in the order of
    admission.  Positions count rows from 0; a key is admitted at its own.  ``dropped`` is :data:`ALIVE` for a
    key that is a member still.
    """

    ids: np.ndarray
    admitted: np.ndarray
    dropped: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, positions: Any) -> np.ndarray:
        """Return bool (len(positions), len(self)): which keys are members after the row at each position.

        Causal by itself: no key is a member before its own row.
        """
        at = np.asarray(positions, np.int64)[:, None]
        return (self.admitted <= at) & (at < self.dropped)


class CausalSketch:
    """A sketch of keys that arrive while queries are asked: the bounded cache after each row.

    Parameters
    ----------
    dim, epsilon, start, payload_dim : as for :class:`lev.Sketch`

    Guarantee: row by row, a superset.  For every i, each key that query i or any later one can give a weight
    <q,k>^2 / sum_{l <= i} <q,k_l>^2 >= epsilon is a member after row i.  A key is dropped late only while its
    score is above epsilon (1 - :data:`lev.bounds.PREFIX_SHARE`) less the margin, so about rank / epsilon keys
    at most are held after each row.  Rows wait until a block is full, so any split into updates gives the same
    bits; ``admit`` and ``attend`` end a block and keep to the guarantee.
    Cost: O(d^2) a row and O(d^3 + d^3 / epsilon) for a block of 4 d rows; rows that raise the rank go one by
    one, O(d^3 + d^2 / epsilon) each.  Memory: O(d^2 + d^2 / epsilon), and three integers for each key that was
    ever a member.  Raises TypeError and ValueError for bad arguments.

    >>> import numpy as np, lev
    >>> sketch = lev.CausalSketch(1, 0.5).update([[1.0], [1.0], [1.0], [3.0]])
    >>> sketch.lifetimes().admitted, sketch.lifetimes().dropped[:2]
    (array([0, 1, 3]), array([2, 2]))
    >>> sketch.universal_set().indices
    array([3])

    """

    def __init__(self, dim: int, epsilon: float, *, start: int = 0, payload_dim: int = 0) -> None:
        self.dim = check_integer("dim", dim, 1)
        self.epsilon = check_epsilon(epsilon)
        self.payload_dim = check_integer("payload_dim", payload_dim, 0)
        self._ids = Ids(check_integer("start", start, 0))
        self._form, self._judge = Form.empty(self.dim), Form.empty(self.dim).factor()
        self._kept = Rows.of(np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, self.payload_dim)))
        self._since = np.zeros(0, np.int64)  # the positions of the kept rows
        self._ended: list[Lifetimes] = []
        self._dropped = 0.0  # the largest bound of a row that is not kept
        self._pending: list[Rows] = []  # rows short of a block: a stream's blocks do not depend on its updates
        self._waiting = 0
        self._family = backend.NUMPY
        self._settled: CausalSketch | None = None

    @property
    def count(self) -> int:
        """The number of rows seen."""
        return self._form.rows + self._waiting

    @property
    def retained(self) -> int:
        """The number of rows in the cache."""
        return len(self._settle()._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the form, the cache, the rows that wait for their block and the lifetimes."""
        ended = 3 * sum(life.ids.nbytes for life in self._ended)
        return (
            self._form.nbytes + ended + self._since.nbytes + sum(rows.nbytes for rows in [self._kept, *self._pending])
        )

    def __repr__(self) -> str:
        return f"CausalSketch(dim={self.dim}, epsilon={self.epsilon:g}, count={self.count}, retained={self.retained})"

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any, indices: Any = None, payload: Any = None) -> CausalSketch:
        """Add rows and return the sketch.  Arguments and errors are those of :meth:`lev.Sketch.update`."""
        rows = self._take(keys, indices, payload)
        start, size = -self._waiting, self._block_rows()
        while len(rows) - start >= size:
            end = start + size
            self._absorb(concatenate([*self._pending, rows.take(slice(max(start, 0), end))]))
            self._pending, self._waiting, start = [], 0, end
        self._pend(rows.take(slice(max(start, 0), None)))
        return self

    def admit(self, keys: Any, indices: Any = None, payload: Any = None) -> Any:
        """Add rows and return for each whether it became a member: bool, (m,), in the family of the keys.

        For append-only caches, where a row once skipped is gone and one once kept stays: a row answered False
        cannot receive epsilon over the rows up to itself, nor later.  Arguments and errors are those of
        :meth:`update`.
        """
        rows = self._take(keys, indices, payload)
        self._flush()
        return self._family.out(np.concatenate([np.zeros(0, bool), *map(self._absorb, self._blocks(rows))]))

    def attend(self, keys: Any, queries: Any, indices: Any = None, payload: Any = None) -> sparse.csr_array:
        """Add rows and return the heavy entries of ``queries``, query i over the rows up to ``keys[i]`` only.

        ``queries`` is (m, dim) like ``keys``.  The result is a float64 ``scipy.sparse.csr_array`` (m, width) of
        every entry <q,k>^2 / sum_{l <= i} <q,k_l>^2 >= epsilon with its exact value, sorted columns, column = id
        of the key, width = 1 + the largest id seen.  Arguments and errors are those of :meth:`update`.
        Cost: (rank + |U| + block) d a query beside the update.
        """
        queries = backend.finite_matrix("queries", queries, self.dim)[0]
        m = len(backend.matrix("keys", keys, self.dim)[0])
        if len(queries) != m:
            raise ValueError(f"queries must have one row for each of the {m} keys; got {len(queries)}")
        rows, found, first = self._take(keys, indices, payload), [np.zeros((3, 0))], 0
        self._flush()
        for block in self._blocks(rows):
            form, judge, kept = self._form, self._judge, self._kept
            self._absorb(block)
            asked = queries[first : first + len(block)]
            parts = [part.keys for part in (kept, block) if len(part)]
            query, key, weight = entries(form, self._form, asked, parts, self.epsilon * (1 - min(judge.slack, 1.0)))
            found.append(np.array([query + first, np.concatenate([kept.ids, block.ids])[key], weight]))
            first += len(block)
        return _csr(np.concatenate(found, axis=1), (len(queries), self._ids.following))

    def merge(self, other: Any) -> NoReturn:
        """Refuse: what a row scores among the rows before it depends on all of them, not on its own part."""
        raise ValueError(
            "causal sketches do not merge: a part does not know the rows before it; update one sketch in order"
        )

    def _take(self, keys: Any, indices: Any, payload: Any) -> Rows:
        """Return the rows of an update that nothing can refuse any more."""
        rows, ids, family = incoming(
            keys, indices, payload, dim=self.dim, payload_dim=self.payload_dim, ids=self._ids, held=self._held_ids
        )
        backend.check_finite("keys", rows.keys)
        self._ids, self._family, self._settled = ids, family, None
        return rows.head(0)

    def _held_ids(self) -> np.ndarray:
        return np.concatenate([rows.ids for rows in [self._kept, *self._pending]])

    def _block_rows(self) -> int:
        return max(_SMALLEST_BLOCK, _BLOCK_PER_COLUMN * self.dim)

    def _blocks(self, rows: Rows) -> list[Rows]:
        size = self._block_rows()
        return [rows.take(slice(first, first + size)) for first in range(0, len(rows), size)]

    def _pend(self, rows: Rows) -> None:
        if len(rows):
            self._pending.append(rows.copy())
            self._waiting += len(rows)

    def _absorb(self, rows: Rows) -> np.ndarray:
        """Add one block row by row and return which of its rows became members."""
        k, m, place = len(self._kept), len(rows), self._form.rows
        with backend.single_blas():
            step = advance(self._form, self._judge, self._kept.keys, rows.keys, self.epsilon)
        both = concatenate([part for part in (self._kept, rows) if len(part)])
        since = np.concatenate([self._since, np.arange(place, place + m)])
        ends = place + step.ends
        entered, stays = ends > since, step.ends == m
        gone = np.flatnonzero(entered & ~stays)
        if gone.size:
            self._ended.append(Lifetimes(both.ids[gone], since[gone], ends[gone]))
        self._dropped = float(step.upper[~stays].max(initial=self._dropped))
        scored = Rows(both.keys, both.ids, both.payload, both.lower, step.upper)
        self._kept, self._since = scored.take(np.flatnonzero(stays)), since[stays]
        self._form, self._judge = step.form, step.judge
        return entered[k:]

    # -- reads are of the settled state, so that they change nothing ---------------------------------------

    def _settle(self) -> CausalSketch:
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

    def copy(self) -> CausalSketch:
        """Return an independent twin.  Cheap: arrays are shared, for none is ever written to."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._ended, twin._pending = list(self._ended), list(self._pending)
        return twin

    __copy__ = copy

    def lifetimes(self) -> Lifetimes:
        """Return when each key that was ever a member entered the cache and when it left."""
        settled = self._settle()
        alive = np.full(len(settled._kept), ALIVE)
        lives = [*settled._ended, Lifetimes(settled._kept.ids, settled._since, alive)]
        ids, admitted, dropped = (
            np.concatenate([getattr(life, name) for life in lives]) for name in ("ids", "admitted", "dropped")
        )
        order = np.argsort(admitted)
        return Lifetimes(ids[order], admitted[order], dropped[order])

    def universal_set(self, epsilon: float | None = None) -> UniversalSet:
        """Return the present cache: the universal set of all rows so far.

        For ``epsilon``, by default the sketch's own; raises ValueError for a smaller one.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        settled = self._settle()
        lower, _ = settled._judge.bracket(settled._kept.keys)
        least = epsilon * (1 - 2 * settled._form.limit)
        return UniversalSet.of(
            settled._kept,
            self._family,
            epsilon=epsilon,
            count=self.count,
            exact=bool(np.all(lower[settled._kept.upper >= epsilon] >= least)),
            omitted=settled._dropped,
        )

    def heavy_hitters(self, queries: Any, epsilon: float | None = None) -> sparse.csr_array:
        """Return every entry >= epsilon of queries that stand at the last row, over all rows so far.

        As :meth:`lev.Sketch.heavy_hitters`; :meth:`attend` answers each query of a chunk over its own prefix.
        Raises TypeError and ValueError.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        queries = backend.finite_matrix("queries", queries, self.dim)[0]
        settled = self._settle()
        stream = Candidates(epsilon, Weighting(), settled._form, (settled._kept,))
        return heavy.heavy_hitters(stream, queries, epsilon, self._ids.following)


def _csr(triples: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Return the CSR array of (row, column, value) triples, columns sorted."""
    from scipy import sparse  # a fifth of a second that `import lev` need not spend

    rows, columns, values = triples
    built = sparse.csr_array((values, (rows.astype(np.int64), columns.astype(np.int64))), shape=shape)
    built.sort_indices()
    return built
