"""Run a task over parts on all cores, with one BLAS thread in each."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import threadpoolctl

Part = TypeVar("Part")
Result = TypeVar("Result")


class _SingleBlas:
    """BLAS held to one thread while anyone is inside; the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._controller: threadpoolctl.ThreadpoolController | None = None
        self._limit: threadpoolctl._ThreadpoolLimiter | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                if self._controller is None:
                    importlib.import_module("scipy.linalg")  # whose BLAS is another than NumPy's
                    self._controller = threadpoolctl.ThreadpoolController()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._limit is not None:
                    self._limit.restore_original_limits()


single_blas = _SingleBlas()
"""Two thread pools that fight cost more than they give: one outer pool, one BLAS thread inside."""


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_here = threading.local()


@contextmanager
def alone() -> Iterator[None]:
    """Keep what this thread runs to this thread: whoever calls already has a thread for each core."""
    before, _here.alone = getattr(_here, "alone", False), True
    try:
        yield
    finally:
        _here.alone = before


def scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Return float64 room of a shape that is this thread's until it asks again: fresh memory costs page faults."""
    count = math.prod(shape)
    if getattr(_here, "room", np.empty(0)).size < count:
        _here.room = np.empty(count)
    return _here.room[:count].reshape(shape)


def run(task: Callable[[Part], Result], parts: Iterable[Part], threads: int | None = None) -> list[Result]:
    """Return ``[task(part) for part in parts]``, computed on all cores; each takes the next part when it is free.

    A task that runs parts of its own runs them alone: pools do not nest.
    """
    parts = list(parts)
    results: list = [None] * len(parts)
    turn = itertools.count()

    def work() -> None:
        with alone():
            while (i := next(turn)) < len(parts):
                results[i] = task(parts[i])

    many = 1 if getattr(_here, "alone", False) else min(len(parts), threads or cores())
    with single_blas():
        helpers = [_pool(os.getpid(), max(cores(), many)).submit(work) for _ in range(many - 1)]
        try:
            work()
        finally:
            for helper in helpers:
                helper.result()
    return results


@functools.cache
def _pool(_process: int, workers: int) -> ThreadPoolExecutor:
    """Return this process's pool; a forked child makes its own, for threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="lev")
