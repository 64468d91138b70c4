"""What a step does need, observed in a fresh child process."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from typing import Any

import torch

from sash.cost._results import Block, Category, Environment, LayerCost, Measurement, Moment, Phase, Timeline
from sash.cost._source import ModelSource
from sash.cost._transport import Parcel, modules_of
from sash.cost._workload import Workload
from sash.errors import InputError, MeasureError, ModelError

MAPPED_ABOVE_BYTES = 1 << 16
_ALLOCATORS = {
    "default": {},
    # glibc then gives every larger block back when it is freed: resident memory follows the allocator's level. The price is page faults.
    "mapped": {"MALLOC_MMAP_THRESHOLD_": str(MAPPED_ABOVE_BYTES), "MALLOC_MMAP_MAX_": "1000000"},
}


def measure(work: Workload, runs: int = 1, allocator: str = "default") -> Measurement:
    """What one step of `work` needs, each of `runs` times in a fresh process: the allocator's exact peak, resident memory, seconds.

    `process_bytes` is the largest growth of resident memory over a process that has only imported, through building the model, a first step and two
    more; `peak_bytes` is the highest level in the allocator's own record of a steady step. `allocator="mapped"` has glibc map every block of 64 KiB and more
    on its own. A model without data (on the meta device) is filled with small numbers. Raises `MeasureError` where the process dies, `ModelError` where the step raises.
    """
    if allocator not in _ALLOCATORS:
        raise InputError(f"allocator {allocator!r} is not known; it is 'default' or 'mapped'.")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise InputError(f"runs is {runs!r}; it is a number of processes, 1 or more.")
    parcel = Parcel(work)
    found = [_run(work, parcel, allocator) for _ in range(runs)]
    first = found[0]
    return Measurement(
        name=work.name,
        setting=work.setting,
        peak_bytes=max(one["peak_bytes"] for one in found),
        reserved_bytes=max(one["peak_bytes"] for one in found),
        process_bytes=max(one["process_bytes"] for one in found),
        static_bytes=first["static_bytes"],
        params=first["params"],
        macs=first["macs"],
        macs_backward=first["macs_backward"],
        layers=tuple(LayerCost(**{**row, "outputs": tuple(tuple(shape) for shape in row["outputs"])}) for row in first["layers"]),
        timeline=_timeline(first),
        environment=Environment(**first["environment"]),
        notes=(),
        allocator=allocator,
        wall_s=statistics.median(one["wall_s"] for one in found),
        process_runs=tuple(one["process_bytes"] for one in found),
    )


def _timeline(found: dict[str, Any]) -> Timeline:
    moments = tuple(Moment(Phase(phase), module, "") for phase, module in found["moments"])
    static = tuple(Block(size, Category(category), "", category, 0, len(moments)) for category, size in found["static"].items() if size)
    blocks = tuple(Block(size, Category.OBSERVED, module, "", born, died) for size, module, born, died in found["blocks"])
    return Timeline(moments, static + blocks)


def _run(work: Workload, parcel: Parcel, allocator: str) -> dict[str, Any]:
    answer_in, answer_out = os.pipe()
    source = work.model.text if isinstance(work.model, ModelSource) else None
    order = {"modules": modules_of(work), "source": source, "path": sys.path, "threads": torch.get_num_threads(), "answer": answer_out}
    environment = {**os.environ, **_ALLOCATORS[allocator]}
    child = subprocess.Popen(
        [sys.executable, "-m", "sash.cost._child"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=sys.stderr.fileno() if _has_stderr() else None,
        pass_fds=[answer_out], env=environment,
    )  # fmt: skip
    os.close(answer_out)
    try:
        assert child.stdin is not None and child.stderr is not None
        try:
            child.stdin.write(json.dumps(order).encode() + b"\n")
            parcel.write(child.stdin)
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died while reading; its own words follow
        with os.fdopen(answer_in, "rb") as answer:
            text = answer.read()
        complaint = child.stderr.read().decode(errors="replace")
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stderr):
            if stream is not None:
                stream.close()
    found = json.loads(text) if text else {}
    if "error" in found:
        raise ModelError(found["error"])
    if code or not found:
        raise MeasureError(_epitaph(code, complaint))
    return found


def _has_stderr() -> bool:
    try:
        return sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def _epitaph(code: int, complaint: str) -> str:
    if code == -signal.SIGKILL:
        return "the measuring process was killed; most likely the machine ran out of memory. Forecast the step first, and measure one that fits."
    last = complaint.strip().splitlines()[-1] if complaint.strip() else "it said nothing"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the measuring process ended with {how}: {last}"
