"""What the command line prints: tables for people, plain in a pipe, and JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lev import bounds
from lev.demo import Outcome
from lev.plot import headline, percent
from lev.readers import Reader
from lev.sketch import Sketch
from lev.universal import UniversalSet

_LISTED = 10


def sketch(
    held: Sketch, members: UniversalSet, *, as_json: bool, top: int | None = None, output: Path | None = None
) -> None:
    """Print what ``members``, a universal set of the sketch ``held``, says: of all, or of the ``top`` best."""
    best = members if top is None else members.top(top)
    most = min(bounds.max_members(held.rank, members.epsilon, held.p), float(held.count))
    if as_json:
        facts: dict[str, Any] = {
            "count": held.count,
            "dim": held.dim,
            "rank": held.rank,
            "p": held.p,
            "decay": held.decay,
        }
        facts |= {"intercept": held.intercept, "resolution": held.resolution, "epsilon": members.epsilon}
        facts |= {"size": len(best), "bound": most, "exact": members.exact, "omitted": best.omitted}
        facts |= {"indices": best.indices.tolist(), "scores": best.scores.tolist()}
        _json(facts | {"output": None if output is None else str(output)})
        return
    centred = ", with an intercept" if held.intercept else ""
    rank = "rank" if held.p <= 2 else f"rank^{held.p / 2:g}"
    lines = {
        "keys": f"{held.count:,} of {held.dim} numbers, rank {held.rank}{centred}",
        "epsilon": f"{members.epsilon:.6g}",
        "members": f"{len(members):,}; theory allows {most:,.0f} ({rank} / epsilon)",
        "exact": "yes, each member can reach epsilon" if members.exact else "no, some members may be below epsilon",
        "omitted": f"{best.omitted:.6g}, the most that any {'other ' * bool(len(best))}key can get",
        "resolution": f"{held.resolution:.2g} of the largest: a weaker direction counts as none",
    }
    if output is not None:
        lines["written"] = f"{output}, {output.stat().st_size:,} bytes"
    finding = headline(members) if top is None else f"The {len(best):,} best of {members.count:,} keys"
    _facts(finding, lines)
    order = np.lexsort((best.indices, -best.scores))[: _LISTED if top is None else top]
    rows = [(f"{best.indices[i]}", f"{best.scores[i]:.6f}") for i in order]
    _table(("key", "score"), rows, len(best))


def entries(found: np.ndarray, queries: int, epsilon: float, *, as_json: bool) -> None:
    """Print heavy entries; ``found`` is (4, m): query, key and the lower and upper end of the weight."""
    query, key, (lower, weight) = found[0].astype(int), found[1].astype(int), found[2:]
    if as_json:
        facts: dict[str, Any] = {"queries": queries, "epsilon": epsilon, "entries": len(weight)}
        facts |= {"query": query.tolist(), "key": key.tolist(), "weight": weight.tolist(), "lower": lower.tolist()}
        _json(facts)
        return
    sure, asked, keys = int(np.sum(lower >= epsilon)), len(np.unique(query)), len(np.unique(key))
    exact = np.array_equal(lower, weight)
    may, ending = "" if exact else "may ", "es" if exact and len(weight) < 2 else ""
    number = f"{len(weight):,} entr{'y' if len(weight) == 1 else 'ies'}" if len(weight) else "No entry"
    lines = {
        "queries": f"{queries:,}, of which {asked:,} {may}give some key as much",
        "keys": f"{keys:,} {may}get as much",
    }
    if not exact:
        lines["proved"] = f"{sure:,} entries do reach it: weights are known between two ends"
    _facts(f"{number} {may}reach{ending} {percent(epsilon)}", lines)
    order = np.lexsort((key, query, -weight))[:_LISTED]
    columns = ("query", "key", "weight") if exact else ("query", "key", "at least", "at most")
    ends = [weight] if exact else [lower, weight]
    rows = [(str(query[i]), str(key[i]), *(f"{end[i]:.6f}" for end in ends)) for i in order]
    _table(columns, rows, len(weight))


def demo(outcome: Outcome, picture: str, *, as_json: bool) -> None:
    """Print what the demonstration saw."""
    members = outcome.sketch.universal_set()
    if as_json:
        counts = {name: value for name, value in vars(outcome).items() if name != "sketch"}
        facts = {"keys": members.count, "dim": outcome.sketch.dim, "epsilon": members.epsilon, "picture": picture}
        _json(facts | counts | {"indices": members.indices.tolist(), "scores": members.scores.tolist()})
        return
    n, d = members.count, outcome.sketch.dim
    most = bounds.max_members(outcome.sketch.rank, members.epsilon)
    lines = {
        "keys": f"{n:,} of {d} numbers: layer 14 of SmolLM2-135M-Instruct, reading documentation",
        "epsilon": f"{members.epsilon:g}, which is {members.epsilon * n / d:.2g} times the mean score d/n",
        "universal set": f"{len(members):,} keys; theory allows {most:,.0f} (rank / epsilon)",
        "tried": f"{outcome.queries:,} queries: {outcome.natural:,} of the model's own, "
        f"and for {outcome.queries - outcome.natural:,} keys the one that gives the key the most",
        "heavy entries": f"{outcome.found:,} by brute force; the sketch alone differs in {outcome.wrong:,}",
        "members hit": f"{outcome.witnessed:,} of {len(members):,}: so many are in the set with good reason",
    }
    _facts(f"{headline(members)}, found in one pass", lines)
    console = Console(highlight=False)
    style = "bold green" if outcome.missed == 0 else "bold red"
    console.print(f"\n  [{style}]missed: {outcome.missed}[/{style}]\n")
    for line in (
        f"The model's own queries give no key more than {percent(outcome.natural_top)} here.",
        "The guarantee is for the weights <q,k>^2 / sum <q,k>^2, not for softmax attention.",
        f"Picture: {picture}",
    ):
        console.print(f"  {line}", style="dim", markup=False, soft_wrap=True)


@contextmanager
def progress(readers: Sequence[Reader]) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the rows just done; it draws a bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda rows: None
        return
    sizes = [reader.rows for reader in readers]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    columns = (BarColumn(), TextColumn("{task.completed:,} rows"), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda rows: bar.advance(task, rows)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s")


def _json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, allow_nan=False))


def _facts(title: str, lines: dict[str, str]) -> None:
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print()
    for name, fact in lines.items():
        console.print(Text.assemble((f"  {name:<{max(map(len, lines))}}  ", "dim"), fact), soft_wrap=True)


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]], total: int) -> None:
    if not rows:
        return
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    if total > len(rows):
        console.print(f"  and {total - len(rows):,} more", style="dim")
