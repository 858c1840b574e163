"""What the tests of the theorems share: the notes' own scripts, small keys, and what counts as equal."""

import importlib
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lev import bounds

THEORY = Path(__file__).parent.parent / "theory"
sys.path.insert(0, str(THEORY))
exact = importlib.import_module("exact")
note = importlib.import_module

MARGIN = bounds.margin(np.dtype(np.float64))
few = settings(max_examples=25, derandomize=True)
small = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.integers(-6, 6).map(float))
)
columns = arrays.arrays(np.float64, st.integers(1, 9), elements=st.integers(1, 9).map(float))
thresholds = st.sampled_from([1.0, 0.5, 0.3, 0.2, 0.1])
seeds = st.integers(0, 2**32 - 1)


def close(computed, true):
    return abs(Fraction(float(computed)) - true) <= 2 * Fraction(MARGIN) * true
