"""A second look at a stream that can be replayed: the sensitivities of the kept rows, from both sides.

The first pass leaves a form M and the rows that may reach epsilon.  In coordinates that whiten M, each pass solves one
weighted least squares problem for every row that is undecided: its query proves a lower end, its dual an upper one.
Memory O(d^2) for each row that is looked at.  Theory: 05, duality; 12, online Lewis weights and decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.candidates import Candidates
from lev.form import Form
from lev.frame import aged
from lev.rows import Rows

_TOGETHER = 8  # rows that are refined in one pass over the stream
_PASSES = 40
_LEAST = 1e-12  # weight of a row in a least squares problem, against the largest


@dataclass(frozen=True)
class Replay:
    """All rows of a stream, as often as they are asked for."""

    keys: Any  # (n, dim), or an iterable of blocks that starts anew each time
    dim: int
    spans: tuple[tuple[int, int], ...]  # the runs [first, end) of ids of the rows, in order; those given are not in it
    count: int
    held: Rows  # rows to be found there again, by ascending ids

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks and their ids.  Raises TypeError, and ValueError for rows that are not those of the stream."""
        if isinstance(self.keys, Iterator):
            raise TypeError(f"keys must be readable many times; got a {type(self.keys).__name__}, which is not")
        seen, ends = 0, np.cumsum([end - first for first, end in self.spans], dtype=np.int64)
        offsets = np.array([end for _, end in self.spans], np.int64) - ends  # of the ids in a span to their places
        for block in [self.keys] if hasattr(self.keys, "shape") else self.keys:
            rows, _ = backend.finite_matrix("keys", block, self.dim)
            places = np.arange(seen, seen + len(rows))
            spans = np.searchsorted(ends, places, side="right").clip(max=len(ends) - 1)
            ids = places + offsets[spans] if len(ends) else places
            self._check(rows, ids)
            yield rows, ids
            seen += len(rows)
        if seen != self.count:
            raise ValueError(f"keys must be the {self.count} rows of the sketch; got {seen}")

    def _check(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Raise ValueError if one of the rows held is another here; ``ids`` ascend."""
        first, end = np.searchsorted(self.held.ids, [ids[0], ids[-1] + 1]) if len(ids) else (0, 0)
        held = self.held.ids[first:end]
        wrong = (rows[np.searchsorted(ids, held)] != self.held.keys[first:end]).any(axis=1)
        if wrong.any():
            raise ValueError(f"keys must be the rows of the sketch, in order; the row of id {held[wrong][0]} is not")


def complete(stream: Candidates, replay: Replay) -> Candidates:
    """Return candidates for p = 2 whose form had a sample of the rows with all of them in it, and so exact.

    Cost: O(n d^2); memory O(d^2).
    """
    weighting = replace(stream.weighting, sample=1.0)
    whole = Candidates(stream.epsilon, weighting, Form.empty(stream.form.frame.dim, 4 * weighting.scale_error))
    for keys, ids in replay:
        rows = Rows.of(keys, ids, np.zeros((len(keys), 0)))
        for part in backend.slices(len(keys), backend.TASK):
            whole = whole.grown(rows.take(part))
    return replace(whole, kept=stream.kept, dropped=stream.dropped, judge=None, current=False).pruned()


@dataclass(frozen=True, eq=False)
class _Space:
    """Rows in coordinates that whiten the form, each with what rounding may have made of it."""

    stream: Candidates
    replay: Replay

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for keys, ids in self.replay:
            for part in backend.slices(len(keys), backend.PIECE):
                yield self.of(keys[part], ids[part])

    def of(self, keys: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        judge, weighting = self.stream.factor, self.stream.weighting
        ages = weighting.exponents(ids, self.stream.epoch) * min(1.0, 2 / weighting.p)
        ages = np.minimum(ages, 1)  # zeros that come last bring no time
        x, norms = np.empty((len(keys), judge.frame.dim)), np.empty(len(keys))
        for places, frame, scales in aged(judge.frame, ages):
            x[places], norms[places] = frame.widen(keys[places], scales)
        return judge.frame.coordinates(x) @ judge.whiten, judge.reach * np.sqrt(norms)


def tighten(stream: Candidates, replay: Replay, epsilon: float) -> Rows:
    """Return the kept rows with their ends narrowed until epsilon is not between them, or rounding forbids it.

    ``stream`` is pruned and has p >= 1.  Cost: O(n d^2) a pass for each row that its first bounds leave undecided.
    """
    space, (rows,) = _Space(stream, replay), stream.kept
    lower, upper = rows.lower.copy(), rows.upper.copy()
    undecided = np.flatnonzero((upper >= epsilon) & (lower < epsilon))
    while undecided.size:
        group, undecided = undecided[:_TOGETHER], undecided[_TOGETHER:]
        targets, pads = space.of(rows.keys[group], rows.ids[group])
        lower[group], upper[group] = _refined(space, targets, pads, lower[group], upper[group], epsilon)
    return replace(rows, lower=lower, upper=upper)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # what float64 cannot tell narrows nothing
def _refined(
    space: _Space, targets: np.ndarray, pads: np.ndarray, lower: np.ndarray, upper: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return narrower (lower, upper) of the rows ``targets``, (c, r)."""
    p = space.stream.weighting.p
    count, rank = targets.shape
    queries, steps = targets / np.square(targets).sum(axis=1, keepdims=True), np.zeros((count, rank))
    weights = None  # the first least squares problem is that of the form itself
    for _ in range(_PASSES):
        grams, lows, highs = _one_pass(space, queries, weights, steps, targets, pads)
        sound = np.isfinite(lows) & np.isfinite(highs)
        lower, upper = np.where(sound, np.maximum(lower, lows), lower), np.where(sound, np.minimum(upper, highs), upper)
        if np.all((upper < epsilon) | (lower >= epsilon) | (lower >= (1 - bounds.BRACKET_TOLERANCE) * upper)):
            break
        weights = queries.copy()
        # rows may all but vanish from a problem: a ridge keeps it solvable, and what is left over is charged below
        ridge = 2.0**-50 * np.trace(grams, axis1=1, axis2=2)
        try:
            steps = np.linalg.solve(grams + ridge[:, None, None] * np.eye(rank), targets[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:  # nothing is left of them that float64 can tell
            break
        ahead = steps / np.einsum("cr,cr->c", steps, targets)[:, None]
        queries = queries + (ahead - queries) / max(1.0, p - 1)
    return lower, upper


def _one_pass(
    space: _Space,
    queries: np.ndarray,
    weights: np.ndarray | None,
    steps: np.ndarray,
    targets: np.ndarray,
    pads: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the stream once: return the least squares problems of the queries, and proved lower and upper ends.

    Weights are |<x,z>|^(p-2) of the queries before, ``steps`` the solutions y of their problems: u = D Z y is a dual.
    """
    p = space.stream.weighting.p
    count, rank = targets.shape
    power = p / (p - 1) if p > 1 else math.inf
    size = np.linalg.norm(queries, axis=1)
    grams, totals = np.zeros((count, rank, rank)), np.zeros(count)
    norms, sums, blurs, seen = np.zeros(count), np.zeros((count, rank)), np.zeros(count), 0
    for z, blur in space.rows():
        seen += len(z)
        response = np.abs(z @ queries.T)
        totals += ((response + np.outer(blur + bounds.dot_error(rank) * np.linalg.norm(z, axis=1), size)) ** p).sum(
            axis=0
        )
        for c, column in enumerate(response.T):
            grams[c] += z.T @ (_tempered(column, p)[:, None] * z)
        if weights is not None:
            u = np.stack([_tempered(np.abs(z @ query), p) for query in weights], axis=1) * (z @ steps.T)
            terms = np.abs(u)
            norms = np.maximum(norms, terms.max(axis=0, initial=0)) if p == 1 else norms + (terms**power).sum(axis=0)
            sums += u.T @ z
            blurs += (blur + bounds.dot_error(rank + seen) * np.linalg.norm(z, axis=1)) @ terms
    own = np.maximum(np.abs(np.einsum("cr,cr->c", queries, targets)) - pads * size, 0) * (
        1 - bounds.dot_error(4 * rank)
    )
    slack = 1 - bounds.dot_error(seen + 16) * (1 + p)
    lows = np.divide(own**p, totals, out=np.zeros(count), where=totals > 0) * slack
    if weights is None:
        return grams, lows, np.ones(count)
    left = np.linalg.norm(sums - targets, axis=1) * (1 + bounds.dot_error(4 * rank)) + blurs + pads
    dual = norms if p == 1 else norms ** (1 / power)
    return grams, lows, np.fmin(1, (dual / slack + _reach(space) * left) ** p / slack)


def _tempered(response: np.ndarray, p: float) -> np.ndarray:
    return np.clip(np.maximum(response, _LEAST) ** (p - 2), _LEAST, 1 / _LEAST)


def _reach(space: _Space) -> float:
    """Return c with |y| <= c ||Z y||_p for every y: the form's own lower end of the normaliser."""
    stream = space.stream
    low, _ = stream.weighting.sandwich(stream.mass, stream.form.rows, stream.epoch)
    slack = min(stream.factor.slack, 0.5)
    return float((low * (1 - slack) ** (stream.weighting.p / 2)) ** (-1 / stream.weighting.p))
