"""Planted keys: which scores find 32 special keys among 8192, against the noise.

Two worlds.  *Same directions*: the planted keys are orthonormal, the rest is noise N(0, nu^2 I / d); at nu = 1 there is
no gap, and no score of the keys can tell them apart.  *Rare directions*: the rest fills half of the space with norm 1
and has noise on top, the planted keys are small (norm 0.3), orthogonal, and stand in the other half.

    python experiments/planted.py
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

import lev

N, D, PLANTED, EPSILON, SMALL = 8192, 64, 32, 0.1, 0.3
NOISE = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.22, 0.25, 0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 1.0, 1.2]
METHODS = ["leverage", "row norm", "random"]
WORLDS = ["same directions", "rare directions"]
VERDICT = (
    "With the same directions the row norm ranks as well as leverage; both fall to nothing just below noise 1, where "
    "the largest of 8160 noise rows is as long as a planted one: there is no gap to find. With rare directions the row "
    "norm finds nothing at any noise, and leverage everything until the noise fills the rare half. In every row no "
    "heavy entry is missed: as the noise grows the planted keys stop being heavy, and U empties with them, long before "
    "the ranking fails.\n"
)


def keys_of(world: str, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (keys, rows of the planted ones)."""
    keys = rng.standard_normal((N, D)) * noise / np.sqrt(D)
    rows = rng.choice(N, PLANTED, replace=False)
    keys[rows] = 0
    free, size = (0, 1.0) if world == "same directions" else (D // 2, SMALL)
    bulk = rng.standard_normal((N, free))
    keys[:, :free] += bulk / np.maximum(np.linalg.norm(bulk, axis=1, keepdims=True), 1e-300)
    special = np.linalg.qr(rng.standard_normal((D - free, PLANTED)))[0].T
    keys[rows] = np.hstack([np.zeros((PLANTED, free)), size * special])
    return keys, rows


def floor(noise: float) -> float:
    """Return 1 / (1 + the noise's mass in any direction): below the planted scores of *same directions*, at large n."""
    return 1 / (1 + (N - PLANTED) * noise**2 / D * (1 + np.sqrt(D / N)) ** 2)


def trial(world: str, noise: float, seed: int) -> dict[str, float]:
    """Return the share of planted keys among the top 32 of each score, and what the universal set holds."""
    rng = np.random.default_rng([seed, WORLDS.index(world), int(noise * 1000)])
    keys, rows = keys_of(world, noise, rng)
    members = lev.Sketch(D, 1e-9).update(keys).universal_set()
    scores = {"leverage": members.scores, "row norm": np.linalg.norm(keys, axis=1), "random": rng.random(N)}
    found = {name: float(np.isin(np.argsort(-score)[:PLANTED], rows).mean()) for name, score in scores.items()}
    universal = lev.universal_set(keys, EPSILON)
    best = keys[rows] @ np.linalg.pinv(keys.T @ keys, hermitian=True)
    heavy = lev.heavy_entries(np.vstack([keys[rows], best]), keys, EPSILON)
    return found | {
        "planted in U": float(np.isin(rows, universal.indices).mean()),
        "size of U": float(len(universal)),
        "heavy": float(heavy.nnz),
        "missed": float(np.sum(~np.isin(heavy.indices, universal.indices))),
        "least planted τ": float(members.scores[rows].min()),
        "largest other τ": float(np.delete(members.scores, rows).max()),
    }


def text_of(results: dict[str, Any]) -> str:
    parts = [
        f"{PLANTED} planted keys among {N} of dimension {D}; mean and deviation over {results['seeds']} seeds. "
        "The first columns are the share of the planted keys among the top 32. τ is the least leverage score of a "
        "planted key and the largest of another. U is the universal set at "
        f"ε = {EPSILON} for |⟨q,k⟩|² weights; *missed* counts the heavy entries of 64 queries (the planted keys, and "
        "the best query of each) whose key is not in U, over all seeds.\n"
    ]
    head = ["noise", *METHODS, "least planted τ", "largest other τ", "planted in U", "size of U", "heavy", "missed"]
    for world in WORLDS:
        rows = []
        for noise, trials in results[world].items():
            values = {name: [t[name] for t in trials] for name in trials[0]}
            means = [common.spread(values[name]) for name in head[1:4]]
            levels = [float(np.mean(values[name])) for name in head[4:7]]
            counts = [f"{np.mean(values[name]):.1f}" for name in head[7:9]]
            rows.append([noise, *means, *levels, *counts, f"{sum(values['missed']):.0f}"])
        parts.append(f"**{world.capitalize()}**\n\n{common.table(head, rows)}")
    parts.append(VERDICT)
    return "\n".join(parts)


def draw(results: dict[str, Any]) -> Any:
    figure, grid = common.axes(3, [*(f"Planted: {world}" for world in WORLDS), "Scores, same directions"])
    for place, world in zip(grid, WORLDS, strict=False):
        for method in [*METHODS, "planted in U"]:
            means = [np.mean([t[method] for t in trials]) for trials in results[world].values()]
            place.plot(NOISE, means, "--" if method == "planted in U" else "o-", ms=3, label=method)
        place.set(ylabel="share of the planted keys found", ylim=(-0.03, 1.03))
    for name in ("least planted τ", "largest other τ"):
        means = [np.mean([t[name] for t in trials]) for trials in results[WORLDS[0]].values()]
        grid[2].plot(NOISE, means, "o-", ms=3, label=name)
    grid[2].plot(NOISE, [floor(noise) for noise in NOISE], "k:", label="1 / (1 + mass of the noise)")
    grid[2].set(yscale="log")
    for place in grid:
        place.set(xscale="log", xlabel="noise")
        place.axvline(1, color="0.8", lw=0.8)
        place.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    arguments = common.parser(__doc__).parse_args()
    seeds = 1 if arguments.smoke else 10
    results: dict[str, Any] = {"n": N, "d": D, "planted": PLANTED, "epsilon": EPSILON, "seeds": seeds}
    for world in WORLDS:
        results[world] = {str(noise): [trial(world, noise, seed) for seed in range(seeds)] for noise in NOISE}
    common.write(arguments.out, "planted", results, text_of(results), draw(results))


if __name__ == "__main__":
    main()
