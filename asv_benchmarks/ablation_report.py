"""What each fast path gains: the streamed set and the scores of all rows with one path at a time switched off.

python asv_benchmarks/ablation_report.py            all, about three minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/ablation_report.py --stdout     a pass that only proves that it runs

The library has no such switches: a path is taken out from here, by what stands in its place.
"""

from contextlib import ExitStack
from unittest.mock import patch

import numpy as np

import lev
from benchmarks import common
from benchmarks.stream import streamed
from lev import backend, sketch
from lev.cpu import threads
from lev.factor import Factor
from lev.frame import Frame, Groups
from output import report, table


def gram_by_blas(self, rows, factors, groups):
    """Return what ``Frame.grams`` returns, by BLAS: the widened rows are written and read again."""
    x, norms = self.widen(rows, factors)
    y, full, chain = self.coordinates(x), (groups.precision + groups.precision.T) / 2, backend.GROUPS[1]
    norms = np.maximum(norms, np.square(y).sum(axis=1))
    scores = np.add.reduceat(np.einsum("ij,ij->i", y @ full, y), np.arange(0, len(x), groups.size))
    chains = np.repeat(np.add.reduceat(norms, np.arange(0, len(x), chain)), chain // groups.size)[: len(scores)]
    return y.T @ y, np.square(x).sum(axis=0), groups.own * scores + groups.rounding * chains


WITHOUT = {
    "bounds for groups of rows": [patch.object(Factor, "groups", lambda self, epsilon: Groups.none(self.rank))],
    "a filter by few eigenvectors": [patch.object(Factor, "width", lambda self, epsilon, step: self.rank)],
    "float32 where a bound suffices": [patch.object(Factor, "single", lambda self, dtype: False)],
    "Gram products in registers": [patch.object(Frame, "grams", gram_by_blas)],
    "long blocks (1/16 of the length)": [patch.object(sketch, "_BLOCK_NUMBERS", sketch._BLOCK_NUMBERS // 16)],
    "the second core": [patch.object(threads, "cores", lambda: 1)],
}


def tasks():
    """Return what is timed, by name."""
    keys, round_keys = (common.make_keys(*common.SHAPES[0], condition) for condition in (300, 1))
    n, d = keys.shape
    return {
        "set, epsilon = 0.05": lambda: streamed(keys),
        "set, epsilon = 2 d / n": lambda: streamed(keys, epsilon=2 * d / n),
        "set, p = 3": lambda: streamed(keys, p=3),
        "set, sample = 1/16": lambda: streamed(keys, sample=1 / 16),
        "and condition 1": lambda: streamed(round_keys, sample=1 / 16),
        "lev.leverage_scores": lambda: lev.leverage_scores(keys),
    }


def measure():
    found = {}
    for name, task in tasks().items():

        def without(paths, task=task):
            with ExitStack() as stack:
                for path in paths:
                    stack.enter_context(path)
                task()

        ways = {"all": task} | {way: lambda paths=paths: without(paths) for way, paths in WITHOUT.items()}
        found[name] = common.interleaved(ways, min(5, common.REPEATS))
    return {"shape": common.SHAPES[0], "seconds": found}


def text(result):
    names = list(result["seconds"])
    rows = [["all of them, ms", *(f"{result['seconds'][name]['all'] * 1e3:.0f}" for name in names)]]
    for way in WITHOUT:
        ratios = (result["seconds"][name][way] / result["seconds"][name]["all"] for name in names)
        rows.append([f"without {way}", *(f"{ratio:.2f} x" for ratio in ratios)])
    n, d = result["shape"]
    return f"{n:,} x {d} float32 keys, condition 300:\n\n" + table(["", *names], rows)


if __name__ == "__main__":
    report(__doc__, "ablation", measure, text)
