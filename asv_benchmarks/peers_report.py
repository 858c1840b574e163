"""Peers side by side on streams that are hard in different ways: time, memory, members missed, share that is right.

python asv_benchmarks/peers_report.py                      all, about six minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/peers_report.py --stdout     a pass that only proves that it runs

Packages that are not installed are skipped with a word: pip install -e '.[bench]' torch.  kvpress wants a transformers
of its own: install it and lev in another environment and name its interpreter in LEV_BENCH_KVPRESS.
"""

import math
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import peers
from benchmarks.common import QUICK
from benchmarks.regimes import regimes
from lev.plot import percent
from output import COLOURS, picture, report, table

OWN = "lev.Sketch, in blocks"
SHAPE = (2_000, 64) if QUICK else (100_000, 64)


def measure():
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for i, (name, keys, epsilon) in enumerate([*regimes(*SHAPE), *peers.short_streams()]):
            files[name] = Path(folder) / f"{i}.npz"
            peers.save(files[name], keys, epsilon)
        found = {peer.name: peers.measure(peer, files.values()) for peer in peers.PEERS}
    return {"streams": list(files), "short": len(peers.SHORT), "peers": found}


def regimes_of(result):
    return result["streams"][: -result["short"]]


def every(result):
    """Return for each peer that ran its rows, one a stream.

    K.T @ K was timed beside each peer; all are held to its median, for threads that a peer leaves behind slow it.
    """
    found = {name: found["rows"] for name, found in result["peers"].items() if "rows" in found}
    grams = [
        median(row["seconds"]["gram"] for row in rows if "seconds" in row) for rows in zip(*found.values(), strict=True)
    ]
    return {name: [_beside(row, gram) for row, gram in zip(rows, grams, strict=True)] for name, rows in found.items()}


def _beside(row, gram):
    return {**row, "seconds": {**row["seconds"], "gram": gram}} if "seconds" in row else row


def ran(result):
    """Return for each peer that ran its rows, one a regime."""
    return {name: rows[: -result["short"]] for name, rows in every(result).items()}


def ratio(row):
    return row["seconds"]["peer"] / row["seconds"]["gram"]


def missed_share(row):
    return math.nan if "failed" in row else row["missed"] / max(1, row["members"])


def right_share(row):
    """Return the share of the set that reaches epsilon, averaged over draws; 1 for a set that is empty."""
    return row["right"] / row["size"] if row["size"] else 1.0


def summary(result):
    """Return the table of peers: what each can do, and its middle and worst figures over the regimes."""
    head = ["", "streams", "merges", "time / K.T @ K", "peak MB", "members missed, worst", "share of its set right"]
    lines = []
    for name, rows in ran(result).items():
        peer, done = peers.NAMED[name], [row for row in rows if "seconds" in row]
        times, failed = [ratio(row) for row in done], len(rows) - len(done)
        missed = max(map(missed_share, done))
        lines.append(
            [
                name,
                peer.streams,
                peer.merges,
                f"{median(times):.1f} ({min(times):.1f}-{max(times):.1f})",
                f"{median(row['peak_mb'] for row in done):.0f}",
                percent(missed) + (f", fails on {failed}" if failed else ""),
                percent(min(map(right_share, done))),
            ]
        )
    return table(head, lines)


def cells(result, cell):
    """Return the table peer by regime of ``cell(row)``; regimes with the number of members there are."""
    found = ran(result)
    members = [row["members"] for row in next(iter(found.values()))]
    head = ["", *(f"{regime} ({count})" for regime, count in zip(regimes_of(result), members, strict=True))]
    lines = [[name, *("fails" if "failed" in row else cell(row) for row in rows)] for name, rows in found.items()]
    return table(head, lines)


def faultless(row):
    return row["missed"] == 0 and row["right"] == row["size"]


def fastest(result):
    """Return the table of the fastest way that misses nothing and takes nothing else, for every stream."""
    lines = []
    for i, stream in enumerate(result["streams"]):
        rows = {name: rows[i] for name, rows in every(result).items() if "seconds" in rows[i]}
        right = {name: row["seconds"]["peer"] for name, row in rows.items() if faultless(row)}
        own, best = rows[OWN], min(right, key=right.get, default="none")
        times = (right.get(best, math.nan), own["seconds"]["peer"], own["seconds"]["gram"])
        lines.append([stream, f"{own['shape'][0]:,}", best, *(f"{1e3 * seconds:.1f}" for seconds in times)])
    return table(["stream", "rows", "fastest of those without a fault", "its ms", f"{OWN} ms", "K.T @ K ms"], lines)


def text(result):
    skipped = [f"{name}: skipped, {found['skipped']}" for name, found in result["peers"].items() if "skipped" in found]
    failed = [
        f"{name}, {regime}: {row['failed']}"
        for name, rows in ran(result).items()
        for regime, row in zip(regimes_of(result), rows, strict=True)
        if "failed" in row
    ]
    parts = (
        ("", summary(result)),
        ("The fastest way that misses nothing and takes nothing else", fastest(result)),
        ("Members missed / share of the set that reaches ε", cells(result, set_cell)),
        ("Members missed by as many best as there are", cells(result, lambda row: f"{row['missed_at_equal_size']:g}")),
        ("Time over K.T @ K", cells(result, lambda row: f"{ratio(row):.1f}")),
        ("Peak MB above the warm process and the keys", cells(result, lambda row: f"{row['peak_mb']:.0f}")),
    )
    tables = [f"{title}:\n\n{body}" if title else body for title, body in parts]
    return "\n\n".join([*tables, *(f"- {line}" for line in skipped + failed)])


def set_cell(row):
    return f"{row['missed']:g} / {percent(right_share(row)) if row['size'] else 'empty'}"


def draw(result, path):
    with picture(path, 1, 3, (12.5, 4.6)) as axes:
        missed, times, memory = axes[0]
        _map(missed, result)
        found = ran(result)
        done = {name: [row for row in rows if "seconds" in row] for name, rows in found.items()}
        _spread(times, [[ratio(row) for row in rows] for rows in done.values()], "time / K.T @ K")
        _spread(memory, [[max(row["peak_mb"], 0.1) for row in rows] for rows in done.values()], "peak MB")
        times.set_title("Time")
        memory.set_title("Memory above keys and interpreter")


def _map(axes, result):
    """Draw the share of members missed, peer by regime."""
    found = ran(result)
    share = np.array([[missed_share(row) for row in rows] for rows in found.values()])
    axes.imshow(np.ma.masked_invalid(share), cmap="Reds", vmin=0, vmax=1.3, aspect="auto")
    for i, j in np.ndindex(share.shape):
        word = "fails" if np.isnan(share[i, j]) else f"{100 * share[i, j]:.2g}" if share[i, j] < 0.995 else "100"
        axes.text(j, i, word, ha="center", va="center", fontsize=6.5, color="#1f2a36" if share[i, j] else "#b9c2cb")
    axes.set_xticks(range(share.shape[1]), regimes_of(result), rotation=45, ha="right")
    axes.set_yticks(range(len(found)), found)
    axes.tick_params(length=0)
    axes.set_title("Members missed at the threshold, %")


def _spread(axes, values, label):
    """Draw a line from the least to the most of each row of values and a point in their middle."""
    for i, row in enumerate(values):
        colour = COLOURS[0] if i < 3 else COLOURS[5]
        axes.plot([min(row), max(row)], [i, i], color=colour, lw=1.2)
        axes.plot(median(row), i, "o", color=colour, ms=4)
        axes.annotate(f"{median(row):.3g}", (max(row), i), (5, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set(xscale="log", xlabel=label, ylim=(len(values) - 0.5, -0.5), yticks=[])
    axes.xaxis.set_minor_formatter("")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.15)


if __name__ == "__main__":
    report(__doc__, "peers", measure, text, draw)
