"""The whole heavy-entry task, every |<q,k>|^2 that reaches epsilon: by brute force, and by a sketch of the keys."""

import numpy as np

import lev

from .common import EPSILON, QUICK, interleaved
from .regimes import rare

NUMBERS = 2**22  # of one block of entries
QUERIES = 64 if QUICK else 1024
ROWS = [1000, 3000] if QUICK else [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]


def make_task(n, m, d=64, seed=0):
    """Return (queries, keys), float32: half of the queries are those that give some key the most, half are Gaussian."""
    rng = np.random.default_rng(seed)
    keys = rare(n, d, rng)
    asked = np.argsort(np.linalg.norm(keys, axis=1))[: m // 2]  # the rare keys are the short ones
    adverse = np.linalg.solve(keys.T @ keys, keys[asked].T).T
    adverse /= np.linalg.norm(adverse, axis=1, keepdims=True)
    queries = np.concatenate([adverse, rng.standard_normal((m - len(asked), d))])
    return queries.astype(np.float32), keys.astype(np.float32)


def by_numpy(queries, keys, epsilon=EPSILON):
    """Return the number of heavy entries; blocks of queries, so that no array is long."""
    step, found = max(1, NUMBERS // len(keys)), 0
    for start in range(0, len(queries), step):
        weights = queries[start : start + step] @ keys.T
        np.square(weights, out=weights)
        rows, columns = np.nonzero(weights >= epsilon * weights.sum(axis=1, keepdims=True))
        found += len(weights[rows, columns])
    return found


def by_torch(queries, keys, epsilon=EPSILON):
    import torch

    queries, keys = torch.from_numpy(queries), torch.from_numpy(keys)
    step, found = max(1, NUMBERS // len(keys)), 0
    for part in queries.split(step):
        weights = (part @ keys.T).square_()
        rows, columns = torch.nonzero(weights >= epsilon * weights.sum(1, keepdim=True), as_tuple=True)
        found += len(weights[rows, columns])
    return found


def sketched(keys, epsilon=EPSILON):
    return lev.Sketch(keys.shape[1], epsilon).update(keys)


def by_lev(queries, keys, epsilon=EPSILON):
    return sketched(keys, epsilon).heavy_hitters(queries).nnz


def has_torch():
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def ways():
    """Return the ways that run here: name -> (queries, keys) -> number of entries."""
    return {"lev": by_lev, "NumPy": by_numpy} | ({"torch": by_torch} if has_torch() else {})


def point(n, m):
    """Return seconds and number of entries of each way, and the seconds of the queries alone once a sketch is there."""
    queries, keys = make_task(n, m)
    found = ways()
    ready = sketched(keys)
    tasks = {name: lambda way=way: way(queries, keys) for name, way in found.items()}
    tasks["lev, queries only"] = lambda: ready.heavy_hitters(queries)
    entries = {name: task() for name, task in tasks.items() if name in found}
    return {"n": n, "m": m, "seconds": interleaved(tasks, 1 if QUICK else 3), "entries": entries}


class Crossover:
    """Brute force over lev: above 1 lev is the faster one."""

    params = (ROWS[-3:],)
    param_names = ("n",)
    unit = "ratio"

    def setup(self, n):
        self.queries, self.keys = make_task(n, QUERIES)

    def track_brute_over_lev(self, n):
        tasks = {"lev": lambda: by_lev(self.queries, self.keys), "NumPy": lambda: by_numpy(self.queries, self.keys)}
        seconds = interleaved(tasks, 1)
        return seconds["NumPy"] / seconds["lev"]
