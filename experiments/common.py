"""What every experiment shares: its command line, and how it writes figures, tables and numbers."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import vit

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "shared" / "data"  # extracted keys of trained models and MNIST, beside the checkout


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a command line with what all experiments understand."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    made.add_argument("--samples", type=Path, default=SAMPLES, help="folder of the real keys and of mnist.npz")
    made.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its own choice")
    made.add_argument("--smoke", action="store_true", help="a run of seconds that shows that the script works")
    return made


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a markdown table; floats get three decimals."""
    lines = [[cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *lines]) + "\n"


def cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def spread(values: Iterable[float]) -> str:
    """Return the mean and the standard deviation of the runs as text; one run has no deviation."""
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def write(out: Path, name: str, results: dict[str, Any], text: str, figure: Any) -> None:
    """Write ``name``.json, .md and .png into ``out``; a file is replaced whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png.part", format="png", dpi=130, metadata={"Software": None})
    os.replace(out / f"{name}.png.part", out / f"{name}.png")
    rewrite(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
    rewrite(out / f"{name}.md", text)
    print(text)


def rewrite(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    os.replace(part, path)


class Ledger:
    """Runs that are done, in a file: a stopped experiment goes on where it was, if its settings are the same."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.runs: dict[str, Any] = stored["runs"] if stored.get("settings") == self.settings else {}

    def add(self, key: str, result: Any) -> None:
        self.runs[key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rewrite(self.path, json.dumps({"settings": self.settings, "runs": self.runs}))
        print(key, result, flush=True)


@dataclass(frozen=True)
class Start:
    """What an experiment that trains begins with."""

    out: Path
    scale: vit.Scale
    train: vit.Data
    test: vit.Data
    ledger: Ledger

    def finish(self, name: str, results: dict[str, Any], text: str, figure: Any) -> None:
        """Write the results; the ledger has served."""
        write(self.out, name, results, text, figure)
        self.ledger.path.unlink()


def start(name: str, description: str | None, tested: int | None = None, **settings: Any) -> Start:
    """Read the command line of an experiment that trains, and return its scale, data and ledger.

    ``tested`` images are used at full size, by default as many as the scale says; ``settings`` go into the ledger.
    """
    import torch
    import vit

    made = parser(description)
    made.add_argument("--scale", choices=["cpu", "gpu"], default="cpu", help="how much is trained")
    made.add_argument("--device", default="cpu", help="device of torch, such as cuda")
    arguments = made.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    scale = vit.SCALES["smoke" if arguments.smoke else arguments.scale]
    if tested and not arguments.smoke:
        scale = replace(scale, tested=tested)
    train = vit.Data.load(arguments.samples, "train", scale.images, arguments.device)
    test = vit.Data.load(arguments.samples, "test", scale.tested, arguments.device)
    ledger = Ledger(arguments.out / f"{name}.part.json", scale.settings() | settings)
    return Start(arguments.out, scale, train, test, ledger)


def axes(columns: int, titles: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return a matplotlib figure without pyplot and one pair of axes for each title, left to right, top down."""
    from matplotlib.figure import Figure

    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    grid = [figure.add_subplot(lines, columns, i + 1) for i in range(len(titles))]
    for place, title in zip(grid, titles, strict=True):
        place.set_title(title, loc="left", fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    return figure, grid
