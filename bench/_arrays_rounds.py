"""Calls that take turns in one process, and temporary files."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int, most_s: float = 90.0) -> dict[str, list[float]]:
    """Seconds by name, one a round; a first round, in which kernels are loaded and pages come in, does not count.

    After three rounds, no new one begins later than `most_s` after the first that counts.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = 0.0
    for turn in range(rounds + 1):
        if turn == 1:
            began = time.perf_counter()
        for name, call in calls.items():
            gc.collect()
            started = time.perf_counter()
            found = call()
            elapsed = time.perf_counter() - started
            del found
            if turn:
                taken[name].append(elapsed)
        if turn >= 3 and time.perf_counter() - began > most_s:
            break
    return taken


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
    """Of each."""
    return {name: median(values) for name, values in taken.items()}


@contextmanager
def folder(needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder, gone at the end, however it comes; says so where the disk is too small."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("SASH_BENCH_FOLDER")) as name:
        state = os.statvfs(name)
        free = state.f_bavail * state.f_frsize
        if free < needed_bytes:
            raise SystemExit(f"this takes {needed_bytes / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free where temporary files go")
        yield Path(name)
