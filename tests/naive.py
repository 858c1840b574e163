"""The slow, obvious oracle, written from the definition.  Imports nothing from lev.

Rows are read as exact rationals, so what it returns is the truth and not another rounding of it.
"""

import functools
from fractions import Fraction

import numpy as np


def exact(keys):
    """Return the rows as lists of Fractions."""
    return [[Fraction(float(value)) for value in row] for row in np.asarray(keys)]


def gram(rows, d):
    return [[sum(row[i] * row[j] for row in rows) for j in range(d)] for i in range(d)]


def solve(matrix, rights):
    """Return for each right side, in the range of a symmetric semi-definite matrix, one x with matrix x = right."""
    d = len(matrix)
    rows = [[*line, *(right[i] for right in rights)] for i, line in enumerate(matrix)]
    pivots = []
    for column in range(d):
        where = next((i for i in range(len(pivots), d) if rows[i][column]), None)
        if where is None:
            continue
        top = len(pivots)
        rows[top], rows[where] = rows[where], rows[top]
        rows[top] = [value / rows[top][column] for value in rows[top]]
        for i in range(d):
            if i != top and rows[i][column]:
                rows[i] = [a - rows[i][column] * b for a, b in zip(rows[i], rows[top], strict=True)]
        pivots.append(column)
    found = [[Fraction(0)] * d for _ in rights]
    for i, column in enumerate(pivots):
        for x, value in zip(found, rows[i][d:], strict=True):
            x[column] = value
    return found


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def leverage(keys):
    """Return exact scores tau_j = max_q <q,k_j>^2 / ||Kq||^2 and the queries q = G^+ k_j that reach them."""
    rows = exact(keys)
    d = np.asarray(keys).shape[1]
    matrix = gram(rows, d)
    queries = solve(matrix, rows)
    return [dot(query, row) for query, row in zip(queries, rows, strict=True)], queries


@functools.lru_cache(maxsize=16)
def form(keys, d):
    """Return K^T K and ||K||_F^2 of a tuple of rows: many queries ask for them."""
    rows = exact(keys)
    return gram(rows, d), sum(dot(row, row) for row in rows)


def blur(keys, query, resolution):
    """Return resolution ||K||_F ||q|| / ||Kq||: how far below its root a float64 sketch may see a weight of q."""
    query = [value if isinstance(value, Fraction) else Fraction(float(value)) for value in query]
    matrix, energy = form(tuple(map(tuple, np.asarray(keys).tolist())), len(query))
    mass = dot(query, [dot(line, query) for line in matrix])
    return resolution * float(energy * dot(query, query) / mass) ** 0.5 if mass else 0.0


def rank(keys):
    """Return the exact rank."""
    rows = exact(keys)
    found = 0
    for column in range(np.asarray(keys).shape[1]):
        where = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if where is None:
            continue
        rows[found], rows[where] = rows[where], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            if factor:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


def weights(queries, keys, p):
    """Return the float64 attention weights |<q,k>|^p / sum_l |<q,k_l>|^p, (m, n); 0 where all are 0."""
    powers = np.abs(np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T) ** p
    total = powers.sum(axis=1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


def orthonormal_scores(keys):
    """Return float64 scores by thrice-repeated Gram-Schmidt in extended precision, for sizes beyond fractions."""
    columns = np.asarray(keys, np.longdouble).T.copy()
    columns /= np.abs(columns).max(axis=1, keepdims=True)
    for j, column in enumerate(columns):
        for _ in range(3):
            for basis in columns[:j]:
                column -= (basis @ column) * basis
        column /= np.sqrt(column @ column)
    return (columns**2).sum(axis=0).astype(np.float64)


def entries(query, keys, p, ages=None, decay=1.0):
    """Return the attention weights decay^age |<q,k>|^p / sum of one query, responses exact, powers float64."""
    responses = [abs(dot(row, exact([query])[0])) for row in exact(keys)]
    largest = max(responses, default=0)
    if not largest:
        return np.zeros(len(responses))
    ages = np.zeros(len(responses)) if ages is None else np.asarray(ages, float)
    with np.errstate(divide="ignore"):
        logs = p * np.log([float(response / largest) for response in responses]) + ages * np.log(decay)
    powers = np.exp(logs - logs.max())
    return powers / powers.sum()


def ascent(keys, j, p, ages=None, decay=1.0, rounds=6):
    """Yield queries that give row j more and more weight, by reweighted least squares from the plain one."""
    scale = decay ** (np.zeros(len(keys)) if ages is None else np.asarray(ages, float) / p)
    rows = np.asarray(keys, np.float64) * scale[:, None]
    rows = rows / (np.abs(rows).max(axis=0, initial=0) + (np.abs(rows).max(axis=0, initial=0) == 0))
    weights = np.ones(len(rows))
    for _ in range(rounds):
        query = np.linalg.lstsq(np.sqrt(weights)[:, None] * rows, np.eye(len(rows))[j] * np.sqrt(weights), rcond=None)[
            0
        ]
        yield query / (
            np.abs(keys * scale[:, None]).max(axis=0, initial=0) + (np.abs(rows).max(axis=0, initial=0) == 0)
        )
        size = np.abs(rows @ query)
        size = np.maximum(size / (size.max() or 1.0), 1e-6)
        weights = size ** (p - 2)


def shares(f, keys, queries):
    """Return the float64 weights f(<q,k>) / sum_l f(<q,k_l>), (m, n); 0 where all are 0."""
    values = f(np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T)
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def softmax(queries, keys):
    """Return the softmax weights, (m, n)."""
    logits = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def l1l2(x):
    return 2 * np.expm1(np.log1p(x**2 / 2) / 2)  # 2 (sqrt(1 + x^2 / 2) - 1) without cancellation


def tukey(x):
    inside = np.minimum(np.abs(x), 1 - 2**-50)
    return -np.expm1(3 * np.log1p(-(inside**2))) / 6  # (1 - (1 - x^2)^3) / 6 without cancellation


def search(weigh, keys, rng, rounds=40, most=np.inf):
    """Return the most weight that each key was given, (n,), by queries at many scales and a climb from the best.

    ``weigh(queries)`` returns the weights (m, n); queries are cut to norm ``most``.  A heuristic from below: what it
    returns a query has reached.
    """
    keys = np.asarray(keys, np.float64)
    d = keys.shape[1]

    def cut(queries):
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        return queries * np.minimum(1, most / np.where(norms > 0, norms, 1))

    starts = [*rng.standard_normal((30, d)), *np.eye(d), *keys, *np.linalg.pinv(keys).T]
    scales = 10.0 ** np.arange(-4, 5)
    queries = cut(np.concatenate([scale * np.array(starts) for scale in scales]))
    found = weigh(queries)
    best, where = found.max(axis=0), queries[found.argmax(axis=0)]
    for turn in range(rounds):
        step = 0.5 ** (turn / 4)
        for j in range(len(keys)):
            size = np.linalg.norm(where[j])
            tried = where[j] + step * size * rng.standard_normal((12, d))
            tried = cut(np.concatenate([tried, where[j] * np.array([[1.3], [0.7], [1.05], [0.95]])]))
            values = weigh(tried)[:, j]
            if values.max() > best[j]:
                best[j], where[j] = values.max(), tried[values.argmax()]
    return best
