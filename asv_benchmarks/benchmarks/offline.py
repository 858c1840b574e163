"""What is computed with all keys at hand for p != 2, beside its floor and beside general solvers."""

import importlib.util
import time

import numpy as np
import scipy.optimize

import lev
from lev.eliminate import eliminate
from lev.lewis import CLOSE, log_leverages

from .common import QUICK, gram, interleaved, make_keys

LONG = (20_000, 16) if QUICK else (1_000_000, 64)
SHORT = (1000, 8) if QUICK else (10_000, 16)
POWERS = (1, 1.5, 3, 4)
ASKED = 2 if QUICK else 8  # rows whose sensitivity is refined


def lewis():
    """Return the seconds of one round, of what comes before it, of a whole iteration, and of the Gram product."""
    keys = make_keys(*LONG, 30)
    ready, none = eliminate(keys, CLOSE), np.zeros(len(keys))
    tasks = {"gram": lambda: gram(keys), "round": lambda: log_leverages(ready, none)}
    once = interleaved({**tasks, "start": lambda: eliminate(keys, CLOSE)}, 1 if QUICK else 5)
    few = keys[: max(2000, len(keys) // 10)]
    tasks = {f"p = {p:g}": lambda p=p: lev.lewis_weights(few, p) for p in POWERS}
    whole = interleaved({**tasks, "gram": lambda: gram(few)}, 1)
    return {"shape": keys.shape, **once, "rows": len(few), "whole": whole}


def by_scipy(keys, p, j):
    """Return 1 / min ||Kx||_p^p over <x,k_j> = 1, p > 1, by a general solver with gradients."""
    own = keys[j]
    start = own / (own @ own)
    scale = float(np.sum(np.abs(keys @ start) ** p))

    def value(x):
        response = keys @ x
        size = np.abs(response)
        return np.sum(size**p) / scale, p * (keys.T @ (np.sign(response) * size ** (p - 1))) / scale

    line = {"type": "eq", "fun": lambda x: own @ x - 1, "jac": lambda x: own}
    options = {"maxiter": 1000, "ftol": 1e-12}
    found = scipy.optimize.minimize(value, start, jac=True, method="SLSQP", constraints=[line], options=options)
    return 1 / (found.fun * scale)


def by_cvxpy(keys, p, j):
    import cvxpy

    x = cvxpy.Variable(keys.shape[1])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.pnorm(keys @ x, p)), [keys[j] @ x == 1])
    problem.solve()
    return float(problem.value) ** -p


def solvers():
    """Return the general solvers that are installed."""
    found = {"SciPy SLSQP": by_scipy}
    return found | ({"cvxpy": by_cvxpy} if importlib.util.find_spec("cvxpy") else {})


def refinement(p):
    """Return seconds a row of :func:`lev.sensitivities` and of general solvers, and what these find over lev's ends.

    A solver's query proves a lower end too, so its share of lev's upper end is at most 1; lev's Lewis weights, which
    all rows share, are in ``once``.
    """
    keys = make_keys(*SHORT, 30).astype(np.float64)
    rows = np.arange(ASKED)
    lower, upper = lev.sensitivities(keys, p, rows)
    tasks = {"once": lambda: lev.lewis_weights(keys, p), "lev": lambda: lev.sensitivities(keys, p, rows)}
    seconds = interleaved(tasks, 1 if QUICK else 3)
    seconds["lev"] = max(seconds["lev"] - seconds["once"], 0) / len(rows)
    shares = {"lev": float(np.min(lower / upper))}
    for name, solve in solvers().items():
        asked = rows if solve is by_scipy else rows[:1]
        start = time.perf_counter()
        found = np.array([solve(keys, p, j) for j in asked])
        seconds[name] = (time.perf_counter() - start) / len(asked)
        shares[name] = float(np.min(found / upper[asked]))
    return {"p": p, "shape": keys.shape, "seconds": seconds, "shares": shares}


class Lewis:
    """A round of the Lewis weights over the Gram product."""

    unit = "ratio"
    timeout = 600

    def track_round_over_gram(self):
        keys = make_keys(LONG[0] // 10, LONG[1], 30)
        ready, none = eliminate(keys, CLOSE), np.zeros(len(keys))
        seconds = interleaved({"round": lambda: log_leverages(ready, none), "gram": lambda: gram(keys)}, 1)
        return seconds["round"] / seconds["gram"]
