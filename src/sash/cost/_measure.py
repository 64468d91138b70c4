"""What a step does need, observed in a fresh child process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import IO, Any

import torch

from sash import errors
from sash.cost._process import MAPPED_ABOVE_BYTES
from sash.cost._results import Block, Category, Environment, LayerCost, Measurement, Moment, Phase, Timeline
from sash.cost._source import FunctionSource, ModelSource
from sash.cost._transport import Parcel
from sash.cost._workload import Workload
from sash.errors import InputError, MeasureError

_ALLOCATORS = {
    "default": {},
    # glibc then gives every larger block back when it is freed: resident memory follows the allocator's level. The price is page faults.
    "mapped": {"MALLOC_MMAP_THRESHOLD_": str(MAPPED_ABOVE_BYTES), "MALLOC_MMAP_MAX_": "1000000"},
}


def measure(work: Workload, runs: int = 1, allocator: str = "default") -> Measurement:
    """What one step of `work` needs, each of `runs` times in a fresh process: the allocator's exact peak, resident memory, seconds.

    `process_bytes` is the largest growth of resident memory over a process that has only imported, through building the model, a first step
    and two more; imported are torch with `torch._dynamo` (torch's optimizers import it when first used), sash and every module that defines
    a part of the workload, the model's file among them. `peak_bytes` is the highest level in the allocator's own record of a steady step.
    `allocator="mapped"` has glibc map every block of 64 KiB and more on its own. A model without data (on the meta device) is filled with
    small numbers. What the model prints is not shown. Raises `MeasureError` where the process dies or runs out of memory, `ModelError`
    where the step raises, `InputError` for what cannot be read.
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
    order = {
        "path": sys.path,
        "modules": parcel.modules,
        "sources": [part.text for part in (work.model, work.loss) if isinstance(part, (ModelSource, FunctionSource))],
        "threads": torch.get_num_threads(),
    }
    # Files, not pipes: a child that prints much, or that has children of its own, would fill or hold a pipe, and both sides would wait.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        code = _run_child({**order, "answer": answer.fileno()}, parcel, allocator, answer, words)
        text, said = _read(answer), _read(words)
    found = json.loads(text) if text else {}
    if "error" in found:
        raise getattr(errors, found["error"])(*found["told"])
    if code or not found:
        raise MeasureError(_epitaph(code, said))
    return found


def _run_child(order: dict[str, Any], parcel: Parcel, allocator: str, answer: IO[bytes], words: IO[bytes]) -> int:
    """Exit code of a child that was sent the order and the parcel; no child is left behind, whatever happens here."""
    child = subprocess.Popen(
        [sys.executable, "-m", "sash.cost._child"],
        stdin=subprocess.PIPE,
        stdout=words,
        stderr=words,
        pass_fds=[answer.fileno()],
        env={**os.environ, **_ALLOCATORS[allocator]},
    )
    assert child.stdin is not None
    try:
        # It may end, or close its side, before all is sent: its answer or its own words say why.
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(order).encode() + b"\n")
            parcel.write(child.stdin)
            child.stdin.close()
        return child.wait()
    finally:
        child.kill()
        child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _epitaph(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        why = "most likely the machine ran out of memory. Forecast the step first, and measure one that fits."
        return f"the measuring process was killed; {why}"
    # The profiler reports its own start and stop in lines of this kind.
    lines = [line for line in said.strip().splitlines() if not line.startswith("USDT:")]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the measuring process ended with {how}: {lines[-1] if lines else 'it said nothing'}"
