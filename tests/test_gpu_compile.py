"""Every CUDA source of lev/gpu compiles with NVRTC, with no GPU and no driver, and spills nothing."""

import re

import pytest

from lev.gpu import heads

CARDS = ["sm_80", "sm_90"]
ENTRIES = {"gram": 12, "factor": 1, "screen": 16, "lewis": 5}
_LINE = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?(\d+) bytes spill loads.*?Used (\d+) registers", re.S
)


def compiled(name, card):
    """Return NVRTC's log for one source; skips where its packages are absent."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, which calls NVRTC")
    try:
        _, program = nvrtc.nvrtcCreateProgram(heads.source(name).encode(), f"{name}.cu".encode(), 0, [], [])
    except RuntimeError as error:
        pytest.skip(f"needs nvidia-cuda-nvrtc, the compiler: {error}")
    options = [f"--gpu-architecture={card}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    _, bytes_of_code = nvrtc.nvrtcGetCUBINSize(program)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert bytes_of_code > 0
    return log.decode()


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_it_compiles_and_nothing_spills(name, card, record_property):
    found = _LINE.findall(compiled(name, card))
    assert len(found) == ENTRIES[name]
    for entry, stores, loads, registers in found:
        record_property(f"{card} {entry}", f"{registers} registers")
        print(f"{card} {entry}: {registers} registers")  # pytest -s shows the table
        assert (int(stores), int(loads)) == (0, 0), f"{entry} spills on {card}"
