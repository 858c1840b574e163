"""The folder theory/: its scripts run, its notes are whole, its index names what exists."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
from theorems import THEORY


@pytest.mark.parametrize("script", sorted(THEORY.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_scripts_run(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_notes_have_their_six_parts():
    for note in sorted(THEORY.glob("[0-9]*.md")):
        parts = re.findall(r"^## (.*)$", note.read_text(), flags=re.MULTILINE)
        assert parts == ["Claim", "Proof", "Source", "Used in", "Check", "Status"], note.name
        assert note.with_suffix(".py").exists()


def named(text, pattern):
    return sorted(set(re.findall(pattern, text)))


def resolve(path):
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def test_index_names_what_exists():
    text = "".join(path.read_text() for path in THEORY.glob("*.md"))
    tests = named(text, r"`(test_\w+)`")
    assert tests
    files = Path(__file__).parent.glob("test_*.py")
    assert set(tests) <= {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    for path in named((THEORY / "README.md").read_text(), r"`(lev\.[\w.]+)`"):
        assert resolve(path) is not None
    for path in named(text, r"`((?:bounds|form|sketch|heavy|scores|universal|cpu)\.[\w.]+)`"):
        assert resolve(f"lev.{path}") is not None
