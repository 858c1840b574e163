"""Check note 09: planted keys stand out, the bound is met, and without a difference in norm there is no gap."""

from __future__ import annotations

import numpy as np

import lev


def planted(s: int, m: int, dim: int, nu: float, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Return K with s unit rows first, eta and c."""
    rows = rng.standard_normal((s, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    noise = rng.standard_normal((m, dim)) * nu / np.sqrt(dim)
    eta = float(np.abs(np.linalg.eigvalsh(rows @ rows.T - np.eye(s))).max())
    return np.vstack([rows, noise]), eta, float(np.linalg.norm(noise, 2) ** 2)


def flat_noise(s: int, copies: int, dim: int, nu: float, rng: np.random.Generator) -> np.ndarray:
    """Return s orthonormal rows and rows of norm nu whose form is exactly (copies nu^2) I."""
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return np.vstack([np.eye(dim)[:s], *[nu * turn] * copies])


def stand_out(seed: int) -> tuple[float, float]:
    """Return the least score of a planted key and the bound on it, and check that of noise."""
    rng = np.random.default_rng(seed)
    keys, eta, c = planted(4, 300, 60, 0.2, rng)
    scores = lev.leverage_scores(keys)
    noise = keys[4:]
    least = np.linalg.eigvalsh(noise.T @ noise)[0]
    assert np.all(scores[4:] <= np.sum(noise**2, axis=1) / least * (1 + 1e-9))
    assert eta < 1
    return float(scores[:4].min()), (1 - eta) / (1 - eta + c)


def ratio(copies: int) -> float:
    """Return the score of a noise row of norm 1 off the planted span, over that of a planted key."""
    rng = np.random.default_rng(0)
    keys = flat_noise(2, copies, 8, 1.0, rng)
    scores = lev.leverage_scores(keys)
    off = 2 + int(np.argmin(np.linalg.norm(keys[2:10, :2], axis=1)))
    return float(scores[off] / scores[0])


def main() -> None:
    """Run every check."""
    for seed in range(10):
        score, bound = stand_out(seed)
        assert score >= bound
    print(f"planted keys score at least {score:.3f}, promised {bound:.3f}")
    keys = flat_noise(3, 5, 6, 0.3, np.random.default_rng(0))
    scores, c = lev.leverage_scores(keys), 5 * 0.3**2
    assert np.allclose(scores[:3], 1 / (1 + c), rtol=1e-9)
    print(f"orthonormal keys in flat noise: {scores[0]:.6f}, the bound is {1 / (1 + c):.6f}")
    rng = np.random.default_rng(1)
    largest = [planted(1, 400, 50, 0.3, rng)[2] for _ in range(50)]
    promised = 400 * 0.09 / 50 * (1 + np.sqrt(50 / 400)) ** 2
    print(f"Gaussian noise: c at most {max(largest) / promised:.2f} times the formula without t, over 50 draws")
    assert max(largest) <= 0.09 / 50 * (np.sqrt(400) + np.sqrt(50) + 3) ** 2
    for copies in (1, 10, 1000):
        print(
            f"no gap: {copies} times d noise rows of norm 1, the best noise row has {ratio(copies):.3f} times the score"
        )
    assert ratio(1) > 1
    assert abs(ratio(1000) - 1) < 2e-3


if __name__ == "__main__":
    main()
