"""One causal stream: a form, the keys that are members now, and when each that ever was one came and went.

Scores only fall as rows arrive, so a key becomes a member at its own row or never, and once out it stays out.
Theory: 06, causal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, heavy, store
from lev.candidates import Candidates
from lev.factor import Factor
from lev.form import Form
from lev.prefix import advance, entries
from lev.rows import Rows, concatenate
from lev.universal import UniversalSet
from lev.weighting import Weighting

ALIVE = np.iinfo(np.int64).max
"""``dropped`` of a key that is still a member: later than every position."""


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """When each key was a member: after the rows at positions ``admitted`` <= i < ``dropped``.

    ``ids``, ``admitted``, ``dropped`` are (m,) int64, one for each key that was ever a member, in the order of
    admission.  Positions count rows from 0; a key is admitted at its own.  ``dropped`` is :data:`ALIVE` for a
    key that is a member still.

    >>> import numpy as np, lev
    >>> lives = lev.CausalSketch(2, 0.4).update(np.repeat(np.eye(2), [1, 5], axis=0)).lifetimes()
    >>> lives.ids, lives.dropped[1:]
    (array([0, 1, 2]), array([3, 3]))
    >>> lives.mask([1, 3])
    array([[ True,  True, False],
           [ True, False, False]])
    """

    ids: np.ndarray
    admitted: np.ndarray
    dropped: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, positions: Any) -> np.ndarray:
        """Return bool (len(positions), len(self)): which keys are members after the row at each position.

        Causal by itself: no key is a member before its own row.  ``positions`` (m,) are integers, those of rows.
        Raises TypeError.
        """
        at = backend.integers("positions", positions)[:, None]
        return (self.admitted <= at) & (at < self.dropped)

    def then(self, others: tuple[Lifetimes, ...]) -> Lifetimes:
        """Return these and the others, in the order of admission."""
        parts = [(life.ids, life.admitted, life.dropped) for life in (self, *others)]
        ids, admitted, dropped = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(admitted)
        return Lifetimes(ids[order], admitted[order], dropped[order])


@dataclass(frozen=True, eq=False)
class Members:
    """The immutable state of one causal stream."""

    epsilon: float
    form: Form
    judge: Factor  # a factor of the form
    kept: Rows  # the members
    since: np.ndarray  # (m,) int64, the positions at which they were admitted
    ended: tuple[Lifetimes, ...] = ()  # of those that were members; few, for short ones are joined
    dropped: float = 0.0  # the largest bound of a row that is not kept

    @classmethod
    def none(cls, epsilon: float, columns: int, kept: Rows) -> Members:
        """Return the state before the first row of a form with ``columns``; ``kept`` has no rows."""
        form = Form.empty(columns)
        return cls(epsilon, form, form.triangular(), kept, np.zeros(0, np.int64))

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the fields and tensors of a file."""
        fields, tensors = store.take_form(self.form)
        lives = Lifetimes(*np.zeros((3, 0), np.int64)).then(self.ended)
        ended = np.array([lives.ids, lives.admitted, lives.dropped])
        return fields | {"dropped": self.dropped}, tensors | store.take_rows(self.kept) | {
            "since": self.since,
            "ended": ended,
        }

    def of_parts(self, fields: dict[str, Any], tensors: dict[str, np.ndarray], payload_columns: int) -> Members:
        """Return the state in a file; this one has no rows.  Raises ValueError, TypeError and KeyError."""
        form = store.put_form(fields, tensors, self.form.frame.dim)
        rows = store.put_rows(tensors, self.kept.keys.shape[1], payload_columns)
        since, ended, dropped = tensors["since"], tensors["ended"], fields["dropped"]
        store.check_scalars([dropped])
        if (
            since.shape != (len(rows),)
            or ended.shape[:-1] != (3,)
            or {since.dtype, ended.dtype} != {np.dtype(np.int64)}
        ):
            raise ValueError(
                f"since and ended must be int64; got {since.dtype} {since.shape}, {ended.dtype} {ended.shape}"
            )
        lives = _joined((), Lifetimes(*ended))
        return Members(self.epsilon, form, form.triangular(), rows, since, lives, dropped)

    @property
    def nbytes(self) -> int:
        ended = 3 * sum(life.ids.nbytes for life in self.ended)
        return self.form.nbytes + self.kept.nbytes + self.since.nbytes + ended

    def absorb(self, rows: Rows) -> tuple[Members, np.ndarray]:
        """Return the state after a block, added row by row, and which of its rows became members."""
        k, m, place = len(self.kept), len(rows), self.form.rows
        step = advance(self.form, self.judge, self.kept.keys, rows.keys, self.epsilon)
        both = concatenate([part for part in (self.kept, rows) if len(part)])
        since = np.concatenate([self.since, np.arange(place, place + m)])
        ends = place + step.ends
        entered, stays = ends > since, step.ends == m
        gone, here = np.flatnonzero(entered & ~stays), np.flatnonzero(stays)
        form, judge = step.form, step.judge
        if (place + m).bit_length() > place.bit_length():  # rows beyond the first often make plain coordinates do
            form = form.simplified()
            judge = judge if form is step.form else form.triangular()
        after = Members(
            self.epsilon,
            form,
            judge,
            replace(both, upper=step.upper).take(here),
            since[here],
            _joined(self.ended, Lifetimes(both.ids[gone], since[gone], ends[gone])),
            float(step.upper[~stays].max(initial=self.dropped)),
        )
        return after, entered[k:]

    def entries(self, rows: Rows, queries: np.ndarray) -> np.ndarray:
        """Return (3, ·): query, id of the key and weight of the entries of a block's queries, each over its prefix."""
        parts = [part.keys for part in (self.kept, rows) if len(part)]
        least = self.epsilon * (1 - min(self.judge.slack, 1.0))
        query, key, weight = entries(self.form, queries, parts, least)
        return np.array([query, np.concatenate([self.kept.ids, rows.ids])[key], weight])

    def lifetimes(self) -> Lifetimes:
        """Return those of all that were ever members."""
        return Lifetimes(self.kept.ids, self.since, np.full(len(self.kept), ALIVE)).then(self.ended)

    def universal_set(self, family: backend.Family, epsilon: float, count: int) -> UniversalSet:
        """Return the members that reach ``epsilon``."""
        lower, _ = self.judge.bracket(self.kept.keys)
        least = epsilon * (1 - 2 * self.form.limit)
        exact = bool(np.all(lower[self.kept.upper >= epsilon] >= least))
        return UniversalSet.of(self.kept, family, epsilon=epsilon, count=count, exact=exact, omitted=self.dropped)

    def heavy_hitters(self, queries: np.ndarray, epsilon: float, width: int) -> Any:
        """Return the entries >= ``epsilon`` over all rows as a CSR array."""
        stream = Candidates(epsilon, Weighting(), self.form, (self.kept,))
        return heavy.heavy_hitters(stream, queries, epsilon, width)


def _joined(ended: tuple[Lifetimes, ...], more: Lifetimes) -> tuple[Lifetimes, ...]:
    """Return both; each is joined with those before it that are no longer, so that log m parts hold m lifetimes."""
    while ended and len(ended[-1]) <= len(more):
        more, ended = more.then(ended[-1:]), ended[:-1]
    return (*ended, more) if len(more) else ended
