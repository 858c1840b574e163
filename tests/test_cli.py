"""The command line: the same answers as the library, one line and exit code 2 for bad input."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import lev
from lev import cli, demo, store

KEYS = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
KEYS[[5, 1200, 2999]] *= 30
EPSILON = 0.05


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A folder with the keys in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    np.save("keys.npy", KEYS)
    np.save("part1.npy", KEYS[:1000])
    np.save("part2.npy", KEYS[1000:])
    np.savez("two.npz", key=np.stack([KEYS, 2 * KEYS]), query=KEYS[:9])
    return tmp_path


@pytest.fixture
def lev_(capsys):
    """Run a command that works, and return what it prints; as JSON if it was asked for."""

    def call(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out) if "--json" in arguments else out

    return call


@pytest.fixture
def refused(capsys):
    """Run a command that must fail, and return its one line."""

    def call(*arguments):
        before = sorted(path.name for path in Path().iterdir())
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("lev: ")
        assert err.count("\n") == 1
        assert sorted(path.name for path in Path().iterdir()) == before, "something was half written"
        return err.removeprefix("lev: ").rstrip("\n")

    return call


def shell(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "lev", *arguments], capture_output=True, check=False, **options)


def test_scan_is_the_library(keys, lev_):
    u = lev.universal_set(KEYS, EPSILON)
    said = lev_("scan", "keys.npy", "--epsilon", EPSILON, "-o", "a.lev", "--json")
    assert said["indices"] == u.indices.tolist() == [5, 1200, 2999]
    assert np.allclose(said["scores"], u.scores, rtol=1e-9)
    expected = {"count": 3000, "dim": 6, "rank": 6, "p": 2.0, "intercept": False, "epsilon": EPSILON, "size": 3}
    assert {name: said[name] for name in expected} == expected
    assert (said["bound"], said["exact"], said["output"]) == (pytest.approx(120), True, "a.lev")
    assert 0 < said["omitted"] < EPSILON
    assert lev.load("a.lev").universal_set().indices.tolist() == said["indices"]


def test_default_epsilon_and_intercept(keys, lev_):
    assert lev_("scan", "keys.npy", "--json")["epsilon"] == 0.05
    said = lev_("scan", "keys.npy", "--intercept", "--json")
    assert said["intercept"] is True
    expected = lev.Sketch(6, 0.05, intercept=True).update(KEYS).universal_set()
    assert np.allclose(said["scores"], expected.scores, rtol=1e-9)


def test_parts_merge_to_the_whole(keys, lev_):
    whole = lev_("scan", "keys.npy", "--json")
    for name, rows in [("a", "0:1000"), ("b", "1000:1700"), ("c", "1700:")]:
        lev_("scan", "keys.npy", "--rows", rows, "-o", f"{name}.lev")
    merged = lev_("merge", "c.lev", "a.lev", "b.lev", "-o", "all.lev", "--json")
    assert merged["indices"] == whole["indices"]
    assert merged["count"] == 3000
    assert np.allclose(merged["scores"], whole["scores"], rtol=1e-9)


def test_files_number_on_and_start_counts_from_elsewhere(keys, lev_):
    assert lev_("scan", "part1.npy", "part2.npy", "--json")["indices"] == [5, 1200, 2999]
    assert lev_("scan", "part2.npy", "--start", 1000, "--json")["indices"] == [1200, 2999]
    assert lev_("scan", "keys.npy", "--rows", "1000:", "--start", 0, "--json")["indices"] == [200, 1999]


def test_tensor_and_head(keys, lev_):
    said = lev_("scan", "two.npz", "--tensor", "key", "--head", 1, "--json")
    assert said["indices"] == [5, 1200, 2999]


def test_show(keys, lev_):
    lev_("scan", "keys.npy", "-o", "a.lev")
    u = lev.load("a.lev").universal_set()
    assert lev_("show", "a.lev", "--json")["scores"] == u.scores.tolist()
    top = lev_("show", "a.lev", "--top", 1, "--json")
    assert top["indices"] == u.top(1).indices.tolist()
    assert top["omitted"] == u.top(1).omitted
    assert lev_("show", "a.lev", "--epsilon", 1.0, "--json")["indices"] == []
    text = lev_("show", "a.lev")
    assert text.splitlines()[0] == "3 of 3,000 keys can ever reach 5 %"
    best = u.indices[np.argmax(u.scores)]
    assert f"{best}  {u.scores.max():.6f}".split() in [line.split() for line in text.splitlines()]
    assert "\x1b" not in text


def test_heavy(keys, lev_):
    lev_("scan", "keys.npy", "-o", "a.lev")
    np.save("queries.npy", KEYS[:40])
    expected = lev.heavy_entries(KEYS[:40], KEYS, EPSILON).tocoo()
    said = lev_("heavy", "a.lev", "queries.npy", "--json")
    assert (said["queries"], said["entries"]) == (40, expected.nnz)
    assert (said["query"], said["key"]) == (expected.coords[0].tolist(), expected.coords[1].tolist())
    assert np.allclose(said["weight"], expected.data, rtol=1e-9)
    assert lev_("heavy", "a.lev", "queries.npy").startswith(f"{expected.nnz} entries reach 5 %\n")
    few = lev_("heavy", "a.lev", "queries.npy", "--epsilon", 0.5, "--json")
    assert few["entries"] == np.sum(expected.data >= 0.5)


def test_heavy_says_what_is_proved_for_other_powers(keys, lev_):
    lev_("scan", "keys.npy", "--p", 3, "-o", "a.lev")
    np.save("queries.npy", KEYS[:40])
    expected = lev.heavy_entries(KEYS[:40], KEYS, 0.3, p=3)
    said = lev_("heavy", "a.lev", "queries.npy", "--epsilon", 0.3, "--json")
    ends = zip(said["lower"], said["weight"], strict=True)
    found = dict(zip(zip(said["query"], said["key"], strict=True), ends, strict=True))
    true = expected.tocoo()
    for query, key, weight in zip(*true.coords, true.data, strict=True):
        lower, upper = found[query, key]
        assert lower <= weight <= upper
    sure = sum(lower >= 0.3 for lower, _ in found.values())
    printed = lev_("heavy", "a.lev", "queries.npy", "--epsilon", 0.3)
    assert printed.startswith(f"{len(found)} entries may reach 30 %\n")
    assert f"{sure:,} entries do reach it" in printed


def test_what_is_read_is_not_written_over(keys, lev_, refused):
    before = Path("keys.npy").read_bytes()
    assert refused("scan", "keys.npy", "-o", "./keys.npy") == "cannot write keys.npy: it is what is read"
    assert refused("scan", "part1.npy", "keys.npy", "-o", "keys.npy") == "cannot write keys.npy: it is what is read"
    assert Path("keys.npy").read_bytes() == before
    lev_("scan", "part1.npy", "-o", "all.lev")
    lev_("scan", "part2.npy", "--start", 1000, "-o", "rest.lev")
    assert lev_("merge", "all.lev", "rest.lev", "-o", "all.lev", "--json")["count"] == 3000  # a sum may grow in place


def test_the_best_are_not_called_all_that_reach(keys, lev_):
    lev_("scan", "keys.npy", "-o", "a.lev")
    printed = lev_("show", "a.lev", "--top", 1)
    assert printed.startswith("The 1 best of 3,000 keys\n")
    assert "epsilon" in printed
    assert " 0.05\n" in printed
    assert lev_("show", "a.lev", "--top", 1, "--json")["epsilon"] == 0.05


def test_plot(keys, lev_):
    pytest.importorskip("matplotlib")
    lev_("scan", "keys.npy", "-o", "a.lev")
    assert lev_("plot", "a.lev", "-o", "a.png") == "wrote a.png\n"
    assert lev_("plot", "a.lev", "-o", "a.svg", "--queries", "two.npz", "--tensor", "query") == "wrote a.svg\n"
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert b"queries" in Path("a.svg").read_bytes()


BAD = [
    (["scan", "none.npy"], "none.npy: no such file"),
    (["scan", "keys.npy", "--epsilon", "2"], "epsilon must be in (0, 1]; got 2.0"),
    (["scan", "keys.npy", "--p", "0"], "p must be positive and finite; got 0.0"),
    (["scan", "keys.npy", "--dim", "5"], "dim is 5, but keys.npy holds rows of 6 numbers"),
    (["scan", "keys.npy", "--rows", "5"], "--rows must be A:B, such as 0:4096 or 4096:; got 5"),
    (["scan", "keys.npy", "--rows", "0:3001"], "rows 0:3001 reach beyond the 3000 of keys.npy"),
    (["scan", "keys.npy", "--start", "-1"], "start must be >= 0; got -1"),
    (["scan", "keys.npy", "part1.npy", "--rows", "0:5"], "KEYS must be one file with --rows"),
    (["scan", "two.npz"], "two.npz: 2 arrays; choose one with tensor: key, query"),
    (["scan", "two.npz", "--tensor", "key"], "two.npz holds 2 heads, shape (2, 3000, 6); choose one with head, 0 to 1"),
    (["scan", "nan.npy", "-o", "x.lev"], "nan.npy must be finite; row 2500 holds NaN or infinity"),
    (["scan", "nan.npy", "--rows", "2000:"], "nan.npy must be finite; row 2500 holds NaN or infinity"),
    (["scan", "keys.npy", "narrow.npy"], "narrow.npy has rows of 2 numbers, keys.npy of 6"),
    (["scan", "keys.npy", "-o", "none/x.lev"], "cannot write none/x.lev: no such directory"),
    (["scan", "-"], "standard input: dim, the numbers in a row, must be given and >= 1; got None"),
    (["scan"], "Missing argument"),
    (["scan", "keys.npy", "--epsilon", "big"], "Invalid value for '--epsilon'"),
    (["dance"], "No such command 'dance'"),
    (["merge", "a.lev", "a.lev", "-o", "x.lev"], "a.lev does not merge: other holds id 5"),
    (["merge", "a.lev", "keys.npy", "-o", "x.lev"], "keys.npy: not a sketch file"),
    (["show", "none.lev"], "none.lev: No such file or directory"),
    (["show", "a.lev", "--epsilon", "0.01"], "epsilon must be at least the sketch's 0.05"),
    (["show", "a.lev", "--top", "-1"], "k must be >= 0; got -1"),
    (["heavy", "a.lev", "narrow.npy"], "queries must have shape (m, 6); got (4, 2)"),
    (["heavy", "a.lev", "nan.npy"], "nan.npy must be finite; row 2500 holds NaN or infinity"),
    (["show", "heads.lev"], "heads.lev holds a sketch with heads=(2,)"),
    (["scan", "keys.npy", "--decay", "2"], "decay must be in (0, 1]; got 2.0"),
    (["plot", "a.lev", "-o", "a.gif"], "path must end in .png or .svg; got a.gif"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input(keys, refused, arguments, message):
    lev.Sketch(6, EPSILON).update(KEYS).save("a.lev")
    lev.Sketch(6, EPSILON, heads=(2,)).save("heads.lev")
    np.save("narrow.npy", np.ones((4, 2)))
    np.save("nan.npy", np.where(np.arange(3000)[:, None] == 2500, np.nan, KEYS))
    assert refused(*arguments).startswith(message)


def test_foreign_files_are_bad_input(keys, refused):
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.write("keys.npy", "keys")
    assert refused("scan", "other.npz") == "other.npz: 0 arrays; choose one with tensor:"
    fields, tensors = store.unpack(lev.Sketch(6, EPSILON).update(KEYS).to_bytes())
    Path("kind.lev").write_bytes(store.pack(fields | {"kind": []}, tensors))
    assert refused("show", "kind.lev") == "kind.lev: the sketch file holds a []; expected a Sketch"


@pytest.mark.parametrize("options", [["--p", "4"], ["--p", "1"], ["--decay", "0.999"]])
def test_other_powers_and_decay(keys, options):
    done = shell("scan", "keys.npy", "--json", *options)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {5, 1200, 2999} & set(json.loads(done.stdout)["indices"])
    assert b"theory allows" in shell("scan", "keys.npy", *options).stdout


def test_a_pipe_end_to_end(keys):
    done = shell("scan", "-", "--dim", "6", "--json", input=KEYS.tobytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["indices"] == [5, 1200, 2999]
    cut = shell("scan", "-", "--dim", "6", "-o", "a.lev", input=KEYS.tobytes()[:-2])
    assert (cut.returncode, cut.stdout) == (2, b"")
    assert cut.stderr == b"lev: standard input: row 2999 is cut off: it has 22 of 24 bytes\n"
    assert not Path("a.lev").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_is_no_error(keys):
    lev.Sketch(6, EPSILON).update(KEYS).save("a.lev")
    for options in (["--json"], []):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "lev", "show", "a.lev", *options],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, b"")


def test_interrupted(keys, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(lev.Sketch, "update", interrupt)
    assert cli.run(["scan", "keys.npy", "-o", "a.lev"]) == 130
    assert capsys.readouterr().out == ""
    assert not Path("a.lev").exists()


def test_help_and_version(lev_):
    assert lev_("--version") == f"lev {lev.__version__}\n"
    text = lev_()
    assert all(name in text for name in ("scan", "merge", "show", "heavy", "plot", "demo"))
    assert "--rows" in lev_("scan", "--help")


def test_the_bar_counts_every_row_on_a_terminal(keys, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.run(["scan", "part1.npy", "part2.npy", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["count"] == 3000
    assert "3,000 rows" in err


@pytest.fixture(scope="module")
def outcome():
    return demo.demonstrate()


def test_demo_misses_nothing(tmp_path, monkeypatch, lev_, outcome):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "demonstrate", lambda: outcome)
    said = lev_("demo", "--json")
    assert (said["missed"], said["wrong"]) == (0, 0)
    assert said["queries"] == 1536 + 2048
    assert said["witnessed"] == len(said["indices"]) == 132
    assert said["found"] >= 132
    assert said["natural_top"] == pytest.approx(0.002425, rel=1e-3)
    if said["picture"] == "lev_demo.png":
        assert Path("lev_demo.png").read_bytes().startswith(b"\x89PNG")
    text = lev_("demo", "-o", "b.png")
    assert text.startswith("132 of 8,192 keys can ever reach 1.25 %, found in one pass\n")
    assert "missed: 0\n" in text


def test_demo_that_misses_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    honest = lev.Sketch.universal_set
    monkeypatch.setattr(lev.Sketch, "universal_set", lambda self, epsilon=None: honest(self, epsilon).top(100))
    outcome = demo.demonstrate()
    assert outcome.missed >= 32
    monkeypatch.setattr(demo, "demonstrate", lambda: outcome)
    assert cli.run(["demo"]) == 1
    assert f"missed: {outcome.missed}\n" in capsys.readouterr().out


def test_import_stays_light():
    heavy = "typer, rich, matplotlib, pyarrow, lev.cli, lev.plot"
    code = f"import lev, sys; assert not {{name.strip() for name in '{heavy}'.split(',')}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_sample_is_small_and_whole():
    with demo.sample() as path:
        assert sum(file.stat().st_size for file in path.parent.iterdir()) < 2_000_000
        tensors = safetensors.numpy.load_file(path)
    assert {name: array.shape for name, array in tensors.items()} == {
        "key": (8192, 64),
        "query": (3, 512, 64),
        "query_position": (512,),
    }


def test_real_stream_in_parts(tmp_path, monkeypatch, lev_):
    stream = Path(__file__).parents[2] / "shared" / "data" / "minilm_pydoc_stream.safetensors"
    if not stream.exists():
        pytest.skip("the real keys are not on this machine")
    monkeypatch.chdir(tmp_path)
    for epsilon, size in [(0.01, 0), (0.0005, 363)]:
        arguments = ("scan", stream, "--tensor", "key", "--epsilon", epsilon)
        whole = lev_(*arguments, "--json")
        for i, rows in enumerate(["0:40000", "40000:90001", "90001:"]):
            lev_(*arguments, "--rows", rows, "-o", f"{i}.lev")
        merged = lev_("merge", "2.lev", "0.lev", "1.lev", "-o", "m.lev", "--json")
        assert merged["indices"] == whole["indices"]
        assert len(whole["indices"]) == size
