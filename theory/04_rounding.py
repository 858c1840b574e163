"""Check note 04: Gram margin, filters, frames, resolution, and where a Gram matrix alone fails."""

from __future__ import annotations

import math
from fractions import Fraction

import exact
import numpy as np
import scipy.linalg

import lev
from lev import bounds
from lev.factor import Factor, scores_of
from lev.form import Form


def gram_matrix(rng: np.random.Generator) -> None:
    """(a): the entrywise bound against rationals, rows of very different sizes."""
    rows = rng.standard_normal((60, 3)) * np.exp(rng.uniform(-9, 9, (60, 1)))
    pieces = [rows[start : start + 20] for start in range(0, 60, 20)]
    computed = sum(piece.T @ piece for piece in pieces)
    columns = list(zip(*exact.rational(rows), strict=True))
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            absolute = exact.dot([abs(value) for value in a], [abs(value) for value in b])
            error = abs(Fraction(float(computed[i, j])) - exact.dot(a, b))
            assert error <= Fraction(bounds.gram_error(20, 3)) * absolute


def screened(factor: Factor, width: int, rows: np.ndarray) -> np.ndarray:
    """Return what the filter of that width says of rows, as the form would ask it; the full width is of all rows."""
    if width == factor.rank:
        return scores_of(factor.odds(rows))
    screen = factor.filter(width, rows.dtype)
    return scores_of(screen(rows, None))


def filters(rng: np.random.Generator) -> None:
    """(b): every width and dtype bounds the exact score; a row in the last direction read meets the bound."""
    seen = (rng.standard_normal((40, 4)) * [8, 4, 2, 1]).astype(np.float32)
    rows = (rng.standard_normal((10, 4)) * np.exp(rng.uniform(-9, 9, (10, 1)))).astype(np.float32)
    factor = Form.empty(4).add(seen, None, 1.0)[0].factor()
    odds = [exact.against(seen, row) for row in rows]
    for width in range(1, 5):
        for dtype in (np.float32, np.float64):
            upper = screened(factor, width, rows.astype(dtype))
            for odd, bound in zip(odds, upper, strict=True):
                assert odd / (1 + odd) <= Fraction(float(bound))


def single_odds(rng: np.random.Generator, size: int) -> float:
    """(b): rows of every size that float32 has, multiplied in float32, stay below; return the largest excess.

    The excess is that of rows of the size of those in the form, 2^size.
    """
    seen = (rng.standard_normal((40, 5)) * [8, 4, 2, 1, 0.1] * 2.0**size).astype(np.float32)
    powers = np.append(np.full(5, size), rng.integers(-149, 60, 15))
    rows = (rng.standard_normal((20, 5)) * 2.0 ** powers[:, None]).astype(np.float32)
    factor = Form.empty(5).add(seen, None, 1.0)[0].simplified().factor()
    assert factor.single(rows.dtype)
    odds, upper = [exact.against(seen, row) for row in rows], factor.odds(rows)
    for odd, bound in zip(odds, upper, strict=True):
        assert odd <= Fraction(float(bound))
    return max(float(Fraction(float(bound)) / odd - 1) for odd, bound in zip(odds[:5], upper[:5], strict=True))


def filter_equality() -> float:
    """Return the largest relative excess of filters at rows where the bound of (b) is met."""
    seen, worst = np.diag([1.0, 2.0, 4.0, 8.0]), 0.0
    factor = Form.empty(4).add(seen, None, 1.0)[0].factor()
    for width in range(1, 4):
        row = np.zeros((1, 4))
        row[0, : width + 1] = 1.0, *([0.5] * width)
        odds = exact.against(seen, row[0])
        bound = screened(factor, width, row)[0]
        worst = max(worst, float(Fraction(float(bound)) / (odds / (1 + odds)) - 1))
    return worst


def groups(rng: np.random.Generator, kind: type) -> float:
    """(b): the bound of each group is at least the sum of the exact odds of its rows; return the largest excess.

    Rows that came as float32 are in the identity frame, those of float64 in another.
    """
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    seen = (rng.standard_normal((400, 3)) * [1, 30, 300] @ turn).astype(kind)
    rows = rng.standard_normal((150, 3)) * np.exp(rng.uniform(-9, 9, (150, 1))) @ turn
    factor = Form.empty(3).add(seen, None, 1.0)[0].simplified().factor()
    bound = factor.groups(1.0)
    odds, upper, worst = [exact.against(seen, row) for row in rows], factor.frame.grams(rows, None, bound)[2], 0.0
    for group, end in enumerate(upper):
        total = sum(odds[group * bound.size : (group + 1) * bound.size])
        assert total <= Fraction(float(end))
        worst = max(worst, float(Fraction(float(end)) / total - 1))
    return worst


def graded(rng: np.random.Generator, rows: int, dim: int, decades: float) -> np.ndarray:
    """Return rows whose sizes spread over ``decades`` powers of ten, in random order."""
    return rng.standard_normal((rows, dim)) * 10.0 ** -rng.permutation(np.linspace(0, decades, rows))[:, None]


def bracketed(keys: np.ndarray) -> None:
    """(c), (d): the exact score lies in the bracket, or, where it was clipped, the bracket says 1."""
    factor = Form.empty(keys.shape[1]).add(keys, None, 1.0)[0].factor()
    lower, upper = factor.bracket(keys)
    for score, low, high in zip(exact.scores(keys), lower, upper, strict=True):
        assert Fraction(float(low)) <= score <= Fraction(float(high))


def unsorted_rows() -> tuple[float, float]:
    """Return |R22| of a QR with small rows on top, and of one with rows sorted; the truth is 2 sqrt(2) 1e-12."""
    tiny = 1e-12 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    stack = np.vstack([tiny, [[1e6 / 3, 1e6 / 3]]])
    upside_down = scipy.linalg.qr(stack, mode="r")[0][1, 1]
    return abs(upside_down), abs(scipy.linalg.qr(stack[::-1], mode="r")[0][1, 1])


def nearly_dependent(size: float, draws: int = 10) -> float:
    """Return the largest relative shortfall of an upper bound where elimination shrinks a large row to ``size``."""
    rng, worst = np.random.default_rng(0), Fraction(-1)
    for _ in range(draws):
        large = rng.uniform(0.5, 1, 2)
        tiny = size * np.array([-large[1], large[0]])
        keys = np.array([large, large * rng.uniform(0.5, 1) + tiny, 0.9 * tiny, 0.8 * tiny])
        _, upper = Form.empty(2).add(keys, None, 1.0)[0].factor().bracket(keys)
        for score, bound in zip(exact.scores(keys), upper, strict=True):
            worst = max(worst, score / Fraction(float(bound)) - 1)
    return float(worst)


def blur(keys: np.ndarray, query: list[Fraction]) -> float:
    """Return what (e) allows: rho ||K|| ||q|| / ||K q||."""
    values = [exact.dot(row, query) for row in exact.rational(keys)]
    squares = exact.dot(query, query) / exact.dot(values, values)
    return bounds.resolution(keys.shape[1]) * float(np.linalg.norm(keys, 2)) * math.sqrt(squares)


def near_null(shift: int) -> tuple[np.ndarray, list[list[Fraction]]]:
    """Return rows that leave a line by ``shift`` last places, and queries that nearly vanish on the line."""
    off = shift * 2.0**-52
    keys = np.array([[1.0, 1.0]] * 4 + [[1 + off, 1 - off]])
    return keys, [[Fraction(step, 2**54) + 1, Fraction(step, 2**54) - 1] for step in range(1, 400, 6)]


def resolution(shift: int = 6) -> float:
    """(e): return the largest share of the blur that sqrt(weight) - sqrt(bound) uses; at most 1."""
    keys, queries = near_null(shift)
    form = Form.empty(2).add(keys, None, 1.0)[0]
    upper = form.factor().bracket(keys)[1]
    return max(
        (math.sqrt(weight) - math.sqrt(bound)) / blur(keys, query)
        for query in queries
        for weight, bound in zip(exact.weights(keys, query), upper, strict=True)
    )


def dropped_parts(rng: np.random.Generator, dim: int = 4, rank: int = 2) -> float:
    """Return by how much the squares lost in six cut factorisations miss those that the form lacks: Status of (e)."""
    root, rows, query, lost = np.zeros((0, dim)), np.zeros((0, dim)), rng.standard_normal(dim), 0.0
    for _ in range(6):
        new = rng.standard_normal((3, rank)) @ rng.standard_normal((rank, dim)) + 1e-3 * rng.standard_normal((3, dim))
        triangle, pivots = scipy.linalg.qr(np.vstack([root, new]), mode="r", pivoting=True)
        lost += float(np.square(triangle[rank:] @ query[pivots]).sum())
        root, rows = np.zeros((rank, dim)), np.vstack([rows, new])
        root[:, pivots] = triangle[:rank]
    whole = float(np.square(rows @ query).sum())
    return abs(whole - float(np.square(root @ query).sum()) - lost) / whole


def tiny_row(size: float, draws: int = 20) -> tuple[float, float]:
    """Return the mean score of a row of ``size`` alone in its direction: by a float64 Gram matrix, by the library."""
    rng, gram_scores, lev_scores = np.random.default_rng(4), [], []
    for _ in range(draws):
        plane = rng.standard_normal((8192, 3))
        # small whole numbers, so that the large rows lie in x4 = x1 + x2 + x3 exactly and the tiny one alone is off
        rest = np.round(plane * 64) / 64
        rest = np.hstack([rest, rest.sum(axis=1, keepdims=True)])
        keys = np.vstack([rest, size * np.array([0.5, 0.5, 0.5, -0.5])])
        values, vectors = np.linalg.eigh(blurred_gram(keys))
        parts = (vectors.T @ keys[-1]) ** 2
        gram_scores.append(min(1.0, float(np.sum(parts / np.abs(values)))))
        lev_scores.append(float(lev.leverage_scores(keys)[-1]))
    return float(np.mean(gram_scores)), float(np.mean(lev_scores))


def blurred_gram(keys: np.ndarray) -> np.ndarray:
    """Return the float64 Gram matrix in a rotated basis, where nothing is exact by luck."""
    turn = scipy.linalg.qr(np.vander([1.0, 1.3, 1.7, 2.1]))[0]
    return turn @ ((keys @ turn).T @ (keys @ turn)) @ turn.T


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(5)
    gram_matrix(rng)
    filters(rng)
    excess = max(single_odds(rng, 0), filter_equality(), groups(rng, np.float32), groups(rng, np.float64))
    assert excess <= 2.0**-8
    print(f"Gram margin and filters hold; filters and groups are met with equality to {excess:.1e}")
    for dim, decades in ((2, 3), (3, 6), (3, 12)):
        bracketed(graded(rng, 12, dim, decades))
    top, bottom = unsorted_rows()
    true = 2 * math.sqrt(2) * 1e-12
    assert abs(bottom / true - 1) < 1e-6 < abs(top / true - 1)
    print(f"graded rows are bracketed; unsorted QR: |R22| = {top:.1e}, sorted {bottom:.3e}, true {true:.3e}")
    for size in (1e-6, 1e-8, 1e-10):
        assert nearly_dependent(size) <= 0
    print("large rows that agree but for 1e-6, 1e-8, 1e-10: no upper bound is short")
    worst = resolution()
    assert worst <= 1
    print(f"at the resolution sqrt(weight) - sqrt(bound) uses {worst:.2f} of what rho allows")
    assert max(dropped_parts(rng) for _ in range(20)) < 1e-14
    print("what a sequence of cut factorisations drops adds up as squares")
    for size in (1e-5, 1e-6, 1e-7):
        by_gram, by_lev = tiny_row(size)
        assert by_lev > 0.999
        print(f"row of size {size:.0e} alone in its direction: float64 Gram {by_gram:.3f}, lev {by_lev:.3f}")
    assert by_gram < 0.1


if __name__ == "__main__":
    main()
