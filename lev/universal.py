"""The universal set: the keys that can ever receive a weight of epsilon, with proof for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lev import backend, bounds
from lev.checks import check_integer
from lev.rows import Ragged, Rows

_HEADS = 32  # whose rows are copied at a time


@dataclass(frozen=True, eq=False)
class UniversalSet:
    """A superset of {j : sensitivity of key j >= epsilon} among ``count`` keys.

    Whatever the query q, every key with weight |<q,k_j>|^p / sum_l |<q,k_l>|^p >= epsilon is in it.

    Attributes
    ----------
    indices : (m,) int64, ascending; the ids of the members
    keys : (m, d), their rows in the dtype and array family in which they came
    scores : (m,) float64, proved upper bounds on their sensitivities
    payload : (m, payload_dim) or None, the rows that travelled with them
    epsilon, p : the threshold, and the exponent of the weights
    count : the number of keys seen
    exact : True if every member is proved to reach epsilon, so the set is also minimal, up to the rounding
        margin in :func:`lev.bounds.margin`; False if it may be larger
    omitted : the most weight that any key outside the set can ever receive; 0 if every key is in it

    Theory: 01, universal sets; 04, rounding margin.

    >>> import numpy as np, lev
    >>> found = lev.universal_set(np.repeat(np.eye(2), [1, 5], axis=0), 0.5)
    >>> found.indices, found.exact, round(found.omitted, 6)
    (array([0]), True, 0.2)

    """

    indices: Any
    keys: Any
    scores: Any
    payload: Any
    epsilon: float
    p: float
    count: int
    exact: bool
    omitted: float

    @classmethod
    def of(
        cls,
        rows: Rows,
        family: backend.Family,
        *,
        epsilon: float,
        count: int,
        exact: bool,
        omitted: float,
        p: float = 2.0,
    ) -> UniversalSet:
        """Return the set of those ``rows`` whose upper bound reaches ``epsilon``.

        ``exact``: whether the lower bounds of members are proved to; ``omitted`` bounds every row not in ``rows``.
        """
        rows = rows.take(np.argsort(rows.ids))
        member = rows.upper >= epsilon
        omitted = float(rows.upper[~member].max(initial=omitted))
        rows = rows.take(member)
        payload = family.out(rows.payload) if rows.payload.shape[1] else None
        keys, scores = family.out(rows.keys, rows=True), family.out(rows.upper)
        return cls(family.out(rows.ids), keys, scores, payload, epsilon, p, count, exact, omitted)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "superset"
        return (
            f"UniversalSet({len(self)} of {self.count} keys, epsilon={self.epsilon:g}, p={self.p:g}, {kind}, "
            f"omitted={self.omitted:.3g})"
        )

    def top(self, k: int) -> UniversalSet:
        """Return the universal set of the ``k`` highest scores (ties: lower index first).

        ``omitted`` is the most that any other key can receive, and ``epsilon`` the next float above it, so the
        result still holds every key that can receive ``epsilon``.  Raises TypeError, ValueError for a bad k.

        >>> import numpy as np, lev
        >>> lev.universal_set(np.diag([3.0, 2.0, 1.0]), 0.5).top(2).indices
        array([0, 1])
        """
        k = check_integer("k", k, 0)
        order = sorted(range(len(self)), key=lambda i: (-float(self.scores[i]), i))
        chosen = sorted(order[:k])
        omitted = max(self.omitted, float(self.scores[order[k]]) if k < len(self) else 0.0)
        epsilon = math.nextafter(omitted, math.inf)
        return replace(
            self,
            indices=self.indices[chosen],
            keys=self.keys[chosen],
            scores=self.scores[chosen],
            payload=None if self.payload is None else self.payload[chosen],
            epsilon=epsilon,
            exact=self.exact and all(float(self.scores[i]) >= epsilon for i in chosen),
            omitted=omitted,
        )


def universal_sets(
    kept: Sequence[Sequence[Rows]],
    family: backend.Family,
    *,
    epsilon: float,
    counts: np.ndarray,
    limits: np.ndarray,
    omitted: np.ndarray,
    p: float,
) -> list[UniversalSet]:
    """Return the universal set of each head, of those of the rows it keeps whose upper bound reaches ``epsilon``.

    A set is exact if the lower bounds of its members are above epsilon (1 - 2 limit); ``omitted`` bounds what was not
    kept.  All are (heads,).
    """

    def of(heads: slice) -> list[UniversalSet]:
        held, limit = Ragged.of_heads(kept[heads]), epsilon * (1 - 2 * limits[heads])
        member = held.rows.upper >= epsilon
        left = np.maximum(omitted[heads], held.most(~member))
        places = np.flatnonzero(member)
        found = held.take(places[np.lexsort((held.rows.ids[places], held.owners[places]))])
        exact = np.ones(held.heads, bool)
        exact[found.owners[~(found.rows.lower >= limit[found.owners])]] = False
        ids, keys, scores, payload = (
            family.out(found.rows.ids),
            family.out(found.rows.keys, rows=True),
            family.out(found.rows.upper),
            family.out(found.rows.payload) if found.rows.payload.shape[1] else None,
        )
        scalars = zip(counts[heads].tolist(), exact.tolist(), left.tolist(), strict=True)
        return [
            UniversalSet(ids[own], keys[own], scores[own], None if payload is None else payload[own], epsilon, p, *rest)
            for own, rest in zip(found.parts(), scalars, strict=True)
        ]

    parts = backend.run(of, backend.slices(len(kept), _HEADS))
    return [one for part in parts for one in part]


def select(
    keys: np.ndarray, family: backend.Family, lower: np.ndarray, upper: np.ndarray, epsilon: float, p: float
) -> UniversalSet:
    """Return the universal set of ``keys`` (n, d) that the brackets of their sensitivities, (n,) each, allow."""
    member = upper >= epsilon
    indices = np.flatnonzero(member)
    return UniversalSet(
        indices=family.out(indices),
        keys=family.out(keys[indices], rows=True),
        scores=family.out(upper[indices]),
        payload=None,
        epsilon=epsilon,
        p=p,
        count=len(keys),
        exact=bool(np.all(lower[indices] >= epsilon * (1 - 2 * bounds.BRACKET_TOLERANCE))),
        omitted=float(upper[~member].max(initial=0.0)),
    )
