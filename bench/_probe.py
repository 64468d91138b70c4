"""Everything about one workload, asked in a process of its own: `python bench/_probe.py row resnet18-b1-infer 3 1`.

The forecast comes first, in a process that has run no step, so that neither its time nor its memory can lean on one; then sash's
measurements, each in a fresh process that nothing runs beside. Last, and at the same time, the peers (here) and the true peak (in a process
without sash).
The last line printed is JSON.
"""

from __future__ import annotations

import gc
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
from _truth import THREADS, answer, start
from _workloads import WORKLOADS, Row, tv

import sash

HUGE = "2800x3x256x256"
"""Images of a U-Net's training step that needs more than 500 GB."""
ROUNDS = 9


def row(name: str, runs: int, mapped_runs: int) -> dict[str, Any]:
    """Forecast, measurements, truth and peers of a workload; `{"error": reason}` in the place of each that failed."""
    asked = WORKLOADS[name]
    model, inputs = asked.make()
    work = _work(asked, model, inputs)
    found = {
        "library": asked.library,
        "architecture": type(model).__name__,
        "forecast": _attempt(lambda: _forecast(work)),
        "measure": _attempt(lambda: _measure(work, runs, mapped_runs)),
    }
    truth = start(name)
    # They import a good part of torch, which a forecast must not find imported.
    from _peers import memtracker_peak, torchinfo_peak

    for peer, peak in (("memtracker", memtracker_peak), ("torchinfo", torchinfo_peak)):
        found[peer] = _attempt(lambda peak=peak: {"peak_bytes": peak(asked)})
    return {**found, "truth": answer(truth)}


def _attempt(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or the reason that there is none: one peer's failure takes no other answer with it."""
    try:
        return question()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _measure(work: sash.Workload, runs: int, mapped_runs: int) -> dict[str, Any]:
    """sash's measurements, the two allocators in turn; every run is a fresh process."""
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
    model = tv("resnet50")()
    for turn in range(ROUNDS + 1):
        for batch in sorted(seconds, reverse=turn % 2 == 1):  # Each goes first in turn.
            gc.collect()  # or every other forecast pays for the collection of both
            started = time.perf_counter()
            sash.forecast(sash.Workload(model, f"{batch}x3x224x224", train=True, optimizer="adamw"))
            if turn:  # The first of each pays for imports and caches.
                seconds[batch].append(time.perf_counter() - started)
    small, large = (statistics.median(taken) for taken in seconds.values())
    return {"batch_1_s": small, "batch_1024_s": large, "ratio": large / small}


def _work(row: Row, model: Any, inputs: Any) -> sash.Workload:
    if row.library != "own":
        from _torchvision import BesideTorchvision

        model = BesideTorchvision(model)
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


def main() -> None:
    torch.set_num_threads(THREADS)
    what, *rest = sys.argv[1:]
    found = row(rest[0], int(rest[1]), int(rest[2])) if what == "row" else {"huge": huge, "batches": batches}[what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
