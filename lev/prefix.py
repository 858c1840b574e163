"""Scores of rows in their own prefix: who is a member after each row of a block, not only at its end.

A form that gains the rows of a block one by one changes by rank-one updates.  With the block whitened by the form
before it, Z, and I + Z Z^T = L L^T, all of them are one triangular solve: row i lowers the score of a whitened row
w by ((L^-1 Z w)_i)^2, and that of row j of the block, from 1, by ((L^-1)_ij)^2.  Only rows that are below epsilon
at the end of the block need it, for scores only fall.  Theory: 06, causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used

from lev import bounds, heavy
from lev.factor import Factor, proved_ends, scores_of
from lev.form import Form
from lev.frame import NEVER, Frame

_ROOM = 200  # powers of two that rows of a block may grow by before float64 loses the squares of the first


@dataclass(frozen=True, eq=False)
class Step:
    """A form with a block added, and what became of k rows that were members before it and of its own m rows."""

    form: Form
    judge: Factor  # a factor of the form
    ends: np.ndarray  # (k + m,) int64: the first row of the block after which it is out, m if it is in at the end
    upper: np.ndarray  # (k + m,) float64 bound on its score at the end


def advance(form: Form, judge: Factor, members: np.ndarray, block: np.ndarray, epsilon: float) -> Step:
    """Return ``form`` with the rows of ``block`` added one by one, and when each row fell below ``epsilon``.

    ``judge`` is a factor of ``form``; ``members`` (k, d) are rows in it, ``block`` (m, d), m >= 1, is finite.
    Row j of the block with end j was never a member.  Guarantee: an end is never early, and late only for
    scores above epsilon (1 - :data:`lev.bounds.PREFIX_SHARE`) and the margin of the form.
    Cost: O(d^2) a row and O(d^3 + k d^2) a block, and O(m^2 (m + f)) for f rows that fell.
    """
    grown, _ = form.add(block, judge)
    k, m = len(members), len(block)
    moved = grown.frame is not form.frame
    if moved and 1 < m != grown.rank - form.rank:
        return _in_halves(form, judge, members, block, epsilon)
    with np.errstate(over="ignore", invalid="ignore"):  # of rows that overflow beside the form nothing is known
        z, blur = (block[:, :0], np.zeros(m)) if moved else _whitened(judge, block)
        early = np.ones(m) if moved else scores_of(proved_ends(np.linalg.norm(z, axis=1), blur, judge.slack)[1])
    after = grown.triangular()
    late = np.flatnonzero(~(early < epsilon))
    upper = np.concatenate([after.bracket(members)[1], early])
    upper[k + late] = np.minimum(early[late], after.bracket(block[late])[1])
    ends = np.full(k + m, m)
    ends[k:][early < epsilon] = np.flatnonzero(early < epsilon)
    old, own = np.flatnonzero(upper[:k] < epsilon), late[upper[k + late] < epsilon]
    fell = np.concatenate([old, k + own])
    if moved or m == 1:
        ends[fell] = m - 1
    elif fell.size:
        found = _ends(judge, members[old], z, blur, own, epsilon)
        if found is None:
            return _in_halves(form, judge, members, block, epsilon)
        ends[fell] = np.minimum(found, m - 1)
    return Step(grown, after, ends, upper)


def _in_halves(form: Form, judge: Factor, members: np.ndarray, block: np.ndarray, epsilon: float) -> Step:
    """Return the step in two: a single row that changes the frame is scored by the new form itself."""
    half = len(block) // 2
    first = advance(form, judge, members, block[:half], epsilon)
    stay = np.flatnonzero(first.ends == half)
    members = np.concatenate([members, block[:half]])[stay]
    second = advance(first.form, first.judge, members, block[half:], epsilon)
    ends = np.concatenate([first.ends, half + second.ends[len(stay) :]])
    upper = np.concatenate([first.upper, second.upper[len(stay) :]])
    ends[stay], upper[stay] = half + second.ends[: len(stay)], second.upper[: len(stay)]
    return Step(second.form, second.judge, ends, upper)


def _ends(
    judge: Factor, members: np.ndarray, z: np.ndarray, blur: np.ndarray, own: np.ndarray, epsilon: float
) -> np.ndarray | None:
    """Return after which row of a block each of ``members`` and of its rows ``own`` is out; None if too blurred.

    The block is whitened: ``z`` and its rounding ``blur``.
    """
    w, reach = _whitened(judge, members)
    start = np.concatenate([np.square(w).sum(axis=1), np.ones(len(own))])
    moved = float(np.linalg.norm(blur))
    with np.errstate(over="ignore"):
        rounding = bounds.prefix_error(len(z) + judge.rank, len(z) + float(np.square(z).sum()))
    if not (rounding / epsilon <= bounds.PREFIX_SHARE and moved <= bounds.PREFIX_SHARE):
        return None
    eye = np.eye(len(z))
    lower = np.linalg.cholesky(eye + z @ z.T)
    falls = scipy.linalg.solve_triangular(lower, np.hstack([z @ w.T, eye[:, own]]), lower=True, check_finite=False)
    scores = start - np.cumsum(np.square(falls, out=falls), axis=0)
    root = np.sqrt(epsilon / judge.growth) * (1 - moved) - np.concatenate([reach, blur[own]])
    floor = np.maximum(root, 0) ** 2 - rounding * np.maximum(start, 1)
    return np.count_nonzero(scores >= floor, axis=0)


def _whitened(judge: Factor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in coordinates in which the judge's form is the identity, and their rounding."""
    x, norms = judge.frame.widen(rows)
    y = judge.frame.coordinates(x)
    return y @ judge.whiten, judge.reach * np.sqrt(norms)


def entries(
    before: Form, queries: np.ndarray, parts: list[np.ndarray], epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (query, key, weight) of the entries >= epsilon of a block's last queries, each over its own prefix.

    ``before`` is the form before the block; ``parts`` the members before it, if any, and its rows.
    The normaliser is that of ``before`` and the block's own rows one by one.
    """
    m, block = len(queries), parts[-1]
    first, last = (_units(before, block[:seen]) for seen in (len(block) - m + 1, len(block)))
    if m > 1 and np.any(last > first + _ROOM):  # the last rows would hide the first from float64
        half = m // 2
        early = entries(before, queries[:half], [*parts[:-1], block[: half - m]], epsilon)
        late = entries(before, queries[half:], parts, epsilon)
        query, key, weight = (np.concatenate(pair) for pair in zip(early, late, strict=True))
        query[len(early[0]) :] += half
        return query, key, weight
    _, roots, root_powers = heavy.roots_of(before, queries)
    scaled, powers = heavy.in_one_binade(queries, last)
    frame = Frame(last)  # zeros stay what they are
    logits = np.hstack([scaled @ frame.widen(part)[0].T for part in parts])
    squares = np.square(logits)
    squares[:, -len(block) :] *= np.tri(m, len(block), len(block) - m)
    total = np.square(np.ldexp(roots, np.maximum(root_powers - powers, -2000))) + squares[:, -len(block) :].sum(axis=1)
    weights = np.divide(squares, total[:, None], out=squares, where=total[:, None] > 0)
    query, key = np.nonzero(weights >= epsilon)
    return query, key, np.minimum(weights[query, key], 1)


def _units(before: Form, block: np.ndarray) -> np.ndarray:
    """Return the power of two of each column over the rows of a form and of a block, (D,), NEVER for zeros."""
    sizes = np.ones(before.frame.dim)
    sizes[: block.shape[1]] = np.abs(block).max(axis=0)
    units = np.where(sizes > 0, np.frexp(sizes)[1], NEVER)
    triangle = before.frame.triangle  # without one no column holds zeros alone
    live = np.ones(len(units), bool) if triangle is None else triangle.root.any(axis=0)
    return np.where(live, np.maximum(units, before.frame.exponents), units)
