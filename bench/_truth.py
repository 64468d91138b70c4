"""The allocator's true peak of one steady step, independent of sash: the sum over the profiler's record of every allocation and free.

    python bench/_truth.py resnet50-b8-train unet-b2-infer --json truth.json
    python bench/_truth.py --all --json truth.json

Each workload runs in a fresh process: a warm-up step, then a step under the profiler. Workloads that the JSON file already has are skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _step import make_step, static_tensors, storage_bytes
from _workloads import WORKLOADS, Row

THREADS = 2


def true_peak(row: Row) -> dict[str, int]:
    """Bytes at the step's peak, before it, and left by it."""
    model, inputs = row.make()
    step, optimizer = make_step(row, model, inputs)
    step()
    static = storage_bytes(static_tensors(model, inputs, optimizer))
    peak, level = risen(step)
    return {"peak_bytes": static + peak, "static_bytes": static, "left_bytes": level}


def risen(step: Callable[[], Any]) -> tuple[int, int]:
    """Bytes above the level before it, at a step's peak and at its end."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler and profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    level, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak, level


def start(name: str) -> subprocess.Popen[str]:
    """A fresh process that finds the `true_peak` of a workload."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What the process found; `{"error": last line}` where it failed."""
    out, complaint = child.communicate()
    if child.returncode:
        return {"error": (complaint.strip().splitlines() or [f"exit code {child.returncode}"])[-1]}
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads, as in bench/_workloads.py")
    parser.add_argument("--all", action="store_true", help="every workload")
    parser.add_argument("--json", type=Path, help="file to add results to")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    if asked.child:
        print(json.dumps(true_peak(WORKLOADS[asked.child])))
        return
    found = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    for name in WORKLOADS if asked.all else asked.names:
        if "peak_bytes" not in found.get(name, {}):
            found[name] = answer(start(name))
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1))
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
