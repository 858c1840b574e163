"""The file format of a sketch: safetensors, versioned and checksummed.

A sketch file is a safetensors file whose only metadata key, ``lev``, is JSON with sorted keys:

``format``      1
``checksum``    BLAKE2b-128 over the rest of this JSON and every tensor's name, dtype, shape and bytes
``dim, epsilon, p, decay, heads, payload_dim, intercept``    the arguments of ``lev.Sketch``
``next``        the id that the next row gets by default
``spans``       [first, last + 1] of each run of ids that were given by default
``dropped``     the largest bound any row had when it was dropped
``rows, sums, excuse, turns, inherited, limit``    the scalars of ``lev.form.Form``, with the same names

and whose tensors are

``form.gram``       (r, r) float64, the Gram matrix in the form's frame
``form.tail``       (D,) float64, the root energy in each column of the rows whose rounding blurs the form
``form.exponents``  (D,) int64, powers of two of the columns; D = dim, or dim + 1 with an intercept
``form.triangle``   (r, D) float64 and ``form.pivots`` (D,) int64, the R factor and its columns; absent in an
                    identity frame
``kept.ids``        (m,) int64, ascending
``kept.keys``       (m, dim) in the dtype of the stream
``kept.upper``      (m,) float64
``kept.payload``    (m, payload_dim), present if payload_dim > 0

Files are written beside their place and renamed, so a reader never sees half of one.  No pickle inside:
reading a hostile file can fail, but not run anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

FORMAT = 1


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
