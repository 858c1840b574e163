"""The quadratic form q -> ||Kq||^2 of every row seen: add rows, bound rows, merge.

The form is a float64 Gram matrix of the rows in the coordinates of a frame.  While the keys are well conditioned
the frame is the identity (columns scaled by powers of two) and adding rows costs one ``Y.T @ Y``.  When the
rounding margin of that Gram matrix would pass its limit, or a row leaves the span, the rows go through a
Householder QR instead, whose R factor makes the next frame: its inverse whitens, so the Gram matrix starts again
as the identity and has lost nothing.  Theory: 04, rounding margin and resolution.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts load when they are first used

from lev import backend, bounds, rounding
from lev.factor import Bound, Factor, Screen
from lev.frame import FADED, LARGEST, Frame, Groups, Stacked, whitening_frame

_STEP = 256  # rows of the first of the QRs by which a block finds its frame; each further one is twice as long


class NonFiniteRow(ValueError):
    """Row number ``row`` of a block holds NaN or infinity."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity")
        self.row = row


@dataclass(frozen=True, eq=False)
class Form:
    """An immutable quadratic form over ``rows`` rows."""

    frame: Frame
    gram: np.ndarray  # (r, r), in the frame's coordinates
    tail: np.ndarray  # (D,) root energy in each column of the rows whose rounding blurs the form
    rows: int = 0
    sums: int = 0  # Gram products added since the frame was made
    excuse: float = 0.0  # what rows that were not charged for their rounding cost the others, relative to a row
    turns: int = 0  # QR factorisations that the rows went through, each with rounding of its own
    inherited: float = 0.0  # relative margin that earlier frames left behind
    limit: float = bounds.margin(np.dtype(np.float32))  # what the widest input so far asks of the margin

    @classmethod
    def empty(cls, dim: int, inherited: float = 0.0) -> Form:
        """Return the form of no rows."""
        return cls(Frame.empty(dim), np.zeros((0, 0)), np.zeros(dim), inherited=inherited)

    @property
    def rank(self) -> int:
        return self.frame.rank

    @property
    def nbytes(self) -> int:
        triangle = self.frame.triangle
        return self.gram.nbytes + (0 if triangle is None else triangle.matrix.nbytes)

    # -- add -----------------------------------------------------------------------------------------------

    def add(
        self,
        block: np.ndarray,
        judge: Factor | None,
        epsilon: float | None = None,
        factors: np.ndarray | None = None,
        step: int = _STEP,
    ) -> tuple[Form, np.ndarray | None]:
        """Return the form with ``block``, each row times its factor, added and upper bounds on their scores.

        ``judge`` is a factor of an earlier state of this form: a smaller form, so its bounds stay above.  The
        bounds are None without an epsilon, and when the frame changed; the rows are then to be scored by the new
        form.  Where the frame does not serve, ``step`` rows go through a QR, and the others meet the frame they give.
        Raises NonFiniteRow.  Cost: O(d^2) a row.
        """
        form = replace(self, limit=min(self.limit, bounds.margin(block.dtype)))
        if self.rank == 0:
            grown, _ = form._in_columns_of(block, factors)._summed(block, factors)
            if np.isfinite(grown.gram).all() and grown.margin() <= grown.limit / 4:  # with room to grow
                return grown, None
        if judge is None or self.rank == 0:
            return form._stepwise(block, np.arange(len(block)), factors, step), None
        grown, parts = form._summed(block, factors, None if epsilon is None else judge.screen(epsilon))
        leaves = np.concatenate([part.leaves for part in parts])
        if not np.isfinite(grown.tail).all() or leaves.any() or not grown._sound(judge):
            return form._stepwise(block, _worst_first(block, judge, factors, leaves), factors, step), None
        return grown, None if epsilon is None else np.concatenate([part.upper for part in parts])

    def _in_columns_of(self, block: np.ndarray, factors: np.ndarray | None) -> Form:
        """Return a form of no rows in an identity frame, columns scaled by the first rows of a block."""
        first, columns = block[:_STEP], np.ones(self.frame.dim)
        with np.errstate(invalid="ignore"):  # what is not finite shows in the sum
            columns[: block.shape[1]] = np.abs(first).max(axis=0, initial=0)
        power = 0 if factors is None else np.frexp(factors[:_STEP].max(initial=0))[1]
        exponents = np.where(columns > 0, np.frexp(columns)[1] + power, 0).astype(np.int64)
        return replace(self, frame=Frame(exponents), gram=np.zeros((self.frame.dim, self.frame.dim)))

    def _summed(
        self, block: np.ndarray, factors: np.ndarray | None, screen: Screen | None = None
    ) -> tuple[Form, list[_Part]]:
        """Return the form with a block added in its frame, sound or not, and what the parts of the block say."""
        parts = backend.run(lambda piece: self._measure(*piece, screen), backend.pieces(block, factors))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite sends the block through the QR
            gram, energy = (sum(getattr(part, name) for part in parts) for name in ("gram", "energy"))
            gram, tail = self.gram + gram, np.hypot(self.tail, (1 + self.excuse) * np.sqrt(energy))
            rows, sums = self.rows + len(block), self.sums + len(parts)
            grown = replace(self, gram=gram, rows=rows, sums=sums, tail=tail)
            return min(grown, grown.charged(), key=lambda form: np.linalg.norm(form.tail)), parts

    def grown(
        self, block: np.ndarray, judge: Factor | None, factors: np.ndarray | None = None
    ) -> tuple[Form, Factor | None]:
        """Return the form with ``block`` added, its rows not bounded, and a judge for the next block."""
        form, _ = self.add(block, judge, None, factors)
        return form, judge if form.frame is self.frame else form.factor()

    def _measure(self, piece: np.ndarray, factors: np.ndarray | None, screen: Screen | None) -> _Part:
        groups = Groups.none(self.rank) if screen is None else screen.groups
        # what overflows is infinite or NaN in the sums and sends the block through the QR, which scales
        with np.errstate(over="ignore", invalid="ignore"):
            gram, energy, odds = self.frame.grams(piece, factors, groups)
            leaves = self._leaves(piece, factors)
            if screen is not None:
                odds = self.floored(screen(piece, factors, odds), piece)
            return _Part(gram, energy, leaves, odds)

    def _leaves(self, rows: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
        """Say which rows, each times its factor, leave the span."""
        if self.rank == self.frame.dim:
            return np.zeros(len(rows), bool)
        return self._outside(rows, factors, self.frame.leaves)

    def _outside(self, rows: np.ndarray, factors: np.ndarray | None, rule: Callable[..., np.ndarray]) -> np.ndarray:
        """Return what ``rule`` of the frame says of the rows, each times its factor, and what was charged."""
        charges = [(form.tail, form.excuse) for form in {self, self.charged()}]
        pieces = backend.pieces(rows, factors, backend.PIECE)  # which stay in cache
        return np.concatenate([rule(self.frame.widen(*piece)[0], charges) for piece in pieces])

    def weigh(
        self,
        block: np.ndarray,
        judge: Factor | None,
        factors: np.ndarray | None,
        rule: Callable[[np.ndarray], np.ndarray],
        *,
        hidden: bool = False,
    ) -> np.ndarray:
        """Return what ``rule`` makes of the odds, (m,), as :meth:`odds` bounds them by :meth:`Factor.odds`.

        With ``hidden`` they also bound those once directions that are taken for rounding are told apart.
        Cost: d^2 / 2 multiply-adds a row.
        """
        bound = None if judge is None else judge.piece_odds
        pieces = backend.pieces(block, factors)
        return np.concatenate(backend.run(lambda piece: rule(self.odds(*piece, bound, hidden=hidden)), pieces))

    def odds(
        self, rows: np.ndarray, factors: np.ndarray | None, bound: Bound | None, *, hidden: bool = False
    ) -> np.ndarray:
        """Return bounds, (m,), on k^T M^+ k of each row times its factor: those of ``bound``, here and now.

        They are infinite where a row leaves the span, or nothing is known, and 0 for zeros alone; ``hidden`` as for
        :meth:`weigh`.
        """
        if bound is None or self.rank == 0:
            return np.where(self._some(rows), np.inf, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            odds = bound(rows, factors)
            if hidden and self.rank < self.frame.dim:
                odds = odds + self._outside(rows, factors, self.frame.hidden)
            else:
                odds[self._leaves(rows, factors)] = np.inf
        return self.floored(odds, rows)

    def floored(self, odds: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return odds or scores of rows, (m,), raised where they may have underflowed: they are 0 for zeros alone."""
        tiny = np.flatnonzero(odds < bounds.SMALLEST_ODDS)
        if len(tiny):
            odds[tiny] = np.where(self._some(rows[tiny]), bounds.SMALLEST_ODDS, 0.0)
        return odds

    def _some(self, rows: np.ndarray) -> np.ndarray:
        """Say which rows are more than zeros; with the constant of an intercept all are."""
        return rows.any(axis=1) | (rows.shape[1] < self.frame.dim)

    def _sound(self, judge: Factor) -> bool:
        """Say whether the margin is within its limit; the eigenvalues only grow, so old ones are tried first.

        With faded columns, which the QR releases, it is not.
        """
        if self.frame.exponents.min() < FADED:
            return False
        if judge.frame is self.frame and self.margin(judge.values[0]) <= self.limit:
            return True
        return bool(np.isfinite(self.gram).all()) and self.margin() <= self.limit

    # -- bound ---------------------------------------------------------------------------------------------

    def factor(self) -> Factor:
        """Return the form's inverse square root.  Cost: O(d^3)."""
        values, vectors = np.linalg.eigh(self.gram)
        whiten = vectors / np.sqrt(values)
        least = float(values[0]) if self.rank else 1.0
        return self._factored(values, whiten, least, self.margin(least))

    def triangular(self) -> Factor:
        """Return a factor by Cholesky, or :meth:`factor` where that would be less accurate than the form may be.

        W is a lower triangle, L^-1 where the form is L^T L, and ``values`` are one number that no eigenvalue is below.
        Cost: O(d^3), a tenth of that of :meth:`factor`.
        Theory: 04, rounding margin (g).
        """
        with contextlib.suppress(np.linalg.LinAlgError):
            turned = scipy.linalg.cholesky(self.gram[::-1, ::-1], lower=True, check_finite=False)
            whiten = scipy.linalg.solve_triangular(
                turned[::-1, ::-1].T, np.eye(self.rank), lower=True, check_finite=False
            )
            size, inverse = float(np.trace(self.gram)), float(np.vdot(whiten, whiten))
            if self.rank and (margin := rounding.root_margin(self.frame.dim, self.sums, size, inverse)) <= self.limit:
                return self._factored(np.full(self.rank, 1 / inverse), whiten, 1 / inverse, margin)
        return self.factor()

    def _factored(self, values: np.ndarray, whiten: np.ndarray, least: float, margin: float) -> Factor:
        reach = slack = 0.0
        if self.rank:
            tail = float(np.linalg.norm(self.tail))
            reach, slack = rounding.of_factor(self.frame, tail, self.turns, self.excuse, whiten, least, margin)
        return Factor(self.frame, self.rows, float(np.trace(self.gram)), values, whiten, self.inherited + slack, reach)

    def margin(self, smallest: float | None = None) -> float:
        """Return the relative margin of the Gram matrix, given (a lower bound on) its least eigenvalue."""
        return rounding.gram_margin(self.frame.dim, self.sums, self.gram, smallest)

    def _bequest(self) -> float:
        """Return the relative margin that a new frame inherits."""
        fresh = self.frame.triangle is not None and self.sums == 0
        return self.inherited if fresh else self.inherited + self.margin()

    # -- change the frame, merge ---------------------------------------------------------------------------

    def root(self) -> np.ndarray:
        """Return F, (r, D), with ||F (q * 2^exponents)|| = ||K q||."""
        triangle = self.frame.triangle
        if triangle is not None and self.sums == 0:
            return triangle.root
        upper = scipy.linalg.cholesky(self.gram, check_finite=False)
        return upper if triangle is None else upper @ triangle.root

    def merge(self, other: Form) -> Form:
        """Return the form of both sets of rows.  Cost: O(d^3)."""
        rows, limit = self.rows + other.rows, min(self.limit, other.limit)
        if not (self.rank and other.rank):
            return replace(self if self.rank else other, rows=rows, limit=limit)
        turns, excuse = max(self.turns, other.turns), max(self.excuse, other.excuse)
        both = replace(self, rows=rows, limit=limit, turns=turns, excuse=excuse)
        if self.frame.triangle is None and other.frame.triangle is None:
            exponents = np.maximum(self.frame.exponents, other.frame.exponents)
            mine, theirs = self._in_units(exponents), other._in_units(exponents)
            gram, tail = mine.gram + theirs.gram, np.hypot(mine.tail, theirs.tail)
            inherited, sums = max(self.inherited, other.inherited), self.sums + other.sums + 1
            summed = replace(both, frame=mine.frame, gram=gram, tail=tail, sums=sums, inherited=inherited)
            if summed.margin() <= limit:
                return summed
        both = replace(both, inherited=max(self._bequest(), other._bequest()))
        return both._reframed([self._stacked(), other._stacked()])

    def _in_units(self, exponents: np.ndarray) -> Form:
        """Return the form, in an identity frame, with columns in larger powers of two.  Exact, or far below the sum."""
        shift = self.frame.exponents - exponents
        if not shift.any():
            return self
        gram, tail = np.ldexp(self.gram, shift[:, None] + shift), np.ldexp(self.tail, shift)
        return replace(self, frame=Frame(exponents), gram=gram, tail=tail)

    def _stepwise(self, block: np.ndarray, order: np.ndarray, factors: np.ndarray | None, step: int) -> Form:
        """Return the form with ``block`` added: the ``step`` rows that are first in ``order`` make a new frame."""
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise NonFiniteRow(int(finite.argmin()))
        first, rest = np.sort(order[:step]), np.sort(order[step:])
        form = self._through_qr(block[first], None if factors is None else factors[first])
        if not len(rest):
            return form
        return form.add(block[rest], form.factor(), None, None if factors is None else factors[rest], 2 * step)[0]

    def _through_qr(self, block: np.ndarray, factors: np.ndarray | None) -> Form:
        """Return the form with ``block`` added by a QR factorisation of it and the present root."""
        rows = np.ones((len(block), self.frame.dim))
        rows[:, : block.shape[1]] = block
        grown = replace(self, rows=self.rows + len(block), inherited=self._bequest())
        return grown._reframed([self._stacked(), Stacked.of(rows, factors)])

    def _stacked(self) -> Stacked:
        return Stacked(self.root(), self.frame.exponents, self.tail)

    def _reframed(self, parts: Sequence[Stacked]) -> Form:
        """Return this form as the whitened form of the stacked parts."""
        found = whitening_frame(parts, self.excuse)
        if found is None:
            return self
        frame, tail, excuse = found
        whitened = replace(self, frame=frame, gram=np.eye(frame.rank), sums=0, tail=tail, excuse=excuse)
        return replace(whitened, turns=self.turns + 1).simplified()

    def shifted(self, power: int, judge: Factor | None = None) -> tuple[Form, Factor | None]:
        """Return the form of all rows times 2^-power, and what ``judge`` is for it.  Exact.

        Part of the power goes into the Gram matrix, so that it does not grow with time.
        """
        grown = int(np.frexp(np.trace(self.gram))[1]) // 2 if self.sums else 0
        grown = min(grown, max(LARGEST - int(self.frame.exponents.max()) + power, 0))
        frame = self.frame.shifted(power - grown)
        gram, tail = np.ldexp(self.gram, -2 * grown), np.ldexp(self.tail, -grown)
        return replace(self, frame=frame, gram=gram, tail=tail), None if judge is None else judge.shifted(frame, grown)

    def charged(self) -> Form:
        """Return the form with every row charged for its rounding, and so none excused."""
        if not self.excuse:
            return self
        root = np.eye(self.rank) if self.frame.triangle is None else self.frame.triangle.root
        with np.errstate(invalid="ignore"):  # of a form that is not sound
            tail = np.sqrt(np.einsum("ij,ij->j", root, self.gram @ root))
        return replace(self, tail=tail, excuse=0.0)

    def scaled(self, factor: float) -> Form:
        """Return the form times a positive factor."""
        if factor == 1 or not self.rank:
            return self
        return replace(self, gram=self.gram * factor, tail=self.tail * math.sqrt(factor), sums=self.sums + 1)

    def simplified(self) -> Form:
        """Return the form in the identity frame if its Gram matrix is accurate enough there, with room to grow."""
        if self.rank < self.frame.dim or self.frame.triangle is None:
            return self
        root, frame = self.root(), Frame(self.frame.exponents)
        plain = replace(self, frame=frame, gram=root.T @ root, sums=0, inherited=self._bequest()).charged()
        return plain if plain.margin() <= self.limit / 4 else self

    def check(self, dim: int) -> None:
        """Raise ValueError unless shapes, dtypes and values are those of a form of ``dim`` columns."""
        exponents, triangle, rank = self.frame.exponents, self.frame.triangle, len(self.gram)
        arrays = [("exponents", exponents, (dim,), np.int64), ("gram", self.gram, (rank, rank), np.float64)]
        arrays += [("tail", self.tail, (dim,), np.float64)]
        if triangle is not None:
            arrays += [("triangle", triangle.matrix, (rank, dim), np.float64)]
            arrays += [("pivots", triangle.pivots, (dim,), np.int64)]
        for name, array, shape, dtype in arrays:
            if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite {np.dtype(dtype)} of shape {shape}")
        if rank > dim or (triangle is None and rank != dim) or exponents.max() > 2 * LARGEST:
            raise ValueError("the form's rank or exponents are out of range")
        if triangle is not None and not np.array_equal(np.sort(triangle.pivots), np.arange(dim)):
            raise ValueError("pivots must be a permutation")
        scalars = (self.rows, self.sums, self.excuse, self.turns, self.inherited, self.limit)
        if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in scalars):
            raise ValueError("the form's scalars must be finite and not negative")
        if rank and not np.linalg.eigvalsh(self.gram)[0] > 0:
            raise ValueError("gram must be positive definite")


@dataclass(frozen=True, eq=False)
class _Part:
    """What one piece of a block adds to a form."""

    gram: np.ndarray
    energy: np.ndarray  # of each column
    leaves: np.ndarray  # (m,) bool: which rows are outside the span
    upper: np.ndarray  # (m,) bounds on their scores, where there is a screen


def _worst_first(block: np.ndarray, judge: Factor, factors: np.ndarray | None, leaves: np.ndarray) -> np.ndarray:
    """Return the order of the rows by how little the judge's form knows of them."""
    odds = judge.ends(block, factors)[1]
    return np.argsort(-np.where(leaves | ~np.isfinite(odds), np.inf, odds), kind="stable")
