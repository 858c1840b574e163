"""The streamed exact universal set beside the Gram product and beside what a NumPy user would write."""

import lev

from .common import (
    CONDITIONS,
    EPSILON,
    HEADS,
    SHAPES,
    gram,
    gram_cholesky_solve,
    interleaved,
    make_heads,
    make_keys,
    qr,
    sumscan,
)

SAMPLE = 1 / 16
"""The share of the rows that enters the form of a sampled sketch."""


def streamed(keys, epsilon=EPSILON, **arguments):
    return lev.Sketch(keys.shape[-1], epsilon, heads=keys.shape[:-2], **arguments).update(keys).universal_set()


class Ratios:
    """Ratios of medians within one run."""

    params = (SHAPES, CONDITIONS)
    param_names = ("shape", "condition")
    unit = "ratio"

    def setup(self, shape, condition):
        self.keys = make_keys(*shape, condition)

    def track_time_over_gram(self, shape, condition):
        seconds = interleaved({"lev": lambda: streamed(self.keys), "gram": lambda: gram(self.keys)})
        return seconds["lev"] / seconds["gram"]

    def track_speedup_over_gram_cholesky_solve(self, shape, condition):
        seconds = interleaved({"lev": lambda: streamed(self.keys), "peer": lambda: gram_cholesky_solve(self.keys)}, 3)
        return seconds["peer"] / seconds["lev"]

    def track_speedup_over_qr(self, shape, condition):
        seconds = interleaved({"lev": lambda: streamed(self.keys), "peer": lambda: qr(self.keys)}, 2)
        return seconds["peer"] / seconds["lev"]


class Sampled:
    """A sample of the rows in the form, beside all of them and beside one sum over the keys."""

    params = (SHAPES, CONDITIONS)
    param_names = ("shape", "condition")
    unit = "ratio"

    def setup(self, shape, condition):
        keys = make_keys(*shape, condition)
        tasks = {"read": lambda: sumscan(keys), "all": lambda: streamed(keys)}
        self.seconds = interleaved({**tasks, "sampled": lambda: streamed(keys, sample=SAMPLE)}, 5)

    def track_time_over_read(self, shape, condition):
        return self.seconds["sampled"] / self.seconds["read"]

    def track_time_over_all_rows(self, shape, condition):
        return self.seconds["sampled"] / self.seconds["all"]


class NearThreshold:
    """epsilon = 2 d / n: most rows stand near the threshold, so the cheap filters cannot help."""

    params = (SHAPES,)
    param_names = ("shape",)
    unit = "ratio"

    def setup(self, shape):
        self.keys = make_keys(*shape, 30)

    def track_time_over_gram(self, shape):
        n, d = shape
        seconds = interleaved({"lev": lambda: streamed(self.keys, 2 * d / n), "gram": lambda: gram(self.keys)}, 5)
        return seconds["lev"] / seconds["gram"]


class Powers:
    """Other powers than 2, at condition 30."""

    params = ([1, 3, 4],)
    param_names = ("p",)
    unit = "ratio"

    def setup(self, p):
        self.keys = make_keys(*SHAPES[0], 30)

    def track_time_over_gram(self, p):
        seconds = interleaved({"lev": lambda: streamed(self.keys, p=p), "gram": lambda: gram(self.keys)}, 3)
        return seconds["lev"] / seconds["gram"]


class Heads:
    """Many heads at once, beside the batched Gram product."""

    params = (HEADS,)
    param_names = ("shape",)
    unit = "ratio"

    def setup(self, shape):
        self.keys = make_heads(*shape)

    def track_time_over_gram(self, shape):
        tasks = {"lev": lambda: streamed(self.keys, 0.5), "gram": lambda: self.keys.swapaxes(-1, -2) @ self.keys}
        seconds = interleaved(tasks, 5)
        return seconds["lev"] / seconds["gram"]


class Rows:
    """Row by row: rows a second."""

    unit = "rows/s"

    def setup(self):
        self.keys = make_keys(*(1000, 64) if SHAPES[0][0] < 1e6 else (100_000, 64), 30)

    def track_update_one_row(self):
        def run():
            sketch = lev.Sketch(64, EPSILON)
            for i in range(len(self.keys)):
                sketch.update(self.keys[i : i + 1])

        return len(self.keys) / interleaved({"lev": run}, 1)["lev"]

    def track_admit_one_row(self):
        few = self.keys[:5000]

        def run():
            sketch = lev.Sketch(64, EPSILON)
            for i in range(len(few)):
                sketch.admit(few[i : i + 1])

        return len(few) / interleaved({"lev": run}, 1)["lev"]
