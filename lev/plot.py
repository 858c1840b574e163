"""A picture of a sketch: which keys are in the universal set, how sharply, where, and for which queries."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lev import bounds, store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from scipy import sparse

    from lev.sketch import Sketch
    from lev.universal import UniversalSet

FORMATS = (".png", ".svg")

_INK, _MUTED, _FAINT = "#1f2a36", "#6b7885", "#e3e8ed"
_MEMBER, _LIMIT = "#2466a8", "#c4502a"
_CELLS = (120, 80)  # of the map of heavy entries
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 10,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "svg.hashsalt": "lev",
}


def plot(
    sketch: Sketch,
    path: str | os.PathLike[str] | None = None,
    queries: Any = None,
    *,
    positions: Any = None,
) -> Figure:
    """Return a matplotlib Figure of the universal set of ``sketch``, and write it to ``path`` if given.

    ``path`` ends in .png or .svg and is replaced whole or not at all.  ``queries`` (m, dim) add a map of their
    heavy entries; ``positions`` (m,) are the places of the queries on its vertical axis, by default 0 to m - 1.
    Nothing global is touched: no pyplot, no window.
    Raises ImportError without matplotlib, TypeError and ValueError for bad arguments, OSError for the file.
    """
    from lev.sketch import Sketch

    if not isinstance(sketch, Sketch) or sketch.heads:
        raise TypeError(f"sketch must be a Sketch without heads; got {sketch!r:.100}")
    ending = None if path is None else _checked_ending(path)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a picture needs matplotlib; pip install lev-attention[plot]") from None
    hits = None if queries is None else sketch.heavy_hitters(queries)
    places = None if hits is None else _checked_positions(positions, hits.shape[0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, sketch, hits, places)
        if path is not None and ending is not None:
            image = io.BytesIO()
            figure.savefig(image, format=ending, metadata={"Date": None} if ending == "svg" else {"Software": None})
            store.write(path, image.getvalue())
    return figure


def _checked_ending(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"path must end in {' or '.join(FORMATS)}; got {os.fspath(path)}")
    return ending[1:]


def _checked_positions(positions: Any, m: int) -> np.ndarray:
    places = np.arange(m) if positions is None else np.asarray(positions)
    if places.shape != (m,):
        raise ValueError(f"positions must have shape ({m},), one a query; got {places.shape}")
    return places


# -- the page ------------------------------------------------------------------------------------------------


def _draw(figure: Figure, sketch: Sketch, hits: sparse.csr_array | None, places: np.ndarray | None) -> None:
    members = sketch.universal_set()
    grid = figure.add_gridspec(2, 2, left=0.09, right=0.97, bottom=0.075, top=0.825, hspace=0.42, wspace=0.24)
    _scores(figure.add_subplot(grid[0, 0]), members)
    _sizes(figure.add_subplot(grid[0, 1]), members, sketch.rank)
    _stream(figure.add_subplot(grid[1, :] if hits is None else grid[1, 0]), members)
    if hits is not None and places is not None:
        _entries(figure.add_subplot(grid[1, 1]), hits, places, members)
    for axes in figure.axes[:3]:
        axes.yaxis.set_label_coords(-0.65 / axes.get_position().width / 10, 0.5)
    figure.text(0.09, 0.955, headline(members), size=15, weight="bold", va="center")
    figure.text(0.09, 0.913, _others(members, _sum(sketch)), size=9.5, color=_MUTED, va="center")


def headline(members: UniversalSet) -> str:
    """Return the finding in one sentence, such as "37 of 8,192 keys can ever reach 3 %"."""
    number = f"{len(members):,}" if len(members) else "None"
    most = "" if members.exact or not len(members) else "At most "
    return f"{most}{number} of {members.count:,} keys can ever reach {percent(members.epsilon)}"


def percent(share: float) -> str:
    """Return a share such as 0.0125 as "1.25 %"."""
    return f"{100 * share:.3g} %"


def _sum(sketch: Sketch) -> str:
    """Return what weights are shares of."""
    response, power = "⟨q,k⟩", {2.0: "²"}.get(sketch.p, f"^{sketch.p:g}")
    response = f"({response} + b)" if sketch.intercept and sketch.p == 2 else response + " + b" * sketch.intercept
    response = response if sketch.p == 2 else f"|{response}|"
    return f"Σ{response}{power}" + f", each key's part times {sketch.decay:g} a row" * (sketch.decay < 1)


def _others(members: UniversalSet, weight: str) -> str:
    if len(members) == members.count:
        return "No key was left out."
    other, least = ("every other key", members.epsilon) if len(members) else ("every key", members.omitted)
    than = "less than" if len(members) else "at most"
    return f"Whatever the query q, {other} gets {than} {percent(least)} of {weight}."


def _closed(members: UniversalSet) -> bool:
    """Say whether scores are known up to rounding, not only from above."""
    return members.exact and members.p == 2


def _members(number: int) -> str:
    return f"{number:,} member{'' if number == 1 else 's'}"


# -- the panels ----------------------------------------------------------------------------------------------


def _scores(axes: Axes, members: UniversalSet) -> None:
    """Draw the scores from the highest down to the threshold."""
    scores, epsilon = np.sort(np.asarray(members.scores))[::-1], members.epsilon
    m, top = len(scores), float(scores.max(initial=epsilon))
    axes.set(xlim=(1 - 0.03 * max(m, 10), max(m, 10) * 1.03), xlabel="members, heaviest first", ylabel="score")
    _heights(axes, epsilon, top, 0.2)
    _count(axes, "x", 6)
    if m:
        axes.plot(range(1, m + 1), scores, color=_MEMBER, linewidth=1.6, marker="o", markersize=4 if m < 60 else 0)
    most = "" if _closed(members) else "at most "
    axes.set_title(f"The heaviest key can reach {most}{percent(top)}" if m else "No key reaches the threshold")


def _sizes(axes: Axes, members: UniversalSet, rank: int) -> None:
    """Draw the size of the set for every larger epsilon beside what theory allows."""
    scores, epsilon = np.sort(np.asarray(members.scores)), members.epsilon
    right = min(1.0, 1.25 * float(scores.max(initial=1.2 * epsilon)))
    curve = np.geomspace(epsilon, right, 50)
    bound = np.array([bounds.max_members(rank, value, members.p) for value in curve])
    allowed = np.maximum(np.minimum(bound, members.count), 0.1)
    _log(axes, "x", epsilon * (epsilon / right) ** 0.04, max(right, 1.01 * epsilon), percent)
    _log(axes, "y", 0.7, 4 * max(2.0, allowed[0]), lambda size: f"{size:,.0f}")
    axes.plot(curve, allowed, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
    allowance = "rank / ε" if members.p <= 2 else f"rank^{members.p / 2:g} / ε"
    _label(axes, allowance + ", or all keys" * bool(members.count < bound[0]), curve[1], allowed[0], _MUTED)
    if len(scores):
        at = np.concatenate([[epsilon], scores, scores[-1:]])
        sizes = np.append(len(scores) - np.searchsorted(scores, at[:-1]), 0.1)
        axes.step(at, sizes, where="pre", color=_MEMBER, linewidth=1.6)
        axes.plot(epsilon, len(scores), "o", color=_MEMBER, markersize=5)
        _label(axes, _members(len(scores)), epsilon, len(scores), _MEMBER, below=len(scores) > allowed[0] / 4)
    axes.set_title(f"{_members(len(scores))}, where theory allows {int(allowed[0]):,}")
    axes.set(xlabel="threshold ε", ylabel="size of the set")


def _stream(axes: Axes, members: UniversalSet) -> None:
    """Draw where in the stream the members stand; the bars count them in 64ths of it."""
    ids, scores, epsilon = np.asarray(members.indices), np.asarray(members.scores), members.epsilon
    m, end = len(ids), max(members.count, int(ids.max(initial=0)) + 1)
    near, edges = np.histogram(ids, bins=64, range=(0, end))
    axes.set(xlim=(-0.01 * end, 1.01 * end), xlabel="place in the stream", ylabel="score")
    _heights(axes, epsilon, float(scores.max(initial=epsilon)), 0.32)
    _count(axes, "x", 9 if axes.get_position().width > 0.5 else 5)
    if not m:
        axes.set_title(f"None of {members.count:,} keys is a member")
        return
    bars: dict[str, Any] = {"align": "edge", "color": _FAINT, "transform": axes.get_xaxis_transform(), "zorder": 0}
    axes.bar(edges[:-1], 0.25 * near / near.max(), np.diff(edges), **bars)
    axes.vlines(ids, epsilon, scores, color=_MEMBER, linewidth=0.8, alpha=min(1.0, 40 / m), rasterized=m > 5000)
    size = min(16, max(2, 4000 / m))
    axes.scatter(ids, scores, s=size, color=_MEMBER, linewidths=0, rasterized=m > 5000, zorder=3)
    half = (np.sort(near)[::-1].cumsum().searchsorted(m / 2) + 1) / 64
    axes.set_title(f"Half of the members stand in {half:.0%} of the stream".replace("%", " %"))
    if m <= 5:
        axes.set_title(f"Key{'' if m == 1 else 's'} {', '.join(str(key) for key in ids)}")
    axes.set_xlabel("place in the stream; the bars count the members in each 64th")


def _entries(axes: Axes, hits: sparse.csr_array, places: np.ndarray, members: UniversalSet) -> None:
    """Draw the heavy entries: query against key, coloured by the heaviest in each cell."""
    found, (m, width) = hits.tocoo(), hits.shape
    rows, columns = found.coords
    low, high = float(places.min(initial=0)), float(places.max(initial=0)) + 1
    cells = (min(_CELLS[0], max(width, 1)), min(_CELLS[1], max(m, 1)))
    x = columns * cells[0] // max(width, 1)
    y = ((places[rows] - low) * cells[1] / (high - low)).astype(int)
    heaviest = np.zeros(cells[::-1])
    np.maximum.at(heaviest, (y, x), found.data)
    axes.set(xlim=(0, max(width, 1)), ylim=(high, low), xlabel="place in the stream", ylabel="query")
    _count(axes, "x", 5)
    _count(axes, "y", 6)
    number = f"{len(np.unique(rows)):,}" if found.nnz else "None"
    give = "give" if _closed(members) else "may give"
    axes.set_title(f"{number} of {m:,} queries {give} some key {percent(members.epsilon)}")
    if found.nnz:
        edges = np.linspace(0, width, cells[0] + 1), np.linspace(low, high, cells[1] + 1)
        image = axes.pcolormesh(
            *edges, np.ma.masked_equal(heaviest, 0), cmap="viridis_r", norm="log", rasterized=True, linewidth=0
        )
        bar = axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        _log(bar.ax, "y", float(found.data.min()) / 1.001, float(found.data.max()) * 1.001, percent)


# -- what the panels share -----------------------------------------------------------------------------------


def _heights(axes: Axes, epsilon: float, top: float, below: float) -> None:
    """Scale the vertical axis to scores, the threshold at ``below`` of its height."""
    span = 1.1 * math.log(max(top / epsilon, 1.25)) / (1 - below)
    _log(axes, "y", epsilon * math.exp(-below * span), epsilon * math.exp((1 - below) * span), percent, epsilon)
    axes.axhline(epsilon, color=_LIMIT, linewidth=1, zorder=1)
    _label(axes, f"ε = {percent(epsilon)}", axes.get_xlim()[1], epsilon, _LIMIT, below=True, ha="right")


def _label(
    axes: Axes, text: str, x: float, y: float, color: str, *, below: bool = False, ha: Literal["left", "right"] = "left"
) -> None:
    shift = (6 if ha == "left" else -2, -5 if below else 6)
    va: Literal["top", "bottom"] = "top" if below else "bottom"
    axes.annotate(text, (x, y), shift, textcoords="offset points", color=color, ha=ha, va=va)


def _count(axes: Axes, axis: str, most: int) -> None:
    from matplotlib.ticker import MaxNLocator

    side = axes.xaxis if axis == "x" else axes.yaxis
    side.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    side.set_major_formatter("{x:,.0f}")


def _log(axes: Axes, axis: str, low: float, high: float, text: Callable[[float], str], least: float = 0.0) -> None:
    """Make an axis logarithmic, with a few round ticks above ``least`` over any number of decades."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    def shown(ticks: np.ndarray) -> np.ndarray:
        return ticks[(ticks >= max(low, least) * (1 - 1e-9)) & (ticks <= high)]

    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = shown(decades)
    if len(ticks) < 3:
        ticks = shown(np.outer(decades, [1, 2, 5]).ravel())
    if len(ticks) < 3:
        ticks = shown(np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(max(low, least), high)))
    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low, high)
    side = axes.xaxis if axis == "x" else axes.yaxis
    side.set_major_locator(FixedLocator([float(tick) for tick in ticks[:: -(-len(ticks) // 7)]]))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
