"""Where keys live: the array of a torch, CuPy or NumPy batch as kernels take it, and the way back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

KINDS = ("float16", "bfloat16", "float32", "float64")
_OLDEST = 80  # compute capability with the tensor core products of bfloat16
_CUDA = {2, 13}  # device types of DLPack: memory of CUDA, and managed memory


@dataclass(frozen=True)
class Place:
    """A device and an array family."""

    family: str = "numpy"
    device: int | None = None  # of CUDA; None is the CPU

    @property
    def arrays(self) -> ModuleType:
        """NumPy or CuPy."""
        return np if self.device is None else _cupy("keys")

    @property
    def kernels(self) -> ModuleType:
        """The kernels for many heads on this device."""
        if self.device is None:
            from lev.cpu import heads as cpu

            return cpu
        from lev.gpu import heads as gpu

        return gpu

    def current(self) -> AbstractContextManager[Any]:
        """Return a context whose kernels run on the device, in the stream that the caller's library works in."""
        # what overflows on a device is infinite, without a word
        return np.errstate(all="ignore") if self.device is None else self._stream()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        cupy = self.arrays
        with cupy.cuda.Device(self.device):
            if self.family != "torch":
                yield
                return
            with cupy.cuda.ExternalStream(sys.modules["torch"].cuda.current_stream(self.device).cuda_stream):
                yield

    def bring(self, array: np.ndarray) -> Any:
        """Return a NumPy array as one of this device."""
        return self.arrays.asarray(array)

    def out(self, array: Any, kind: str | None = None) -> Any:
        """Return an array of this device in its family; ``kind`` is that of keys, which may be bfloat16."""
        if self.family != "torch":
            return array
        torch = sys.modules["torch"]
        if array.dtype == bool:
            return torch.from_dlpack(array.view("uint8")).bool()
        if kind != "bfloat16":
            return torch.from_dlpack(array)
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)


def host(array: Any) -> np.ndarray:
    """Return an array of either device as one of NumPy; from a GPU this waits for what makes it."""
    return array if isinstance(array, np.ndarray) else array.get()


def arrive(name: str, keys: Any) -> tuple[Any, str, Place]:
    """Return keys without a copy as a NumPy or CuPy array, their kind, and their place.

    bfloat16 comes as its bits in uint16; short integers and bool are widened to float64.  Raises TypeError for
    complex, int64, object, text and time dtypes and what NumPy and CuPy cannot hold, ValueError for ragged lists, and
    RuntimeError where a GPU array comes and CuPy is missing or the card too old.
    """
    torch, kind = sys.modules.get("torch"), None
    if torch is not None and isinstance(keys, torch.Tensor):
        keys = keys.detach()
        if keys.dtype == torch.bfloat16:
            with _readable(name):
                keys, kind = keys.view(torch.int16), "bfloat16"
        place = Place("torch", keys.get_device() if keys.is_cuda else None)
        if not keys.is_cuda and keys.device.type != "cpu":
            raise TypeError(f"{name} is on device {keys.device}; there are kernels for the CPU and for CUDA only")
    else:
        at, number = keys.__dlpack_device__() if hasattr(keys, "__dlpack_device__") else (1, 0)
        place = Place("cupy", number) if int(at) in _CUDA else Place()
    array = _array(name, keys, place)
    if kind is not None:
        return array.view("uint16"), kind, place
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers; got dtype {array.dtype}")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        raise TypeError(f"{name} must be floats, or integers that fit them; got {array.dtype}, which may not")
    kind = str(array.dtype) if str(array.dtype) in KINDS else "float64"
    return array.astype(kind, copy=False), kind, place


def _array(name: str, keys: Any, place: Place) -> Any:
    if place.device is None:
        with _readable(name):
            return keys.numpy() if place.family == "torch" else np.asarray(keys)
    cupy = _cupy(name)
    capability = int(cupy.cuda.Device(place.device).compute_capability)
    if capability < _OLDEST:
        raise RuntimeError(
            f"{name} is on a card of compute capability {capability / 10}; the kernels need {_OLDEST / 10}"
        )
    with cupy.cuda.Device(place.device), _readable(name):
        return keys if isinstance(keys, cupy.ndarray) else cupy.from_dlpack(keys)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise TypeError or ValueError that names what a library cannot convert, for theirs do not."""
    try:
        yield
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} cannot be read as an array: {error}") from None


def _cupy(name: str) -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            f"{name} is on a GPU, whose kernels need CuPy: pip install cupy-cuda13x; "
            f"found {type(error).__name__}: {error}"
        ) from None
    return cupy
