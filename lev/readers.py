"""Blocks of rows from files and pipes, never a whole file at once.

``.npy``, ``.npz``, ``.safetensors`` and standard input are all rows of fixed length in a binary file from some
offset on, so one loop reads the four.  ``.parquet`` comes in record batches, Fortran order column by column.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lev import backend

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_SAFETENSORS |= {"I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}

Open = Callable[[], contextlib.AbstractContextManager[Any]]  # gives a binary file at its beginning
Read = Callable[[int, int, int | None, int], Iterator[np.ndarray]]
"""read(head, first, end, step) yields rows first..end of one matrix in blocks of ``step``."""


@dataclass(frozen=True)
class Reader:
    """The rows of one source.  Iterate it for its blocks: fresh arrays (m, dim), 1 <= m <= block_rows.

    ``source`` is its name for messages; ``rows`` how many the blocks hold together, None if only the end will
    tell (a pipe); ``dim`` the columns; ``first`` the place in the source of the first row; ``seekable`` whether
    a part may be read without what stands before it.  16-bit floats
    (float16, bfloat16) come as float32, without loss; other dtypes as they are.
    Iterating raises ValueError for a source that is damaged or ends too soon.
    """

    source: str
    rows: int | None
    dim: int
    first: int
    seekable: bool
    _blocks: Callable[[int, int | None], Iterator[np.ndarray]]

    def part(self, first: int, end: int) -> Reader:
        """Return a reader of rows ``first`` to ``end`` - 1 of this one, counted from 0."""
        return replace(self, first=self.first + first, rows=end - first)

    def __iter__(self) -> Iterator[np.ndarray]:
        some = False
        with _named_in_errors(self.source):
            for block in self._blocks(self.first, None if self.rows is None else self.first + self.rows):
                some = True
                yield block.astype(np.float32) if block.dtype == np.float16 else block
        if self.rows is None and not some:
            raise ValueError(f"{self.source} is empty; expected little-endian float32 rows of {self.dim} numbers")


def open_rows(
    source: str | os.PathLike[str],
    *,
    tensor: str | None = None,
    head: int | None = None,
    dim: int | None = None,
    rows: tuple[int, int | None] = (0, None),
    block_rows: int | None = None,
) -> Reader:
    """Return a reader of the rows of ``source``; only its shape is looked at now.

    ``source`` is a .npy, .npz, .safetensors or .parquet file, or "-": little-endian float32 on standard input,
    ``dim`` numbers a row.  ``tensor`` names the array of a file that holds several (in parquet, the column);
    ``head`` picks one matrix of an array (..., n, d), counted in C order; ``rows`` is the half-open range to
    read, by default all.  Raises FileNotFoundError and other OSErrors, ValueError for what does not fit, and
    ImportError where parquet needs pyarrow.
    """
    pipe, path = str(source) == "-", Path(source)
    name = "standard input" if pipe else str(source)
    with _named_in_errors(name):
        array = _standard_input(dim, tensor, head) if pipe else _file(path, tensor)
    number, (n, d) = _checked_head(name, array.shape, head), array.shape[-2:]
    if dim is not None and dim != d:
        raise ValueError(f"dim is {dim}, but {name} holds rows of {d} numbers")
    first, end = _checked_rows(name, rows, None if pipe else n)
    step = max(1, backend.BLOCK // d) if block_rows is None else block_rows
    if step < 1:
        raise ValueError(f"block_rows must be >= 1; got {block_rows}")
    seekable = not pipe and path.suffix.lower() != ".npz"
    return Reader(
        name,
        None if end is None else end - first,
        d,
        first,
        seekable,
        lambda begin, stop: array.read(number, begin, stop, step),
    )


@contextlib.contextmanager
def _named_in_errors(name: str) -> Iterator[None]:
    """Raise ValueError with ``name`` for whatever a damaged source makes a parser raise; errors of the system pass."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, ImportError, MemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{name}: {str(error) or type(error).__name__}") from None


def _checked_head(name: str, shape: tuple[int, ...], head: int | None) -> int:
    heads = math.prod(shape[:-2])
    if head is None and len(shape) > 2:
        raise ValueError(f"{name} holds {heads} heads, shape {shape}; choose one with head, 0 to {heads - 1}")
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head must be 0 to {heads - 1} for {name} of shape {shape}; got {head}")
    return head or 0


def _checked_rows(name: str, rows: tuple[int, int | None], n: int | None) -> tuple[int, int | None]:
    first, end = rows
    text = f"{first}:{'' if end is None else end}"
    if first < 0 or (end is not None and end < first):
        raise ValueError(f"rows must be first:end with 0 <= first <= end; got {text}")
    if n is not None and max(first, end or 0) > n:
        raise ValueError(f"rows {text} reach beyond the {n} of {name}")
    return first, n if end is None else end


@dataclass(frozen=True)
class _Array:
    """An array (..., n, d) that can be read by rows; n = -1 in a pipe."""

    shape: tuple[int, ...]
    read: Read

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or self.shape[-1] == 0:
            raise ValueError(f"expected an array (n, d) or (..., n, d), d >= 1; got shape {self.shape}")


# -- rows of fixed length in a binary file -------------------------------------------------------------------


def _stored(opener: Open, shape: tuple[int, ...], dtype: np.dtype, offset: int = 0, bfloat: bool = False) -> _Array:
    """Return the array whose numbers lie row after row from ``offset`` on."""

    def read(head: int, first: int, end: int | None, step: int) -> Iterator[np.ndarray]:
        length = shape[-1] * dtype.itemsize
        with opener() as file:
            _skip(file, offset + (head * shape[-2] + first) * length)
            while end is None or first < end:
                block = np.empty((step if end is None else min(step, end - first), shape[-1]), dtype)
                got, rest = divmod(_fill(file, block), length)
                if rest:
                    raise ValueError(f"row {first + got} is cut off: it has {rest} of {length} bytes")
                if got < len(block) and end is not None:
                    raise ValueError(f"the rows end after {first + got}; expected {end}")
                if got:
                    yield (block[:got].astype(np.uint32) << 16).view(np.float32) if bfloat else block[:got]
                if got < len(block):
                    return
                first += got

    return _Array(shape, read)


def _columns(opener: Open, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> _Array:
    """Return the array in Fortran order from ``offset`` on: in each column the rows of all heads lie row after row."""
    heads, n, d = (1, *shape[:-2]), *shape[-2:]
    count = math.prod(heads)

    def read(head: int, first: int, end: int | None, step: int) -> Iterator[np.ndarray]:
        place = np.ravel_multi_index(np.unravel_index(head, heads), heads, order="F")
        with opener() as file:
            for start in range(first, n if end is None else end, step):
                column = np.empty((min(step, (n if end is None else end) - start), count), dtype)
                columns = np.empty((d, len(column)), dtype)
                for i in range(d):
                    file.seek(offset + (i * n + start) * count * dtype.itemsize)
                    if file.readinto(column) < column.nbytes:
                        raise ValueError(f"cut off: column {i} ends before row {start + len(column)}")
                    columns[i] = column[:, place]
                yield np.array(columns.T, order="C")

    return _Array(shape, read)


def _check_size(size: int, shape: tuple[int, ...], dtype: np.dtype, begin: int, end: int | None = None) -> None:
    """Raise ValueError unless numbers of that shape lie between ``begin`` and ``end`` of ``size`` bytes."""
    needed = begin + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > size or (end is not None and needed != end):
        raise ValueError(f"cut off or damaged: {size} bytes, and shape {shape} of {dtype} ends at {needed}")


def _skip(file: Any, count: int) -> None:
    if file.seekable():
        file.seek(count, os.SEEK_CUR)
        return
    while count and (got := len(file.read(min(count, 2**24)))):
        count -= got


def _fill(file: Any, block: np.ndarray) -> int:
    """Read into ``block`` until it is full or the file ends, and return the bytes read."""
    view, got = block.data.cast("B"), 0
    while got < len(view) and (more := file.readinto(view[got:])):
        got += more
    return got


# -- the formats ---------------------------------------------------------------------------------------------


def _standard_input(dim: int | None, tensor: str | None, head: int | None) -> _Array:
    if dim is None or dim < 1:
        raise ValueError(f"dim, the numbers in a row, must be given and >= 1; got {dim}")
    if tensor is not None or head is not None:
        raise ValueError("there are only rows here; tensor and head are for files")
    array = _stored(_pipe, (-1, dim), np.dtype("<f4"))
    return replace(array, read=lambda *where: _bare(array.read(*where)))


def _bare(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield blocks of rows.  Raises ValueError if the first begins with the header of a .npy file."""
    for number, block in enumerate(blocks):
        if number == 0 and block.ravel()[:2].tobytes().startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("a .npy file stands here; expected its rows alone as float32, or its path")
        yield block


def _pipe() -> contextlib.AbstractContextManager[Any]:
    """Open standard input without a buffer: Python aborts if it ends while a thread reads and holds a buffer's lock."""
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (OSError, ValueError):  # what stands in for it
        return contextlib.nullcontext(sys.stdin.buffer)


def _file(path: Path, tensor: str | None) -> _Array:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a directory; expected a file of rows")
    formats = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    if path.suffix.lower() not in formats:
        raise ValueError(f"a file of rows must end in {', '.join(formats)}")
    return formats[path.suffix.lower()](path, tensor)


def _npy(path: Path, tensor: str | None) -> _Array:
    if tensor is not None:
        raise ValueError(f".npy holds one array without a name; got tensor {tensor!r}")
    opener = partial(open, path, "rb")
    return _numpy(opener, path.stat().st_size, opener)


def _npz(path: Path, tensor: str | None) -> _Array:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if info.filename.endswith(".npy")}
    member = _named([name.removesuffix(".npy") for name in sizes], tensor) + ".npy"
    return _numpy(
        lambda: zipfile.ZipFile(path).open(member),
        sizes[member],
        lambda: io.BytesIO(zipfile.ZipFile(path).read(member)),
    )


def _numpy(opener: Open, size: int, seeker: Open) -> _Array:
    """Return the array in a .npy stream of ``size`` bytes; ``seeker`` opens it to go to and fro in Fortran order."""
    headers: dict[tuple, Callable[[Any], tuple]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with opener() as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise ValueError(f"expected an array of numbers; got .npy version {version}")
        shape, fortran, dtype = headers[version](file)
        offset = file.tell()
    if dtype.kind not in "fiub":
        raise ValueError(f"expected an array of real numbers; got dtype {dtype}")
    _check_size(size, shape, dtype, offset)
    if fortran and len(shape) > 1:
        return _columns(seeker, shape, dtype, offset)
    return _stored(opener, shape, dtype, offset)


def _safetensors(path: Path, tensor: str | None) -> _Array:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, size))
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        places = {n: (str(e["dtype"]), _counts(e["shape"]), _counts(e["data_offsets"])) for n, e in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError("not a safetensors file, or a truncated one") from None
    kind, shape, (begin, end) = places[_named(list(places), tensor)]
    if kind not in _SAFETENSORS:
        raise ValueError(f"dtype {kind} is not known; expected one of {', '.join(_SAFETENSORS)}")
    dtype = np.dtype(_SAFETENSORS[kind])
    _check_size(size, shape, dtype, 8 + length + begin, 8 + length + end)
    return _stored(lambda: open(path, "rb"), shape, dtype, 8 + length + begin, kind == "BF16")


def _counts(values: list) -> tuple[int, ...]:
    """Return the values, which must be integers >= 0.  Raises ValueError and TypeError."""
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"expected integers >= 0; got {values}")
    return tuple(values)


def _named(names: Sequence[str], tensor: str | None) -> str:
    """Return the name of the array to read: ``tensor``, or the only one there is."""
    if tensor is not None and tensor not in names:
        raise ValueError(f"no tensor {tensor!r}; expected one of {', '.join(names)}")
    if tensor is None and len(names) != 1:
        raise ValueError(f"{len(names)} arrays; choose one with tensor: {', '.join(names)}")
    return names[0] if tensor is None else tensor


def _parquet(path: Path, column: str | None) -> _Array:
    try:
        from pyarrow import parquet, types
    except ImportError:
        raise ImportError(f"{path}: parquet needs pyarrow; pip install lev-attention[parquet]") from None
    with parquet.ParquetFile(path) as file:
        schema, n = file.schema_arrow, file.metadata.num_rows
    fields = list(schema) if column is None else [schema.field(_named(schema.names, column))]
    lists = len(fields) == 1 and types.is_fixed_size_list(fields[0].type)
    kinds = [field.type.value_type if lists else field.type for field in fields]
    if not kinds or not all(types.is_floating(kind) for kind in kinds):
        found = ", ".join(f"{field.name} {field.type}" for field in fields) or "no columns"
        raise ValueError(f"expected one fixed-size list of floats or only float columns; got {found}")

    def read(head: int, first: int, end: int | None, step: int) -> Iterator[np.ndarray]:
        with parquet.ParquetFile(path) as file:
            yield from _batches(file, [field.name for field in fields], first, n if end is None else end, step)

    return _Array((n, fields[0].type.list_size if lists else len(fields)), read)


def _batches(file: Any, names: list[str], first: int, end: int, step: int) -> Iterator[np.ndarray]:
    """Yield rows first..end of a parquet file, from the row groups that hold them."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    groups = [i for i in range(len(sizes)) if starts[i] < end and starts[i + 1] > first]
    if not groups:
        return
    place = int(starts[groups[0]])
    for batch in file.iter_batches(batch_size=step, row_groups=groups, columns=names):
        low, high = max(first - place, 0), min(end - place, len(batch))
        if low < high:
            yield _numbers(batch.slice(low, high - low), place + low)
        place += len(batch)


def _numbers(batch: Any, place: int) -> np.ndarray:
    columns = [column.flatten() if hasattr(column.type, "list_size") else column for column in batch.columns]
    if any(column.null_count for column in columns + batch.columns):
        raise ValueError(f"rows {place} to {place + len(batch) - 1} hold a null; expected numbers")
    numbers = [column.to_numpy(zero_copy_only=False) for column in columns]
    return np.array(numbers[0]).reshape(len(batch), -1) if len(numbers) == 1 else np.column_stack(numbers)
