"""Check note 14: sums that are cut as tensor cores cut them, and screens of low precision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

CUT = Fraction(1, 2**23)


def cut(value: Fraction, unit: Fraction) -> Fraction:
    """Return the value cut towards zero to a multiple of ``unit``."""
    whole = abs(value) // unit * unit
    return whole if value >= 0 else -whole


def binade(value: Fraction) -> Fraction:
    """Return the largest power of two that is at most |value|."""
    power = Fraction(1)
    while power > abs(value):
        power /= 2
    while 2 * power <= abs(value):
        power *= 2
    return power


def tensor_sum(products: list[Fraction]) -> Fraction:
    """Return the sum, 16 products at a time, every addend cut to 2^-23 of the binade of the largest."""
    total = Fraction(0)
    for start in range(0, len(products), 16):
        addends = [total, *products[start : start + 16]]
        largest = max(map(abs, addends))
        if largest:
            total = sum((cut(addend, binade(largest) * CUT) for addend in addends), Fraction(0))
            total = cut(total, binade(total) * CUT) if total else total
    return total


def chunk_error(rows: int, seed: int) -> float:
    """Return how much a chunk of rows is off, as a share of what 14.1 allows for 32."""
    rng = np.random.default_rng(seed)
    pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in rng.uniform(0.01, 1, (rows, 2)).astype(np.float16)]
    products = [a * b for a, b in pairs]
    off = abs(tensor_sum(products) - sum(products)) / sum(products)
    return float(off / (36 * CUT))


def screened(seed: int, *, padded: bool = True) -> float:
    """Return the least ratio of a screen's side by a probe of 8 bits to the root of the true score."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((300, 8)) * np.logspace(0, -3, 8)
    factor = np.linalg.inv(np.linalg.cholesky(rows.T @ rows))
    mantissa, exponent = np.frexp(factor)
    probe = np.ldexp(np.round(mantissa * 2**8) / 2**8, exponent)
    pad = np.linalg.norm(factor - probe) if padded else 0.0
    sides = np.linalg.norm(rows @ probe.T, axis=1) + pad * np.linalg.norm(rows, axis=1)
    return float((sides / np.linalg.norm(rows @ factor.T, axis=1)).min())


def main() -> None:
    most = max(chunk_error(32, seed) for seed in range(20))
    longer = max(chunk_error(512, seed) for seed in range(5))
    print(f"14.1: of 32 rows {most:.2f} of the bound; of 512 rows {longer:.2f}")
    assert 0 < most <= 1 < longer
    sides, bare = (min(screened(seed, padded=padded) for seed in range(20)) for padded in (True, False))
    print(f"14.3: sides at least {sides:.6f} of the root; without the pad {bare:.6f}")
    assert bare < 1 <= sides


if __name__ == "__main__":
    main()
