"""Sketch whole sources, on many threads: one sketch a part, merged as a tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from lev import backend
from lev.checks import check_integer
from lev.readers import Reader, open_rows
from lev.sketch import Sketch, merge

_PART_NUMBERS = 2**26  # numbers of one part: far more work than its merge


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a source: where they stand, and how to read them in blocks."""

    name: str
    first: int  # the place of its first row in the whole
    dim: int
    blocks: Callable[[], Iterable[Any]]

    def sketch(self, epsilon: float, start: int = 0, **arguments: Any) -> Sketch:
        """Return the sketch of the part, whose rows have the ids ``start + first`` and on."""
        sketch = Sketch(self.dim, epsilon, start=start + self.first, **arguments)
        place = 0
        for block in self.blocks():
            try:
                sketch.update(block)
            except ValueError:
                if np.ndim(block) == 2:
                    backend.check_finite(self.name, backend.intake(self.name, block)[0], self.first + place)
                raise
            place += np.shape(block)[-2]
        return sketch


def parts_of(source: Any, *, tensor: str | None = None, head: int | None = None, dim: int | None = None) -> list[Part]:
    """Return the parts of ``source`` with boundaries that depend on nothing else.

    A source that can only be read from its beginning (a pipe, a compressed file, an iterator of blocks) is one
    part.  Arguments and errors are those of :func:`scan`.
    """
    if hasattr(source, "ndim"):
        return _array_parts(source)
    listed = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(item, str | os.PathLike | Reader) for item in listed):
        if isinstance(source, str | bytes) or not isinstance(source, Iterable):
            raise TypeError(f"source must be an array, a file or blocks of rows; got {type(source).__name__}")
        return _block_parts(iter(source), dim)
    readers = [
        item if isinstance(item, Reader) else open_rows(item, tensor=tensor, head=head, dim=dim) for item in listed
    ]
    if not readers:
        raise ValueError("source must hold at least one file; got none")
    for reader in readers[1:]:
        if reader.dim != readers[0].dim:
            raise ValueError(
                f"{reader.source} has rows of {reader.dim} numbers, {readers[0].source} of {readers[0].dim}"
            )
    if any(reader.rows is None for reader in readers):
        name = ", ".join(reader.source for reader in readers)
        return [Part(name, 0, readers[0].dim, lambda: _ahead(block for reader in readers for block in reader))]
    return _reader_parts(readers)


def scan(
    source: Any,
    epsilon: float,
    *,
    threads: int | None = None,
    tensor: str | None = None,
    head: int | None = None,
    dim: int | None = None,
    **arguments: Any,
) -> Sketch:
    """Return the sketch of all rows of ``source``, read and sketched on ``threads`` threads.

    ``source`` is an array (..., n, dim) of any family, a file or pipe as for :func:`lev.readers.open_rows` (which
    takes ``tensor``, ``head`` and ``dim``), a reader, a list of these files, or an iterable of blocks of rows.
    ``threads`` is the number of cores by default; ``arguments`` are those of :class:`lev.Sketch`.
    Rows have the ids of one stream, whatever the threads.

    Long arrays and files are cut into parts at places that depend on nothing but their shape, each sketched on
    one thread with one BLAS thread, and merged as a tree: any number of threads gives the same bits.  A source
    that can only be read from its beginning is one part: blocks are read ahead while the last is added on all
    cores, or on one thread if ``threads`` is 1.
    Guarantee and cost are those of :class:`lev.Sketch`; memory grows with the threads, not with the rows.
    Raises TypeError and ValueError as :class:`lev.Sketch` does, OSError, and ImportError for parquet without pyarrow.

    >>> import numpy as np, lev
    >>> keys = np.random.default_rng(0).standard_normal((1000, 4))
    >>> keys[77] *= 50
    >>> lev.scan(keys, 0.2, threads=2).universal_set().indices
    array([77])
    """
    threads = None if threads is None else check_integer("threads", threads, 1)
    parts = parts_of(source, tensor=tensor, head=head, dim=dim)
    if len(parts) == 1 and threads != 1:
        return parts[0].sketch(epsilon, **arguments)
    # settled where it was made, so that what is left to merge is little
    return merge(backend.run(lambda part: part.sketch(epsilon, **arguments)._settle(), parts, threads))


def _spans(rows: int, dim: int) -> list[tuple[int, int]]:
    step = max(1, _PART_NUMBERS // max(dim, 1))
    return [(first, min(first + step, rows)) for first in range(0, max(rows, 1), step)]


def _array_parts(array: Any) -> list[Part]:
    if array.ndim < 2:
        raise ValueError(f"source must have shape (..., n, d); got {tuple(array.shape)}")
    rows, dim = array.shape[-2:]

    def part(first: int, end: int) -> Part:
        return Part("source", first, dim, lambda: [array[..., first:end, :]])

    return [part(first, end) for first, end in _spans(rows, dim)]


def _reader_parts(readers: list[Reader]) -> list[Part]:
    parts, place = [], 0
    for reader in readers:
        rows = reader.rows or 0
        for first, end in _spans(rows, reader.dim) if reader.seekable else [(0, rows)]:
            piece = reader.part(first, end)
            parts.append(Part(reader.source, place + first, reader.dim, partial(_ahead, piece)))
        place += rows
    return parts


def _block_parts(blocks: Iterator[Any], dim: int | None) -> list[Part]:
    first: Any = next(blocks, None)
    if first is None and dim is None:
        raise ValueError("source holds no blocks, and dim was not given")
    width = np.shape(first)[-1] if first is not None and np.ndim(first) else dim
    if width is None:
        raise ValueError(f"source must hold blocks (m, d); got shape {np.shape(first)}")
    whole = [] if first is None else [first]
    return [Part("source", 0, width, lambda: (block for part in (whole, _ahead(blocks)) for block in part))]


def _ahead(blocks: Iterable[Any]) -> Iterator[Any]:
    """Yield the blocks, reading the next one while the last is in use.

    Who leaves does not wait for the reader, and nor does the interpreter: it may be waiting for a pipe.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    found: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    waiting = iter(blocks)

    def read() -> None:
        while wanted.get():
            try:
                found.put((next(waiting), None))
            except BaseException as error:
                found.put((None, error))

    Thread(target=read, name="lev-read", daemon=True).start()
    try:
        wanted.put(True)
        block, error = found.get()
        while error is None:
            wanted.put(True)
            yield block
            block, error = found.get()
        if not isinstance(error, StopIteration):
            raise error
    finally:
        wanted.put(False)
