"""Measure the sketch on a GPU and write the figures, with the machine's name.

python asv_benchmarks/gpu/bench.py                    all, a few minutes
python asv_benchmarks/gpu/bench.py --smoke --emulate  tiny sizes, the kernels on the CPU: proves only that it runs
"""

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import lev
from lev.device import DeviceSketch
from lev.place import Place, arrive

HERE = Path(__file__).parent
SHAPES = [(32, 16_384, 128), (32, 131_072, 128), (8, 131_072, 64)]
SMOKE = [(2, 300, 20)]
TARGETS = {"float16": 2.0, "bfloat16": 2.0, "float32": 3.0}  # times one read of the keys
PEERS = 10.0  # times faster than torch
DECODED, DECODED_SMOKE = (1024, 4096, 128), (2, 2100, 20)  # heads, rows before, columns: then a token a head
TOKEN = 20e-6  # seconds of a token, or twice the time of reading the factors, whichever is longer
EPSILON = 0.05


class Device:
    """Times by device events; a read is half of a copy."""

    def __init__(self):
        import cupy
        import torch

        self.cupy, self.torch = cupy, torch
        self.name = torch.cuda.get_device_name()

    def keys(self, shape, kind):
        keys = self.torch.randn(shape, device="cuda")
        keys[:, 17] *= 30
        return keys.to(getattr(self.torch, kind))

    def seconds(self, task, repeats):
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
        found = []
        for _ in range(repeats + 2):
            events[0].record()
            task()
            events[1].record()
            self.torch.cuda.synchronize()
            found.append(events[0].elapsed_time(events[1]) / 1e3)
        return statistics.median(found[2:])

    def read(self, keys, repeats):
        other = self.torch.empty_like(keys)
        return self.seconds(lambda: other.copy_(keys), repeats) / 2

    def peers(self, keys):
        torch = self.torch
        wide = keys.float()

        def gram():
            factor = torch.linalg.cholesky(wide.mT @ wide)
            white = torch.linalg.solve_triangular(factor, wide.mT, upper=False)
            return (white.square().sum(-2) >= EPSILON).nonzero()

        return {
            "torch_gram_cholesky_solve": gram,
            "torch_qr": lambda: (torch.linalg.qr(wide)[0].square().sum(-1) >= EPSILON).nonzero(),
        }


class Emulated:
    """The same on the CPU, by the tests' emulator: its times say nothing of a GPU."""

    def __init__(self):
        sys.path.insert(0, str(HERE.parents[1] / "tests"))
        import emulated
        import pytest

        self.name, self.stack = f"emulated on {platform.machine()}", contextlib.ExitStack()
        kernels = self.stack.enter_context(emulated.kernels())
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Place, "kernels", property(lambda place: kernels))

    def keys(self, shape, kind):
        keys = np.random.default_rng(0).standard_normal(shape)
        keys[:, 17] *= 30
        return keys.astype("float16" if kind == "bfloat16" else kind)

    def seconds(self, task, repeats):
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    def read(self, keys, repeats):
        return self.seconds(keys.copy, repeats) / 2

    def peers(self, keys):
        return {"numpy_qr": lambda: np.linalg.qr(keys[0].astype(np.float64))}


def sketched(keys, fast, p):
    sketch = DeviceSketch(keys.shape[2], EPSILON, p, heads=(len(keys),), fast=fast)
    return sketch.update(keys), sketch.universal_set()


def parts(machine, keys, kind, fast, repeats):
    """Return the seconds of each kernel alone."""
    from lev import bounds, whitening

    array, kind, place = arrive("keys", keys)
    kernels = place.kernels
    with place.current():
        gram = kernels.gram(array, kind, fast)
        none = place.arrays.zeros(len(gram))
        error = bounds.batch_gram_error(array.shape[1], fast)
        white = whitening.whitener(kernels, gram, error, 0.0, none, bounds.FAST_MARGIN)
        screen = whitening.screen(kernels, white, EPSILON, kind)
        tasks = {
            "gram": lambda: kernels.gram(array, kind, fast),
            "factor": lambda: kernels.factor(gram),
            "whitener": lambda: whitening.whitener(kernels, gram, error, 0.0, none, bounds.FAST_MARGIN),
            "screen": lambda: kernels.screen(array, kind, screen.parts, screen.scale, screen.limit),
        }
        return {name: machine.seconds(task, repeats) for name, task in tasks.items()}


def row(machine, shape, kind, fast, p, repeats):
    """Return the figures of one size, and by how much its targets are met or missed."""
    keys = machine.keys(shape, kind)
    kind = arrive("keys", keys)[1]  # NumPy has no bfloat16
    sketch, sets = sketched(keys, fast, p)
    found = {
        "shape": shape,
        "kind": kind,
        "fast": fast,
        "p": p,
        "fallen": sketch.fallen,
        "kept": sum(map(len, sets)),
        "exact": all(one.exact for one in sets),
        "read_s": machine.read(keys, repeats),
        "lev_s": machine.seconds(lambda: sketched(keys, fast, p), repeats),
    }
    found["reads"] = found["lev_s"] / found["read_s"]
    if p != 2:  # no peer knows weights, and no target is set
        return found
    found["parts_s"] = parts(machine, keys, kind, fast, repeats)
    found["peers_s"] = {name: machine.seconds(task, 3) for name, task in machine.peers(keys).items()}
    if kind in TARGETS:
        found["target_reads"], found["met"] = TARGETS[kind], found["reads"] <= TARGETS[kind]
    found["times_faster"] = {name: seconds / found["lev_s"] for name, seconds in found["peers_s"].items()}
    found["target_times_faster"] = PEERS
    return found


def decode(machine, shape, kind, repeats):
    """Return the seconds in which a token of every head is judged: by the kernel alone, and by the whole call."""
    keys = machine.keys(shape, kind)
    sketch = DeviceSketch(shape[2], EPSILON, heads=shape[:1]).update(keys)
    token, kind, place = arrive("keys", keys[:, :1])
    state = sketch._state
    with place.current():
        token, kernels = place.arrays.ascontiguousarray(token), place.kernels
        filters = state.screen.parts, state.screen.scale, state.screen.limit
        alone = machine.seconds(lambda: kernels.screen(token, kind, *filters), repeats)
    read = machine.read(keys, repeats) / keys.nbytes * sum(part.nbytes for part in filters)
    found = {"shape": shape, "kind": kind, "fallen": sketch.fallen, "read_s": read, "kernel_s": alone}
    found["call_s"] = machine.seconds(lambda: sketch.admit(keys[:, :1]), repeats)
    return {**found, "target_s": max(TOKEN, 2 * read), "met": alone <= max(TOKEN, 2 * read)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once")
    parser.add_argument("--emulate", action="store_true", help="the kernels on the CPU")
    parser.add_argument("--out", type=Path, help="folder of the JSON; default asv_benchmarks/results, none for --smoke")
    given = parser.parse_args()
    machine = Emulated() if given.emulate else Device()
    cases = [(kind, fast, 2.0) for kind in ("bfloat16", "float16") for fast in (True, False)]
    cases += [("float32", False, p) for p in (2.0, 1.0, 4.0)]
    repeats = 1 if given.smoke else 20
    rows = [row(machine, shape, *case, repeats) for shape in (SMOKE if given.smoke else SHAPES) for case in cases]
    shape = DECODED_SMOKE if given.smoke else DECODED
    tokens = [decode(machine, shape, kind, repeats) for kind in ("bfloat16", "float32")]
    versions = {name: sys.modules[name].__version__ for name in ("numpy", "torch", "cupy") if name in sys.modules}
    report = {"machine": machine.name, "date": datetime.date.today().isoformat(), "lev": lev.__version__}
    text = json.dumps({**report, "versions": versions, "rows": rows, "decode": tokens}, indent=1)
    print(text)
    folder = given.out or (None if given.smoke else HERE.parent / "results")
    if folder:
        name = "".join(letter if letter.isalnum() else "_" for letter in machine.name.lower())
        (folder / f"gpu_{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
