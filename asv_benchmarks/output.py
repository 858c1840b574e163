"""What the reports share: the machine they ran on, tables, figures of one style, and their command line."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lev.plot import STYLE

RESULTS = Path(__file__).parent / "results"
COLOURS = ("#2466a8", "#c4502a", "#3d8b56", "#7a4ea3", "#b08a1e", "#6b7885")
PACKAGES = ("lev-attention", "numpy", "scipy", "numba", "torch", "scikit-learn", "statsmodels", "cvxpy", "distributed")


def machine():
    """Return the processor, its cores, the date, and the version of every package that takes part."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "date": datetime.date.today().isoformat(), "versions": versions()}


def versions():
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(head, rows):
    """Return a Markdown table of cells that are text, or whatever ``str`` makes of them."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def slope(x, y):
    """Return the fitted exponent of y ~ x^slope over the larger half of the points, where constants weigh least."""
    order = np.argsort(x)[len(x) // 2 - (len(x) > 2) :]
    return float(np.polyfit(np.log(np.asarray(x)[order]), np.log(np.asarray(y)[order]), 1)[0])


def crossing(x, ratios):
    """Return where ``ratios``, on a logarithmic scale between the points, last rise above 1; None if they never do."""
    logs = np.log(ratios)
    if logs[-1] <= 0:
        return None
    below = np.flatnonzero(logs <= 0)
    if not len(below):
        return x[0]
    i = below[-1]
    share = logs[i] / (logs[i] - logs[i + 1])
    return float(np.exp((1 - share) * np.log(x[i]) + share * np.log(x[i + 1])))


@contextmanager
def picture(path, rows, columns, size, **options):
    """Give the axes (rows, columns) of a figure in the style of :mod:`lev.plot` and write it to ``path``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
        yield figure.subplots(rows, columns, squeeze=False, **options)
        figure.savefig(path, metadata={"Software": None})


def report(description, name, measure, text, draw=None):
    """Run one report: measure, print the text, and write ``results/name`` as .json, .md and .png."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stdout", action="store_true", help="print only, write nothing")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: table and figure of the .json there is")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    arguments = parser.parse_args()
    data = arguments.results / f"{name}.json"
    result = json.loads(data.read_text()) if arguments.redraw else {"machine": machine(), **measure()}
    result = json.loads(json.dumps(result))  # as it will be read again: no tuples, no integer names
    print(text(result))
    if arguments.stdout:
        return
    arguments.results.mkdir(exist_ok=True)
    data.write_text(json.dumps(result, indent=1) + "\n")
    data.with_suffix(".md").write_text(text(result) + "\n")
    if draw is not None:
        draw(result, data.with_suffix(".png"))
