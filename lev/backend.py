"""Array families at the door, and which kernels serve an array.

Arrays of any family come in through :func:`intake` as NumPy arrays and go out through a :class:`Family`, so
nothing behind this door knows of torch or DLPack.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

Part = TypeVar("Part")
Result = TypeVar("Result")

_COPIED = 2**16  # numbers of one task that copies

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""The bits of what NumPy lacks; :func:`widened` makes float32 of them."""

LARGEST_EXACT = 2**53
"""Integers beyond this do not fit a float64."""


@dataclass(frozen=True)
class Family:
    """Where an array came from, so that results go back there."""

    name: str = "numpy"
    dtype: Any = None  # a torch dtype that NumPy lacks (bfloat16)

    def out(self, array: np.ndarray, *, rows: bool = False) -> Any:
        """Return ``array`` in this family; ``rows`` are the user's own and keep their dtype."""
        if self.name == "numpy":
            return array
        tensor = sys.modules["torch"].from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.dtype) if rows and self.dtype is not None else tensor


NUMPY = Family()


def intake(name: str, array: Any, *, narrow: bool = False) -> tuple[np.ndarray, Family]:
    """Return ``array`` as a real NumPy array without copying where that is possible, and its family.

    bfloat16 comes as float32 or, if that is left to the caller, ``narrow``, as :data:`BFLOAT16`.
    Raises TypeError for complex, object, text and time dtypes, for sparse tensors and for arrays on another device,
    ValueError for integers that float64 cannot hold and for masked numbers.
    """
    array, family = _from_family(name, array)
    if array.dtype == BFLOAT16:
        return (array if narrow else widened(array)), family
    kind = array.dtype.kind
    if kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got dtype {array.dtype}")
    if array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # what becomes infinite is refused as that
            array = array.astype(np.float64)
    if kind in "iu" and array.dtype.itemsize == 8 and array.size:
        largest = max(abs(int(array.min())), abs(int(array.max())))
        if largest > LARGEST_EXACT:
            raise ValueError(f"{name} holds the integer {largest}; the largest that float64 can hold is 2**53")
    return array.astype(array.dtype.newbyteorder("="), copy=False), family


def _from_family(name: str, array: Any) -> tuple[np.ndarray, Family]:
    if isinstance(array, np.ndarray):
        if np.ma.is_masked(array):
            raise ValueError(f"{name} holds masked numbers; leave the rows out, or fill them")
        return np.asarray(array), NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise TypeError(f"{name} is on device {array.device}; only lev.device.DeviceSketch takes arrays on a GPU")
        try:
            plain = array.detach().resolve_neg()
            if array.dtype == torch.bfloat16:
                return plain.view(torch.int16).numpy().view(BFLOAT16), Family("torch", torch.bfloat16)
            return plain.numpy(), Family("torch")
        except (TypeError, RuntimeError):
            kind = f"{array.dtype}, {array.layout}"
            raise TypeError(f"{name} must be a dense tensor of a dtype that NumPy has; got {kind}") from None
    if hasattr(array, "__dlpack__"):
        try:
            return np.from_dlpack(array), NUMPY
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"{name} of type {type(array).__name__} cannot be read on the CPU: {error}") from None
    try:
        return np.asarray(array), NUMPY
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {error}") from None


def widened(rows: np.ndarray) -> np.ndarray:
    """Return rows of :data:`BFLOAT16` as float32, without loss, on all cores; others as they are."""
    if rows.dtype != BFLOAT16:
        return rows
    bits, wide = rows["bfloat16"], np.empty(rows.shape, np.uint32)

    def widen(part: slice) -> None:
        wide[part] = bits[part]
        wide[part] <<= 16

    run(widen, slices(len(rows), TASK))
    return wide.view(np.float32)


def matrix(name: str, array: Any, columns: int | None) -> tuple[np.ndarray, Family]:
    """Return ``array`` as a real (m, columns) NumPy array, and its family.  Raises TypeError, ValueError."""
    rows, family = intake(name, array)
    if rows.ndim != 2 or (columns is not None and rows.shape[1] != columns):
        expected = f"(m, {'d' if columns is None else columns})"
        raise ValueError(f"{name} must have shape {expected}; got {rows.shape}")
    return rows, family


def finite_matrix(name: str, array: Any, columns: int | None) -> tuple[np.ndarray, Family]:
    """Return what :func:`matrix` returns; NaN and infinity raise ValueError with the first bad row."""
    rows, family = matrix(name, array, columns)
    check_finite(name, rows)
    return rows, family


def finite_keys(keys: Any) -> tuple[np.ndarray, Family]:
    """Return keys (n, d), d >= 1, as :func:`finite_matrix` does."""
    array, family = finite_matrix("keys", keys, None)
    if array.shape[1] == 0:
        raise ValueError(f"keys must have at least one column; got shape {array.shape}")
    return array, family


def check_finite(name: str, rows: np.ndarray, offset: int = 0) -> None:
    """Raise ValueError that names the first row with NaN or infinity."""
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim))))[0])
        raise ValueError(f"{name} must be finite; row {row + offset} holds NaN or infinity")


def finite_copy(name: str, array: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return a copy of rows in the same memory order, on all cores.  Raises as :func:`check_finite` does."""
    # of axes of one stride, as of broadcast and of overlapping rows, NumPy may take another first in each array
    order = np.argsort([-abs(stride) if stride else -np.inf for stride in array.strides], kind="stable")
    source = array.transpose(order)
    copy = np.empty(source.shape, array.dtype)
    source, target = source.ravel(), copy.ravel()

    def taken(part: slice) -> bool:
        target[part] = source[part]  # what is read again is still in cache
        return bool(np.isfinite(target[part]).all())

    parts = slices(len(source), _COPIED)
    if not all(run(taken, parts) if len(parts) > 1 else map(taken, parts)):
        check_finite(name, array, offset)
    return copy.transpose(np.argsort(order))


def indices(name: str, values: Any, count: int) -> np.ndarray:
    """Return ``values`` as a vector of int64 in [0, count).  Raises TypeError and ValueError."""
    asked = integers(name, values)
    wrong = asked[(asked < 0) | (asked >= count)]
    if wrong.size:
        raise ValueError(f"{name} must be in [0, {count}); got {int(wrong[0])}")
    return asked


def integers(name: str, values: Any) -> np.ndarray:
    """Return ``values`` as a vector of int64.  Raises TypeError."""
    asked, _ = intake(name, values)
    if asked.ndim != 1 or (asked.dtype.kind not in "iu" and asked.size):
        raise TypeError(f"{name} must be a vector of integers; got dtype {asked.dtype} and shape {asked.shape}")
    return asked.astype(np.int64)


def kernels_of(array: object) -> ModuleType:
    """Return the kernel module for ``array``; numba is imported on the first call, not with the package."""
    if isinstance(array, np.ndarray):
        from lev.cpu import rows

        return rows
    raise TypeError(f"no kernels for arrays of type {type(array).__name__}")


def block_kernels() -> ModuleType:
    """Return the kernels for a block of many heads; see :func:`kernels_of`."""
    from lev.cpu import blocks

    return blocks


BLOCK = 3 * 2**20
"""Numbers of a block of rows, as readers give it and as streams add it: so no row waits for the next block."""

PIECE = 1024
"""Rows of one task: a float64 piece of usual width stays in cache."""

TASK = 12 * PIECE
"""The most rows of one task for kernels that go through them group by group."""

GROUPS = 16, 512
"""The fewest and the most rows of a group, a power of two times as many."""

CHAIN = GROUPS[1] + TASK // GROUPS[1]
"""The most additions that a product passes through in the Gram matrix of one task."""


def pieces(
    rows: np.ndarray, factors: np.ndarray | None = None, size: int | None = None
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return ``rows`` and their factors as views of at most ``size`` rows, by default those of a task; at least one."""
    parts = tapered(len(rows)) if size is None else slices(len(rows), size)
    return [(rows[part], None if factors is None else factors[part]) for part in parts]


def tapered(count: int) -> list[slice]:
    """Return ``count`` places in slices of whole groups, at least one: ever shorter, so that no core waits long.

    Nor are they so short that what a call costs, while others wait for the interpreter, is felt.
    """
    ends, least = [0], max(PIECE, count // 8 // GROUPS[1] * GROUPS[1])
    while len(ends) == 1 or ends[-1] < count:
        fair = (count - ends[-1]) // 4 // GROUPS[1] * GROUPS[1]
        ends.append(min(count, ends[-1] + min(TASK, max(least, fair))))
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def slices(count: int, size: int) -> list[slice]:
    """Return ``count`` places in slices of at most ``size``, at least one slice."""
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]


def single_blas() -> AbstractContextManager[None]:
    """Return a context in which BLAS uses one thread: its idle threads spin and would take the other core."""
    from lev.cpu import threads

    return threads.single_blas()


def alone() -> AbstractContextManager[None]:
    """Return a context in which :func:`run` keeps to the thread that calls it."""
    from lev.cpu import threads

    return threads.alone()


def scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Return float64 room of a shape that is this thread's until it asks again."""
    from lev.cpu import threads

    return threads.scratch(shape)


def run(task: Callable[[Part], Result], parts: Iterable[Part], threads: int | None = None) -> list[Result]:
    """Return ``[task(part) for part in parts]`` on all cores or ``threads``, one BLAS thread in each."""
    from lev.cpu import threads as pool

    return pool.run(task, parts, threads)
