"""One array job in a process of its own, what it grew by, and what it read and wrote: `python bench/_arrays_probe.py JOB`, a job as JSON.

A job: `operation`, a function of sash.arrays; `source`, a path, read into memory first where `in_memory` is true; `args`, the arguments
after it (strings that end in ".npy" name kernels); `words`, by name; `out`, a path, None, or "given" for an array of `given` = [shape,
dtype]; `warm`, jobs to be run before.

The level is the resident memory after imports, after the input (and an output that is given) was put into memory and touched, after the
warm jobs, which load compiled code and libraries, and after the C library gave back what was free. The kernel's mark of the most (VmHWM)
is put down to it. The growth is that mark after planning and running, less the level; a result in memory is still held. The last line
printed is JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

WORKERS = 2


def status_bytes(name: str) -> int:
    """A line of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def io_bytes(name: str) -> int:
    """A line of what this process read and wrote by calls, in bytes."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def level_bytes() -> int:
    """What is resident now, once what is free was given back; the mark of the most is put down to it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def counted() -> tuple[Counter[str], Counter[str]]:
    """Bytes read and written from now on by file, of files that are read and written at offsets."""
    read, written, lock = Counter[str](), Counter[str](), threading.Lock()

    def wrapped(call: Any, into: Counter[str]) -> Any:
        def counting(file: int, buffers: Any, offset: int, *flags: int) -> int:
            done = call(file, buffers, offset, *flags)
            with lock:
                into[Path(os.readlink(f"/proc/self/fd/{file}")).name] += done
            return done

        return counting

    os.preadv, os.pwritev = wrapped(os.preadv, read), wrapped(os.pwritev, written)
    return read, written


class Call:
    """A job, ready to be called."""

    def __init__(self, job: dict[str, Any]) -> None:
        import sash.arrays

        self.job = job
        self.operation = getattr(sash.arrays, job["operation"])
        self.source: Any = job["source"]
        if job.get("in_memory"):
            self.source = np.load(job["source"])
        self.args = [np.load(one) if isinstance(one, str) and one.endswith(".npy") else one for one in job.get("args", [])]
        self.out: Any = job["out"]
        if self.out == "given":
            shape, dtype = job["given"]
            self.out = np.ones(shape, dtype)

    def __call__(self, **more: Any) -> Any:
        words = {"workers": WORKERS, "progress": False, **self.job.get("words", {}), **more}
        return self.operation(self.source, *self.args, out=self.out, **words)


def warmed(call: Call) -> None:
    """Run it in much memory and in the least, which takes narrow bands: code is compiled anew for other layouts."""
    from sash.errors import DoesNotFit

    try:
        call(budget="1 GiB", overwrite=True)
        try:
            call(budget=1, plan_only=True)
        except DoesNotFit as error:
            call(budget=error.least_bytes, overwrite=True)
    except Exception as error:
        # A method that this array has no use for. What fails for another reason fails again on the larger one, and is told there.
        print(f"warm: {error}", file=sys.stderr)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """The plan's figures, and the measured ones; of a budget that is refused, those of the least one that the refusal names."""
    from sash.errors import DoesNotFit

    call = Call(job)
    for one in job.get("warm", []):
        warmed(Call(one))
    read, written = counted()
    calls = io_bytes("rchar"), io_bytes("wchar")
    found: dict[str, Any] = {"budget_bytes": job["budget"], "refused": False}
    level = level_bytes()
    began = time.perf_counter()
    budget = job["budget"]
    try:
        plan = call(budget=budget, plan_only=True)
    except DoesNotFit as error:
        found |= {"refused": True, "refused_growth_bytes": status_bytes("VmHWM") - level, "least_bytes": error.least_bytes}
        budget = error.least_bytes
        try:
            plan = call(budget=budget, plan_only=True)
        except DoesNotFit as again:
            return {**found, "error_text": f"the least budget, {budget}, was refused: {again}"}
    planned = time.perf_counter()
    made = call(budget=budget)
    ended = time.perf_counter()
    growth = status_bytes("VmHWM") - level
    del made
    return {
        **found,
        "held_to_bytes": budget,
        "peak_bytes": plan.peak_bytes,
        "growth_bytes": growth,
        "level_bytes": level,
        "method": plan.method,
        "tasks": plan.tasks,
        "workers": plan.workers,
        "passes": plan.passes,
        "shape": list(plan.shape),
        "dtype": plan.dtype,
        "plan_s": planned - began,
        "wall_s": ended - planned,
        "read_by_file": dict(read),
        "written_by_file": dict(written),
        "rchar": io_bytes("rchar") - calls[0],
        "wchar": io_bytes("wchar") - calls[1],
    }


def ask(job: dict[str, Any], limit_s: float = 3600) -> dict[str, Any]:
    """The answer of a fresh process; `{"error_text": reason}` where it failed or took too long."""
    import subprocess

    command = [sys.executable, "-W", "ignore", __file__, json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"error_text": f"no answer in {limit_s:g} s"}
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error_text": told.replace(str(Path(job["source"]).parent), "")[:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
