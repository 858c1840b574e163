"""Streams as they come: row-exact causal updates, windows, threads and a Dask cluster."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.linalg import blas

import lev
from lev import backend
from lev.frame import Frame, Groups

from .common import EPSILON, QUICK, interleaved, make_keys
from .system import write

DASK_ROWS = int(os.environ.get("LEV_BENCH_DASK_ROWS", 40_000 if QUICK else 20_000_000))


def causal_seconds(dim, epsilon):
    """Return seconds a row of a causal update, from a long array, and of a symmetric rank-one update of a matrix."""
    keys = make_keys(3000 if QUICK else 50_000, dim, 30)
    rows, matrix = keys[:1000].astype(np.float64), np.zeros((dim, dim), order="F")

    def rank_one():
        for row in rows:
            blas.dsyr(1.0, row, a=matrix, overwrite_a=True)

    def causal():
        lev.CausalSketch(dim, epsilon).update(keys).lifetimes()

    seconds = interleaved({"causal": causal, "dsyr": rank_one}, 1 if QUICK else 3)
    return {"causal": seconds["causal"] / len(keys), "dsyr": seconds["dsyr"] / len(rows)}


def thread_seconds(rows=20_000 if QUICK else 4_000_000):
    """Return seconds of lev.scan on one thread and on two, and of the Gram products in it alone: what threads allow."""
    keys, frame, none = make_keys(rows, 64, 30), Frame(np.zeros(64, np.int64)), Groups.none(64)

    def products(threads):
        backend.run(lambda part: frame.grams(*part, none), backend.pieces(keys), threads)

    tasks = {f"scan {n}": lambda n=n: lev.scan(keys, EPSILON, threads=n) for n in (1, 2)}
    tasks |= {f"products {n}": lambda n=n: products(n) for n in (1, 2)}
    return interleaved(tasks, 1 if QUICK else 5)


def dask_seconds(rows):
    """Return seconds to sketch a file of ``rows`` rows of 32 numbers with one Dask process and with two."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.npy"
        write(path, rows, 32)
        return {workers: _on_cluster(path, workers) for workers in (1, 2)}


def _on_cluster(path, workers):
    from distributed import Client, LocalCluster

    from lev.cluster import dask as cluster

    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as local, Client(local):
        # in the turn that is not counted the workers import and compile
        return interleaved({"sketch": lambda: cluster.sketch([str(path)], EPSILON)}, 1 if QUICK else 5)["sketch"]


class Causal:
    """A causal update of one row beside one symmetric rank-one update of a d x d matrix."""

    params = ([64, 128], [0.05, 0.2])
    param_names = ("dim", "epsilon")
    unit = "ratio"

    def track_row_over_dsyr(self, dim, epsilon):
        seconds = causal_seconds(dim, epsilon)
        return seconds["causal"] / seconds["dsyr"]


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

    def track_speedup_of_two(self):
        seconds = thread_seconds()
        return seconds["scan 1"] / seconds["scan 2"]


class Dask:
    """A stream on disk, sketched by two processes over by one."""

    unit = "ratio"
    timeout = 1800

    def setup(self):
        if importlib.util.find_spec("distributed") is None:
            raise NotImplementedError("needs the dask extra")

    def track_speedup_of_two_processes(self):
        seconds = dask_seconds(DASK_ROWS)
        return seconds[1] / seconds[2]
