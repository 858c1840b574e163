"""Files, start-up, 16-bit input, threads, processes, causal updates, and what is computed offline for p != 2.

python asv_benchmarks/system_report.py                     all, about a quarter of an hour on two cores and 3 GB of disk
LEV_BENCH_QUICK=1 python asv_benchmarks/system_report.py --stdout     a pass that only proves that it runs

LEV_BENCH_FILE_MB and LEV_BENCH_DASK_ROWS set the sizes of the two files that are written and deleted.
"""

import importlib.util

from benchmarks import causal, offline, system
from output import report, table

DISK = {
    "read": "read into one buffer",
    "sum": "sum of the memory map",
    "scan": "lev.scan",
    "update": "lev.Sketch.update",
}


def measure():
    has_dask = importlib.util.find_spec("distributed") is not None
    return {
        "disk": system.disk(),
        "start_up": system.start_up(),
        "dtypes": system.dtypes(),
        "threads": causal.thread_seconds(),
        "dask": {"rows": causal.DASK_ROWS, "seconds": causal.dask_seconds(causal.DASK_ROWS)} if has_dask else None,
        "causal": [{"dim": d, "epsilon": e, **causal.causal_seconds(d, e)} for d in (64, 128) for e in (0.05, 0.2)],
        "lewis": offline.lewis(),
        "refinement": [offline.refinement(p) for p in (1.5, 3, 4)],
    }


def disk_part(disk):
    rows = []
    for state, seconds in disk["seconds"].items():
        for name, label in DISK.items():
            rate, share = disk["mb"] / seconds[name], seconds["read"] / seconds[name]
            rows.append([state, label, f"{rate:,.0f}", f"{share:.0%}", f"{seconds['sum'] / seconds[name]:.0%}"])
    head = [f".npy of {disk['mb']} MB", "", "MB/s", "of the rate of reading", "of the rate of summing"]
    return table(head, rows)


def dtype_part(found):
    rows = []
    for one in found:
        if "skipped" in one:
            rows.append([one["dtype"], "skipped", one["skipped"], "", ""])
            continue
        over = one["lev"] / found[0]["lev"]
        rows.append(
            [one["dtype"], f"{one['keys_mb']:.0f}", f"{one['mb']:.0f}", f"{one['lev'] * 1e3:.0f}", f"{over:.2f}"]
        )
    return table(["keys", "MB of the keys", "peak MB above them", "lev ms", "over float32"], rows)


def parallel_part(result):
    threads, dask = result["threads"], result["dask"]
    rows = []
    for name, label in (("scan", "lev.scan"), ("products", "the Gram products in it alone")):
        one, two = (threads[f"{name} {n}"] for n in "12")
        rows.append([f"{label}, 1 and 2 threads", f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}"])
    if dask:
        one, two = (dask["seconds"][n] for n in "12")
        rows.append(
            [f"Dask, 1 and 2 processes, {dask['rows']:,} rows on disk", f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}"]
        )
    return table(["", "1: s", "2: s", "gain"], rows)


def causal_part(found):
    rows = []
    for one in found:
        micro = [f"{one[name] * 1e6:.2f}" for name in ("causal", "dsyr")]
        rows.append([one["dim"], one["epsilon"], *micro, f"{one['causal'] / one['dsyr']:.2f}"])
    return table(["d", "ε", "lev.CausalSketch µs a row", "dsyr µs a row", "ratio"], rows)


def lewis_part(lewis):
    n, d = lewis["shape"]
    floor = lewis["whole"]["gram"]
    rows = [
        [f"{what}, {n:,} x {d}", f"{lewis[name]:.2f}", f"{lewis[name] / lewis['gram']:.1f}"]
        for what, name in (("one round", "round"), ("before the first", "start"))
    ]
    for name, seconds in lewis["whole"].items():
        if name != "gram":
            rows.append([f"to 1e-11, {name}, {lewis['rows']:,} x {d}", f"{seconds:.2f}", f"{seconds / floor:.1f}"])
    return table(["lev.lewis_weights", "s", "over K.T @ K"], rows)


def refinement_part(found):
    names = list(found[0]["shares"])
    rows = []
    for one in found:
        cells = [f"{one['seconds'][name] * 1e3:.1f} / {1 - one['shares'][name]:.1g}" for name in names]
        rows.append([f"{one['p']:g}", *cells, f"{one['seconds']['once'] * 1e3:.0f}"])
    n, d = found[0]["shape"]
    head = [f"p, {n:,} x {d}", *(f"{name}: ms a row / gap to the proved upper end" for name in names)]
    return table([*head, "Lewis weights, once, ms"], rows)


def text(result):
    start = table(list(result["start_up"]), [[f"{seconds:.2f} s" for seconds in result["start_up"].values()]])
    parts = (disk_part(result["disk"]), start, dtype_part(result["dtypes"]), parallel_part(result))
    later = (causal_part(result["causal"]), lewis_part(result["lewis"]), refinement_part(result["refinement"]))
    return "\n\n".join([*parts, *later])


if __name__ == "__main__":
    report(__doc__, "system", measure, text)
