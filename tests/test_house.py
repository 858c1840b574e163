"""The house: imports run downward, the public is documented, examples run, nothing grows too large."""

import ast
import doctest
import hashlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lev

ROOT = Path(lev.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
EXAMPLES = sorted((ROOT.parent / "examples").glob("*.py"))
LAYERS = [
    {"bounds", "checks", "rows", "cpu"},
    {"gpu", "whitening"},
    {"place"},
    {"backend"},
    {"ids", "readers"},
    {"frame"},
    {"rounding"},
    {"factor"},
    {"form", "triangle"},
    {"weighting", "eliminate", "universal"},
    {"candidates", "incoming"},
    {"heads", "heavy", "store", "batch"},
    {"scores", "second", "refine", "prefix"},
    {"lifetimes"},
    {"lewis", "causal", "window"},
    {"growth", "ball"},
    {"functions", "coreset"},
    {"sketch"},
    {"lift", "parallel", "device"},
    {"passes"},
    {"__init__"},
    {"plot", "torch", "cluster"},
    {"demo"},
    {"report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NEEDS = {"hf": "transformers", "timm": "timm", "kvpress": "kvpress"}  # modules of lev.torch, besides torch
ALLOWED_AT_IMPORT = {"numpy", "scipy", "numba", "llvmlite", "threadpoolctl", "safetensors", "typer", "rich"}


def test_kernels_are_compiled_anew_when_what_they_inline_changes():
    for name, inlined in {"rows": ["tile"], "blocks": ["tile", "rows"]}.items():
        texts = [(ROOT / "cpu" / f"{part}.py").read_bytes() for part in inlined]
        said = f"inlined here; now {hashlib.sha256(b''.join(texts)).hexdigest()[:8]}"
        assert said in (ROOT / "cpu" / f"{name}.py").read_text(), f"lev/cpu/{name}.py is to say: {said}"


def name_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "lev":
            yield from ((node, f"lev.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    own = LEVEL[name_of(path)]
    for _, module in imports(ast.parse(path.read_text())):
        parts = module.split(".")
        if parts[0] != "lev":
            continue
        # names that are not modules are the public ones of the package itself
        used = parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"
        assert LEVEL[used] < own or used == name_of(path), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_optional_is_imported_only_when_called(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        for _, module in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            top = module.split(".")[0]
            if name_of(path) == "torch" and top in {"torch", NEEDS.get(path.stem)}:
                continue  # the subpackage, or the module of it, is what needs it
            assert top in ALLOWED_AT_IMPORT | sys.stdlib_module_names | {"lev"}, f"{path.name} imports {module}"


def test_importing_lev_is_light():
    heavy = {"numba", "torch", "cupy", "dask", "pyarrow", "matplotlib", "typer", "rich"}
    code = "import sys, lev; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & {name.split(".")[0] for name in loaded}
    assert not {"scipy.linalg", "scipy.sparse", "scipy.optimize"} & set(loaded)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 48, f"{path.name}: {node.name}"


def public_callables():
    for name in lev.__all__:
        thing = getattr(lev, name)
        yield name, thing
        if inspect.isclass(thing):
            for attribute, member in vars(thing).items():
                if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                    yield f"{name}.{attribute}", member


@pytest.mark.parametrize(
    ("name", "thing"), list(public_callables()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_public_is_documented(name, thing):
    assert inspect.getdoc(thing), f"{name} has no docstring"


@pytest.mark.parametrize(
    "name",
    [
        "Sketch",
        "CausalSketch",
        "SlidingWindowSketch",
        "scan",
        "two_pass",
        "leverage_scores",
        "lewis_weights",
        "sensitivities",
        "universal_set",
        "heavy_entries",
        "LiftedSketch",
        "coreset",
        "CoresetSketch",
    ],
)
def test_what_makes_a_promise_says_its_guarantee_errors_and_example(name):
    text = inspect.getdoc(getattr(lev, name))
    for wanted in ("Raises", ">>>", "uarantee" if name != "heavy_entries" else "eference"):
        assert wanted in text, f"{name} lacks {wanted!r}"


@pytest.mark.parametrize("module", ["lev", "lev.functions", "lev.lift", "lev.torch", "lev.cluster.dask"])
def test_what_is_public_has_an_example(module):
    if module == "lev.torch":
        pytest.importorskip("torch", reason="needs torch")
    space = importlib.import_module(module)
    own = [name for name, thing in vars(space).items() if getattr(thing, "__module__", "") == module]
    for name in getattr(space, "__all__", [name for name in own if not name.startswith("_")]):
        thing = getattr(space, name)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception)):
            assert ">>>" in inspect.getdoc(thing), f"{module}.{name} has no example"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings_run(path):
    module = "lev" + "".join(f".{part}" for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")
    if module.endswith("__main__"):
        return
    needs = {"torch": ["torch", NEEDS.get(path.stem, "torch")], "cluster": [path.stem.removesuffix("_distributed")]}
    for needed in needs.get(name_of(path), []):
        pytest.importorskip(needed, reason=f"needs {needed}", exc_type=ImportError)
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_kernels_check_nothing_and_know_nothing_of_the_rest():
    for path in (ROOT / "cpu").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [name for _, name in imports(tree) if name.startswith("lev") and not name.startswith("lev.cpu")]
        assert not any(isinstance(node, ast.Raise | ast.ClassDef) for node in ast.walk(tree) if path.stem == "rows")


def test_no_assert_guards_input():
    for path in MODULES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text()))), path


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(path, tmp_path):
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
