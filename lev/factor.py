"""A factor of a form judges rows: a bracket of their scores, and cheap filters from above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lev import backend, bounds
from lev.frame import Frame

_HUGE = 1e300  # finite, so that a score of zero stays zero


@dataclass(frozen=True, eq=False)
class Factor:
    """An inverse square root W of a form: the score of a row with coordinates y is ||y W||^2."""

    frame: Frame
    rows: int
    values: np.ndarray  # eigenvalues of the form in its frame, ascending, (r,)
    whiten: np.ndarray  # W: eigenvectors over root eigenvalues, (r, r)
    slack: float  # relative rounding margin of the form
    reach: float  # rounding of ||y W|| for a row of unit norm

    @property
    def rank(self) -> int:
        return len(self.values)

    def bracket(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (lower, upper), float64 (m,): the leverage score of each row lies between."""
        lower, upper = zip(*backend.run(self._bracket, backend.pieces(rows)), strict=True)
        return np.concatenate(lower), np.concatenate(upper)

    def _bracket(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, norms = self.frame.widen(rows)
        y, _ = self.frame.coordinates(x)
        root, pad = np.linalg.norm(y @ self.whiten, axis=1), self.reach * np.sqrt(norms)
        lower = np.maximum(root - pad, 0) ** 2 * max(0.0, 1 - self.slack)
        return np.minimum(lower, 1), np.minimum((root + pad) ** 2 * self.growth, 1)

    @property
    def growth(self) -> float:
        """What the margin of the form may add to a score, as a factor."""
        return 1 / (1 - self.slack) if self.slack < 1 else _HUGE

    def width(self, epsilon: float) -> int:
        """Return how many of the weakest eigenvectors make a filter that few rows pass.

        Against w eigenvectors a typical row is bounded by (w + sum of the other eigenvalues / the next) / rows;
        all r of them give the score itself.  Cost: 2 d w operations a row.
        """
        rest = np.cumsum(self.values[::-1])[::-1]
        typical = (np.arange(self.rank) + rest / self.values) / max(self.rows, 1)
        few = np.flatnonzero(typical <= 0.6 * epsilon)
        return int(few[0]) if few.size else self.rank

    def filter(self, width: int, dtype: np.dtype) -> Filter:
        """Return the bound by the ``width`` weakest eigenvectors, in float32 for float32 rows where that is safe."""
        frame = self.frame
        weak = frame.whitener @ self.whiten[:, :width]
        single = dtype == np.float32 and frame.triangle is None and np.abs(frame.exponents).max() <= 60
        unit = bounds.dot_error(frame.dim + 2, bounds.UNIT_SINGLE if single else bounds.UNIT)
        turned = 0.0 if frame.triangle is None else float(np.linalg.norm(frame.whitener))
        return Filter(
            probe=(frame.scale[:, None] * weak).astype(np.float32) if single else weak,
            values=self.values,
            following=self.values[width] if width < self.rank else math.inf,
            gain=unit * (float(np.linalg.norm(weak * np.sqrt(self.values[:width]))) + turned),
            pad=unit * float(np.linalg.norm(weak)) + self.reach,
            growth=self.growth,
        )


@dataclass(frozen=True, eq=False)
class Filter:
    """Upper bounds on the scores of rows that are not yet in a form.  Theory: 04, sound filters."""

    probe: np.ndarray  # (D, w), for x, or float32 for the rows as they came
    values: np.ndarray
    following: float
    gain: float
    pad: float
    growth: float

    def __call__(self, rows: np.ndarray, x: np.ndarray, x_norms: np.ndarray, y_norms: np.ndarray) -> np.ndarray:
        """Return the bounds, (m,); b against a form without the row is b / (1 + b) against one with it."""
        if self.probe.dtype == np.float32:
            d = rows.shape[1]
            parts = rows @ self.probe[:d] + self.probe[d:].sum(axis=0)
        else:
            parts = x @ self.probe
        upper = np.empty(len(rows))
        backend.kernels_of(rows).screen(
            parts, y_norms, x_norms, self.values, self.following, self.gain, self.pad, self.growth, upper
        )
        return upper
