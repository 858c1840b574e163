"""How many keys of trained models are in the universal set, p = 1, 2, 3, 4: a table, a figure, the bound beside.

python asv_benchmarks/sizes.py                     the shipped sample, and others where --shared names their folder
LEV_BENCH_QUICK=1 python asv_benchmarks/sizes.py --stdout     a pass that only proves that it runs

Every size is a bracket: keys proved to reach epsilon, and keys not proved to stay below it.
"""

import argparse
from pathlib import Path

import numpy as np

import lev
from benchmarks.common import QUICK
from benchmarks.regimes import samples
from output import COLOURS, RESULTS, picture
from output import table as markdown

POWERS = (1, 2, 3, 4)
ROWS = 160 if QUICK else 768  # p = 1 is a linear program a key
EPSILONS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
GRID = np.logspace(-2.5, 0, 120)
TOLERANCE = 0.25


def sizes(brackets, epsilons):
    """Return (least, most) members at each epsilon."""
    lower, upper = brackets
    return np.array([[np.sum(lower >= epsilon), np.sum(upper >= epsilon)] for epsilon in epsilons])


def bound(keys, p, epsilons):
    """Return d^max(1, p/2) / epsilon."""
    return keys.shape[1] ** max(1, p / 2) / epsilons


def table(found):
    lines = []
    for name, (keys, brackets) in found.items():
        for p in POWERS:
            cells = []
            for (least, most), limit in zip(sizes(brackets[p], EPSILONS), bound(keys, p, EPSILONS), strict=True):
                size = f"{most}" if least == most else f"{least}-{most}"
                cells.append(f"{size} / {limit:,.0f}")
            lines.append([f"{name}, {len(keys)} x {keys.shape[1]}", p, *cells])
    return markdown(["keys", "p", *(f"ε = {epsilon:g}" for epsilon in EPSILONS)], lines)


def draw(found, path):
    with picture(path, 1, len(found), (4.2 * len(found), 3.6), sharey=True) as axes:
        for axis, (name, (keys, brackets)) in zip(axes[0], found.items(), strict=True):
            _panel(axis, name, keys, brackets)
        axes[0, 0].set_ylabel("keys that can receive ε  (dotted: the bound)")
        axes[0, 0].legend(frameon=False)


def _panel(axis, name, keys, brackets):
    for p, colour in zip(POWERS, COLOURS, strict=False):
        least, most = sizes(brackets[p], GRID).T
        axis.fill_between(GRID, np.maximum(least, 0.5), np.maximum(most, 0.5), color=colour, alpha=0.35, lw=0)
        axis.plot(GRID, np.where(most > 0, most, np.nan), color=colour, label=f"p = {p}")
        axis.plot(GRID, bound(keys, p, GRID), color=colour, ls=":", lw=1)
    axis.axhline(len(keys), color=COLOURS[5], lw=0.7)
    axis.set(xscale="log", yscale="log", xlabel="ε", title=f"{name}: {len(keys)} keys, d = {keys.shape[1]}")
    axis.set_ylim(0.7, 30 * len(keys))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder of the other models' keys")
    parser.add_argument("--stdout", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args()
    found = {}
    for name, keys in samples(arguments.shared):
        keys = keys[:ROWS].astype(np.float64)
        found[name] = keys, {p: lev.sensitivities(keys, p, tolerance=TOLERANCE) for p in POWERS}
    for keys, brackets in found.values():
        for p in POWERS:
            assert np.all(sizes(brackets[p], EPSILONS)[:, 0] <= bound(keys, p, EPSILONS))
    print(table(found))
    if not arguments.stdout:
        (RESULTS / "sizes.md").write_text(table(found) + "\n")
        draw(found, RESULTS / "sizes.png")


if __name__ == "__main__":
    main()
