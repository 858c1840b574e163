"""From how many keys on a sketch answers the whole heavy-entry task sooner than brute force.

python asv_benchmarks/crossover_report.py                  all, about two minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/crossover_report.py --stdout     a pass that only proves that it runs
"""

from benchmarks import brute
from output import COLOURS, crossing, picture, report, table


def measure():
    return {"points": [brute.point(n, brute.QUERIES) for n in brute.ROWS]}


def crossings(result):
    """Return for each brute force the number of keys from which on lev is faster, None if it never is."""
    points = result["points"]
    n = [point["n"] for point in points]
    peers = [name for name in points[0]["entries"] if name != "lev"]
    return {peer: crossing(n, [p["seconds"][peer] / p["seconds"]["lev"] for p in points]) for peer in peers}


def text(result):
    points = result["points"]
    names = list(points[0]["seconds"])
    rows = [
        [
            f"{p['n']:,}",
            *(f"{p['seconds'][name] * 1e3:.1f}" for name in names),
            " / ".join(map(str, p["entries"].values())),
        ]
        for p in points
    ]
    head = ["n", *(f"{name} ms" for name in names), "entries by " + " / ".join(points[0]["entries"])]
    lines = [f"- {said(result, peer, n)}" for peer, n in crossings(result).items()]
    return "\n".join([table(head, rows), "", *lines])


def said(result, peer, n):
    least, most = (f"{result['points'][i]['n']:,}" for i in (0, -1))
    if n is None:
        return f"Brute force with {peer} is the faster one up to {most} keys."
    if n <= result["points"][0]["n"]:
        return f"lev is faster than brute force with {peer} from {least} keys on."
    return f"lev is faster than brute force with {peer} from about {n:,.0f} keys on."


def draw(result, path):
    points = result["points"]
    with picture(path, 1, 1, (5.5, 4)) as axes:
        axis = axes[0, 0]
        for name, colour in zip(points[0]["seconds"], COLOURS, strict=False):
            only = name == "lev, queries only"
            style = {"color": COLOURS[0] if only else colour, "ls": ":" if only else "-"}
            axis.plot(
                [p["n"] for p in points], [p["seconds"][name] for p in points], marker="o", ms=3, label=name, **style
            )
        axis.set(xscale="log", yscale="log", xlabel="keys n", ylabel="seconds")
        axis.set_title(f"All entries ≥ ε of {points[0]['m']} queries, d = 64")
        axis.legend(frameon=False)


if __name__ == "__main__":
    report(__doc__, "crossover", measure, text, draw)
