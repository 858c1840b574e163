"""The kernels of ``lev/gpu`` built by a C++ compiler and run on the CPU, in place of CuPy's modules.

``cuda_on_cpu.h`` says what of CUDA that is.  Not emulated: warps that race, caches, alignment, time.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lev.gpu import heads

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O1", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{HERE}"]
ORDERS = (0, 1, 2)  # in which the threads of a block run


class Module:
    """What CuPy's RawModule is to ``heads``, for one source."""

    def __init__(self, folder, name, text):
        source, library = Path(folder) / f"{name}.cpp", Path(folder) / f"{name}.so"
        source.write_text(f'#include "cuda_on_cpu.h"\n{text}')
        extra = os.environ.get("LEV_EMULATED_FLAGS", "").split()
        subprocess.run(["g++", *FLAGS, *extra, "-o", library, source], check=True)
        self.library, self.order = ctypes.CDLL(str(library)), 0

    def get_function(self, entry):
        return Kernel(self, entry)


class Kernel:
    """One entry of a module."""

    def __init__(self, module, entry):
        self.module, self.entry = module, getattr(module.library, entry)
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, arguments, shared_mem):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        values = [value.ctypes.data if isinstance(value, np.ndarray) else int(value) for value in arguments]
        assert all(value.flags.c_contiguous for value in arguments if isinstance(value, np.ndarray))
        done = self.module.library.lev_launch(
            self.entry,
            (ctypes.c_uint * 3)(*grid),
            block[0],
            shared_mem,
            (ctypes.c_int64 * 12)(*values, *[0] * (12 - len(values))),
            self.module.order,
        )
        assert done == 0, "a barrier was not reached by all"


class Poisoned:
    """NumPy, but what it leaves uninitialised is NaN, or -1."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        return np.frombuffer(b"\xff" * (int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape).copy()

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)


@functools.cache
def _built(name, text):
    return Module(_folder(), f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text)


@functools.cache
def _folder():
    folder = tempfile.mkdtemp(prefix="lev_emulated_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def kernels(order=0, change=None):
    """Yield ``lev.gpu.heads`` for NumPy arrays; ``change`` (old, new) breaks the sources on purpose."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which builds the kernels for the CPU")

    def module(name):
        text = heads.source(name)
        built = _built(name, text.replace(*change) if change else text)
        built.order = order
        return built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "_module", module)
        patch.setattr(heads, "arrays", lambda array: Poisoned())
        heads._kernel.cache_clear()
        yield heads
    heads._kernel.cache_clear()
