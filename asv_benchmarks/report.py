"""Measure everything in one command and write the figures, with the machine, the date and the versions.

python asv_benchmarks/report.py            all, about ten minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/report.py --stdout     a pass that only proves that it runs
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import numba
import numpy as np
import scipy

import lev
from benchmarks import common, memory
from benchmarks.stream import streamed

RESULTS = Path(__file__).parent / "results"


def machine():
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {module.__name__: module.__version__ for module in (lev, np, scipy, numba)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "date": datetime.date.today().isoformat(), "versions": versions}


def stream_row(shape, condition):
    """Return the seconds of lev and of its peers on the same keys, in turn."""
    keys = common.make_keys(*shape, condition)
    tasks = {
        "read": lambda: common.sumscan(keys),
        "gram": lambda: common.gram(keys),
        "lev": lambda: streamed(keys),
        "gram_cholesky_solve": lambda: common.gram_cholesky_solve(keys),
    }
    seconds = common.interleaved(tasks)
    seconds["qr"] = common.interleaved({"qr": lambda: common.qr(keys)}, 1)["qr"]
    return {"n": shape[0], "d": shape[1], "condition": condition, "seconds": seconds}


def other_rows():
    """Return the seconds of lev and of the Gram product for other powers and for many heads."""
    found = []
    for p in (1, 3, 4):
        keys = common.make_keys(*common.SHAPES[0], 30)
        tasks = {"lev": lambda keys=keys, p=p: streamed(keys, p=p), "gram": lambda keys=keys: common.gram(keys)}
        what = f"p = {p}, {keys.shape[0]:,} x {keys.shape[1]}"
        found.append({"what": what, "seconds": common.interleaved(tasks, min(3, common.REPEATS))})
    for shape in common.HEADS:
        keys = common.make_heads(*shape)
        tasks = {
            "lev": lambda keys=keys: streamed(keys, 0.5),
            "gram": lambda keys=keys: keys.swapaxes(-1, -2) @ keys,
        }
        what = f"{shape[0]} heads of {shape[1]:,} x {shape[2]}"
        found.append({"what": what, "seconds": common.interleaved(tasks, min(5, common.REPEATS))})
    return found


def other_table(rows):
    lines = ["| what | K.T @ K ms | lev ms | lev / K.T @ K |", "|---|---|---|---|"]
    for row in rows:
        gram, own = row["seconds"]["gram"], row["seconds"]["lev"]
        lines.append(f"| {row['what']} | {gram * 1e3:.0f} | {own * 1e3:.0f} | {own / gram:.1f} |")
    return "\n".join(lines)


def table(rows):
    head = ["n", "d", "cond", "K.T @ K ms", "lev ms", "lev / K.T @ K", "Gram+Cholesky+solve / lev", "QR / lev"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        s = row["seconds"]
        cells = [f"{row['n']:,}", row["d"], row["condition"], f"{s['gram'] * 1e3:.0f}", f"{s['lev'] * 1e3:.0f}"]
        cells += [f"{s['lev'] / s['gram']:.2f}", f"{s['gram_cholesky_solve'] / s['lev']:.1f}"]
        cells += [f"{s['qr'] / s['lev']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stdout", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args()
    rows = [stream_row(shape, condition) for shape in common.SHAPES for condition in common.CONDITIONS]
    peaks = {dim: memory.stream_peaks(100_000 if common.QUICK else 10_000_000, dim) for dim in (16, 64)}
    others = other_rows()
    result = {"machine": machine(), "epsilon": common.EPSILON, "stream": rows, "others": others, "peak_mb": peaks}
    text = f"{table(rows)}\n\n{other_table(others)}"
    print(text)
    print("MB above the warm interpreter after growing streams:", json.dumps(peaks))
    if not arguments.stdout:
        (RESULTS / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "cpu.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
