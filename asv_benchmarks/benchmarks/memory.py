"""Memory of a long stream from a generator, above what the interpreter and the compiled kernels hold."""

import numpy as np

import lev

from .common import EPSILON, QUICK
from .fresh import call, held_mb, peak_mb


def _run(rows, dim, step=10_000):
    rng = np.random.default_rng(0)
    sketch = lev.Sketch(dim, EPSILON)
    for _ in range(rows // step):
        sketch.update(rng.standard_normal((step, dim), dtype=np.float32))
    return sketch.universal_set()


def marks(rows, dim):
    _run(20_000, dim)
    warm = held_mb()
    return [peak_mb(lambda part=part: _run(int(rows * part), dim), warm)[0] for part in (0.1, 0.3, 1.0)]


def stream_peaks(rows, dim):
    """Return peak MB above the warm interpreter for streams of a tenth, 3 tenths and all of ``rows`` rows (Linux)."""
    return call(marks, rows, dim)


class Stream:
    """A 1e7-row stream must stay flat and under 50 MB."""

    unit = "MB"
    params = ([16, 64],)
    param_names = ("dim",)

    def track_peak_above_interpreter(self, dim):
        return stream_peaks(100_000 if QUICK else 10_000_000, dim)[-1]
