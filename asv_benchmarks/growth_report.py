"""How time and memory of lev grow with rows, dimensions, 1 / epsilon and queries, with fitted exponents.

python asv_benchmarks/growth_report.py                     all, about three minutes on two cores
LEV_BENCH_QUICK=1 python asv_benchmarks/growth_report.py --stdout     a pass that only proves that it runs
"""

from benchmarks.growth import AXES, points
from output import COLOURS, picture, report, slope, table

MEASURES = {"seconds": "seconds", "mb": "MB above keys and interpreter"}
LEAST = {"seconds": 1e-6, "mb": 0.5}  # below it a figure is what the allocator happened to hold


def measure():
    return {"axes": {axis: points(axis) for axis in AXES}}


def fit(found, name):
    """Return the exponent of a measure along an axis, over the larger half of the points."""
    return slope([point["x"] for point in found], [max(point[name], LEAST[name]) for point in found])


def where(found):
    """Return what stays the same along an axis, such as "d = 64, ε = 0.05"."""
    names, settings = ("n", "d", "ε", "m"), [point["setting"] for point in found]
    same = [i for i in range(4) if len({setting[i] for setting in settings}) == 1 and settings[0][i]]
    return ", ".join(f"{names[i]} = {settings[0][i]:,g}" for i in same)


def text(result):
    parts = []
    for axis, found in result["axes"].items():
        rows = [[f"{p['x']:,.0f}", f"{p['seconds']:.3g}", f"{p['mb']:.1f}", f"{p['held']:,}"] for p in found]
        rows.append(["exponent", f"{fit(found, 'seconds'):.2f}", f"{fit(found, 'mb'):.2f}", ""])
        parts.append(f"{where(found)}:\n\n" + table([axis, "seconds", "peak MB", "rows held"], rows))
    return "\n\n".join(parts)


def draw(result, path):
    with picture(path, 2, len(result["axes"]), (13, 5.6)) as axes:
        for column, (axis, found) in enumerate(result["axes"].items()):
            for row, (name, label) in enumerate(MEASURES.items()):
                _curve(axes[row, column], found, name, COLOURS[row])
                axes[row, column].set(xlabel=axis, ylabel="" if column else label)
            axes[0, column].set_title(where(found), fontsize=9)


def _curve(axis, found, name, colour):
    """Draw a measure, and the fitted power through its last point."""
    x, y, power = [p["x"] for p in found], [max(p[name], LEAST[name]) for p in found], fit(found, name)
    axis.plot(x, y, color=colour, marker="o", ms=4)
    axis.plot(x, [y[-1] * (value / x[-1]) ** power for value in x], color="#6b7885", lw=1, ls=(0, (4, 2)))
    axis.set(xscale="log", yscale="log")
    least, most = axis.get_ylim()
    axis.set_ylim(least / 2, max(most * 2, 10 * least))
    axis.annotate(f"exponent {power:.2f}", (0.05, 0.9), xycoords="axes fraction", color=colour)


if __name__ == "__main__":
    report(__doc__, "growth", measure, text, draw)
