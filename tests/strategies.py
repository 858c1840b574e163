"""Streams built to hurt: every family of keys that has broken a leverage score somewhere."""

import numpy as np
from hypothesis import strategies as st


def _gaussian(rng, n, d):
    return rng.standard_normal((n, d))


def _integers(rng, n, d):
    return rng.integers(-3, 4, (n, d)).astype(float)


def _low_rank(rng, n, d):
    return (rng.integers(-3, 4, (n, max(1, d - 2))) @ rng.integers(-3, 4, (max(1, d - 2), d))).astype(float)


def _repeated(rng, n, d):
    return rng.standard_normal((max(1, n // 9), d))[rng.integers(0, max(1, n // 9), n)]


def _sparse(rng, n, d):
    return rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.2)


def _graded(rng, n, d):
    return rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-30, 30, (n, 1))


def _one_huge(rng, n, d):
    keys = rng.standard_normal((n, d))
    keys[rng.integers(0, n, min(n, 1))] *= 1e20
    return keys


def _one_tiny_alone(rng, n, d):
    keys = rng.standard_normal((n, d))
    keys[:, -1] = 0
    if n:
        keys[rng.integers(n)] = np.eye(d)[-1] * 1e-9
    return keys @ np.linalg.qr(rng.standard_normal((d, d)))[0]


def _ill_conditioned(rng, n, d):
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * np.logspace(0, -8, d)) @ turn


def _near_collinear(rng, n, d):
    return rng.standard_normal(d) + 1e-7 * rng.standard_normal((n, d))


def _near_rounding(rng, n, d):
    """Few directions, and in the others what float64 can only just tell from rounding, or cannot."""
    keys = rng.standard_normal((n, max(1, d // 2))) @ rng.standard_normal((max(1, d // 2), d))
    keys[rng.random(n) < 0.4] = 0
    return keys + rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-19, -11, (n, 1))


def _columns_apart(rng, n, d):
    return rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-60, 60, d)


def _growing(rng, n, d):
    return rng.standard_normal((n, d)) * 2.0 ** np.arange(n)[:, None]


def _shrinking(rng, n, d):
    return rng.standard_normal((n, d)) * 2.0 ** -np.arange(n)[:, None]


def _heavy_tailed(rng, n, d):
    return rng.standard_t(1, (n, d)) ** 3


def _subnormal(rng, n, d):
    return rng.integers(-9, 10, (n, d)) * 5e-324


def _enormous(rng, n, d):
    return rng.standard_normal((n, d)) * 1e300


FAMILIES = {name[1:]: make for name, make in list(globals().items()) if name.startswith("_") and callable(make)}


@st.composite
def streams(draw, families=tuple(FAMILIES), most_rows=60, most_columns=4):
    """A (n, d) float64 stream, n from 0, d from 1, of one family, some rows zero, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d = draw(st.integers(0, most_rows)), draw(st.integers(1, most_columns))
    keys = FAMILIES[draw(st.sampled_from(families))](rng, n, d)
    keys[rng.random(n) < draw(st.sampled_from([0.0, 0.2]))] = 0
    return keys[rng.permutation(n)]


@st.composite
def cuts(draw, n):
    """Positions that split n rows into parts, some of them empty."""
    return [0, *sorted(draw(st.lists(st.integers(0, n), max_size=5))), n]


EPSILONS = st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0])
