"""Streams as they come: row-exact causal updates, windows, threads and a Dask cluster."""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.linalg import blas

import lev

from .common import QUICK, interleaved, make_keys


class Causal:
    """A causal update of one row, from a long array, beside one symmetric rank-one update of a d x d matrix."""

    params = ([64, 128], [0.05, 0.2])
    param_names = ("dim", "epsilon")
    unit = "ratio"

    def setup(self, dim, epsilon):
        self.keys = make_keys(3000 if QUICK else 50_000, dim, 30)

    def track_row_over_dsyr(self, dim, epsilon):
        rows, matrix = self.keys[:1000].astype(np.float64), np.zeros((dim, dim), order="F")

        def rank_one():
            for row in rows:
                blas.dsyr(1.0, row, a=matrix, overwrite_a=True)

        def causal():
            lev.CausalSketch(dim, epsilon).update(self.keys).lifetimes()

        seconds = interleaved({"causal": causal, "dsyr": rank_one}, 1 if QUICK else 5)
        return (seconds["causal"] / len(self.keys)) / (seconds["dsyr"] / len(rows))


class Window:
    """Members returned over members there are: the slack of blocks, and the rows held over d / epsilon."""

    params = ([4, 16, 64],)
    param_names = ("blocks",)
    unit = "ratio"

    def setup(self, blocks):
        self.keys = make_keys(4000 if QUICK else 40_000, 16, 30)

    def run(self, blocks):
        """Return pairs (returned, exact) at many moments and the most rows held."""
        width, sketch, seen, held = 2000, None, [], 0
        epsilon = 1.5 * 16 / width
        sketch = lev.SlidingWindowSketch(16, epsilon, width, block=width / blocks)
        for first in range(0, len(self.keys), 190):
            sketch.update(self.keys[first : first + 190])
            inside = self.keys[max(0, sketch.count - width) : sketch.count]
            seen.append((len(sketch.universal_set()), int((lev.leverage_scores(inside) >= epsilon).sum())))
            held = max(held, sketch.retained)
        return np.array(seen[len(seen) // 3 :]), held / (16 / epsilon)

    def track_returned_over_exact(self, blocks):
        returned, exact = self.run(blocks)[0].sum(axis=0)
        return returned / max(1, exact)

    def track_held_over_bound(self, blocks):
        return self.run(blocks)[1]


class Threads:
    """lev.scan on two threads over one."""

    unit = "ratio"

    def setup(self):
        self.keys = make_keys(20_000 if QUICK else 4_000_000, 64, 30)

    def track_speedup_of_two(self):
        seconds = interleaved({n: lambda n=n: lev.scan(self.keys, 0.05, threads=n) for n in (1, 2)}, 1 if QUICK else 5)
        return seconds[1] / seconds[2]


class Dask:
    """A stream on disk, sketched by two processes over by one."""

    unit = "ratio"
    timeout = 1800

    def setup(self):
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise NotImplementedError("needs the dask extra") from None
        self.rows, self.dim = (40_000, 32) if QUICK else (20_000_000, 32)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "keys.npy"
        out = np.lib.format.open_memmap(self.path, "w+", np.float32, (self.rows, self.dim))
        rng = np.random.default_rng(0)
        for first in range(0, self.rows, 10_000):
            out[first : first + 10_000] = rng.standard_normal((10_000, self.dim), dtype=np.float32)
        del out

    def teardown(self):
        self.folder.cleanup()

    def seconds(self, workers):
        from distributed import Client, LocalCluster

        from lev.cluster import dask as cluster

        os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
        options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with LocalCluster(**options) as local, Client(local):
            cluster.sketch([str(self.path)], 0.05)  # the workers import and compile
            start = time.perf_counter()
            cluster.sketch([str(self.path)], 0.05)
            return time.perf_counter() - start

    def track_speedup_of_two_processes(self):
        return self.seconds(1) / self.seconds(2)
