"""How time and memory grow with rows, dimensions, 1 / epsilon and queries; each point in a process of its own."""

import time

import numpy as np

import lev

from .common import EPSILON, QUICK, interleaved, make_keys
from .fresh import call, peak_mb

BLOCK = 16_384
AXES = {
    "rows n": [(n, 64, EPSILON, 0) for n in ((10_000, 30_000) if QUICK else (10**4, 10**5, 10**6, 10**7, 10**8))],
    "dimensions d": [
        (100_000 if QUICK else 500_000, d, EPSILON, 0) for d in ((8, 16) if QUICK else (8, 16, 32, 64, 128, 256))
    ],
    "1 / ε": [
        (20_000 if QUICK else 10**6, 64, 1 / inverse, 0)
        for inverse in ((10, 100) if QUICK else (10, 100, 1000, 3000, 10_000, 14_000))
    ],
    "queries m": [(100_000, 64, 1e-3, m) for m in ((10, 100) if QUICK else (100, 1000, 10_000, 100_000))],
}


def stream(blocks, n, epsilon):
    """Return the sketch of n rows that go round and round through the blocks."""
    sketch = lev.Sketch(blocks.shape[2], epsilon)
    for start in range(0, n, BLOCK):
        sketch.update(blocks[start // BLOCK % len(blocks)][: n - start])
    return sketch


def blocks_of(n, d):
    """Return up to 64 blocks of rows, all that a recycled stream holds of its keys."""
    number = min(64, -(-n // BLOCK))
    return make_keys(number * BLOCK, d, 30).reshape(number, BLOCK, d)


def measured(n, d, epsilon, m):
    """Return seconds, peak MB above keys and warm interpreter, and rows held, of a stream or of m queries to it."""
    blocks = blocks_of(n, d)
    ready = stream(blocks, 2 * BLOCK if not m else n, epsilon)
    queries = np.random.default_rng(1).standard_normal((max(m, 1), d), dtype=np.float32)
    ready.heavy_hitters(queries[:1])

    def task():
        if not m:
            return stream(blocks, n, epsilon).retained
        ready.heavy_hitters(queries)
        return ready.retained

    start = time.perf_counter()
    peak, held = peak_mb(task)
    seconds = time.perf_counter() - start
    if seconds < 2:
        seconds = interleaved({"task": task}, 1 if QUICK else 3)["task"]
    return {"seconds": seconds, "mb": peak, "held": held}


def points(axis):
    """Return what was measured along an axis: x and the figures of each point."""
    place = {"rows n": 0, "dimensions d": 1, "1 / ε": 2, "queries m": 3}[axis]
    found = []
    for setting in AXES[axis]:
        x = 1 / setting[2] if place == 2 else setting[place]
        found.append({"x": x, "setting": setting, **call(measured, *setting)})
    return found


class Flat:
    """Seconds a million rows, which must not grow with the stream."""

    params = ([100_000] if QUICK else [10**6, 10**7],)
    param_names = ("rows",)
    unit = "s / 1e6 rows"

    def setup(self, rows):
        self.blocks = blocks_of(rows, 64)

    def track_seconds_per_million(self, rows):
        return interleaved({"lev": lambda: stream(self.blocks, rows, EPSILON)}, 1)["lev"] / rows * 1e6
