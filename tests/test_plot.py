"""Pictures: they state the finding, draw every member, and a file is written whole or not at all."""

import subprocess
import sys

import numpy as np
import pytest

import lev
from lev.plot import headline, percent, plot

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def sketch():
    keys = np.random.default_rng(0).standard_normal((2000, 4))
    keys[[7, 900, 1500]] *= 40
    return lev.Sketch(4, 0.05).update(keys)


@pytest.fixture(scope="module")
def nothing():
    return lev.Sketch(4, 0.5).update(np.random.default_rng(0).standard_normal((2000, 4)))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_the_panels_say_what_was_found(sketch):
    figure = plot(sketch)
    best = float(sketch.universal_set().scores.max())
    assert figure.texts[0].get_text() == "3 of 2,000 keys can ever reach 5 %"
    assert figure.texts[1].get_text() == "Whatever the query q, every other key gets less than 5 % of Σ⟨q,k⟩²."
    assert titles(figure) == [
        f"The heaviest key can reach {percent(best)}",
        "3 members, where theory allows 80",
        "Keys 7, 900, 1500",
    ]


def test_the_curves_are_the_scores(sketch):
    scores = np.sort(sketch.universal_set().scores)
    ranked, sizes, _ = plot(sketch).axes
    assert np.array_equal(ranked.lines[-1].get_ydata(), scores[::-1])
    allowed, steps = sizes.lines[0], sizes.lines[1]
    assert np.allclose(allowed.get_ydata() * allowed.get_xdata(), 4)
    at, size = np.array(steps.get_xdata()), np.array(steps.get_ydata())
    for epsilon, expected in [(0.05, 3), *((score, len(scores) - i) for i, score in enumerate(scores))]:
        assert size[np.searchsorted(at, epsilon)] == expected == len(sketch.universal_set(epsilon))


def test_the_map_holds_every_heavy_entry(sketch):
    keys = sketch.universal_set().keys
    queries = np.vstack([np.eye(4), keys])
    hits = sketch.heavy_hitters(queries)
    figure = plot(sketch, queries=queries, positions=np.arange(7) * 100)
    assert len(figure.axes) == 5, "three panels, the map and its colour bar"
    drawn = figure.axes[3].collections[0].get_array()
    assert drawn.count() == hits.nnz
    assert np.allclose(drawn.max(), hits.data.max())
    assert titles(figure)[3] == f"{len(np.unique(hits.tocoo().coords[0]))} of 7 queries give some key 5 %"


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_small_and_empty_sets_draw(tmp_path, rows):
    figure = plot(lev.Sketch(4, 0.5).update(np.eye(4)[:rows]), tmp_path / "a.png", np.zeros((0, 4)))
    expected = "None of 0" if rows == 0 else f"{rows} of {rows}"
    assert figure.texts[0].get_text() == f"{expected} keys can ever reach 50 %"
    assert figure.texts[1].get_text() == "No key was left out."


def test_no_member(nothing):
    figure = plot(nothing, queries=np.eye(4))
    assert figure.texts[0].get_text() == "None of 2,000 keys can ever reach 50 %"
    assert titles(figure) == [
        "No key reaches the threshold",
        "0 members, where theory allows 8",
        "None of 2,000 keys is a member",
        "None of 4 queries give some key 50 %",
    ]


def test_what_is_a_bound_is_called_one(nothing):
    keys = np.random.default_rng(0).standard_normal((500, 3))
    figure = plot(lev.Sketch(3, 0.05, 3.0).update(keys), queries=keys[:9])
    assert titles(figure)[0].startswith("The heaviest key can reach at most")
    assert "of 9 queries may give some key 5 %" in titles(figure)[3]
    assert figure.texts[1].get_text().endswith("gets less than 5 % of Σ|⟨q,k⟩|^3.")
    aged = plot(lev.Sketch(3, 0.05, 1.0, decay=0.5, intercept=True).update(keys)).texts[1].get_text()
    assert aged.endswith("of Σ|⟨q,k⟩ + b|^1, each key's part times 0.5 a row.")
    most = nothing.universal_set().omitted
    said = plot(nothing).texts[1].get_text()
    assert said == f"Whatever the query q, every key gets at most {percent(most)} of Σ⟨q,k⟩²."


@pytest.mark.parametrize("other", [lev.CausalSketch(4, 0.1), lev.SlidingWindowSketch(4, 0.1, 9), None], ids=repr)
def test_other_sketches_are_refused(other):
    with pytest.raises(TypeError, match="sketch must be a Sketch without heads; got"):
        plot(other)
    with pytest.raises(TypeError, match=r"sketch must be a Sketch without heads; got Sketch\(dim=4"):
        plot(lev.Sketch(4, 0.1, heads=(2,)))


def test_files(tmp_path, sketch):
    plot(sketch, tmp_path / "a.png", np.eye(4))
    plot(sketch, tmp_path / "a.svg")
    plot(sketch, tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()[:600]
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]


def test_refusals_leave_no_file(tmp_path, sketch):
    with pytest.raises(ValueError, match=r"path must end in \.png or \.svg; got .*a\.gif"):
        plot(sketch, tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"queries must have shape \(m, 4\); got \(2, 3\)"):
        plot(sketch, tmp_path / "a.png", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"positions must have shape \(2,\), one a query; got \(3,\)"):
        plot(sketch, tmp_path / "a.png", np.zeros((2, 4)), positions=[1, 2, 3])
    with pytest.raises(FileNotFoundError):
        plot(sketch, tmp_path / "none" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_settings_are_left_alone(sketch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot(sketch)
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys, numpy as np, lev, lev.plot; s = lev.Sketch(3, 0.2).update(np.eye(3)); "
        "lev.plot.plot(s, sys.argv[1], np.eye(3)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=False).returncode == 0


def test_without_matplotlib_the_extra_is_named(sketch, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install lev-attention\[plot\]"):
        plot(sketch)


def test_a_set_that_may_be_larger_says_so(sketch):
    from dataclasses import replace

    members = replace(sketch.universal_set(), exact=False)
    assert headline(members) == "At most 3 of 2,000 keys can ever reach 5 %"
