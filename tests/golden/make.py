"""Write the golden sketches of the present format: python tests/golden/make.py.

They stand for files of earlier versions, so they are written again only when the format says a new number.
"""

from pathlib import Path
from typing import Any

import numpy as np

import lev

HERE = Path(__file__).parent


def keys() -> np.ndarray:
    """Return rows that need no random generator: the same on every version of everything."""
    i, j = np.arange(400)[:, None], np.arange(5)[None, :]
    rows = ((i * i * (j + 3) + 7 * i * (j + 1) + j) % 23 - 11.0) / 4
    rows[::37] *= 9
    return rows


def sketches() -> dict[str, Any]:
    """Return the sketches by name: a plain one, one of low rank with a triangle, one with all that travels."""
    rows = keys()
    low = np.hstack([rows[:, :2], rows[:, :2] @ [[1.0, 2.0], [3.0, 4.0]]])
    more = lev.Sketch(5, 0.05, start=1000, payload_dim=2, intercept=True)
    return {
        "plain": lev.Sketch(5, 0.05).update(rows.astype(np.float32)),
        "low_rank": lev.Sketch(4, 0.05).update(low),
        "intercept_payload": more.update(rows, payload=rows[:, :2]),
        "sampled": lev.Sketch(5, 0.05, sample=1 / 16).update(rows),
        "causal": lev.CausalSketch(5, 0.05).update(rows),
        "window": lev.SlidingWindowSketch(5, 0.05, 150).update(rows),
    }


if __name__ == "__main__":
    for name, sketch in sketches().items():
        sketch.save(HERE / f"{name}.lev")
