"""One question about one workload, answered in a process of its own: `python bench/_probe.py forecast resnet50-b8-train`.

A forecast runs where no step has run, so that neither its time nor its memory can lean on one. The last line printed is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _models
import torch
from _peers import memtracker_peak, torchinfo_peak
from _step import SumOfMeans
from _truth import THREADS, true_peak
from _workloads import WORKLOADS, Row

import sash

HUGE = "2800x3x256x256"
"""Images of a U-Net's training step that needs more than 500 GB."""
ROUNDS = 7


def forecast(row: Row) -> dict[str, Any]:
    """sash's forecast, the seconds it took and by how much resident memory rose meanwhile."""
    model, inputs = row.make()
    return _forecast(_work(row, model, inputs))


def measure(row: Row, runs: int, mapped_runs: int) -> dict[str, Any]:
    """sash's measurements, the two allocators in turn; every run is a fresh process."""
    # The same loss as sash's own, but named, so that the measuring process imports this bench, and with it torchvision, first.
    work = dataclasses.replace(_work(row, *row.make()), loss=SumOfMeans())
    found: dict[str, list[dict[str, Any]]] = {"default": [], "mapped": []}
    for turn in range(max(runs, mapped_runs)):
        for allocator, wanted in (("default", runs), ("mapped", mapped_runs)):
            if turn < wanted:
                seen = sash.measure(work, runs=1, allocator=allocator)
                found[allocator].append({"peak_bytes": seen.peak_bytes, "process_bytes": seen.process_bytes, "wall_s": seen.wall_s})
    return found


def huge() -> dict[str, Any]:
    """The forecast of a training step that no such machine could run."""
    return _forecast(sash.Workload(_models.UNet(), HUGE, train=True, optimizer="adam"))


def batches() -> dict[str, Any]:
    """Median seconds of forecasts for batch 1 and batch 1024, taken in turn, and their ratio."""
    seconds: dict[int, list[float]] = {1: [], 1024: []}
    model = WORKLOADS["resnet50-b8-train"].make()[0]
    for turn in range(ROUNDS + 1):
        for batch, taken in seconds.items():
            started = time.perf_counter()
            sash.forecast(sash.Workload(model, f"{batch}x3x224x224", train=True, optimizer="adamw"))
            if turn:  # The first of each pays for imports and caches.
                taken.append(time.perf_counter() - started)
    small, large = (statistics.median(taken) for taken in seconds.values())
    return {"batch_1_s": small, "batch_1024_s": large, "ratio": large / small}


def _work(row: Row, model: Any, inputs: Any) -> sash.Workload:
    return sash.Workload(model, inputs, train=row.train, optimizer=row.optimizer, autocast=row.autocast, accumulate=row.accumulate)


def _forecast(work: sash.Workload) -> dict[str, Any]:
    before = _highest_resident(reset=True)
    started = time.perf_counter()
    found = sash.forecast(work)
    taken = time.perf_counter() - started
    return {
        "peak_bytes": found.peak_bytes,
        "process_bytes": found.process_bytes,
        "mapped_bytes": found.mapped_bytes,
        "static_bytes": found.static_bytes,
        "forecast_s": taken,
        "extra_bytes": _highest_resident() - before,
    }


def _highest_resident(reset: bool = False) -> int:
    """Bytes of the process's highest resident memory since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _peer(peak: Callable[[Row], int]) -> Callable[[Row], dict[str, Any]]:
    return lambda row: {"peak_bytes": peak(row)}


def main() -> None:
    torch.set_num_threads(THREADS)
    what, *rest = sys.argv[1:]
    roles: dict[str, Callable[[Row], dict[str, Any]]] = {
        "forecast": forecast,
        "measure": lambda row: measure(row, int(rest[1]), int(rest[2])),
        "truth": true_peak,
        "memtracker": _peer(memtracker_peak),
        "torchinfo": _peer(torchinfo_peak),
    }
    found = roles[what](WORKLOADS[rest[0]]) if what in roles else {"huge": huge, "batches": batches}[what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
