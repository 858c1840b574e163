"""Keys with a known spectrum, peers, and timing that interleaves what it compares."""

import os
import time
from statistics import median

import numpy as np
import scipy.linalg

QUICK = bool(os.environ.get("LEV_BENCH_QUICK"))
EPSILON = 0.05
SHAPES = [(20_000, 64)] if QUICK else [(1_000_000, 64), (500_000, 128)]
HEADS = [(8, 197, 64)] if QUICK else [(768, 197, 64), (24, 8192, 64)]
CONDITIONS = [300] if QUICK else [1, 30, 300]
REPEATS = 1 if QUICK else 9


def make_keys(n, d, condition, seed=0):
    """Return float32 Gaussian keys (n, d) whose spectrum runs log-spaced from 1 to 1 / condition, rotated."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    spectrum = np.logspace(0, -np.log10(condition), d)
    return rng.standard_normal((n, d), dtype=np.float32) @ (spectrum[:, None] * turn).astype(np.float32)


def make_heads(heads, n, d, seed=0):
    """Return float32 Gaussian keys (heads, n, d)."""
    return np.random.default_rng(seed).standard_normal((heads, n, d), dtype=np.float32)


def interleaved(tasks, repeats=REPEATS, before=lambda: None):
    """Return the median seconds of each task, all run in turn after one warm-up, ``before()`` ahead of each.

    The pause lets the idle threads of the last BLAS call go to sleep, so that no task pays for another's: OpenBLAS lets
    them spin for 0.11 s.
    """
    seconds = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            before()
            time.sleep(0.15)
            start = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def gram(keys):
    """Return K^T K in the precision of the keys: the floor of any exact method."""
    return keys.T @ keys


def gram_cholesky_solve(keys):
    """Return the float32 scores a NumPy user would write: Gram, Cholesky, triangular solve."""
    factor = np.linalg.cholesky(keys.T @ keys)
    return np.square(scipy.linalg.solve_triangular(factor, keys.T, lower=True)).sum(axis=0)


def qr(keys):
    """Return the scores by way of a thin QR factorisation in the precision of the keys."""
    return np.square(np.linalg.qr(keys)[0]).sum(axis=1)


def sumscan(keys):
    """Return the time-floor of reading: one sum over the array."""
    return keys.sum()
