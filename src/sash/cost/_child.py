"""The measuring process: `python -m sash.cost._child`, started by `measure` and fed through its standard input.

It imports, notes its resident memory, builds the model, runs a first step and two timed ones, notes the highest resident memory, and
only then runs one more step under the profiler for the allocator's record: the profiler's own memory is in no figure.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

# torch's optimizers import it when first used, and it takes more memory than many a model: it belongs before the baseline.
import torch._dynamo
from torch import Tensor, nn

from sash.cost._callables import as_module, static_tensors
from sash.cost._environment import environment
from sash.cost._failures import explain
from sash.cost._record import record_step
from sash.cost._results import Category, Phase
from sash.cost._scopes import Scopes
from sash.cost._source import ModelSource
from sash.cost._step import make_optimizer, run_step, training_mode
from sash.cost._trace import Trace, Tracer
from sash.cost._transport import receive
from sash.cost._workload import default_loss, make_tensor, map_tensors, tensors_in
from sash.errors import MeasureError, SashError, ShapeError
from sash.units import format_bytes

TIMED_STEPS = 2
_REFUSED = re.compile(r"tried to allocate ([0-9]+) bytes")


def main() -> None:
    """Read the order, run, answer."""
    order = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = order["path"]
    torch.set_num_threads(order["threads"])
    try:
        _import(order["modules"], order["sources"])
        answer = _measure()
    except ShapeError as error:
        answer = {"error": "ShapeError", "told": [error.path, error.came, error.expected, error.walk, error.fix]}
    except SashError as error:
        answer = {"error": type(error).__name__, "told": [str(error)]}
    # Whoever is still sending must not wait for a reader that is not there.
    sys.stdin.close()
    with os.fdopen(order["answer"], "w") as out:
        json.dump(answer, out)


def _import(modules: list[str], sources: list[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            kind = type(error).__name__
            raise MeasureError(f"importing {name}, which the model needs, raised {kind} in a fresh process: {error}") from error
    for text in sources:
        ModelSource(text).import_module()


def _measure() -> dict[str, Any]:
    torch.manual_seed(0)
    gc.collect()
    imported = _resident_bytes()
    _forget_peak()
    work = receive(sys.stdin.buffer)
    model = as_module(work.model.load() if isinstance(work.model, ModelSource) else work.model)
    if work.rewrite is not None:
        model = work.rewrite(model)
    positional, keyword = (map_tensors(make_tensor, value) for value in work.arguments())
    parameters = list(model.parameters())
    optimizer = make_optimizer(work, parameters)
    leaves = [*parameters, *tensors_in((positional, keyword))]

    assert not isinstance(work.autocast, str)
    setting = (work.loss or default_loss, optimizer, work.autocast, work.accumulate, work.train)

    def step(enter: Callable[[Phase, Tensor | None], None] = lambda phase, loss: None) -> Any:
        with torch.inference_mode(not work.train):
            outputs = run_step(model, (positional, keyword), *setting, enter)
        if work.train:
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            for tensor in leaves:
                tensor.grad = None
        return outputs

    with training_mode(model, work.train):
        _first(step, model)
        seconds = []
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        grown = _peak_resident_bytes() - imported
        before = list(static_tensors(model))
        macs = _count_macs(step)
        after = {tensor.untyped_storage()._cdata for _, _, _, tensor in static_tensors(model)}
        # What a step replaces, as activations kept in an attribute, is in the allocator's record and not alive throughout.
        kept = [(category, tensor) for category, _, _, tensor in before if tensor.untyped_storage()._cdata in after]
        static = _static(kept, (positional, keyword), optimizer)
        del before, kept
        record = record_step(model, step, sum(static.values()))
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


def _first(step: Callable[[], Any], model: nn.Module) -> None:
    """The first step; what it raises is told with the layer that raised it."""
    try:
        step()
    except SashError:
        raise
    except Exception as error:
        refused = _REFUSED.search(str(error))
        if refused or isinstance(error, MemoryError):
            asked = f"{format_bytes(int(refused[1]))} at once" if refused else "memory"
            raise MeasureError(
                f"the step asked for {asked}, and the measuring process did not get it. Forecast the step first, and measure one that fits."
            ) from error
        # Once more under hooks: the step that is measured must not carry them.
        scopes = Scopes(model)
        try:
            step()
        except Exception as again:
            raise explain(again, scopes, real=True) from error
        raise explain(error, scopes, real=True) from error


def _static(kept: list[tuple[Category, Tensor]], inputs: Any, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Bytes alive before a steady step, by category; each storage once. `kept` is what the model holds from step to step."""
    found = list(kept)
    found += [(Category.INPUT, tensor) for tensor in tensors_in(inputs)]
    if optimizer is not None:
        found += [(Category.OPTIMIZER, tensor) for state in optimizer.state.values() for tensor in tensors_in(state)]
    seen: set[int] = set()
    sizes = {category.value: 0 for category in (Category.PARAMETER, Category.BUFFER, Category.INPUT, Category.OPTIMIZER)}
    for category, tensor in found:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            sizes[category.value] += storage.nbytes()
    return sizes


def _count_macs(step: Callable[..., Any]) -> dict[str, int]:
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
