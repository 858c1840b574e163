"""What surrounds the arithmetic: files, start-up, input of 16 bits."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

import lev

from .common import EPSILON, QUICK, gram, interleaved, make_keys
from .fresh import call, peak_mb
from .stream import streamed

FILE_MB = int(os.environ.get("LEV_BENCH_FILE_MB", 8 if QUICK else 512))
DIM = 64
ROWS = 20_000 if QUICK else 1_000_000


# -- files ---------------------------------------------------------------------------------------------------


def write(path, rows, dim):
    """Write ``rows`` Gaussian rows to an .npy file a part at a time, and have it on the disk."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    part = make_keys(min(rows, 65_536), dim, 30)
    for first in range(0, rows, len(part)):
        out[first : first + len(part)] = part[: rows - first]
    out.flush()
    del out
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def forget(path):
    """Take the file out of the page cache, where the system knows how to."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path, piece=2**22):
    """Read all bytes of the file into one buffer that is used again."""
    buffer = bytearray(piece)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def disk(megabytes=FILE_MB):
    """Return seconds to read a file, to sum it as a memory map and to scan it: cached by the system, and not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.npy"
        write(path, megabytes * 2**20 // (4 * DIM), DIM)
        tasks = {
            "read": lambda: read(path),
            "sum": lambda: np.load(path, mmap_mode="r").sum(),
            "scan": lambda: lev.scan(path, EPSILON),
            "update": lambda: lev.Sketch(DIM, EPSILON).update(np.load(path, mmap_mode="r")),
        }
        found = {"cached": interleaved(tasks, 1 if QUICK else 5)}
        found["not cached"] = interleaved(tasks, 1 if QUICK else 3, before=lambda: forget(path))
        return {"mb": megabytes, "seconds": found}


# -- start-up ------------------------------------------------------------------------------------------------


def start_up(repeats=1 if QUICK else 7):
    """Return median seconds of processes that do nothing, import lev, and show the demo: cold, and warm."""
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "demo.png")
        demo = [sys.executable, "-m", "lev", "demo", "-o", picture]
        cache = {"NUMBA_CACHE_DIR": str(Path(folder) / "numba")}
        found = {code: python_seconds(code, repeats) for code in ("pass", "import lev")}
        found["lev demo, cold"] = _seconds(demo, **cache)  # the first to compile into this folder
        return {**found, "lev demo, warm": median(_seconds(demo, **cache) for _ in range(min(repeats, 3)))}


def python_seconds(code, repeats):
    """Return the median seconds of processes that run ``code``, the bytecode of which an earlier one wrote."""
    command = [sys.executable, "-c", code]
    _seconds(command)
    return median(_seconds(command) for _ in range(repeats))


def _seconds(command, **environment):
    environment = {**os.environ, **environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


# -- 16 bits -------------------------------------------------------------------------------------------------


def in_dtype(dtype, rows=ROWS):
    """Return seconds and peak MB above the keys of a stream in one update, keys in ``dtype``; in this process."""
    keys = make_keys(rows, DIM, 30)
    if dtype == "bfloat16":
        import torch

        rows = torch.from_numpy(keys).bfloat16()
    else:
        rows = keys.astype(dtype)
    streamed(rows[:20_000])
    peak, _ = peak_mb(lambda: streamed(rows))
    seconds = interleaved({"lev": lambda: streamed(rows), "gram": lambda: gram(keys)}, 1 if QUICK else 5)
    return {"dtype": dtype, "keys_mb": keys.nbytes / 2**20 / (1 if dtype == "float32" else 2), "mb": peak, **seconds}


def dtypes():
    """Return what was measured with each dtype that this environment has."""
    found = []
    for dtype in ("float32", "float16", "bfloat16"):
        try:
            found.append(call(in_dtype, dtype))
        except RuntimeError as error:
            found.append({"dtype": dtype, "skipped": str(error).strip().splitlines()[-1]})
    return found


class Disk:
    """Seconds to scan a memory-mapped file over seconds to read it, cached."""

    unit = "ratio"

    def track_scan_over_read(self):
        seconds = disk(FILE_MB)["seconds"]["cached"]
        return seconds["scan"] / seconds["read"]


class StartUp:
    """Seconds of a process that imports lev."""

    unit = "s"

    def track_import(self):
        return python_seconds("import lev", 1 if QUICK else 7)
