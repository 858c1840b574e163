"""Many streams at once: while their forms are well conditioned, heads are added, factored and scored as one batch.

A head whose rounding margin is too large for that, or that is not of full rank, goes its own way through
:meth:`Candidates.absorb`, which is slower and can do everything.  Theory: 04, rounding margin (g: batches of heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lev import backend, bounds, rounding
from lev.candidates import Candidates
from lev.factor import proved_ends
from lev.form import Form
from lev.frame import Frame, for_kernels, near
from lev.rows import Ragged, Rows, joined

_BATCH = 2**20  # numbers of one batch: some heads of a block
_QUIET = np.errstate(all="ignore")  # a head that is not finite is not accurate, and does not spoil the others


def absorb_all(streams: Sequence[Candidates], rows: Rows) -> list[Candidates]:
    """Return each stream with its part of the block, (m, heads, d), absorbed.  Raises NonFiniteRow."""
    weighting = streams[0].weighting
    epoch = max(weighting.epoch(rows.ids), *(stream.epoch for stream in streams))
    each = len(streams) == 1 or weighting.p != 2
    moved = [] if each else [stream.moved(epoch) for stream in streams]
    if each or not all(_near(stream, rows.ids) for stream in moved):
        return [stream.absorb(rows.head(head)) for head, stream in enumerate(streams)]
    found = backend.run(lambda part: _absorbed(moved[part], rows.head(part)), _parts(rows.keys))
    now = [stream for part in found for stream in part]
    return [moved[head].absorb(rows.head(head)) if stream is None else stream for head, stream in enumerate(now)]


def _near(stream: Candidates, ids: np.ndarray) -> bool:
    """Say whether rows of these ids and those kept, in units of the stream, are far from the ends of float64."""
    if stream.weighting.decay == 1:
        return True
    ages = (stream.weighting.exponents(some, stream.epoch) for some in (ids, *(rows.ids for rows in stream.kept)))
    return all(near(stream.form.frame, some) for some in ages)


def prune_all(streams: Sequence[Candidates]) -> list[Candidates]:
    """Return each stream with its kept rows scored by its present form."""
    return [stream.pruned() for stream in streams]


def scores_all(keys: np.ndarray) -> list[np.ndarray | None]:
    """Return the leverage scores of each of (heads, n, d) keys; None where a batch is not accurate enough."""
    scores, accurate = _judged(keys, lambda grown, block, squares, norms: np.minimum(squares, 1))
    return [own if good else None for own, good in zip(scores, accurate, strict=True)]


def bounds_all(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return proved upper ends of the leverage scores of (heads, n, d) keys, (heads, n), and which heads have them."""
    upper, accurate = _judged(keys, lambda grown, *found: grown.ends(*found)[1])
    return np.minimum(upper, 1), accurate


def _judged(keys: np.ndarray, rule: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``rule`` makes of the rows of (heads, n, d) keys, (heads, n), and for which heads that holds."""
    heads, n, d = keys.shape
    rows = Rows.of(np.moveaxis(keys, 0, 1), np.arange(n), np.zeros((n, heads, 0)))

    @_QUIET
    def of(part: slice) -> tuple[np.ndarray, np.ndarray]:
        block = Ragged.of_block(rows.head(part))
        grown = _Grown.of([Form.empty(d)] * block.heads, block, None)
        return rule(grown, block, *grown.squares(block, None)).reshape(block.heads, n), grown.accurate

    found, accurate = zip(*backend.run(of, _parts(rows.keys)), strict=True)
    return np.concatenate(found), np.concatenate(accurate)


def _parts(keys: np.ndarray) -> list[slice]:
    """Return which of the heads of (m, heads, d) keys make a batch: rows and matrices of it are to stay in cache."""
    m, heads, d = keys.shape
    return backend.slices(heads, max(1, _BATCH // (max(m, d) * d)))


@_QUIET
def _absorbed(streams: Sequence[Candidates], rows: Rows) -> list[Candidates | None]:
    """Return each stream with its rows of a block, (m, heads, d), absorbed, or None where a batch is not accurate.

    All rows, those kept from before too, are scored by the form that holds the block.
    """
    first, block = streams[0], Ragged.of_block(rows)
    grown = _Grown.of([stream.form for stream in streams], block, first.factors(block.rows.ids))
    dropped = np.array([stream.dropped for stream in streams])
    kept = grown.stay(block, first, dropped)
    held = Ragged.of_heads([stream.kept for stream in streams])
    if len(held.rows):
        kept = joined(grown.stay(held, first, dropped), kept)
    now = zip(streams, grown.forms(), kept.split(), dropped.tolist(), grown.accurate, strict=True)
    return [
        Candidates(
            first.epsilon, first.weighting, form, (own,), most, epoch=first.epoch, left=stream.left, current=True
        )
        if accurate
        else None
        for stream, form, own, most, accurate in now
    ]


@dataclass(frozen=True, eq=False)
class _Grown:
    """The forms of some heads with a block added, in identity frames, and what they say of rows."""

    before: Sequence[Form]
    m: int  # rows of the block
    scale: np.ndarray  # (heads, D), powers of two
    gram: np.ndarray  # (heads, D, D)
    energy: np.ndarray  # (heads,), its trace
    tail: np.ndarray  # (heads, D)
    limit: np.ndarray  # (heads,)
    whiten: np.ndarray  # W, (heads, D, D): the score of a row x in the frame is ||x W||^2; scratch of this thread
    inverse: np.ndarray  # (heads,), ||W||_F^2
    reach: np.ndarray  # (heads,), the rounding of ||x W|| for a row of unit norm
    slack: np.ndarray  # (heads,), and of the form
    accurate: np.ndarray  # (heads,) bool: whether the head can be relied on

    @classmethod
    def of(cls, forms: Sequence[Form], block: Ragged, factors: np.ndarray | None) -> _Grown:
        """Return the forms with their rows of the block, each times its factor, added.

        Cost: O(d^2) a row, O(d^3) a head.
        """
        m = len(block.rows) // block.heads
        turns, inherited, limit = np.array([(form.turns, form.inherited, form.limit) for form in forms]).T
        sums, limit = [form.sums + _sums(m) for form in forms], np.minimum(limit, bounds.margin(block.rows.keys.dtype))
        scale, gram, energy, healthy = _added(forms, block, factors)
        whiten, inverse = backend.scratch(gram.shape), np.empty(len(forms))
        backend.block_kernels().whiteners(gram, whiten, inverse)
        tail = np.hypot([form.tail for form in forms], np.sqrt(energy))
        size = np.einsum("hii->h", gram)
        reach, slack = rounding.of_plain_factors(turns, inherited, np.array(sums), tail, size, inverse)
        accurate = healthy & (slack - inherited <= limit)
        reach, slack = np.where(accurate, (reach, slack), 0)
        return cls(forms, m, scale, gram, size, tail, limit, whiten, inverse, reach, slack, accurate)

    def squares(self, part: Ragged, factors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return ||x W||^2 and ||x||^2 of rows of these heads, each times its factor, (n,) each."""
        rows, factors = for_kernels(part.rows.keys, factors)
        squares, norms = np.empty(len(rows)), np.empty(len(rows))
        backend.block_kernels().bound(rows, factors, part.starts, self.scale, self.whiten, squares, norms)
        return squares, norms

    def ends(self, part: Ragged, squares: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return proved (lower, upper), (n,), of the scores of rows from what :meth:`squares` says of them."""
        pads = self.reach[part.owners] * np.sqrt(norms)
        return proved_ends(np.sqrt(squares), pads, self.slack[part.owners])

    def screened(self, part: Ragged, factors: np.ndarray | None, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        """Return bounds on the scores of rows, (n,), and each head's largest below epsilon.

        They come from products in float32 where that will do.  Theory: 04, sound filters.
        """
        rows, factors = for_kernels(part.rows.keys, factors)
        narrow = rounding.narrow(self.exponents, self.energy, self.inverse) | ~self.accurate
        single = rows.dtype == np.float32 and bool(narrow.all())
        terms = rounding.screen_terms(self.scale.shape[1], np.sqrt(self.inverse), self.reach, self.slack, single)
        upper, most = np.empty(len(rows)), np.empty(part.heads)
        given = self.scale, self.whiten, np.float32 if single else np.float64, np.array(terms), epsilon
        backend.block_kernels().screen(rows, factors, part.starts, *given, upper, most)
        return upper, most

    def stay(self, part: Ragged, stream: Candidates, dropped: np.ndarray) -> Ragged:
        """Return those rows of these heads that may reach epsilon, and raise ``dropped`` (heads,) by the others.

        Where there are no more of them than that many, on average, all may: they are not filtered first.
        """
        if len(part.rows) > part.heads * bounds.max_members(self.scale.shape[1], stream.epsilon):
            upper, most = self.screened(part, stream.factors(part.rows.ids), stream.epsilon)
            np.maximum(dropped, most, out=dropped)
            part = part.take(np.flatnonzero(upper >= stream.epsilon))
        lower, upper = self.ends(part, *self.squares(part, stream.factors(part.rows.ids)))
        lower, upper = np.minimum(lower, 1), np.minimum(upper, part.rows.upper)
        judged = replace(part, rows=replace(part.rows, lower=lower, upper=upper))
        stays = upper >= stream.epsilon
        np.maximum(dropped, judged.most(~stays), out=dropped)
        return judged.take(np.flatnonzero(stays))

    @cached_property
    def exponents(self) -> np.ndarray:
        """Those of the heads' frames, (heads, D): the scale is 2^-exponents."""
        return 1 - np.frexp(self.scale)[1].astype(np.int64)

    def forms(self) -> Iterator[Form]:
        """Yield the form of each head."""
        for head, form in enumerate(self.before):
            yield Form(
                form.frame if form.rows else Frame(self.exponents[head]),
                self.gram[head],
                self.tail[head],
                form.rows + self.m,
                form.sums + _sums(self.m),
                turns=form.turns,
                inherited=form.inherited,
                limit=float(self.limit[head]),
            )


def _sums(m: int) -> int:
    return -(-m // backend.CHAIN)


def _added(
    forms: Sequence[Form], block: Ragged, factors: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scales and Gram matrices with the block added, its energy in their columns, and which are healthy.

    A form without rows takes the powers of two of its columns' norms, by which its Gram matrix is scaled once it is
    known; with columns that are too large or small for that it is not healthy.
    """
    fresh = np.array([form.rows == 0 for form in forms])
    plain = np.array([form.frame.triangle is None and form.excuse == 0 and not len(form.frame.far) for form in forms])
    scale = np.where(fresh[:, None], 1.0, np.ldexp(1.0, [-form.frame.exponents for form in forms]))
    gram = np.empty((*scale.shape, scale.shape[1]))
    rows, factors = for_kernels(block.rows.keys, factors)
    backend.block_kernels().grams(rows, factors, block.starts, fresh, scale, backend.CHAIN, gram)
    energy = np.einsum("hii->hi", gram).copy()
    low, high = bounds.SMALLEST_PIVOT, 1 / bounds.SMALLEST_PIVOT
    scaled = (energy > 0) & (energy <= 1) & (scale > low) & (scale < high)
    for head in np.flatnonzero(~fresh & plain).tolist():
        gram[head] += forms[head].gram
    return scale, gram, energy, np.where(fresh, scaled.all(axis=1), plain)
