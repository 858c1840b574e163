"""Training with selection: a ViT on MNIST in 2x2 patches (197 keys, head size 64) that sees 32 or 64 keys a head.

For every seed: full softmax attention; the same model restricted afterwards to the top 32 and 64 keys by leverage, row
norm and at random; and models trained with each selection after a warm start on full attention.

    python experiments/training.py                  # about 20 minutes on two cores
    python experiments/training.py --scale gpu --device cuda

A stopped run goes on where it was.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import common
import vit
from torch.nn.functional import scaled_dot_product_attention

from lev.torch import lev_attention

SELECTORS = ["leverage", "norm", "random"]
SIZES = [32, 64]
WARM = 0.3  # the share of the steps on full attention before the selection begins
PAPER = (
    "The paper reports for ViT L/16 on ImageNet: pretrained then restricted to the top 32, 48.6 % by leverage against "
    "8.9 % by row norm; trained with selection, all three near each other and above 90 % of full accuracy."
)


def variants() -> list[tuple[str, vit.Attend]]:
    return [
        (f"{name} {m}", functools.partial(lev_attention, top_k=m, selector=name, crossover=0))
        for name in SELECTORS
        for m in SIZES
    ]


def a_seed(ledger: common.Ledger, scale: vit.Scale, train: vit.Data, test: vit.Data, seed: int) -> None:
    """Run everything for one seed that is not in the ledger; all variants share the warm start of the full model."""
    names = [f"{seed}/full", *(f"{seed}/trained {name}" for name, _ in variants())]
    if all(name in ledger.runs for name in names):
        return
    run = vit.Training(scale, train, seed, scaled_dot_product_attention).run(int(WARM * scale.steps))
    warm = run.state()
    if names[0] not in ledger.runs:
        run.run(scale.steps)
        result = {"full": vit.accuracy(run.model, test)}
        result |= {name: vit.accuracy(run.model.use(attend), test) for name, attend in variants()}
        ledger.add(names[0], result)
    for name, (_, attend) in zip(names[1:], variants(), strict=True):
        if name not in ledger.runs:
            run = vit.Training(scale, train, seed, attend).load(warm).run(scale.steps)
            ledger.add(name, vit.accuracy(run.model, test))


def collect(ledger: common.Ledger, seeds: int) -> dict[str, dict[str, list[float]]]:
    full = [ledger.runs[f"{seed}/full"] for seed in range(seeds)]
    names = [name for name, _ in variants()]
    return {
        "full": {"full": [run["full"] for run in full]},
        "restricted": {name: [run[name] for run in full] for name in names},
        "trained": {name: [ledger.runs[f"{seed}/trained {name}"] for seed in range(seeds)] for name in names},
    }


def text_of(results: dict[str, Any]) -> str:
    settings, found = results["settings"], results["accuracy"]
    full = statistics.fmean(found["full"]["full"])
    head = ["keys chosen by", "restricted afterwards", "share of full", "trained with it", "share of full"]
    rows = [
        [
            name,
            common.spread(found["restricted"][name]),
            statistics.fmean(found["restricted"][name]) / full,
            common.spread(found["trained"][name]),
            statistics.fmean(found["trained"][name]) / full,
        ]
        for name in found["trained"]
    ]
    return (
        f"Accuracy on {settings['tested']} test images, mean and standard deviation over {settings['seeds']} seeds; "
        f"{settings['layers']} layers, {settings['heads']} heads of size 64, {settings['images']} training images, "
        f"{settings['epochs']} epochs, warm start {WARM:.0%} of the steps. Full softmax attention over 197 keys: "
        f"{common.spread(found['full']['full'])}.\n\n{common.table(head, rows)}\n{verdict(found, full)} {PAPER}\n"
    )


def verdict(found: dict[str, Any], full: float) -> str:
    """Return in words what the figures say, whatever they say."""
    mean = {kind: {name: statistics.fmean(values) for name, values in found[kind].items()} for kind in found}
    after, trained = mean["restricted"], mean["trained"]
    m = SIZES[0]
    order = sorted(SELECTORS, key=lambda name: -after[f"{name} {m}"])
    said = ", ".join(f"{name} {after[f'{name} {m}']:.3f}" for name in order)
    least, most = (pick(trained[f"{name} {m}"] for name in SELECTORS) for pick in (min, max))
    ahead = after[f"leverage {m}"] > after[f"norm {m}"]
    near = least > 0.9 * full
    return (
        f"Restricted afterwards to {m} keys, best first: {said}. Trained with {m} keys they lie between {least:.3f} "
        f"and {most:.3f}, {least / full:.0%} to {most / full:.0%} of full accuracy. Leverage ahead of row norm when "
        f"restricted afterwards, as in the paper: {'yes' if ahead else 'no'}; all above 90 % of full accuracy when "
        f"trained with the selection, as in the paper: {'yes' if near else 'no'}."
    )


def draw(results: dict[str, Any]) -> Any:
    found = results["accuracy"]
    figure, grid = common.axes(2, ["Restricted afterwards", "Trained with the selection"])
    for place, kind in zip(grid, ("restricted", "trained"), strict=True):
        for x, values in enumerate(found[kind].values()):
            place.bar(x, statistics.fmean(values), color="0.8")
            place.plot([x] * len(values), values, "k.", ms=5)
        place.axhline(statistics.fmean(found["full"]["full"]), ls="--", lw=0.8, label="full attention")
        place.set_xticks(range(len(found[kind])), list(found[kind]), rotation=30, ha="right", fontsize=8)
        place.set(ylabel="accuracy", ylim=(0, 1))
        place.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    run = common.start("training", __doc__, warm=WARM)
    for seed in range(run.scale.seeds):
        a_seed(run.ledger, run.scale, run.train, run.test, seed)
    results = {"settings": run.ledger.settings, "accuracy": collect(run.ledger, run.scale.seeds)}
    run.finish("training", results, text_of(results), draw(results))


if __name__ == "__main__":
    main()
