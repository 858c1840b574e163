"""Sketches of Dask arrays, and of lists of files on a Dask cluster: one task a part and a tree of merges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from lev import backend, parallel
from lev.sketch import Sketch, merge

_FAN_IN = 8


def sketch(source: Any, epsilon: float, *, start: int = 0, options: Any = None, **arguments: Any) -> Sketch:
    """Return the sketch of all rows of ``source``, computed by the Dask scheduler in use.

    ``source`` is a dask array (n, dim), chunked by rows in any way, or a list of files that every worker can
    read; ``options`` (a dict: tensor, head) are those of :func:`lev.scan` for files, ``arguments`` those of
    :class:`lev.Sketch`.  Ids are places in the whole, from ``start``.  An array with unknown chunks is computed
    twice, for its lengths come first.

    A task sketches a chunk or a part of a file on the one thread that Dask gives it; merges form a tree of fan-in
    8, so no worker holds many sketches.  The tree is fixed by the source: whatever the workers, and when tasks of
    a lost worker are computed again, the result has the same bits.
    Guarantee and errors are those of :class:`lev.Sketch`; TypeError for other sources, and ImportError without
    dask (``pip install lev-attention[dask]``).

    >>> import dask.array as da, lev.cluster.dask
    >>> lev.cluster.dask.sketch(da.eye(8, chunks=4), 0.5).universal_set().indices
    array([0, 1, 2, 3, 4, 5, 6, 7])
    """
    import dask

    if isinstance(source, list | tuple):
        tasks = _file_tasks(source, epsilon, {"start": start, **arguments}, options or {})
    elif hasattr(source, "dask") and hasattr(source, "to_delayed"):
        tasks = _array_tasks(source, epsilon, start, arguments)
    else:
        raise TypeError(f"source must be a dask array or a list of files; got {type(source).__name__}")
    join = dask.delayed(_merge, pure=True)
    while len(tasks) > 1:
        tasks = [join(tasks[first : first + _FAN_IN]) for first in range(0, len(tasks), _FAN_IN)]
    return tasks[0].compute()


def _array_tasks(array: Any, epsilon: float, start: int, arguments: dict[str, Any]) -> list[Any]:
    import dask

    if array.ndim != 2:
        raise ValueError(f"source must have shape (n, d); got {array.shape}")
    array = array.rechunk({1: -1}) if len(array.chunks[1]) > 1 else array
    blocks = array.to_delayed().ravel().tolist()
    lengths = array.chunks[0]
    if any(math.isnan(length) for length in lengths):
        lengths = dask.compute(*map(dask.delayed(len), blocks))
    places = itertools.accumulate(lengths, initial=start)
    one, dim = dask.delayed(_sketch, pure=True), int(array.shape[1])
    return [one(block, dim, epsilon, place, arguments) for block, place in zip(blocks, list(places)[:-1], strict=True)]


def _file_tasks(files: Any, epsilon: float, arguments: dict[str, Any], options: dict[str, Any]) -> list[Any]:
    import dask

    number = len(dask.delayed(_parts)(list(files), options).compute())
    one = dask.delayed(_part, pure=True)
    return [one(list(files), options, place, epsilon, arguments) for place in range(number)]


def _parts(files: list[Any], options: dict[str, Any]) -> list[tuple[int, int]]:
    return [(part.first, part.dim) for part in parallel.parts_of(files, **options)]


def _part(files: list[Any], options: dict[str, Any], place: int, epsilon: float, arguments: dict[str, Any]) -> Sketch:
    with backend.alone():
        return parallel.parts_of(files, **options)[place].sketch(epsilon, **arguments)


def _sketch(block: Any, dim: int, epsilon: float, start: int, arguments: dict[str, Any]) -> Sketch:
    with backend.alone():
        return Sketch(dim, epsilon, start=start, **arguments).update(np.asarray(block))


def _merge(sketches: list[Sketch]) -> Sketch:
    with backend.alone():
        return merge(sketches)
