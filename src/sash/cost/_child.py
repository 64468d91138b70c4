"""The measuring process: `python -m sash.cost._child`, started by `measure` and fed through its standard input.

It imports, notes its resident memory, builds the model, runs a first step and two timed ones, notes the highest resident memory, and only then runs one more
step under the profiler for the allocator's record: the profiler's own memory is in no figure.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile, record_function

from sash.cost._environment import environment
from sash.cost._results import Category, Phase
from sash.cost._scopes import Scopes
from sash.cost._source import ModelSource
from sash.cost._step import run_step, training_mode
from sash.cost._trace import Trace, Tracer
from sash.cost._transport import receive
from sash.cost._workload import Workload, default_loss, make_tensor, map_tensors, tensors_in
from sash.errors import SashError

TIMED_STEPS = 2
_MARK = "sash:"


def main() -> None:
    """Read the order, run, answer."""
    order = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = order["path"]
    torch.set_num_threads(order["threads"])
    for name in order["modules"]:
        importlib.import_module(name)
    try:
        if order["source"]:
            ModelSource(order["source"]).import_module()
        answer = _measure()
    except SashError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"the step raised {type(error).__name__}: {error}"}
    with os.fdopen(order["answer"], "w") as out:
        json.dump(answer, out)


def _measure() -> dict[str, Any]:
    torch.manual_seed(0)
    imported = _resident_bytes()
    _forget_peak()
    work = receive(sys.stdin.buffer)
    model = work.model.load() if isinstance(work.model, ModelSource) else work.model
    positional, keyword = (map_tensors(make_tensor, value) for value in work.arguments())
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    optimizer = work.optimizer(parameters) if work.optimizer is not None and not isinstance(work.optimizer, str) else None

    def step(enter: Callable[[Phase, Tensor | None], None] = lambda phase, loss: None) -> Any:
        with torch.inference_mode(not work.train):
            outputs = run_step(model, (positional, keyword), work.loss or default_loss, optimizer, work.autocast, work.accumulate, work.train, enter)
        if work.train:
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            for parameter in parameters:
                parameter.grad = None
        return outputs

    with training_mode(model, work.train):
        step()
        seconds = []
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        grown = _peak_resident_bytes() - imported
        static = _static(model, (positional, keyword), optimizer)
        record = _record(model, step, sum(static.values()))
        macs = _count_macs(model, step, work)
    return {
        "process_bytes": grown,
        "wall_s": statistics.median(seconds),
        "static": static,
        "static_bytes": sum(static.values()),
        "params": sum(parameter.numel() for parameter in parameters),
        "environment": asdict(environment()),
        **record,
        **macs,
    }


def _static(model: Any, inputs: Any, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Bytes alive before a steady step, by category; each storage once."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    groups = {
        Category.PARAMETER: list(module.parameters()),
        Category.BUFFER: list(module.buffers()),
        Category.INPUT: tensors_in(inputs),
        Category.OPTIMIZER: [tensor for state in optimizer.state.values() for tensor in tensors_in(state)] if optimizer else [],
    }
    seen: set[int] = set()
    sizes = {}
    for category, tensors in groups.items():
        sizes[category.value] = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                sizes[category.value] += storage.nbytes()
    return sizes


def _record(model: Any, step: Callable[..., Any], static: int) -> dict[str, Any]:
    """The allocator's own record of one step: its level over time, and each module's part in it."""
    scopes = Scopes(model, lambda path, entering: _mark(f"{'>' if entering else '<'}{path}"))
    gc.collect()
    with profile(profile_memory=True, use_kineto=True) as recording:
        outputs = step(lambda phase, loss: _mark(f"={phase.value}"))
        _mark("!")
        del outputs
    scopes.remove()
    events: list[tuple[int, int, str]] = []
    for event in recording.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        name = event.name()
        if name == "[memory]":
            events.append((event.start_ns(), event.nbytes(), ""))
        elif name.startswith(_MARK):
            events.append((event.start_ns(), 0, name[len(_MARK) :]))
    events.sort(key=lambda event: event[0])
    return _read_record(events, model, scopes, static)


def _mark(text: str) -> None:
    with record_function(_MARK + text):
        pass


def _read_record(events: list[tuple[int, int, str]], model: Any, scopes: Scopes, static: int) -> dict[str, Any]:
    phase, stack = Phase.FORWARD, []
    level = peak = static
    moments: list[tuple[str, str]] = []
    blocks: list[list[Any]] = []
    alive: dict[int, list[list[Any]]] = {}
    calls: dict[str, int] = {}
    held: dict[str, int] = {}
    peaks: dict[str, int] = {}
    for _, size, mark in events:
        if mark:
            if mark == "!":
                break
            if mark[0] == "=":
                phase = Phase(mark[1:])
            elif phase is Phase.FORWARD and mark[0] == ">":
                stack.append([mark[1:], level, level])
            elif phase is Phase.FORWARD and stack:
                path, before, highest = stack.pop()
                calls[path] = calls.get(path, 0) + 1
                held[path] = held.get(path, 0) + level - before
                peaks[path] = max(peaks.get(path, 0), highest)
                if stack:
                    stack[-1][2] = max(stack[-1][2], highest)
            continue
        level += size
        peak = max(peak, level)
        if stack:
            stack[-1][2] = max(stack[-1][2], level)
        if size > 0:
            module = stack[-1][0] if stack else ""
            moments.append((phase.value, module))
            block = [size, module, len(moments) - 1, -1]
            blocks.append(block)
            alive.setdefault(size, []).append(block)
        elif alive.get(-size):
            # The record does not say which block of this size was freed; any of them gives the same level.
            alive[-size].pop()[3] = len(moments)
    for block in blocks:
        block[3] = len(moments) if block[3] < 0 else block[3]
    outputs = {call.path: call.outputs or () for call in scopes.calls}
    modules = list(model.named_modules()) if isinstance(model, nn.Module) else [("", model)]
    seen: set[int] = set()
    layers = []
    for path, module in modules:
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen] if isinstance(module, nn.Module) else []
        seen.update(id(parameter) for parameter in own)
        layers.append(
            {
                "path": path,
                "kind": type(module).__name__,
                "leaf": not (isinstance(module, nn.Module) and any(True for _ in module.children())),
                "calls": calls.get(path, 0),
                "outputs": outputs.get(path, ()),
                "params": sum(parameter.numel() for parameter in own),
                "param_bytes": sum(parameter.numel() * parameter.element_size() for parameter in own),
                "macs": 0,
                "macs_backward": 0,
                "held_bytes": held.get(path, 0),
                "forward_peak_bytes": peaks.get(path, 0),
                "at_peak_bytes": 0,
            }
        )
    return {"peak_bytes": peak, "moments": moments, "blocks": blocks, "layers": layers}


def _count_macs(model: Any, step: Callable[..., Any], work: Workload) -> dict[str, int]:
    """Multiply-accumulates of the operators that one more step really calls."""
    trace = Trace()
    tracer = Tracer(trace)

    def enter(phase: Phase, loss: Tensor | None) -> None:
        tracer.phase = phase

    with tracer:
        step(enter)
    tracer.finish()
    return {
        "macs": sum(count for (_, backward), count in trace.macs.items() if not backward),
        "macs_backward": sum(count for (_, backward), count in trace.macs.items() if backward),
    }


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SashError(f"the kernel does not report {field}; resident memory is measured on Linux.")


def _resident_bytes() -> int:
    return _status_bytes("VmRSS:")


def _peak_resident_bytes() -> int:
    return _status_bytes("VmHWM:")


def _forget_peak() -> None:
    # Without the right to do so, importing's own peak counts: a little more, never less.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
