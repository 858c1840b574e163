"""What every test file shares."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers fill the cores; it is read when BLAS loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from lev import backend, sketch

hypothesis.settings.register_profile(
    "lev",
    deadline=None,
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),  # a gate says the same twice; elsewhere every run tries new streams
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("lev")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 rows in tasks of 4 and groups of 2 or 4, so that short streams see every path of a long one."""
    monkeypatch.setattr(backend, "GROUPS", (2, 4))
    monkeypatch.setattr(backend, "PIECE", 4)
    monkeypatch.setattr(sketch, "_SMALLEST_BLOCK", 8)
    monkeypatch.setattr(sketch, "_BLOCK_NUMBERS", 8)


@pytest.fixture(scope="session")
def shared():
    """The folder of extracted keys of trained models, beside a checkout where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real keys in {folder}, which this machine lacks")
    return folder
