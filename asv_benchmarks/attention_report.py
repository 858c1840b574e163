"""Attention over the keys of highest leverage beside full attention on the CPU, and from how many keys on it is faster.

python asv_benchmarks/attention_report.py                  all, about three minutes on two cores; needs torch
LEV_BENCH_QUICK=1 python asv_benchmarks/attention_report.py --stdout     a pass that only proves that it runs
"""

from benchmarks import attention
from output import crossing, report, table


def measure():
    return {"lengths": attention.lengths(), "sweep": attention.sweep()}


def gain(row):
    return row["seconds"]["full"] / row["seconds"]["lev"]


def rows_of(found):
    lines = []
    for row in found:
        sizes = [f"{row['n']:,}", f"{row['m']:,}", row["heads"], row["top"]]
        times = [f"{row['seconds'][name] * 1e3:.1f}" for name in ("full", "lev")]
        peaks = [f"{row['peak_mb'][name]:.0f}" for name in ("full", "lev")]
        lines.append([*sizes, *times, f"{gain(row):.2f}", *peaks])
    return table(["keys", "queries", "heads", "top_k", "full ms", "lev ms", "full / lev", "full MB", "lev MB"], lines)


def crossovers(result):
    """Return for each top_k the number of keys from which on lev is faster with as many queries; None if nowhere."""
    found = {}
    for row in result["sweep"]:
        found.setdefault(row["top"], []).append(row)
    return {top: crossing([row["n"] for row in rows], [gain(row) for row in rows]) for top, rows in found.items()}


def text(result):
    most = result["sweep"][-1]["n"]
    lines = [
        f"- top_k = {top}: "
        + (f"from about {n:,.0f} keys on." if n else f"full attention is faster up to {most:,} keys.")
        for top, n in crossovers(result).items()
    ]
    said = "With as many queries as keys `lev_attention` is faster than full attention"
    return "\n".join([rows_of(result["lengths"]), "", rows_of(result["sweep"]), "", f"{said}:", "", *lines])


if __name__ == "__main__":
    report(__doc__, "attention", measure, text)
