"""Rows at the door of a sketch: checked keys, ids, payload and queries, or one clear error and nothing changed."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

import numpy as np

from lev import backend
from lev.checks import check_dim, check_epsilon, check_heads, check_integer
from lev.ids import Ids
from lev.rows import Rows


class Fed(abc.ABC):
    """What is fed rows of many heads: its arguments, what it knows of ids and padding, and the rows that wait.

    A subclass keeps the streams.
    """

    _narrow = False  # whether keys of bfloat16 may come as their bits, for :func:`wide` to widen some at a time

    def __init__(
        self, dim: int, epsilon: float, heads: tuple[int, ...], start: int, payload_dim: int, intercept: bool
    ) -> None:
        self.dim = check_dim(dim)
        self.epsilon = check_epsilon(epsilon)
        self.heads = check_heads(heads)
        self.payload_dim = check_integer("payload_dim", payload_dim, 0)
        self.intercept = bool(intercept)
        self._ids = Ids(check_integer("start", start, 0))
        self._masked = np.zeros(math.prod(self.heads), np.int64)  # rows of each head that were padding
        self._pending: list[Rows] = []  # rows short of a block: a stream's blocks do not depend on its updates
        self._waiting = 0
        self._family = backend.NUMPY
        self._settled: Self | None = None

    @abc.abstractmethod
    def _kept(self) -> Iterable[Rows]:
        """Return the rows that the streams hold."""

    def _no_rows(self) -> Rows:
        """Return no rows of one stream."""
        return Rows.of(np.zeros((0, self.dim)), np.zeros(0, np.int64), np.zeros((0, self.payload_dim)))

    def _held_ids(self) -> np.ndarray:
        return np.concatenate([rows.ids for rows in (*self._kept(), *self._pending)])

    def _checked(self, keys: Any, indices: Any, payload: Any, mask: Any) -> tuple[Rows, dict[str, Any]]:
        """Return the rows of an update, and the attributes of a sketch that has taken them."""
        rows, ids, family = incoming(
            keys,
            indices,
            payload,
            dim=self.dim,
            payload_dim=self.payload_dim,
            ids=self._ids,
            held=self._held_ids,
            heads=self.heads,
            narrow=self._narrow and mask is None,
        )
        rows, masked = blanked(rows, mask, self.heads, self.intercept)
        return rows, {"_ids": ids, "_masked": self._masked + masked, "_family": family, "_settled": None}

    def _pend(self, rows: Rows, before: int = 0) -> None:
        """Keep a copy of rows, which came after ``before`` others, until they are a block.  Raises ValueError."""
        if len(rows):
            keys = backend.finite_copy("keys", wide(rows).keys, before)
            self._pending.append(Rows.of(keys, rows.ids, np.array(rows.payload)))
            self._waiting += len(rows)

    def copy(self) -> Self:
        """Return an independent twin.  Cheap: arrays are shared, for none is ever written to."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._pending = list(self._pending)
        return twin


def incoming(
    keys: Any,
    indices: Any,
    payload: Any,
    *,
    dim: int,
    payload_dim: int,
    ids: Ids,
    held: Callable[[], np.ndarray],
    heads: tuple[int, ...] = (),
    narrow: bool = False,
) -> tuple[Rows, Ids, backend.Family]:
    """Return the rows of an update, (m, heads, dim), what is known of the ids then, and the family of the keys.

    ``ids`` is what is known before; ``held`` returns the ids of the rows retained, if they are needed; with ``narrow``
    the caller widens bfloat16.  Whether rows are finite is for the caller to see.
    Raises TypeError and ValueError.
    """
    array, family = _by_row("keys", keys, heads, None, dim, narrow)
    m = len(array)
    numbers, known = ids.count_on(m) if indices is None else ids.take(indices, m, held())
    if payload is None and payload_dim and m:
        raise ValueError(f"payload must have shape {(*heads, m, payload_dim)}; got None")
    extra = np.zeros((m, array.shape[1], 0))
    if payload is not None:
        extra, _ = _by_row("payload", payload, heads, m, payload_dim)
    return Rows.of(array, numbers, extra), known, family


def wide(rows: Rows) -> Rows:
    """Return the rows with keys that are numbers."""
    return replace(rows, keys=backend.widened(rows.keys))


def blanked(rows: Rows, mask: Any, heads: tuple[int, ...], intercept: bool) -> tuple[Rows, np.ndarray]:
    """Return the rows with zeros where ``mask`` (*heads, m) is True, and how many of each head are: padding.

    Zeros never receive weight nor give any, but with an intercept they would count.  Raises TypeError and ValueError.
    """
    if mask is None:
        return rows, np.zeros(math.prod(heads), np.int64)
    found, _ = backend.intake("mask", mask)
    if found.dtype != bool:
        raise TypeError(f"mask must be bool, True where a row is padding; got dtype {found.dtype}")
    if found.shape != (*heads, len(rows)):
        raise ValueError(f"mask must have shape {(*heads, len(rows))}; got {found.shape}")
    if intercept and found.any():
        raise ValueError("mask must be False with an intercept, for a row of zeros counts there; leave the rows out")
    masked = found.reshape(math.prod(heads), len(rows)).T
    blank = np.where(masked[:, :, None], rows.keys.dtype.type(0), rows.keys)
    return replace(rows, keys=blank), masked.sum(axis=0)


def asked_for(queries: Any, heads: tuple[int, ...], dim: int, affine: bool) -> tuple[np.ndarray, int]:
    """Return queries as (heads, m, columns), and how many query heads share a key head.

    With ``affine`` they may have one column more, the constant.  Raises TypeError and ValueError.
    """
    array, _ = backend.intake("queries", queries)
    fits = array.ndim == len(heads) + 2 and array.shape[-1] in {dim, dim + affine}
    *outer, last = heads or (1,)
    shape = array.shape[:-2] if heads else (1,)
    if not fits or shape[:-1] != tuple(outer) or shape[-1] == 0 or shape[-1] % last:
        wanted = ", ".join(map(str, (*heads, "m", dim)))
        raise ValueError(f"queries must have shape ({wanted}); got {array.shape}")
    array = array.reshape(math.prod(shape), *array.shape[-2:])
    for head in array:
        backend.check_finite("queries", head)
    return array, shape[-1] // last


def known_ends(normalizer: Any, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ends (lower, upper) of normalisers for each head, (m,) each.  Raises TypeError and ValueError."""
    if not isinstance(normalizer, tuple | list) or len(normalizer) != 2:
        raise TypeError(f"normalizer must be a pair (lower, upper); got {type(normalizer).__name__}")
    ends = [backend.intake("normalizer", end)[0].astype(np.float64) for end in normalizer]
    for end in ends:
        if end.size != math.prod(shape) or end.shape[-1:] != shape[-1:]:
            raise ValueError(f"normalizer must hold two arrays of one number a query; got shape {end.shape}")
    lower, upper = (end.reshape(shape) for end in ends)
    if not np.all((lower >= 0) & (lower <= upper)):
        raise ValueError("normalizer must hold 0 <= lower <= upper for every query")
    return list(zip(lower, upper, strict=True))


def _by_row(
    name: str, array: Any, heads: tuple[int, ...], count: int | None, columns: int, narrow: bool = False
) -> tuple[np.ndarray, backend.Family]:
    """Return (*heads, m, columns) as (m, heads, columns), heads in C order."""
    rows, family = backend.intake(name, array, narrow=narrow)
    fits = rows.ndim == len(heads) + 2 and rows.shape[:-2] == heads and rows.shape[-1] == columns
    if not fits or (count is not None and rows.shape[-2] != count):
        wanted = ", ".join(map(str, (*heads, "m" if count is None else count, columns)))
        raise ValueError(f"{name} must have shape ({wanted}); got {rows.shape}")
    return (np.moveaxis(rows.reshape(math.prod(heads), *rows.shape[-2:]), 0, 1) if heads else rows[:, None]), family
