"""Two workers sketch halves of one file, a third merges what they wrote: the same set as one scan of it all."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import lev

LEV = [sys.executable, "-m", "lev"]

with tempfile.TemporaryDirectory() as folder:
    file, merged = Path(folder) / "keys.npy", Path(folder) / "whole.lev"
    keys = np.random.default_rng(0).standard_normal((50_000, 16), dtype=np.float32)
    keys[::5000] *= 20
    np.save(file, keys)

    halves = [Path(folder) / name for name in ("first.lev", "second.lev")]
    spans = ["0:25000", "25000:50000"]
    scan = [*LEV, "scan", str(file), "--epsilon", "0.02"]
    workers = [
        subprocess.Popen([*scan, "--rows", span, "-o", str(half)], stdout=subprocess.DEVNULL)
        for span, half in zip(spans, halves, strict=True)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    subprocess.run([*LEV, "merge", *map(str, halves), "-o", str(merged)], check=True)

    found, wanted = lev.load(merged).universal_set(), lev.scan(file, 0.02).universal_set()
    assert found.indices.tolist() == wanted.indices.tolist() == list(range(0, 50_000, 5000))
