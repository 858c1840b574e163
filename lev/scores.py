"""Scores of all keys at once: the batch mathematics."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lev import backend
from lev.form import Form, NonFiniteRow
from lev.heads import scores_all

_BLOCK = 2**24  # numbers of a block


def leverage_scores(keys: Any) -> Any:
    """Return the leverage score k_j^T (K^T K)^+ k_j of every key, in [0, 1]; they sum to the rank.

    ``keys`` is (..., n, d), any real dtype; the result is float64 (..., n) in the same array family.  The score
    is the most weight <q,k_j>^2 / sum_l <q,k_l>^2 that any query q can give to key j.  Relative accuracy is that
    of :func:`lev.bounds.margin` or, when the keys are worse conditioned, about 2^-53 cond(K); directions below
    :func:`lev.bounds.resolution` count as null.  Cost: O(n d^2).  Guarantee: exact up to rounding.
    Raises TypeError and ValueError for bad input; NaN and infinity name the first bad row.
    Theory: 01, universal sets; 04, rounding margin.

    >>> import lev
    >>> lev.leverage_scores([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    array([1. , 0.5, 0.5])
    """
    array, family = backend.intake("keys", keys)
    if array.ndim < 2:
        raise ValueError(f"keys must have shape (..., n, d); got {array.shape}")
    if array.shape[-1] == 0:
        raise ValueError(f"keys must have at least one column; got shape {array.shape}")
    if array.ndim == 2:
        return family.out(_scores(array))
    if array.size == 0:
        return family.out(np.zeros(array.shape[:-1]))
    heads = array.reshape(-1, *array.shape[-2:])
    found = [_scores(keys) if scores is None else scores for keys, scores in zip(heads, scores_all(heads), strict=True)]
    return family.out(np.reshape(found, array.shape[:-1]))


def _scores(keys: np.ndarray) -> np.ndarray:
    starts = range(0, max(len(keys), 1), max(2048, _BLOCK // keys.shape[1]))
    form, judge = Form.empty(keys.shape[1]), None
    with backend.single_blas():
        for start, end in itertools.pairwise([*starts, len(keys)]):
            try:
                form, judge = form.grown(keys[start:end], judge)
            except NonFiniteRow as error:
                raise ValueError(f"keys must be finite; row {start + error.row} holds NaN or infinity") from None
        return form.triangular().scores(keys)
