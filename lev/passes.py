"""Two passes over rows that can be read again: first the form alone, then the rows that reach epsilon in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lev import backend
from lev.checks import check_epsilon, check_integer
from lev.form import Form
from lev.parallel import parts_of
from lev.readers import Reader
from lev.rows import Rows, concatenate
from lev.universal import UniversalSet


def two_pass(source: Any, epsilon: float, *, start: int = 0, **options: Any) -> UniversalSet:
    """Return the universal set of rows that are read twice.

    ``source`` is an array, a file, a reader or a list of files, with the ``options`` (tensor, head, dim) of
    :func:`lev.scan`; or the blocks (m, dim) of a stream, in what starts anew each time, as a list, or from a function
    without arguments that returns them.  Ids are places in the whole, from ``start``.

    Guarantee: exact up to rounding, as for :class:`lev.Sketch`; no row is held that is not a member.
    Cost: two reads, O(d^2) a row in each.  Memory: O(d^2) and a block in the first pass, and the members, at
    most rank / epsilon, in the second.  Raises TypeError and ValueError for bad input, for a source that can be
    read once only, and for one that gave other rows the second time, as far as their number shows.
    Theory: 01, universal sets; 04, rounding margin.

    >>> import numpy as np, lev
    >>> lev.two_pass(lambda: (np.full((3, 1), 1.0 + i) for i in range(3)), 0.2).indices
    array([6, 7, 8])
    """
    epsilon, start = check_epsilon(epsilon), check_integer("start", start, 0)
    replay = source if callable(source) else _replay(source, options)
    form, judge = Form.empty(1), None
    for place, block, _ in _blocks(replay, None):
        if place == 0:
            form = Form.empty(block.shape[1])
        form, judge = form.grown(block, judge) if len(block) else (form, judge)
    judge, limit = form.factor(), form.limit
    empty = Rows.of(np.zeros((0, form.frame.dim)), np.zeros(0, np.int64), np.zeros((0, 0)))
    kept, omitted, count, family = [empty], 0.0, 0, backend.NUMPY
    for place, block, came in _blocks(replay, form.frame.dim):
        count, family = place + len(block), came
        lower, upper = judge.bracket(block)
        member = upper >= epsilon
        omitted = float(upper[~member].max(initial=omitted))
        ids, extra = np.arange(place + start, count + start), np.zeros((len(block), 0))
        kept.append(Rows(block, ids, extra, lower, upper).take(np.flatnonzero(member)))
    if count != form.rows:
        raise ValueError(f"source gave {form.rows} rows first and {count} rows then; it must give the same twice")
    rows = concatenate([part for part in kept if len(part)] or [empty])
    exact = bool(np.all(rows.lower >= epsilon * (1 - 2 * limit)))
    return UniversalSet.of(rows, family, epsilon=epsilon, count=count, exact=exact, omitted=omitted)


def _replay(source: Any, options: dict[str, Any]) -> Callable[[], Iterable[Any]]:
    listed = source if isinstance(source, list | tuple) else [source]
    files = [item for item in listed if isinstance(item, str | os.PathLike | Reader)]
    if isinstance(source, Iterator) or any(str(item) == "-" for item in files):
        raise ValueError("source can be read once only; give a file, an array or a function that returns the blocks")
    if listed and not files and not hasattr(source, "ndim") and isinstance(source, Iterable):
        return lambda: source
    parts = parts_of(source, **options)
    return lambda: (block for part in parts for block in part.blocks())


def _blocks(replay: Callable[[], Iterable[Any]], dim: int | None) -> Iterator[tuple[int, np.ndarray, backend.Family]]:
    """Yield (place of the first row, block, family) for checked blocks."""
    place = 0
    for block in replay():
        rows, family = backend.matrix("source", block, dim)
        if rows.shape[1] == 0:
            raise ValueError(f"source must have at least one column; got blocks of shape {rows.shape}")
        backend.check_finite("source", rows, place)
        yield place, rows, family
        place, dim = place + len(rows), rows.shape[1]
