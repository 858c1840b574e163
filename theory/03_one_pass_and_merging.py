"""Check note 03: the sketch in miniature over the rationals, then the library's, against the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import exact
import numpy as np

import lev


class Miniature:
    """The algorithm of note 03 with rational arithmetic; the form is the list of its rows."""

    def __init__(self, epsilon: Fraction) -> None:
        """Start with no rows."""
        self.epsilon, self.form, self.judge, self.buffer, self.dropped = epsilon, [], [], {}, Fraction(0)

    def keep(self, bounds: dict[int, tuple[list, Fraction]]) -> None:
        """Keep the rows whose bound reaches epsilon; remember the largest of the others."""
        for name, (row, bound) in bounds.items():
            if bound >= self.epsilon:
                self.buffer[name] = (row, bound)
            else:
                self.dropped = max(self.dropped, bound)

    def add(self, block: dict[int, list]) -> None:
        """Bound each row of the block against the stale form, then add the block."""
        self.form = self.form + list(block.values())
        odds = {name: exact.against(self.judge, row) for name, row in block.items()}
        bound = {name: Fraction(1) if odd == math.inf else odd / (1 + odd) for name, odd in odds.items()}
        self.keep({name: (row, bound[name]) for name, row in block.items()})

    def prune(self) -> None:
        """Score the buffer by all rows seen."""
        old, self.buffer, self.judge = self.buffer, {}, self.form
        self.keep({n: (row, min(bound, exact.against(self.form, row))) for n, (row, bound) in old.items()})

    def merge(self, other: Miniature) -> None:
        """Add the forms, join the buffers, prune."""
        self.form, self.buffer = self.form + other.form, self.buffer | other.buffer
        self.dropped = max(self.dropped, other.dropped)
        self.prune()

    def holds(self) -> None:
        """The invariant, from the definition."""
        for row, bound in self.buffer.values():
            assert bound >= exact.against(self.form, row)
        assert self.dropped < self.epsilon


def streamed(keys: np.ndarray, epsilon: Fraction, rng: np.random.Generator) -> Miniature:
    """Return the sketch of random parts of the rows, each in random blocks, merged in a random tree."""
    owner = rng.integers(0, 3, len(keys))
    sketches = []
    for part in range(3):
        sketch, mine = Miniature(epsilon), np.flatnonzero(owner == part)
        for block in np.array_split(mine, 2):
            sketch.add({int(i): list(keys[i]) for i in block})
            sketch.holds()
            if rng.random() < 0.5:
                sketch.prune()
        sketches.append(sketch)
    while len(sketches) > 1:
        sketches.append(sketches.pop(int(rng.integers(len(sketches)))))
        sketches[0].merge(sketches.pop())
        sketches[0].holds()
    sketches[0].prune()
    return sketches[0]


def check_library(rng: np.random.Generator) -> None:
    """The library agrees with the definition, kept rows stay within rank / epsilon, and D bounds the rest."""
    keys = rng.integers(-5, 6, (40, 3)).astype(float)
    epsilon = 0.11
    sketch = lev.Sketch(3, epsilon)
    for block in np.array_split(keys, 6):
        sketch.admit(block)
        assert sketch.retained <= 3 / epsilon
    found, scores = sketch.universal_set(), exact.scores(keys)
    assert found.indices.tolist() == [j for j, score in enumerate(scores) if score >= epsilon]
    assert max(score for j, score in enumerate(scores) if j not in found.indices) <= found.omitted < epsilon


def double_counting() -> None:
    """Rows counted twice, the one assumption on the caller: every key is lost."""
    sketch = Miniature(Fraction(1, 2))
    sketch.add({0: [1.0, 0.0], 1: [0.0, 1.0], 2: [0.0, 1.0]})
    sketch.prune()
    assert sorted(sketch.buffer) == [0, 1, 2]
    sketch.merge(sketch)
    sketch.merge(sketch)
    assert not sketch.buffer


def main() -> None:
    """Run every check."""
    rng = np.random.default_rng(3)
    for _ in range(12):
        dim, epsilon = int(rng.integers(1, 4)), Fraction(1, int(rng.integers(2, 6)))
        keys = rng.integers(-3, 4, (10, dim)).astype(float)
        sketch, scores = streamed(keys, epsilon, rng), exact.scores(keys)
        assert sorted(sketch.buffer) == [j for j, score in enumerate(scores) if score >= epsilon]
        assert all(sketch.buffer[j][1] == scores[j] for j in sketch.buffer)
        assert max((scores[j] for j in range(10) if j not in sketch.buffer), default=0) <= sketch.dropped
        assert len(sketch.buffer) * epsilon <= exact.rank(keys)
    print("12 random streams and merge trees end in the universal set, exactly")
    check_library(rng)
    print("so does the library")
    double_counting()
    print("rows counted twice: keys are lost, as they must be; the library refuses known ids")


if __name__ == "__main__":
    main()
