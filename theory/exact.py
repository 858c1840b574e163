"""Leverage scores over the rationals: the oracle of every check in this folder.

A float is a rational number, so these answers are exact for float input too, however badly conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

Matrix = list[list[Fraction]]


def rational(rows: Iterable[Iterable[float]]) -> Matrix:
    """Return the rows as lists of fractions, without rounding."""
    return [[value if isinstance(value, Fraction) else Fraction(float(value)) for value in row] for row in rows]


def dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    """Return the inner product."""
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def reduced(rows: Matrix) -> tuple[Matrix, list[int]]:
    """Return the reduced row echelon form without its zero rows, and its pivot columns."""
    rows, pivots = [list(row) for row in rows], []
    for column in range(len(rows[0]) if rows else 0):
        at = len(pivots)
        found = next((i for i in range(at, len(rows)) if rows[i][column] != 0), None)
        if found is None:
            continue
        rows[at], rows[found] = rows[found], rows[at]
        rows[at] = [value / rows[at][column] for value in rows[at]]
        for i in range(len(rows)):
            if i != at and rows[i][column] != 0:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[at], strict=True)]
        pivots.append(column)
    return rows[: len(pivots)], pivots


def rank(keys: Iterable[Iterable[float]]) -> int:
    """Return the rank."""
    return len(reduced(rational(keys))[1])


def best_query(keys: Iterable[Iterable[float]], row: Iterable[float]) -> list[Fraction] | None:
    """Return a q with K^T K q = row, the query that row gains most from; None for a row outside the span."""
    keys, target = rational(keys), rational([row])[0]
    columns = list(zip(*keys, strict=True)) if keys else [()] * len(target)
    system = [[dot(a, b) for b in columns] + [value] for a, value in zip(columns, target, strict=True)]
    solved, pivots = reduced(system)
    if pivots and pivots[-1] == len(target):
        return None
    query = [Fraction(0)] * len(target)
    for row_of, pivot in zip(solved, pivots, strict=True):
        query[pivot] = row_of[-1]
    return query


def against(keys: Iterable[Iterable[float]], row: Iterable[float]) -> Fraction | float:
    """Return sup <q,row>^2 / ||Kq||^2: row^T G^+ row inside the span of K, infinity outside."""
    query = best_query(keys, row)
    return math.inf if query is None else dot(query, rational([row])[0])


def scores(keys: Iterable[Iterable[float]]) -> list[Fraction]:
    """Return the leverage score of every row."""
    keys = rational(keys)
    return [against(keys, row) for row in keys]


def weights(keys: Iterable[Iterable[float]], query: Iterable[float]) -> list[Fraction]:
    """Return <q,k>^2 / ||Kq||^2 for every row; zeros for a query that is orthogonal to all."""
    keys, query = rational(keys), rational([query])[0]
    squares = [dot(row, query) ** 2 for row in keys]
    total = sum(squares)
    return [square / total if total else Fraction(0) for square in squares]
