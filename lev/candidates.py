"""A form and the rows that may still reach epsilon: add a block, prune, merge.

A bound on a key's sensitivity, once proved, stays true as rows arrive.  So a row that falls below epsilon is dropped
for good, and what is kept holds the universal set at every time.  Theory: 02, monotonicity; 03, one pass and merging;
12, online Lewis weights and decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lev import backend, bounds
from lev.factor import Factor, scores_of
from lev.form import Form, NonFiniteRow
from lev.frame import aged, near
from lev.rows import Rows, concatenate
from lev.weighting import Weighting

_ROUNDS = 12  # of weighing a block against itself
_STANDING = 0.75  # the share of all rows that may be kept when they are scored anew for want of a fresh judge
_SETTLED = 0.95  # no round that changes less is followed by another
_FEW = 1.1  # times the rank: a block is rarely worth fewer weights


@dataclass(frozen=True, eq=False)
class Candidates:
    """The immutable state of one stream; scales of rows are in units of 2^epoch."""

    epsilon: float
    weighting: Weighting
    form: Form
    kept: tuple[Rows, ...] = ()  # rows that may still reach epsilon
    dropped: float = 0.0  # the largest bound of a row that was dropped
    mass: float = 0.0  # the sum of the weights, for p != 2; for p = 2, of the odds of rows that are not in the form
    fresh: float = 0.0  # that part of it which came after the judge
    epoch: int = 0
    left: int = 0  # rows that are not in the form
    judge: Factor | None = None  # a factor of the form, perhaps of an earlier state of it
    current: bool = False  # whether the kept rows are scored by the present form, and so pruned

    @property
    def retained(self) -> int:
        return sum(map(len, self.kept))

    @property
    def seen(self) -> int:
        """The number of rows that came."""
        return self.form.rows + self.left

    @property
    def factor(self) -> Factor:
        """A factor of the present form."""
        return self.judge if self.current and self.judge is not None else self._factored(self.form)

    def _factored(self, form: Form) -> Factor:
        return form.factor() if self.weighting.sample < 1 else form.triangular()  # to sift takes eigenpairs

    def _scales(self, ids: np.ndarray) -> np.ndarray:
        return self.weighting.scales(ids, self.epoch)

    def factors(self, ids: np.ndarray) -> np.ndarray | None:
        """Return what rows are multiplied by in the form for p = 2, (m,); None where that is 1."""
        return None if self.weighting.decay == 1 else self._scales(ids)

    # -- add -----------------------------------------------------------------------------------------------

    def absorb(self, rows: Rows) -> Candidates:
        """Return the candidates with one block added to the form and its rows kept that may reach epsilon.

        Raises NonFiniteRow.
        """
        return self._by_eras(rows, Candidates._absorbed)

    def grown(self, rows: Rows) -> Candidates:
        """Return the candidates with rows added to the form, none of them bounded or kept."""
        return self._by_eras(rows, Candidates._grown)

    def _by_eras(self, rows: Rows, add: Callable[[Candidates, Rows], Candidates]) -> Candidates:
        """Return the candidates with rows added in units in which none underflows, and brought to the latest."""
        now, affine = self, rows.keys.shape[1] < self.form.frame.dim
        for places in self.weighting.eras(rows.ids):
            part = rows.take(places)
            if self.weighting.decay < 1 and not (affine or part.keys[part.ids.argmax()].any()):
                some = np.flatnonzero(part.keys.any(axis=1))  # zeros bring no time: what is all there is does not fade
                now, part = replace(now, left=now.left + len(part) - len(some)), part.take(some)
            if len(part):
                epoch = max(now.epoch, self.weighting.epoch(part.ids))
                now = add(replace(now.moved(epoch), current=False), part)
        return now

    def _grown(self, rows: Rows) -> Candidates:
        form, judge = self.form.grown(rows.keys, self.judge, self.factors(rows.ids))
        return replace(self, form=form, judge=judge)

    def _absorbed(self, rows: Rows) -> Candidates:
        now = self
        if self.weighting.sample < 1:
            now, rows = now._sifted(rows)
            if not len(rows):
                return now
        if now._few(len(rows)):
            return now._grown(rows).keep(rows, rows.upper)
        now, upper = now._add(rows) if self.weighting.p == 2 else now._add_weighted(rows)
        judge = now.judge
        if upper is None or judge is None:
            judge, now = now._factored(now.form), replace(now, fresh=0.0)
            upper = now._own(rows, judge)
        now = replace(now, judge=judge).keep(rows, upper)
        crowded = now.retained > 2 * now.most() + len(rows)
        stale = now.form.rows >= 2 * judge.rows or now.fresh > 1 + judge.rank
        # while nearly all rows stand, to score them anew would drop few, and a judge of all rows lets fewer stand
        if crowded or (stale and now.retained <= _STANDING * now.form.rows):
            return now.pruned()
        return now._judged() if stale or 2 * (now.retained - self.retained) > len(rows) else now

    def _few(self, more: int) -> bool:
        """Say whether, with some more, there are no more rows than may be kept anyway: to score them can wait."""
        return self.weighting.plain and self.seen + more <= self.most()

    def moved(self, epoch: int) -> Candidates:
        """Return the same candidates in units of a later epoch.  Exact, but that what underflows is gone."""
        shift = epoch - self.epoch
        if shift == 0:
            return self
        form, judge = self.form.shifted(shift, self.judge)
        mass = math.ldexp(self.mass, max(-2 * shift, -4000)) if self.weighting.p > 2 else self.mass
        return replace(self, form=form, judge=judge, mass=mass, epoch=epoch)

    def _sifted(self, rows: Rows) -> tuple[Candidates, Rows]:
        """Return the rows that are to enter the form: the sample, and what the form cannot place below epsilon.

        Raises NonFiniteRow.  Cost: one read and, of multiply-adds in float32, d w a row, w as in :meth:`Factor.width`,
        where that is few, and d^2 / 2 for each row that they cannot place.
        """
        bound = None if self.judge is None else self.judge.sieve(self.epsilon, rows.keys.dtype).alone

        def sifted(part: slice) -> tuple[np.ndarray, np.ndarray, float, float]:
            some = rows.take(part)
            odds = self.form.odds(some.keys, self.factors(some.ids), bound)
            enter, total, most = self.weighting.sift(odds, some.ids, self.epsilon)
            return part.start + enter, odds[enter], total, most

        enter, odds, totals, most = zip(*backend.run(sifted, backend.tapered(len(rows))), strict=True)
        places, upper = np.concatenate(enter), scores_of(np.concatenate(odds))
        some = replace(rows.take(places), upper=upper)
        unknown = np.flatnonzero(upper == 1)  # as are those of rows that are not finite
        finite = np.isfinite(some.keys[unknown]).all(axis=1)
        if not finite.all():
            raise NonFiniteRow(int(places[unknown[finite.argmin()]]))
        mass = (self.mass + sum(totals)) * (1 + bounds.dot_error(len(totals)))
        dropped, left = max(self.dropped, float(scores_of(np.array(max(most))))), self.left + len(rows) - len(some)
        return replace(self, mass=mass, dropped=dropped, left=left), some

    def _add(self, rows: Rows) -> tuple[Candidates, np.ndarray | None]:
        sifted = self.weighting.sample < 1  # then the rows know their bounds
        epsilon = None if sifted else self.epsilon
        form, upper = self.form.add(rows.keys, self.judge, epsilon, self.factors(rows.ids))
        if sifted and form.frame is self.form.frame:
            upper = rows.upper
        return replace(self, form=form), upper

    def _add_weighted(self, rows: Rows) -> tuple[Candidates, np.ndarray | None]:
        """Add rows with weights from the present judge: an earlier, smaller form makes them larger, so still safe."""
        scales = self._scales(rows.ids)
        # below 2 weights raise small rows, and with them what was taken for rounding
        weights = self.form.weigh(rows.keys, self.judge, scales, self.weighting.weights, hidden=self.weighting.p < 2)
        if weights.sum() > 2 * (1 + self.form.rank):
            weights = self._balanced(rows.keys, weights, scales)
        form, _ = self.form.add(rows.keys, self.judge, None, self.weighting.factors(weights, scales))
        mass = self.weighting.masses(weights, scales)
        grown = replace(self, form=form, mass=self.mass + mass, fresh=self.fresh + float(weights.sum()))
        if self.judge is None or form.frame is not self.form.frame:
            return grown, None
        ages = self.weighting.exponents(rows.ids, self.epoch)
        return grown, self.weighting.certified(weights, grown.mass, form.rows, ages)

    def _balanced(self, keys: np.ndarray, weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Return smaller weights for a block that the judge knows too little of, by weighing it against itself."""
        p = self.weighting.p
        for turn in range(1, _ROUNDS + 1):
            form, _ = self.form.add(keys, self.judge, None, self.weighting.factors(weights, scales))
            own = form.weigh(keys, form.triangular(), scales, self.weighting.own, hidden=p < 2)
            settled = own.sum() > _SETTLED * weights.sum()
            if p <= 2:
                weights = np.minimum(weights, own)
                if settled or weights.sum() <= _FEW * form.rank:
                    break
            else:  # no weight may stand below its row
                steps = np.divide(own, weights, out=own, where=weights > 0)
                if (settled and steps.max(initial=0) < 1 / _SETTLED) or turn == _ROUNDS:
                    return np.minimum(weights * steps.max(initial=1), 1)
                weights = weights * steps ** (4 / (2 + p))
        return weights

    def keep(self, rows: Rows, upper: np.ndarray) -> Candidates:
        """Return the candidates with those of the rows that may reach epsilon, copied."""
        places, most = self._above(upper)
        bounded = replace(rows, upper=upper)
        # to copy; with few, one core is done before two have started
        parts = backend.slices(len(places), backend.TASK if len(places) > backend.PIECE else len(places) + 1)
        found = backend.run(lambda part: bounded.take(places[part]), parts)
        kept = tuple(some for some in (*self.kept, *found) if len(some)) or tuple(found[-1:])
        return replace(self, kept=kept, dropped=max(self.dropped, most))

    def _chosen(self, rows: Rows, lower: np.ndarray, upper: np.ndarray) -> tuple[Rows, float]:
        """Return the rows that may reach epsilon, and the largest bound of the others."""
        places, most = self._above(upper)
        return replace(rows, lower=lower, upper=upper).take(places), most

    def _above(self, upper: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the places of bounds that reach epsilon, and the largest of the others."""
        places = np.empty(len(upper), np.int64)
        count, most = backend.kernels_of(upper).above(upper, self.epsilon, places)
        return places[:count], most

    # -- bound ---------------------------------------------------------------------------------------------

    def most(self) -> float:
        """Return the most rows that bounds by the present form let through."""
        return bounds.max_members(
            self.form.rank if self.weighting.p == 2 else self.mass, self.epsilon, self.weighting.p
        )

    def _bracket(self, rows: Rows, judge: Factor) -> tuple[np.ndarray, np.ndarray]:
        ages = self.weighting.exponents(rows.ids, self.epoch)
        lower, upper = np.empty(len(rows)), np.empty(len(rows))
        for places, frame, scales in aged(judge.frame, ages):
            own = judge if frame is judge.frame else replace(judge, frame=frame)
            lower[places], upper[places] = own.ends(rows.keys[places], scales)
        return self.weighting.ends(lower, self.form.floored(upper, rows.keys), self.mass, self.form.rows, ages)

    def _own(self, rows: Rows, judge: Factor) -> np.ndarray:
        """Return upper bounds on the scores of rows that are in the form of the judge."""
        if self.weighting.p != 2:
            return self._bracket(rows, judge)[1]
        return self.form.weigh(rows.keys, judge, self.factors(rows.ids), lambda odds: np.minimum(odds, 1))

    def pruned(self) -> Candidates:
        """Return the candidates with kept rows scored by the present form, those dropped that cannot reach epsilon."""
        if self.current:
            return self
        now = replace(self._judged(), current=True)

        def judged(rows: Rows) -> tuple[Rows, float]:
            some, dropped = rows, 0.0
            single = self.weighting.p == 2 and now.factor.single(rows.keys.dtype)
            if single and near(now.form.frame, self.weighting.exponents(rows.ids, now.epoch)):  # cheaper where they do
                upper = now.form.odds(rows.keys, now.factors(rows.ids), now.factor.piece_odds)
                some, dropped = now._chosen(rows, rows.lower, np.minimum(upper, rows.upper))
            lower, upper = now._bracket(some, now.factor)
            some, most = now._chosen(some, lower, np.minimum(upper, some.upper))
            return some, max(dropped, most)

        found, dropped = zip(*backend.run(judged, self.kept), strict=True)
        kept = concatenate([rows for rows in found if len(rows)] or [found[-1]])
        return replace(now, kept=(kept,), dropped=max(self.dropped, *dropped))

    def _judged(self) -> Candidates:
        """Return the same candidates with a judge of the present form."""
        form = self.form.simplified()
        return replace(self, form=form, judge=self._factored(form), fresh=0.0)

    def rated(self, upper: np.ndarray) -> Candidates:
        """Return the candidates with the upper ends known of the kept rows, and lower ends by the present form."""
        (rows,), judge = self.kept, self.form.factor()
        rows = replace(rows, lower=self._bracket(rows, judge)[0], upper=upper)
        return replace(self, judge=judge, kept=(rows,), current=True)

    # -- merge ---------------------------------------------------------------------------------------------

    def merge(self, other: Candidates, epsilon: float) -> Candidates:
        """Return the candidates of both streams for the larger epsilon."""
        epoch = max(self.epoch, other.epoch)
        parts = [self.moved(epoch), other.moved(epoch)]
        form, mass = parts[0].form.merge(parts[1].form), parts[0].mass + parts[1].mass
        left = self.left + other.left
        if self.weighting.p < 2:  # weights that were safe in a part are too large in the whole
            whole = form.factor()
            share = max(whole.share(part.form.root(), part.form.frame.exponents) for part in parts)
            if share > 0:
                form, mass = form.scaled(share ** (1 - 2 / self.weighting.p)), share * mass
        dropped = max(part.dropped for part in parts)
        kept = parts[0].kept + parts[1].kept
        return replace(
            parts[0], epsilon=epsilon, form=form, mass=mass, kept=kept, dropped=dropped, left=left, current=False
        ).pruned()
