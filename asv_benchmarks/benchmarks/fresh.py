"""Measurements in a process of their own, where nothing was imported, compiled or allocated before."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

_PATHS = (Path(__file__).parents[1], Path(__file__).parents[2])  # of `benchmarks`, and of `lev`


def call(function, *arguments, python=sys.executable):
    """Return ``function(*arguments)`` from a fresh process: an importable function, arguments and result in JSON."""
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as task; "
        "print(json.dumps(task(*json.loads(sys.argv[1]))))"
    )
    path = os.pathsep.join([*map(str, _PATHS), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    command, environment = [python, "-c", code, json.dumps(arguments)], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function.__name__}{arguments} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb(task, above=None):
    """Return the most MB held during ``task()`` above ``above``, or what was held before, and its result (Linux).

    ``resource.getrusage`` never forgets a peak, such as that of making the keys; the kernel's own mark can be reset.
    What the allocator still holds of earlier calls is given back first, or it would not count.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    above = held_mb() if above is None else above
    result = task()
    return round(max(0.0, _megabytes("VmHWM") - above), 1), result


def held_mb():
    return _megabytes("VmRSS")


def _megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
