"""What a power p and a decay make of rows: their weights in the form, and what the form then proves about them.

Entries decay^(t - j) |<q,k_j>|^p are those of keys scaled by decay^(-j/p), so decay is a scale for each row, taken
against a common power of two that moves on with the stream.  Row j enters the form M with the factor v_j^(1/2-1/p),
where v_j >= (k_j^T M^+ k_j)^(p/2) is found as it comes; any such v proves bounds, and for p = 2 the factor is 1.
For p = 2 rows may also stay out of the form, all but a sample: the sum of their odds says what that costs.
Theory: 05, certificates; 12, online Lewis weights and decay; 15, sampled forms.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.cpu.heads import arrays
from lev.factor import scores_of
from lev.frame import ERA

_FINE, _DECIMALS = 128, 80  # binary digits of an exponent of two, and decimal ones of the logarithm it comes from
_LARGEST = 700.0  # whose exponential is finite


@dataclass(frozen=True)
class Weighting:
    """The power of the entries, how they fall with each id, and which rows enter the form whatever they are."""

    p: float = 2.0
    decay: float = 1.0
    sample: float = 1.0  # the share of the rows that enter; below 1 only for p = 2

    @property
    def plain(self) -> bool:
        """Whether every row enters, with no weight of its own."""
        return self.p == 2 and self.sample == 1

    @cached_property
    def _step(self) -> int:
        """How much the exponent of a row's scale rises with each id, in units of 2^-128: ids have up to 53 digits."""
        with decimal.localcontext(prec=_DECIMALS):
            digits = -decimal.Decimal(self.decay).ln() / decimal.Decimal(2).ln()
            return round(digits / decimal.Decimal(min(self.p, 2.0)) * 2**_FINE)

    @property
    def span(self) -> float:
        """How many ids in a row have scales within 2^64 of each other: their powers are far from underflow."""
        return 64 * 2**_FINE / self._step if self._step else math.inf

    def epoch(self, ids: np.ndarray) -> int:
        """Return the power of two of the latest of ``ids``, against which scales are taken."""
        return (int(ids.max()) * self._step) >> _FINE

    def exponents(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        """Return the logarithm to base 2 of the scale of each row, (m,), in units of 2^epoch."""
        if self._step == 0 or not len(ids):
            return np.zeros(len(ids))
        first = int(ids.min())
        offset = (first * self._step - (epoch << _FINE)) / 2**_FINE  # integers first: ids may be large
        return offset + (ids - first) * (self._step / 2**_FINE)

    def late(self, ids: np.ndarray, latest: int) -> np.ndarray:
        """Say which rows come so long after ``latest`` and the rows before them that little but rounding is left."""
        lag = np.maximum.accumulate(np.maximum(ids, latest)) - ids
        return lag * (self._step / 2**_FINE) >= 2 * ERA

    def eras(self, ids: np.ndarray) -> list[slice | np.ndarray]:
        """Return the places of ids in groups, the oldest first, whose scales span at most 2^448 each."""
        if not len(ids):
            return []
        if self._step == 0 or (int(ids.max() - ids.min()) * self._step) >> _FINE < ERA:
            return [slice(None)]
        groups = np.floor(self.exponents(ids, 0) / ERA)
        return [np.flatnonzero(groups == group) for group in np.unique(groups)]

    def scales(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        """Return the scale of each row in the form, (m,), in units of 2^epoch; rows of long ago may get 0."""
        return np.exp2(self.exponents(ids, epoch))

    def sift(self, odds: np.ndarray, ids: np.ndarray, epsilon: float) -> tuple[np.ndarray, float, float]:
        """Return which rows are to enter the form, and the sum and the largest of the odds of the others.

        Those enter that may reach epsilon, and those whose ids are in the sample, whatever else comes.
        """
        places = np.empty(len(odds), np.int64)
        share = np.uint64(self.sample * 2.0**64)
        count, total, most = backend.kernels_of(odds).sift(odds, ids, bounds.odds_below(epsilon), share, places)
        return places[:count], total * (1 + bounds.dot_error(len(odds))), most

    def weights(self, odds: np.ndarray) -> np.ndarray:
        """Return v, (m,): the root of v^(2/p) + a v = a, rounded up, for odds a against a form without the row.

        It is the row's own k^T M^+ k, to the power p/2, once it is in the form with weight v.  Small
        ones may stand a few per cent above the root, which is as sound.
        """
        if self.p == 2:
            return scores_of(odds)
        out = np.empty(len(odds))
        backend.kernels_of(odds).lewis_roots(odds, self.p, out)
        least = np.where(odds > 0, bounds.LEAST_WEIGHT, 0.0)
        return np.clip(out * (1 + bounds.power_error(self.p)), least, 1.0)

    def own(self, odds: Any) -> Any:
        """Return (k^T M^+ k)^(p/2), rounded up and at most 1, of rows from upper ends of k^T M^+ k, on any device."""
        xp = arrays(odds)
        found = xp.minimum(odds, 1.0) ** (self.p / 2) * (1 + bounds.power_error(self.p))
        return xp.where(odds > 0, xp.minimum(xp.maximum(found, bounds.LEAST_WEIGHT), 1.0), 0.0)

    def factors(self, weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Return what each row is multiplied by in the form, (m,); rows of weight 0 are not in it."""
        if self.p == 2:
            return scales

        @np.errstate(divide="ignore")
        def of(part: slice) -> np.ndarray:
            return np.where(weights[part] > 0, scales[part] * weights[part] ** (0.5 - 1 / self.p), 0.0)

        return np.concatenate(backend.run(of, backend.slices(len(weights), backend.TASK)))

    def masses(self, weights: np.ndarray, scales: np.ndarray) -> float:
        """Return the sum of the weights, which decay for p > 2."""
        return float((weights * scales**2).sum() if self.p > 2 else weights.sum())

    def ends(self, lower: Any, upper: Any, mass: Any, rows: int, ages: Any) -> tuple[Any, Any]:
        """Return proved (lower, upper) of sensitivities from those of s^2 k^T M^+ k, s = 2^ages the scale of the row.

        With t the latter and V the mass, t^(p/2) is one end and V^(p/2-1) t^(p/2) the other; for p = 2 t and t/(1+V).
        Of any shape, on any device.
        """
        xp = arrays(upper)
        if self.p == 2:
            return xp.minimum(lower, 1) / (1 + mass), xp.minimum(upper, 1)
        alive = upper > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = xp.log(xp.maximum(mass, bounds.LEAST_WEIGHT)) - (2 * math.log(2) * ages if self.p > 2 else 0.0)
            low, high = (self.p / 2 * xp.log(end) for end in (lower, upper))
            spread = (self.p / 2 - 1) * seen
            slack = bounds.power_error(self.p, rows) * (1 + xp.abs(spread) + xp.abs(high)) + self._blur
            low, high = low + xp.minimum(spread, 0) - slack, high + (spread if self.p > 2 else 0) + slack
        low = xp.where(alive & self._stays_above, xp.exp(xp.minimum(low, 0)), 0.0)
        return low, xp.where(alive, xp.exp(xp.minimum(high, 0)), 0.0)

    def certified(self, weights: Any, mass: Any, rows: int, ages: Any) -> Any:
        """Return proved upper ends of sensitivities of rows, of scales 2^ages, just added with these weights."""
        if self.p <= 2:
            return weights
        xp = arrays(weights)
        share = xp.log(xp.maximum(mass, bounds.LEAST_WEIGHT)) - 2 * math.log(2) * ages
        spread = (self.p / 2 - 1) * share
        with np.errstate(over="ignore", invalid="ignore"):
            upper = weights * xp.exp(spread + bounds.power_error(self.p, rows) * (1 + xp.abs(spread)) + self._blur)
        return xp.where(weights > 0, xp.minimum(upper, 1), 0.0)

    @property
    def _blur(self) -> float:
        """What rounded scales may make of the logarithm of an end."""
        return 2 * self.p * self.scale_error

    @property
    def scale_error(self) -> float:
        """Relative rounding of the scale of a row."""
        return bounds.SCALE_ERROR if self.decay < 1 else 0.0

    @property
    def _stays_above(self) -> bool:
        """Whether weights stay above their rows, which lower ends need; decayed weights for p > 2 may not."""
        return self.p <= 2 or self.decay == 1

    def sandwich(self, mass: float, rows: int, epoch: int) -> tuple[float, float]:
        """Return (low, high): the normaliser lies between these times (q^T M q)^(p/2).

        With decay and p > 2 rows outgrow their weights as they age, and the oldest may have the id 0.
        """
        if self.p == 2 or not rows:
            return 1.0, 1.0 + mass
        spread = (1 - self.p / 2) * math.log(max(mass, bounds.LEAST_WEIGHT))
        slack = bounds.power_error(self.p, rows) * (1 + abs(spread))
        if self.p < 2:
            return math.exp(min(spread, 0) - slack), math.exp(max(spread, 0) + slack)
        age = -math.log(2) * float(self.exponents(np.zeros(1, np.int64), epoch)[0])
        growth = (self.p - 2) * max(age, 0) * (1 + slack) + slack
        return math.exp(min(spread, _LARGEST) - slack), math.exp(growth) if growth < _LARGEST else math.inf
