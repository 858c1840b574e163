"""The file format of a sketch: safetensors, versioned and checksummed.

A sketch file is a safetensors file whose only metadata key, ``lev``, is JSON with sorted keys:

``format``      1
``checksum``    BLAKE2b-128 over the rest of this JSON and every tensor's name, dtype, shape and bytes
``dim, epsilon, p, decay, heads, payload_dim, intercept``    the arguments of ``lev.Sketch``
``sample``      one more of them, present if it is not 1
``next``        the id that the next row gets by default
``spans``       [first, last + 1] of each run of ids that were given by default
``streams``     for each head, in C order, the scalars of its stream: ``dropped``, the largest bound any row had when it
                was dropped; ``mass``, the sum of the weights (p != 2) or of the odds of rows that are not in the form
                (sample); ``left``, how many those are, present if there are any; ``epoch``, the power of two in which
                scales of rows are (decay); ``masked``, how many rows were padding; and ``rows, sums, excuse, turns,
                inherited, limit`` of ``lev.form.Form``

and whose tensors are, for head number h,

``h.gram``       (r, r) float64, the Gram matrix in the form's frame
``h.tail``       (D,) float64, the root energy in each column of the rows whose rounding blurs the form
``h.exponents``  (D,) int64, powers of two of the columns; D = dim, or dim + 1 with an intercept
``h.triangle``   (r, D) float64 and ``h.pivots`` (D,) int64, the R factor and its columns; absent in an identity frame
``h.ids``        (m,) int64, ascending, of the kept rows
``h.keys``       (m, dim) in the dtype of the stream
``h.upper``      (m,) float64
``h.payload``    (m, payload_dim), present if payload_dim > 0

Files of other sketches say so: ``kind`` is the name of their class, and

``CausalSketch``
    has no ``p`` and ``decay``; ``masked`` is a list, one for each head; a stream has the scalars of its form and
    ``dropped``, its kept rows in the order they came, ``h.since`` (m,) int64, the positions at which they were
    admitted, and ``h.ended`` (3, e) int64: ids, admissions and ends of the members before
``SlidingWindowSketch``
    has ``window``, ``block``, ``count``, ``timed``, ``settled`` (rows after the last full pass), ``latest`` and
    ``first`` (times of the last row, and of the first of the open block), and ``blocks`` in the place of ``streams``:
    the scalars of the form of all rows of block h, and ``span``, the times of its first and last row; the rows held
    have ``h.times`` (m,) float64; the last part, if there is one more, is the open block, which has no form

Files are written beside their place and renamed, so a reader never sees half of one.  No pickle inside:
reading a hostile file can fail, but not run anything.
"""

from __future__ import annotations

import abc
import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy

from lev.candidates import Candidates
from lev.checks import check_heads, check_integer
from lev.form import Form
from lev.frame import Frame, Triangle
from lev.rows import Rows

FORMAT = 1
ROWS = ("ids", "keys", "upper", "payload")
"""The tensors of a head that have one entry for each kept row."""


class SketchFileError(ValueError):
    """The bytes are not a sketch, or not an intact one."""


def pack(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """Return the canonical bytes: equal content gives equal bytes."""
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    fields = {**fields, "format": FORMAT}
    fields["checksum"] = _checksum(fields, tensors)
    return safetensors.numpy.save(tensors, metadata={"lev": _json(fields)})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields and tensors of :func:`pack`.  Raises SketchFileError for anything else."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a sketch is read from bytes; got {type(data).__name__}")
    data = bytes(data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        fields = json.loads(header["__metadata__"]["lev"])
        tensors = safetensors.numpy.load(data)
        del fields["checksum"]
        if fields["format"] != FORMAT:
            raise SketchFileError(
                f"sketch format {fields['format']!r} is not known to this version, which reads {FORMAT}"
            )
        if data != pack(fields, tensors):
            raise SketchFileError("the checksum does not match: the sketch file is damaged")
    except SketchFileError:
        raise
    except Exception as error:
        # whatever a foreign file makes a parser raise, it is one thing to the caller
        raise SketchFileError(f"not a sketch file, or a truncated one ({type(error).__name__})") from None
    return fields, tensors


_FORM_SCALARS = ("rows", "sums", "excuse", "turns", "inherited", "limit")
_STREAM_SCALARS = ("dropped", "mass", "epoch")
_COUNTS = ("rows", "sums", "turns", "left", "next", "count", "settled")
_MOST = 2**53  # that can be counted: a row has an id of its own, below this
_FIRST_KIND = "Sketch"  # files of this kind do not name it: they are older than the others


def take_form(form: Form) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields and tensors of a form."""
    fields = {name: getattr(form, name) for name in _FORM_SCALARS}
    tensors = {"gram": form.gram, "tail": form.tail, "exponents": form.frame.exponents}
    if form.frame.triangle is not None:
        tensors |= {"triangle": form.frame.triangle.matrix, "pivots": form.frame.triangle.pivots}
    return fields, tensors


def put_form(fields: dict[str, Any], tensors: dict[str, np.ndarray], columns: int) -> Form:
    """Return the form of ``columns`` from its parts.  Raises ValueError, TypeError and KeyError."""
    triangle = Triangle(tensors["triangle"], tensors["pivots"]) if "triangle" in tensors else None
    scalars = {name: fields[name] for name in _FORM_SCALARS}
    form = Form(Frame(tensors["exponents"], triangle), tensors["gram"], tensors["tail"], **scalars)
    form.check(columns)
    return form


def take_rows(rows: Rows) -> dict[str, np.ndarray]:
    """Return the tensors of kept rows, which are in the order of their ids."""
    tensors = {"ids": rows.ids, "keys": rows.keys, "upper": rows.upper}
    return tensors | ({"payload": rows.payload} if rows.payload.shape[1] else {})


def put_rows(tensors: dict[str, np.ndarray], columns: int, payload_columns: int) -> Rows:
    """Return kept rows from their tensors.  Raises ValueError and KeyError."""
    keys, ids, upper = (tensors[name] for name in ("keys", "ids", "upper"))
    payload = tensors.get("payload", np.zeros((len(ids), 0)))
    shapes = [keys.shape, payload.shape, upper.shape]
    if shapes != [(len(ids), columns), (len(ids), payload_columns), (len(ids),)] or ids.dtype != np.int64:
        raise ValueError(f"kept rows have shapes {shapes} for {ids.shape} ids")
    if not (np.isfinite(keys).all() and np.isfinite(upper).all()):
        raise ValueError("kept rows must be finite")
    return replace(Rows.of(keys, ids, payload), upper=upper)


def take_apart(stream: Candidates) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields and tensors of the pruned state of one stream."""
    (rows,) = stream.kept
    fields, tensors = take_form(stream.form)
    fields |= {name: getattr(stream, name) for name in _STREAM_SCALARS}
    if stream.left:
        fields["left"] = stream.left
    return fields, tensors | take_rows(rows.take(np.argsort(rows.ids)))


def put_together(
    empty: Candidates, fields: dict[str, Any], tensors: dict[str, np.ndarray], columns: int, payload_columns: int
) -> Candidates:
    """Return the state of one stream from its parts.  Raises ValueError, TypeError and KeyError."""
    form = put_form(fields, tensors, empty.form.frame.dim)
    rows = put_rows(tensors, columns, payload_columns)
    stream = {name: fields[name] for name in _STREAM_SCALARS} | {"left": fields.get("left", 0)}
    check_integer("epoch", stream["epoch"], 0)
    check_scalars(stream.values())
    return replace(empty, form=form, kept=(rows,), **stream).rated(rows.upper)


def check_scalars(values: Iterable[Any]) -> None:
    """Raise ValueError unless all are finite numbers that are not negative."""
    if not all(isinstance(value, int | float) and 0 <= value < np.inf for value in values):
        raise ValueError("the stream's scalars must be finite and not negative")


def numbered(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the tensors of many parts under names that begin with the part's number."""
    return {f"{i}.{name}": array for i, part in enumerate(parts) for name, array in part.items()}


def parts_of(tensors: dict[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
    """Return the tensors of each part.  Raises ValueError and IndexError for names of no part."""
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(number)]
    for name, array in tensors.items():
        place, _, field = name.partition(".")
        parts[int(place)][field] = array
    return parts


class Stored(abc.ABC):
    """What is written, compared and pickled by its canonical bytes."""

    __hash__ = None  # type: ignore[assignment]

    @abc.abstractmethod
    def _taken_apart(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the fields and tensors of the canonical state."""

    @classmethod
    @abc.abstractmethod
    def _put_together(cls, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        """Return what :meth:`_taken_apart` took apart; it may raise what foreign values raise."""

    @abc.abstractmethod
    def copy(self) -> Self:
        """Return an independent twin."""

    def to_bytes(self) -> bytes:
        """Return the canonical state in the format of :mod:`lev.store`."""
        fields, tensors = self._taken_apart()
        name = type(self).__name__
        return pack(fields if name == _FIRST_KIND else fields | {"kind": name}, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the sketch of :meth:`to_bytes`.  Raises TypeError, and SketchFileError (a ValueError)."""
        return read(data, [cls])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sketch to ``path``; a reader never sees half of it.  Raises OSError."""
        write(path, self.to_bytes())

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    def __reduce__(self) -> tuple:
        return type(self).from_bytes, (self.to_bytes(),)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self is other or self.to_bytes() == other.to_bytes())


def read(data: bytes, kinds: Iterable[type[Stored]]) -> Any:
    """Return what was written, of one of ``kinds``.  Raises TypeError and SketchFileError."""
    fields, tensors = unpack(data)
    try:
        kind, known = fields.get("kind", _FIRST_KIND), {cls.__name__: cls for cls in kinds}
        if str(kind) not in known:
            raise SketchFileError(f"the sketch file holds a {kind}; expected a {' or '.join(known)}")
        _check(fields, tensors)
        sketch = known[kind]._put_together(fields, tensors)
        if sketch.to_bytes() != bytes(data):
            raise ValueError("what it holds is not what it says")
    except SketchFileError:
        raise
    except Exception as error:
        # as in unpack; here also the memory and the depth that only foreign values need
        said = str(error) or type(error).__name__
        raise SketchFileError(f"the sketch file does not describe a sketch: {said}") from None
    return sketch


def _check(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Raise ValueError, TypeError or KeyError where counts are none, or more is to be made than the file has."""
    for part in (fields, *fields.get("streams", ()), *fields.get("blocks", ())):
        for name in _COUNTS:
            if check_integer(name, part.get(name, 0), 0) > _MOST:
                raise ValueError(f"{name} must be at most 2**53; got {part[name]}")
    if "heads" in fields:  # all but windows, which their arguments alone do not make large
        streams, shape = fields["streams"], tensors["0.tail"].shape
        # as floats: a product of integers grows with the square of their number
        if math.prod(map(float, check_heads(fields["heads"]))) != len(streams):
            raise ValueError(f"heads must be those of {len(streams)} streams")
        if shape != (fields["dim"] + fields["intercept"],):
            raise ValueError(f"dim is {fields['dim']}, but the form has shape {shape}")
        seen = {stream["rows"] + stream.get("left", 0) for stream in streams}
        masked = fields["masked"] if "masked" in fields else [stream["masked"] for stream in streams]
        if len(seen) > 1 or max(masked) > max(seen):
            raise ValueError(f"heads have one number of rows, and masked is at most that; got {seen} and {masked}")


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place.  Raises OSError with that path."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(_json(fields).encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(_json({"name": name, "dtype": array.dtype.str, "shape": array.shape}).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
