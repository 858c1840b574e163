"""The streamed set, other powers, heads and memory: the figures, with the machine, the date and the versions.

python asv_benchmarks/report.py            all, about ten minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/report.py --stdout     a pass that only proves that it runs
"""

import importlib.util

from benchmarks import common, memory
from benchmarks.stream import SAMPLE, streamed
from output import report, table


def stream_row(shape, condition):
    """Return the seconds of lev and of its peers on the same keys, in turn."""
    keys = common.make_keys(*shape, condition)
    tasks = {
        "read": lambda: common.sumscan(keys),
        "gram": lambda: common.gram(keys),
        "lev": lambda: streamed(keys),
        "sampled": lambda: streamed(keys, sample=SAMPLE),
        "gram_cholesky_solve": lambda: common.gram_cholesky_solve(keys),
    }
    seconds = common.interleaved(tasks)
    seconds["qr"] = common.interleaved({"qr": lambda: common.qr(keys)}, 1)["qr"]
    return {"n": shape[0], "d": shape[1], "condition": condition, "seconds": seconds}


def other_rows():
    """Return the seconds of lev and of the Gram product near the threshold, for other powers and for many heads."""
    found = []
    for n, d in common.SHAPES:
        found.append(other_row(f"epsilon = 2 d / n, {n:,} x {d}", (n, d), 5, epsilon=2 * d / n))
    for p in (1, 3, 4):
        n, d = common.SHAPES[0]
        found.append(other_row(f"p = {p}, {n:,} x {d}", (n, d), 3, p=p))
    for shape in common.HEADS:
        what = f"{shape[0]} heads of {shape[1]:,} x {shape[2]}"
        for name, task in head_tasks(common.make_heads(*shape)).items():
            found.append({"what": f"{what}, {name}", "seconds": common.interleaved(task, min(5, common.REPEATS))})
    return found


def other_row(what, shape, repeats, **arguments):
    keys = common.make_keys(*shape, 30)
    tasks = {"lev": lambda: streamed(keys, **arguments), "gram": lambda: common.gram(keys)}
    return {"what": what, "seconds": common.interleaved(tasks, min(repeats, common.REPEATS))}


def head_tasks(keys):
    """Return the tasks to time for each way to get the universal set of every head."""
    gram = {"gram": lambda: keys.swapaxes(-1, -2) @ keys}
    tasks = {"lev.Sketch": {"lev": lambda: streamed(keys, 0.5), **gram}}
    if importlib.util.find_spec("torch") is not None:  # last, for it brings a thread pool of its own
        import torch

        from lev.torch import universal_keys

        tensor = torch.from_numpy(keys)[None]
        tasks["lev.torch.universal_keys"] = {"lev": lambda: universal_keys(tensor, epsilon=0.5), **gram}
    return tasks


def other_table(rows):
    lines = []
    for row in rows:
        gram, own = row["seconds"]["gram"], row["seconds"]["lev"]
        lines.append([row["what"], f"{gram * 1e3:.0f}", f"{own * 1e3:.0f}", f"{own / gram:.1f}"])
    return table(["what", "K.T @ K ms", "lev ms", "lev / K.T @ K"], lines)


def stream_table(rows):
    head = ["n", "d", "cond", "K.T @ K ms", "lev ms", "lev / K.T @ K", "Gram+Cholesky+solve / lev", "QR / lev"]
    lines = []
    for row in rows:
        s = row["seconds"]
        cells = [f"{row['n']:,}", row["d"], row["condition"], f"{s['gram'] * 1e3:.0f}", f"{s['lev'] * 1e3:.0f}"]
        cells += [f"{s['lev'] / s['gram']:.2f}", f"{s['gram_cholesky_solve'] / s['lev']:.1f}"]
        lines.append([*cells, f"{s['qr'] / s['lev']:.1f}"])
    return table(head, lines)


def sample_table(rows):
    head = ["n", "d", "cond", "read ms", f"lev, sample = {SAMPLE:g}, ms", "sample / read", "sample / all rows"]
    lines = []
    for row in rows:
        s = row["seconds"]
        cells = [f"{row['n']:,}", row["d"], row["condition"], f"{s['read'] * 1e3:.0f}", f"{s['sampled'] * 1e3:.0f}"]
        lines.append([*cells, f"{s['sampled'] / s['read']:.1f}", f"{s['sampled'] / s['lev']:.2f}"])
    return table(head, lines)


def measure():
    rows = [stream_row(shape, condition) for shape in common.SHAPES for condition in common.CONDITIONS]
    peaks = {dim: memory.stream_peaks(100_000 if common.QUICK else 10_000_000, dim) for dim in (16, 64)}
    return {"epsilon": common.EPSILON, "stream": rows, "others": other_rows(), "peak_mb": peaks}


def text(result):
    peaks = ", ".join(f"{marks[-1]:.0f} MB at d = {dim}" for dim, marks in result["peak_mb"].items())
    memory_line = f"Memory above the warm interpreter at the end of a long stream: {peaks}."
    return "\n\n".join(
        [stream_table(result["stream"]), sample_table(result["stream"]), other_table(result["others"]), memory_line]
    )


if __name__ == "__main__":
    report(__doc__, "cpu", measure, text)
