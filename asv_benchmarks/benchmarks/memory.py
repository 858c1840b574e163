"""Memory of a long stream from a generator, above what the interpreter and the compiled kernels hold."""

import json
import subprocess
import sys

from .common import QUICK

_STREAM = """
import json, sys
from pathlib import Path
import numpy as np, lev

def megabytes(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024

def run(rows, dim, step=10_000):
    rng = np.random.default_rng(0)
    sketch = lev.Sketch(dim, 0.05)
    for _ in range(rows // step):
        sketch.update(rng.standard_normal((step, dim), dtype=np.float32))
    return sketch.universal_set()

rows, dim = int(sys.argv[1]), int(sys.argv[2])
run(20_000, dim)
before, marks = megabytes("VmRSS"), []
for part in (0.1, 0.3, 1.0):
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    run(int(rows * part), dim)
    marks.append(round(megabytes("VmHWM") - before, 1))
print(json.dumps(marks))
"""


def stream_peaks(rows, dim):
    """Return peak MB above the warm interpreter for streams of a tenth, 3 tenths and all of ``rows`` rows (Linux)."""
    done = subprocess.run(
        [sys.executable, "-c", _STREAM, str(rows), str(dim)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


class Stream:
    """A 1e7-row stream must stay flat and under 50 MB."""

    unit = "MB"
    params = ([16, 64],)
    param_names = ("dim",)

    def track_peak_above_interpreter(self, dim):
        return stream_peaks(100_000 if QUICK else 10_000_000, dim)[-1]
