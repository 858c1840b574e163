"""Many streams at once: while their forms are well conditioned, heads are added, factored and scored as one batch.

A head whose rounding margin is too large for that, or that is not of full rank, goes its own way through
:meth:`Candidates.absorb`, which is slower and can do everything.  Theory: 04, rounding margin (g: batches of heads).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lev import backend, bounds
from lev.candidates import Candidates
from lev.factor import proved_ends
from lev.form import Form
from lev.frame import Frame
from lev.rows import Rows, concatenate

_BATCH = 2**19  # numbers of one batch: some heads of a block, as float64


def absorb_all(streams: Sequence[Candidates], rows: Rows) -> list[Candidates]:
    """Return each stream with its part of the block, (m, heads, d), absorbed.  Raises NonFiniteRow."""
    if len(streams) == 1 or streams[0].weighting.p != 2:
        return [stream.absorb(rows.head(head)) for head, stream in enumerate(streams)]
    moved = [stream.moved(max(stream.epoch, stream.weighting.epoch(rows.ids))) for stream in streams]
    scales = None if streams[0].weighting.decay == 1 else streams[0].weighting.scales(rows.ids, moved[0].epoch)
    forms = [stream.form for stream in moved]
    found = backend.run(lambda part: _add(forms, rows.keys, scales, part), _parts(rows.keys))
    judges = [judge for part in found for judge in part]
    return [
        stream.absorb(rows.head(head)) if judge is None else _kept(stream, judge, rows.head(head))
        for head, (stream, judge) in enumerate(zip(moved, judges, strict=True))
    ]


def prune_all(streams: Sequence[Candidates]) -> list[Candidates]:
    """Return each stream with its kept rows scored by its present form."""
    return [stream.pruned() for stream in streams]


def scores_all(keys: np.ndarray) -> list[np.ndarray | None]:
    """Return the leverage scores of each of (heads, n, d) keys; None where a batch is not accurate enough."""
    rows = np.moveaxis(keys, 0, 1)
    forms = [Form.empty(keys.shape[2])] * len(keys)
    found = backend.run(lambda part: _add(forms, rows, None, part), _parts(rows))
    return [None if judge is None else np.minimum(judge.roots**2, 1) for part in found for judge in part]


@dataclass(frozen=True, eq=False)
class _Judge:
    """A form with a block added, and what it says of the block's rows."""

    form: Form
    whiten: np.ndarray  # (D, D): the score of a row x in the frame is ||x W||^2
    reach: float
    slack: float
    roots: np.ndarray  # (m,), ||x W|| of the block
    norms: np.ndarray  # (m,), |x|

    def ends(self, roots: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = proved_ends(roots, self.reach * norms, self.slack)
        return np.minimum(lower, 1), np.minimum(upper, 1)


def _parts(keys: np.ndarray) -> list[slice]:
    step = max(1, _BATCH // max(1, len(keys) * keys.shape[2]))
    return [slice(start, start + step) for start in range(0, keys.shape[1], step)]


def _kept(stream: Candidates, judge: _Judge, rows: Rows) -> Candidates:
    """Return the stream with all its rows scored by the form that holds the block."""
    lower, upper = judge.ends(judge.roots, judge.norms)
    held = concatenate([part for part in stream.kept if len(part)] or [stream.kept[-1]])
    now = replace(stream, form=judge.form, judge=None, kept=(), current=True)
    if len(held):
        x, norms = judge.form.frame.widen(held.keys, stream.weighting.scales(held.ids, stream.epoch))
        low, high = judge.ends(np.linalg.norm(x @ judge.whiten, axis=1), np.sqrt(norms))
        lower, upper = np.concatenate([low, lower]), np.concatenate([np.minimum(high, held.upper), upper])
        rows = concatenate([held, rows])
    return now.keep(rows, upper, lower)


def _add(forms: Sequence[Form], keys: np.ndarray, scales: np.ndarray | None, part: slice) -> list[_Judge | None]:
    """Return for each head of ``part`` a judge that has its rows of (m, heads, d) in it, or None."""
    some = list(forms[part])
    if all(_plain(form) for form in some):
        with contextlib.suppress(np.linalg.LinAlgError), np.errstate(over="ignore", invalid="ignore", under="ignore"):
            x = _widened(keys[:, part], some[0].frame.dim, scales)
            frames = _frames(some, x)
            x *= np.stack([frame.scale for frame in frames])[:, None, :]
            return list(_judged(some, frames, x, keys.dtype))
    if len(some) == 1:
        return [None]
    heads = range(*part.indices(len(forms)))  # one bad head must not spoil the others
    return [judge for head in heads for judge in _add(forms, keys, scales, slice(head, head + 1))]


def _plain(form: Form) -> bool:
    return form.rows == 0 or (form.frame.triangle is None and form.excuse == 0)


def _widened(keys: np.ndarray, dim: int, scales: np.ndarray | None) -> np.ndarray:
    """Return (heads, m, dim) float64 rows, with a column of ones if there is one more than in the keys."""
    m, heads, d = keys.shape
    x = np.ones((heads, m, dim))
    x[:, :, :d] = np.moveaxis(keys, 1, 0)
    return x if scales is None else x * scales[:, None]


def _frames(forms: Sequence[Form], x: np.ndarray) -> list[Frame]:
    """Return the frames of the forms; those without rows take the powers of two of the columns' norms."""
    if all(form.rows for form in forms):
        return [form.frame for form in forms]
    exponents = np.frexp(np.sqrt(np.einsum("hmd,hmd->hd", x, x)))[1].astype(np.int64)
    return [form.frame if form.rows else Frame(power) for form, power in zip(forms, exponents, strict=True)]


def _judged(forms: Sequence[Form], frames: Sequence[Frame], x: np.ndarray, dtype: np.dtype) -> Iterator[_Judge | None]:
    """Yield what :func:`_add` returns.  Raises LinAlgError.  Cost: O(d^2) a row, O(d^3) a head."""
    heads, m, dim = x.shape
    added = np.zeros((heads, dim, dim))
    for start in range(0, m, backend.CHAIN):
        piece = x[:, start : start + backend.CHAIN]
        added += np.matmul(piece.swapaxes(1, 2), piece)
    gram = added + np.stack([form.gram if form.rows else np.zeros((dim, dim)) for form in forms])
    whiten = np.linalg.inv(np.linalg.cholesky(gram)).swapaxes(1, 2)
    inverse, size = np.einsum("hij,hij->h", whiten, whiten), np.einsum("hii->h", gram)
    norms = np.sqrt(np.einsum("hmd,hmd->hm", x, x))
    roots = np.linalg.norm(np.matmul(x, whiten), axis=2)
    energy = np.sqrt(np.einsum("hii->hi", added))
    for head, (form, frame) in enumerate(zip(forms, frames, strict=True)):
        grown = replace(
            form,
            frame=frame,
            gram=gram[head],
            rows=form.rows + m,
            sums=form.sums + -(-m // backend.CHAIN),
            tail=np.hypot(form.tail, energy[head]),
            limit=min(form.limit, bounds.margin(dtype)),
        )
        reach, slack = grown.plain_rounding(float(size[head]), float(inverse[head]))
        accurate = np.isfinite(roots[head]).all() and slack - grown.inherited <= grown.limit
        yield _Judge(grown, whiten[head], reach, slack, roots[head], norms[head]) if accurate else None
