"""Ways to the universal set: how fast, how large and how right each is on streams that are hard in different ways."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

import lev

from .common import EPSILON, QUICK, gram, gram_cholesky_solve, interleaved, qr
from .fresh import call, peak_mb
from .regimes import oracle, rare

SLOW = 0.4  # seconds; what takes longer is timed once
ROUNDING = 1e-9  # of the oracle, relative
MARGIN = 2e-5  # a key this close below the threshold may be in the set: what lev promises for 32 bits
BLOCK = 8192  # rows of one block of a stream
SHORT = (1000, 2000) if QUICK else (1000, 10_000)
COLUMNS = 48  # of the right sketch: what kvpress uses by default


@dataclass(frozen=True)
class Peer:
    """One way: ``find(keys, epsilon)`` returns scores (n,) or a UniversalSet.

    ``streams`` and ``merges`` say whether it can; ``needs`` is a package that is not among the dependencies of lev;
    ``python`` names an environment variable with an interpreter that has it; ``draws`` random answers are judged.
    """

    name: str
    find: Callable[[np.ndarray, float], Any]
    streams: str
    merges: str
    needs: str | None = None
    python: str | None = None
    draws: int = 1

    @property
    def interpreter(self):
        return os.environ.get(self.python or "", sys.executable)


def wide(keys):
    """Return keys in float32 at least: no LAPACK takes float16."""
    return keys.astype(np.float32) if keys.dtype == np.float16 else keys


def scipy_qr(keys):
    return np.square(scipy.linalg.qr(wide(keys), mode="economic", check_finite=False)[0]).sum(axis=1)


def torch_qr(keys):
    import torch

    return torch.linalg.qr(torch.from_numpy(wide(keys)))[0].square().sum(1).numpy()


def torch_cholesky(keys):
    import torch

    rows = torch.from_numpy(wide(keys))
    factor = torch.linalg.cholesky(rows.T @ rows)
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).square().sum(0).numpy()


def incremental_pca(keys):
    """Return the squared length of whitened centred keys and the share of the mean: scores with an intercept."""
    from sklearn.decomposition import IncrementalPCA

    white = IncrementalPCA(n_components=keys.shape[1], whiten=True, batch_size=BLOCK).fit_transform(wide(keys))
    return np.square(white).sum(axis=1) / (len(keys) - 1) + 1 / len(keys)


def kvpress(keys):
    import torch
    from kvpress.presses.leverage_press import LeverageScorePress

    rows = torch.from_numpy(wide(keys))[None, None]
    return LeverageScorePress.compute_leverage_scores(rows, COLUMNS)[0, 0].numpy()


def hat_matrix(keys):
    from statsmodels.regression.linear_model import OLS
    from statsmodels.stats.outliers_influence import OLSInfluence

    return OLSInfluence(OLS(np.zeros(len(keys)), wide(keys)).fit()).hat_matrix_diag


def clarkson_woodruff(keys, columns=32):
    """Return scores against a sketched factor, each from ``columns`` random projections: Drineas et al., 2012."""
    keys, rng = wide(keys), np.random.default_rng()
    few = scipy.linalg.clarkson_woodruff_transform(keys, 2 * keys.shape[1] ** 2, rng)
    triangle = scipy.linalg.qr(few, mode="r", check_finite=False)[0][: keys.shape[1]]
    turn = rng.standard_normal((keys.shape[1], columns)) / np.sqrt(columns)
    project = scipy.linalg.solve_triangular(triangle, turn.astype(keys.dtype))
    return np.square(keys @ project).sum(axis=1)


def in_blocks(keys, epsilon):
    sketch = lev.Sketch(keys.shape[1], epsilon)
    for start in range(0, len(keys), BLOCK):
        sketch.update(keys[start : start + BLOCK])
    return sketch.universal_set()


def scores(function):
    return lambda keys, epsilon: function(wide(keys))


PEERS = (
    Peer("lev.Sketch, in blocks", in_blocks, "one pass", "yes"),
    Peer("lev.universal_set", lev.universal_set, "no", "no"),
    Peer("lev.leverage_scores", lambda keys, epsilon: lev.leverage_scores(keys), "no", "no"),
    Peer("NumPy QR", scores(qr), "no", "no"),
    Peer("SciPy QR", scores(scipy_qr), "no", "no"),
    Peer("Gram + Cholesky, float32", scores(gram_cholesky_solve), "two passes", "yes"),
    Peer("Gram + Cholesky, float64", lambda k, e: gram_cholesky_solve(k.astype(np.float64)), "two passes", "yes"),
    Peer("torch.linalg.qr", scores(torch_qr), "no", "no", "torch"),
    Peer("torch.linalg.cholesky", scores(torch_cholesky), "two passes", "yes", "torch"),
    Peer("IncrementalPCA whitening", scores(incremental_pca), "two passes", "no", "sklearn"),
    Peer("statsmodels hat matrix", scores(hat_matrix), "no", "no", "statsmodels"),
    Peer("kvpress, sketch of 48", scores(kvpress), "no", "no", "kvpress", "LEV_BENCH_KVPRESS", 5),
    Peer("Clarkson-Woodruff + JL", scores(clarkson_woodruff), "two passes", "yes", draws=5),
)
NAMED = {peer.name: peer for peer in PEERS}


def short_streams():
    """Yield (name, keys, epsilon) of streams that are too short for a sketch to be the fastest way."""
    for n in SHORT:
        yield f"rare, {n:,} rows", rare(n, 64, np.random.default_rng(1)).astype(np.float32), EPSILON


# -- one peer, in a process of its own -----------------------------------------------------------------------


def measure(peer, files):
    """Return what ``peer`` does on each file of :func:`save`, or why it was skipped; what needs nothing must run."""
    try:
        return call(measured, peer.name, [str(path) for path in files], python=peer.interpreter)
    except (RuntimeError, OSError) as error:
        if peer.needs is None:
            raise
        return {"skipped": str(error).strip().splitlines()[-1]}


def save(path, keys, epsilon):
    """Write keys, threshold and true scores to ``path``, an .npz file."""
    np.savez(path, keys=keys, epsilon=epsilon, truth=oracle(keys))


def measured(name, files):
    peer, found = NAMED[name], []
    if peer.needs and importlib.util.find_spec(peer.needs) is None:
        return {"skipped": f"needs {peer.needs}"}
    peer.find(
        rare(SHORT[-1], 64, np.random.default_rng(0)).astype(np.float32), EPSILON
    )  # compile, import, start threads
    for file in map(Path, files):
        with np.load(file) as data:
            keys, epsilon, truth = data["keys"], float(data["epsilon"]), data["truth"]
        found.append(_on(peer, keys, epsilon, truth))
    return {"rows": found}


def _on(peer, keys, epsilon, truth):
    row = {"members": len(members_of(truth, epsilon)), "epsilon": epsilon, "shape": keys.shape}
    try:
        start = time.perf_counter()
        row["peak_mb"], first = peak_mb(lambda: peer.find(keys, epsilon))
        slow = QUICK or time.perf_counter() - start > SLOW
        answers = [first, *(peer.find(keys, epsilon) for _ in range(peer.draws - 1))]
    except (ArithmeticError, ValueError, RuntimeError) as error:  # LinAlgError is a ValueError, torch's a RuntimeError
        return {**row, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    judged = [judge(found, truth, epsilon) for found in answers]
    rows = wide(keys)
    tasks = {"peer": lambda: peer.find(keys, epsilon), "gram": lambda: gram(rows)}
    means = {name: float(np.mean([verdict[name] for verdict in judged])) for name in judged[0]}
    return {**row, "seconds": interleaved(tasks, 1 if slow else 5), **means}


def members_of(truth, epsilon):
    return np.flatnonzero(truth >= epsilon * (1 + ROUNDING))


def judge(found, truth, epsilon):
    """Return how many members the set misses, how many as many best miss, and how much of the set is right."""
    members = members_of(truth, epsilon)
    if isinstance(found, lev.UniversalSet):
        chosen, best = found.indices, found.top(len(members)).indices
    else:
        chosen, best = np.flatnonzero(found >= epsilon), np.argsort(-found, kind="stable")[: len(members)]
    return {
        "size": len(chosen),
        "missed": len(np.setdiff1d(members, chosen)),
        "missed_at_equal_size": len(np.setdiff1d(members, best)),
        "right": int(np.sum(truth[chosen] >= epsilon * (1 - MARGIN))),
    }


class Rare:
    """Peers that need nothing more, on rare short keys: time over the Gram product, and members missed."""

    params = ([peer.name for peer in PEERS if peer.needs is None],)
    param_names = ("peer",)

    def setup(self, name):
        self.keys = rare(10_000 if QUICK else 100_000, 64, np.random.default_rng(1)).astype(np.float32)

    def track_time_over_gram(self, name):
        tasks = {"peer": lambda: NAMED[name].find(self.keys, EPSILON), "gram": lambda: gram(self.keys)}
        seconds = interleaved(tasks, 1 if QUICK else 3)
        return seconds["peer"] / seconds["gram"]

    def track_missed(self, name):
        return judge(NAMED[name].find(self.keys, EPSILON), oracle(self.keys), EPSILON)["missed"]
