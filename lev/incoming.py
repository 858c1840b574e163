"""Rows at the door of a sketch: checked keys, ids and payload, or one clear error and nothing changed."""

from __future__ import annotations

from typing import Any

import numpy as np

from lev import backend
from lev.ids import Ids
from lev.rows import Rows


def incoming(
    keys: Any, indices: Any, payload: Any, *, dim: int, payload_dim: int, ids: Ids, held: np.ndarray
) -> tuple[Rows, Ids, backend.Family]:
    """Return the rows of an update, what is known of the ids then, and the array family of the keys.

    ``ids`` is what is known before and ``held`` the ids of the rows retained.  Raises TypeError and ValueError.
    """
    array, family = backend.finite_matrix("keys", keys, dim)
    m = len(array)
    numbers, known = ids.count_on(m) if indices is None else ids.take(indices, m, held)
    if payload is None and payload_dim and m:
        raise ValueError(f"payload must have shape ({m}, {payload_dim}); got None")
    extra = np.zeros((m, 0)) if payload is None else backend.matrix("payload", payload, payload_dim)[0]
    if len(extra) != m:
        raise ValueError(f"payload must have shape ({m}, {payload_dim}); got {extra.shape}")
    return Rows.of(array, numbers, extra), known, family
