"""Softmax attention over the 256 keys of highest leverage beside attention over all keys, in float32 on the CPU."""

import numpy as np

from .common import QUICK, interleaved
from .fresh import call, peak_mb

DIM, TOP = 64, 256
ROWS = [512] if QUICK else [4096, 16_384, 65_536]
QUERIES = 64 if QUICK else 1024
HEADS = 2 if QUICK else 8
SWEEP = [128, 256] if QUICK else [256, 512, 1024, 2048, 4096, 8192]
SIZES = (16,) if QUICK else (64, 256)


def make_tensors(n, m, heads, seed=0):
    """Return float32 (query, key, value), (1, heads, m or n, 64)."""
    import torch

    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((1, heads, rows, DIM), dtype=np.float32)) for rows in (m, n, n)]


def tasks_of(n, m, heads, top):
    """Return what is compared: all keys at once, and the best ``top`` with their choice included."""
    from torch.nn.functional import scaled_dot_product_attention

    import lev.torch

    tensors = make_tensors(n, m, heads)
    return {
        "lev": lambda: lev.torch.lev_attention(*tensors, top_k=top, crossover=0),
        "full": lambda: scaled_dot_product_attention(*tensors),
    }


def measured(n, m, heads, top):
    """Return seconds and peak MB of both ways, in the process that calls."""
    for task in tasks_of(512, 16, 1, 16).values():
        task()  # import, start threads
    tasks = tasks_of(n, m, heads, top)
    peaks = {name: peak_mb(task)[0] for name, task in tasks.items()}
    repeats = 1 if QUICK or n * m * heads > 2**30 else 5
    return {"n": n, "m": m, "heads": heads, "top": top, "seconds": interleaved(tasks, repeats), "peak_mb": peaks}


def lengths():
    """Return what was measured with a few and with n queries to one head."""
    return [call(measured, n, m, 1, TOP) for n in ROWS for m in (QUERIES, n)]


def sweep():
    """Return what was measured with n queries to some heads: where full attention stops being the faster one."""
    return [call(measured, n, n, HEADS, top) for top in SIZES for n in SWEEP if n > top]


class Attention:
    """Full attention over attention to the best 256 keys, n queries: above 1 lev is the faster one."""

    params = (ROWS[:2],)
    param_names = ("n",)
    unit = "ratio"

    def setup(self, n):
        try:
            self.tasks = tasks_of(n, n, 1, TOP)
        except ImportError:
            raise NotImplementedError("needs torch") from None

    def track_full_over_lev(self, n):
        seconds = interleaved(self.tasks, 1 if QUICK else 3)
        return seconds["full"] / seconds["lev"]
