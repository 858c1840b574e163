"""Least absolute deviations on a coreset: a linear program over 400 weighted rows instead of 6000."""

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

import lev


def fit(rows, target, weights):
    """Return the x that is least in sum weights |rows x - target|."""
    n, d = rows.shape
    eye = sparse.eye_array(n)
    solved = linprog(
        np.concatenate([np.zeros(d), weights, weights]),
        A_eq=sparse.hstack([sparse.csr_array(rows), eye, -eye]),
        b_eq=target,
        bounds=[(None, None)] * d + [(0, None)] * 2 * n,
    )
    return solved.x[:d]


rng = np.random.default_rng(0)
rows = rng.standard_normal((6000, 4))
target = rows @ [3.0, -1.0, 0.5, 2.0] + rng.standard_t(1, 6000)  # noise that least squares cannot bear

# workers sample their own rows; the coreset of [rows | target] serves every x, as rows x - target is one query
parts = [
    lev.coreset(np.column_stack([rows, target])[first::3], p=1, size=400, indices=np.arange(first, 6000, 3))
    for first in range(3)
]
small = parts[0].merge(parts[1]).merge(parts[2]).reduced(size=400)


def loss(x):
    return np.abs(rows @ x - target).sum()


full = loss(fit(rows, target, np.ones(6000)))
few = loss(fit(small.keys[:, :4], small.keys[:, 4], small.weights))
squares = loss(np.linalg.lstsq(rows, target)[0])
print(f"least absolute deviations: {full:,.0f} on all rows, {few:,.0f} on {len(small)}, least squares {squares:,.0f}")
assert full <= few <= 1.05 * full
