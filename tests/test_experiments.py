"""Every experiment runs at its smallest size, and says what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def run(name, out, *arguments):
    pytest.importorskip("matplotlib")
    command = [sys.executable, EXPERIMENTS / f"{name}.py", "--smoke", "--out", out, *arguments]
    # the weights of whole models are not for this
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {f"{name}.{ending}" for ending in ("json", "md", "png")}
    assert "| --- |" in (out / f"{name}.md").read_text()
    return json.loads((out / f"{name}.json").read_text())


def test_planted(tmp_path):
    found = run("planted", tmp_path)
    for world in ("same directions", "rare directions"):
        assert sum(trial["missed"] for trials in found[world].values() for trial in trials) == 0
        assert found[world]["0.01"][0]["leverage"] == 1
    assert found["rare directions"]["0.01"][0]["row norm"] == 0
    assert found["same directions"]["1.0"][0]["leverage"] < 0.2, "no gap"


@pytest.mark.parametrize("name", ["training", "powers"])
def test_training(tmp_path, shared, name):
    pytest.importorskip("torch")
    found = run(name, tmp_path, "--samples", str(shared))
    if name == "powers":
        searches = [search for one in found["runs"].values() for search in one["searches"].values()]
        assert len(searches) == 3  # leverage, Lewis weights, refined
        assert all(row["missed"] == 0 for search in searches for row in search["epsilon"])
    else:
        assert set(found["accuracy"]["trained"]) == {
            f"{name} {m}" for name in ("leverage", "norm", "random") for m in (32, 64)
        }
