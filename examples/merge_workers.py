"""Four processes sketch a quarter of the rows each; what they send back is small, and the merge misses nothing."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np

import lev

N, DIM, EPSILON, WORKERS = 200_000, 16, 0.002, 4


def rows(first: int, last: int) -> np.ndarray:
    """Return rows first..last of a stream that any worker can produce."""
    keys = np.random.default_rng(first).standard_normal((last - first, DIM))
    keys[::10_000] *= 25
    return keys


def work(first: int) -> bytes:
    """Sketch one part; `start` gives its rows their place in the whole."""
    last = first + N // WORKERS
    return lev.Sketch(DIM, EPSILON, start=first).update(rows(first, last)).to_bytes()


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(work, range(0, N, N // WORKERS)))
    merged = lev.merge(map(lev.Sketch.from_bytes, parts))
    found = merged.universal_set()
    print(f"{len(parts)} parts of {N // WORKERS:,} rows came back as {sum(map(len, parts)) / 1e3:.0f} kB")
    print(found)

    everything = np.vstack([rows(first, first + N // WORKERS) for first in range(0, N, N // WORKERS)])
    assert np.array_equal(found.indices, lev.universal_set(everything, EPSILON).indices)


if __name__ == "__main__":
    main()
