"""The sliding window: the keys among the last rows that any query can give epsilon over these rows.

When rows leave, scores rise, so a key may only be dropped for what no later window can take from it: the rows
after it, which stay as long as it does.  Rows come in blocks, each with its own form; a row of a finished block is
scored against the rows after it in its block and the forms of the blocks after that, in reverse order by the step
that scores causal prefixes.  Theory: 06, windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from lev import backend, store
from lev.checks import check_answerable, check_dim, check_epsilon, check_integer, check_span
from lev.form import Form
from lev.ids import Ids
from lev.incoming import incoming
from lev.prefix import advance
from lev.rows import Rows, concatenate
from lev.universal import UniversalSet

_BLOCKS = 16  # of one window, by default
_ARGUMENTS = ("dim", "epsilon", "window", "block", "payload_dim", "intercept")
_FIRST, _STEP = 64, 4  # rows of one step: at least, and for each column


@dataclass(frozen=True, eq=False)
class _Block:
    """Consecutive rows: the form of all of them, and those that may be members yet."""

    form: Form
    rows: Rows
    times: np.ndarray  # (m,) float64, of ``rows``
    span: tuple[float, float]  # the times of its first and last row

    @property
    def whole(self) -> bool:
        """Whether no row was dropped."""
        return len(self.rows) == self.form.rows

    def take(self, which: np.ndarray) -> _Block:
        return replace(self, rows=self.rows.take(np.flatnonzero(which)), times=self.times[which])


class SlidingWindowSketch(store.Stored):
    """A sketch of the last rows of a stream.

    Parameters
    ----------
    dim, epsilon, payload_dim, intercept : as for :class:`lev.Sketch`
    window : the rows in the window or, if updates come with times, its length in their unit: a row is in it
        while the time of the latest row less its own is below ``window``
    block : how much of the window one block spans, by default a sixteenth; a block also ends at dim / epsilon rows

    Guarantee: a superset.  After every update each key in the window that any query can give a weight
    <q,k>^2 / sum_l <q,k_l>^2 >= epsilon over the rows in the window is in the universal set, and no key that has
    left it.  Slack: scores do not count what was dropped of the oldest block while a part of it is in the window,
    so about a share block / window of the rows, or 1/16; ``exact`` is True when that was proved to add nothing.
    Cost: O(d^2 + (d^3 + d^2 / epsilon) / m) a row for blocks of m rows.  Memory: O(d^2) a block, the rows of the
    last two blocks, at most dim / epsilon each, and the rows of the others that may be members yet: about
    rank / epsilon in all for rows of like size, a logarithm of their growth more if older rows dwarf later ones.
    Raises TypeError and ValueError for bad arguments.

    >>> import numpy as np, lev
    >>> sketch = lev.SlidingWindowSketch(1, 0.5, window=3)
    >>> sketch.update([[9.0], [1.0], [1.0]]).universal_set().indices
    array([0])
    >>> sketch.update([[2.0]]).universal_set().indices
    array([3])

    """

    def __init__(
        self,
        dim: int,
        epsilon: float,
        window: float,
        *,
        block: float | None = None,
        payload_dim: int = 0,
        intercept: bool = False,
    ) -> None:
        self.dim = check_dim(dim)
        self.epsilon = check_epsilon(epsilon)
        self.window = check_span("window", window)
        self.block = self.window / _BLOCKS if block is None else check_span("block", block, self.window)
        self.payload_dim = check_integer("payload_dim", payload_dim, 0)
        self.intercept = bool(intercept)
        self.count = 0
        self._most = math.ceil(self.dim / self.epsilon)
        self._ids, self._family = Ids(0), backend.NUMPY
        self._timed, self._now = False, -math.inf
        self._blocks: list[_Block] = []
        self._open: list[tuple[Rows, np.ndarray]] = []  # the rows of the block that is not full yet, and their times
        self._first, self._waiting = -math.inf, 0  # the time of the first of them, and their number
        self._settled = 0  # rows left in the blocks by the last full pass over them

    @property
    def _columns(self) -> int:
        return self.dim + self.intercept

    @property
    def retained(self) -> int:
        """The number of rows held."""
        return self._waiting + sum(len(block.rows) for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of the forms and of the rows held."""
        held = [(block.rows, block.times) for block in self._blocks] + self._open
        return sum(block.form.gram.nbytes for block in self._blocks) + sum(r.nbytes + t.nbytes for r, t in held)

    def __repr__(self) -> str:
        return (
            f"SlidingWindowSketch(dim={self.dim}, epsilon={self.epsilon:g}, window={self.window:g}, "
            f"count={self.count}, retained={self.retained})"
        )

    # -- add rows ------------------------------------------------------------------------------------------

    def update(self, keys: Any, indices: Any = None, payload: Any = None, *, times: Any = None) -> SlidingWindowSketch:
        """Add rows and return the sketch.

        ``times`` (m,) are real numbers that never go back, for a window of time; all updates give them or none.
        The rest, and the errors, are those of :meth:`lev.Sketch.update`.
        """
        rows, ids, family = incoming(
            keys, indices, payload, dim=self.dim, payload_dim=self.payload_dim, ids=self._ids, held=self._held_ids
        )
        backend.check_finite("keys", rows.keys)
        rows = rows.head(0)
        stamps = self._stamps(times, len(rows))
        self._ids, self._family = ids, family
        if len(rows):
            self._timed, self._now, self.count = times is not None, float(stamps[-1]), self.count + len(rows)
        with backend.single_blas():
            self._divide(rows, stamps)
            self._blocks = [block for block in self._blocks if self._alive(block.span[1])]
        return self

    def merge(self, other: Any) -> NoReturn:
        """Refuse: one window ends where its own stream ends."""
        raise ValueError(
            "windows do not merge: each ends at its own last row, so rows of one would count that have left the "
            "other; send the rows to one window"
        )

    def delete(self, indices: Any) -> NoReturn:
        """Refuse: only the oldest rows leave."""
        raise ValueError(
            "rows cannot be deleted: without them scores rise, and keys that were dropped for good could matter "
            "again; rows leave in the order in which they came"
        )

    def _stamps(self, times: Any, m: int) -> np.ndarray:
        """Return the times of m rows, by default their places in the stream."""
        if self.count and m and self._timed != (times is not None):
            raise ValueError(f"times must come with {'every' if self._timed else 'no'} update of this window")
        if times is None:
            return np.arange(self.count, self.count + m, dtype=np.float64)
        stamps = backend.intake("times", times)[0].astype(np.float64)
        if stamps.shape != (m,):
            raise ValueError(f"times must have shape ({m},); got {stamps.shape}")
        backend.check_finite("times", stamps[:, None])
        before = np.concatenate([[self._now if self.count else -np.inf], stamps[:-1]])
        back = np.flatnonzero(stamps < before)
        if back.size:
            row = int(back[0])
            raise ValueError(f"times must not go back; row {row} came at {stamps[row]:g} after {before[row]:g}")
        return stamps

    def _held_ids(self) -> np.ndarray:
        return np.concatenate(
            [np.zeros(0, np.int64), *(block.rows.ids for block in self._blocks), *(rows.ids for rows, _ in self._open)]
        )

    def _alive(self, times: Any) -> Any:
        """Say which times are less than the window ago, by the exact difference."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinitely long ago has left
            ago = self._now - times
            part = ago - self._now
            lost = (self._now - (ago - part)) - (times + part)  # by rounding: ago + lost is exact
            return (ago < self.window) | ((ago == self.window) & (lost < 0))

    @np.errstate(over="ignore")  # what is infinitely far apart is
    def _divide(self, rows: Rows, times: np.ndarray) -> None:
        """Give the rows to blocks; a block ends when a row comes that it has no room for."""
        while len(rows):
            if self._waiting and (self._waiting == self._most or times[0] - self._first >= self.block):
                self._close()
            if not self._waiting:
                self._first = float(times[0])
            room = self._most - self._waiting
            end = int(np.searchsorted(times[:room] - self._first, self.block))
            self._open.append((rows.take(slice(0, end)).copy(), times[:end].copy()))
            self._waiting += end
            rows, times = rows.take(slice(end, None)), times[end:]

    def _close(self) -> None:
        """End the open block, and drop what the blocks show can matter no more."""
        rows, times = self._opened()
        self._blocks = [block for block in self._blocks if self._alive(block.span[1])]
        self._blocks.append(_Block(_form(rows.keys, self._columns), rows, times, (self._first, float(times[-1]))))
        self._open, self._waiting = [], 0
        held = self.retained
        self._prune(len(self._blocks) if held > 2 * (self._settled + self._most) else 2)

    def _opened(self) -> tuple[Rows, np.ndarray]:
        rows, times = zip(*self._open, strict=True)
        return concatenate(rows), np.concatenate(times)

    def _prune(self, depth: int) -> None:
        """Score the rows of the last ``depth`` blocks but the last against the rows after them."""
        after = Form.empty(self._columns)
        for place in range(len(self._blocks) - 1, max(len(self._blocks) - depth, 0) - 1, -1):
            block = self._blocks[place]
            if after.rows:
                self._blocks[place] = block.take(_matters(after, block.rows.keys, self.epsilon))
            after = after.merge(block.form)
        if depth == len(self._blocks):
            self._settled = self.retained

    # -- read ----------------------------------------------------------------------------------------------

    def universal_set(self, epsilon: float | None = None) -> UniversalSet:
        """Return a universal set of the rows in the window.

        For ``epsilon``, by default the sketch's own; raises ValueError for a smaller one.  ``count`` is the
        number of rows of the whole stream.
        """
        epsilon = check_answerable(epsilon, self.epsilon)
        with backend.single_blas():
            rows, least, most, dropped = self._present()
            upper, lower = least.factor().bracket(rows.keys)[1], most.factor().bracket(rows.keys)[0]
        proved = lower[upper >= epsilon] >= epsilon * (1 - 2 * most.limit)
        return UniversalSet.of(
            replace(rows, lower=lower, upper=upper),
            self._family,
            epsilon=epsilon,
            count=self.count,
            exact=bool(np.all(proved)),
            omitted=math.nextafter(self.epsilon, 0) if dropped else 0.0,
        )

    def _present(self) -> tuple[Rows, Form, Form, bool]:
        """Return the rows held in the window, forms of some and of at least all of it, and whether any was dropped."""
        least = Form.empty(self._columns)
        most, dropped, parts = least, False, []
        for block in reversed([*self._blocks, *self._tail()]):
            inside = block if self._alive(block.span[0]) else block.take(self._alive(block.times))
            if inside is not block and block.whole:
                inside = replace(inside, form=_form(inside.rows.keys, self._columns))
            if self._alive(block.span[0]) or inside.whole:
                least, most = least.merge(inside.form), most.merge(inside.form)
            elif self._alive(block.span[1]):
                least, most = least.merge(_form(inside.rows.keys, self._columns)), most.merge(block.form)
            else:
                continue
            dropped |= not inside.whole
            parts.append(inside.rows)
        none = np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, self.payload_dim))
        return concatenate([part for part in reversed(parts) if len(part)] or [Rows.of(*none)]), least, most, dropped

    def _tail(self) -> list[_Block]:
        """Return the open block, if there is one, as it stands."""
        if not self._waiting:
            return []
        rows, times = self._opened()
        return [_Block(_form(rows.keys, self._columns), rows, times, (self._first, float(times[-1])))]

    # -- copies and files ----------------------------------------------------------------------------------

    def copy(self) -> SlidingWindowSketch:
        """Return an independent twin.  Cheap: arrays are shared, for none is ever written to."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._blocks, twin._open = list(self._blocks), list(self._open)
        return twin

    def _taken_apart(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        fields: dict[str, Any] = {name: getattr(self, name) for name in (*_ARGUMENTS, "count")}
        fields |= {"timed": self._timed, "settled": self._settled, "latest": self._now if self.count else 0.0}
        fields |= {
            "next": self._ids.following,
            "spans": self._ids.spans,
            "first": self._first if self._waiting else 0.0,
        }
        parts = []
        for block in self._blocks:
            scalars, tensors = store.take_form(block.form)
            parts.append((scalars | {"span": block.span}, tensors | _held(block.rows, block.times)))
        fields["blocks"] = [scalars for scalars, _ in parts]
        held = [tensors for _, tensors in parts] + ([_held(*self._opened())] if self._waiting else [])
        return fields, store.numbered(held)

    @classmethod
    def _put_together(cls, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> SlidingWindowSketch:
        sketch = cls(**{name: fields[name] for name in _ARGUMENTS})
        parts = store.parts_of(tensors, len(fields["blocks"]) + 1)
        for scalars, part in zip(fields["blocks"], parts, strict=False):
            form = store.put_form(scalars, part, sketch._columns)
            first, last = map(float, scalars["span"])
            sketch._blocks.append(_Block(form, *sketch._put_held(part), (first, last)))
        if parts[-1]:
            sketch._open = [sketch._put_held(parts[-1])]
            sketch._first, sketch._waiting = float(fields["first"]), len(sketch._open[0][1])
        sketch.count, sketch._settled = (check_integer(name, fields[name], 0) for name in ("count", "settled"))
        sketch._timed, sketch._now = bool(fields["timed"]), float(fields["latest"]) if sketch.count else -math.inf
        sketch._ids = Ids.of(fields["next"], fields["spans"])
        return sketch

    def _put_held(self, tensors: dict[str, np.ndarray]) -> tuple[Rows, np.ndarray]:
        rows, times = store.put_rows(tensors, self.dim, self.payload_dim), tensors["times"]
        if times.shape != (len(rows),) or not np.isfinite(times).all() or np.any(np.diff(times) < 0):
            raise ValueError(f"times must be finite, of shape ({len(rows)},), and not go back")
        return rows, times


def _held(rows: Rows, times: np.ndarray) -> dict[str, np.ndarray]:
    return store.take_rows(rows) | {"times": times}


def _steps(keys: np.ndarray) -> list[np.ndarray]:
    size = max(_FIRST, _STEP * keys.shape[1])
    return [keys[first : first + size] for first in range(0, len(keys), size)]


def _form(keys: np.ndarray, columns: int) -> Form:
    """Return the form of finite rows."""
    form, judge = Form.empty(columns), None
    for step in _steps(keys):
        form, judge = form.grown(step, judge)
    return form


def _matters(after: Form, keys: np.ndarray, epsilon: float) -> np.ndarray:
    """Return which rows may reach ``epsilon`` over themselves, the rows that follow them and those of ``after``."""
    form, judge, none = after, after.factor(), keys[:0]
    found = []
    for step in _steps(keys[::-1]):
        moved = advance(form, judge, none, step, epsilon)
        found.append(moved.ends > np.arange(len(step)))
        form, judge = moved.form, moved.judge
    return np.concatenate([np.zeros(0, bool), *found])[::-1]
