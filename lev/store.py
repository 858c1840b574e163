"""The file format of a sketch: safetensors, versioned and checksummed.

A sketch file is a safetensors file whose only metadata key, ``lev``, is JSON with sorted keys:

``format``      1
``checksum``    BLAKE2b-128 over the rest of this JSON and every tensor's name, dtype, shape and bytes
``dim, epsilon, p, decay, heads, payload_dim, intercept``    the arguments of ``lev.Sketch``
``next``        the id that the next row gets by default
``spans``       [first, last + 1] of each run of ids that were given by default
``streams``     for each head, in C order, the scalars of its stream: ``dropped``, the largest bound any row had when it
                was dropped; ``mass``, the sum of the weights (p != 2); ``epoch``, the power of two in which scales of
                rows are (decay); ``masked``, how many rows were padding; and ``rows, sums, excuse, turns, inherited,
                limit`` of ``lev.form.Form``

and whose tensors are, for head number h,

``h.gram``       (r, r) float64, the Gram matrix in the form's frame
``h.tail``       (D,) float64, the root energy in each column of the rows whose rounding blurs the form
``h.exponents``  (D,) int64, powers of two of the columns; D = dim, or dim + 1 with an intercept
``h.triangle``   (r, D) float64 and ``h.pivots`` (D,) int64, the R factor and its columns; absent in an identity frame
``h.ids``        (m,) int64, ascending, of the kept rows
``h.keys``       (m, dim) in the dtype of the stream
``h.upper``      (m,) float64
``h.payload``    (m, payload_dim), present if payload_dim > 0

Files are written beside their place and renamed, so a reader never sees half of one.  No pickle inside:
reading a hostile file can fail, but not run anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lev.candidates import Candidates
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
        found, version = fields.pop("checksum"), fields["format"]
    except Exception as error:
        # whatever a foreign file makes a parser raise, it is one thing to the caller
        raise SketchFileError(f"not a sketch file, or a truncated one ({type(error).__name__})") from None
    if version != FORMAT:
        raise SketchFileError(f"sketch format {version!r} is not known to this version, which reads {FORMAT}")
    if found != _checksum(fields, tensors) or data != pack(fields, tensors):
        raise SketchFileError("the checksum does not match: the sketch file is damaged")
    return fields, tensors


_FORM_SCALARS = ("rows", "sums", "excuse", "turns", "inherited", "limit")
_STREAM_SCALARS = ("dropped", "mass", "epoch")


def take_apart(stream: Candidates) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the fields and tensors of the pruned state of one stream."""
    form, (rows,) = stream.form, stream.kept
    rows = rows.take(np.argsort(rows.ids))
    fields = {name: getattr(form, name) for name in _FORM_SCALARS}
    fields |= {name: getattr(stream, name) for name in _STREAM_SCALARS}
    tensors = {"gram": form.gram, "tail": form.tail, "exponents": form.frame.exponents}
    if form.frame.triangle is not None:
        tensors |= {"triangle": form.frame.triangle.matrix, "pivots": form.frame.triangle.pivots}
    tensors |= {"ids": rows.ids, "keys": rows.keys, "upper": rows.upper}
    if rows.payload.shape[1]:
        tensors["payload"] = rows.payload
    return fields, tensors


def put_together(
    empty: Candidates, fields: dict[str, Any], tensors: dict[str, np.ndarray], columns: int, payload_columns: int
) -> Candidates:
    """Return the state of one stream from its parts.  Raises ValueError, TypeError and KeyError."""
    triangle = Triangle(tensors["triangle"], tensors["pivots"]) if "triangle" in tensors else None
    scalars = {name: fields[name] for name in _FORM_SCALARS}
    form = Form(Frame(tensors["exponents"], triangle), tensors["gram"], tensors["tail"], **scalars)
    form.check(empty.form.frame.dim)
    keys, ids, upper = (tensors[name] for name in ("keys", "ids", "upper"))
    payload = tensors.get("payload", np.zeros((len(ids), 0)))
    shapes = [keys.shape, payload.shape, upper.shape]
    if shapes != [(len(ids), columns), (len(ids), payload_columns), (len(ids),)] or ids.dtype != np.int64:
        raise ValueError(f"kept rows have shapes {shapes} for {ids.shape} ids")
    if not (np.isfinite(keys).all() and np.isfinite(upper).all()):
        raise ValueError("kept rows must be finite")
    stream = {name: fields[name] for name in _STREAM_SCALARS}
    if not all(isinstance(value, int | float) and 0 <= value < np.inf for value in stream.values()):
        raise ValueError("the stream's scalars must be finite and not negative")
    held = replace(empty, form=form, kept=(Rows.of(keys, ids, payload),), **stream)
    return held.rated(upper)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
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
