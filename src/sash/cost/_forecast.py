"""What a step will need, found without running it."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sash.cost import _onednn
from sash.cost._environment import environment
from sash.cost._failures import explain
from sash.cost._fakes import LeanBuild, Stand
from sash.cost._process import process_bounds
from sash.cost._results import Block, Category, Forecast, LayerCost, Moment, Phase, Timeline
from sash.cost._saved import mark_saved
from sash.cost._scopes import Scopes
from sash.cost._source import ModelSource
from sash.cost._step import run_step, training_mode
from sash.cost._trace import Trace, Tracer
from sash.cost._why import reasons
from sash.cost._workload import Workload, default_loss, make_tensor, map_tensors, tensors_in
from sash.errors import InputError, SashError
from sash.units import format_bytes

TRACED_MICRO_BATCHES = 2
"""Of an accumulating step: from the second one on, every micro-batch meets the same memory."""


def forecast(work: Workload, real: bool = False) -> Forecast:
    """What one step of `work` will need: memory over time, work, parameters, and why.

    The step is run over tensors that have shapes and no memory, so nothing of its size is allocated and nothing is computed; the model is left as it is.
    With `real=True` it is traced on real tensors instead (a copy of the model, at the step's full cost), which data-dependent code needs.
    Error of `peak_bytes` against the allocator's own record: bench/results/forecast.json. Raises `ShapeError`, `TraceError`, `ModelError`, `InputError`.
    """
    started = time.perf_counter()
    traced = _trace(work, real)
    timeline, first = _timelines(traced)
    layers = _layers(traced, timeline)
    static = sum(block.bytes for block in timeline.blocks if block.born == 0 and block.category in _STATIC)
    peak = max(timeline.levels, default=0)
    peak = max(peak, static)
    first_peak = max(first, default=0) if traced.optimizer_start is not None else peak
    found = Forecast(
        name=work.name,
        setting=work.setting,
        peak_bytes=peak,
        reserved_bytes=peak,
        process_bytes=0,
        static_bytes=static,
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        macs_backward=sum(layer.macs_backward for layer in layers),
        layers=layers,
        timeline=timeline,
        environment=environment(),
        notes=_notes(traced, peak, first_peak, real),
        mapped_bytes=0,
        first_step_peak_bytes=first_peak,
        reasons=(),
        forecast_s=0.0,
    )
    process, mapped = process_bounds(found, work)
    return replace(
        found, process_bytes=process, mapped_bytes=mapped, reasons=reasons(found), forecast_s=time.perf_counter() - started
    )


_STATIC = (Category.PARAMETER, Category.BUFFER, Category.INPUT, Category.OPTIMIZER)


@dataclass
class _Traced:
    trace: Trace
    model: Any
    scopes: Scopes
    spans: list[_Span]
    micro_batches: int
    traced_micro_batches: int
    optimizer_start: int | None
    """First moment of the very first optimizer step; the steady one follows."""
    steady_start: int | None
    forward_ends: list[int]


@dataclass(slots=True)
class _Span:
    """One forward call of a module."""

    path: str
    start: int
    level: int
    stop: int | None = None
    held: int = 0


def _trace(work: Workload, real: bool) -> _Traced:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = _load(work.model, mode, real)
    stand = Stand(mode)
    positional, keyword = work.arguments()
    if real:
        _refuse_unreal(model, (positional, keyword))
        model = copy.deepcopy(model)
        arguments = map_tensors(make_tensor, positional), map_tensors(make_tensor, keyword)
    else:
        model = stand.model(model)
        arguments = tuple(stand.inputs(value) for value in positional), {key: stand.inputs(value) for key, value in keyword.items()}
    trace = Trace()
    tracer = Tracer(trace, adopt=not isinstance(model, nn.Module))
    spans: list[_Span] = []
    scopes = tracer.scopes = Scopes(model, _watch(tracer, spans))
    forward_ends: list[int] = []

    def enter(phase: Phase, loss: Tensor | None) -> None:
        tracer.phase = phase
        if loss is not None:
            forward_ends.append(len(trace.moments))
            with _unseen(tracer):
                mark_saved(loss, tracer)

    optimizer_start = steady_start = None
    try:
        with nullcontext() if real else mode, training_mode(model, work.train), torch.random.fork_rng(devices=[]):
            parameters = _static(tracer, model, arguments)
            optimizer = _make_optimizer(work, parameters)
            micro = min(work.accumulate, TRACED_MICRO_BATCHES)
            with tracer:
                outputs = run_step(model, arguments, work.loss or default_loss, None, work.autocast, micro, work.train, enter)
                if work.train:
                    _mark_gradients(tracer, parameters)
                if optimizer is not None:
                    tracer.phase = Phase.OPTIMIZER
                    optimizer_start = len(trace.moments)
                    optimizer.step()
                    steady_start = len(trace.moments)
                    _mark_state(tracer, model, optimizer)
                    optimizer.step()
            tracer.finish()
            del outputs, optimizer, parameters
    except Exception as error:
        raise explain(error, scopes, real) from error
    finally:
        scopes.remove()
    return _Traced(trace, model, scopes, spans, work.accumulate, micro, optimizer_start, steady_start, forward_ends)


def _load(model: Any, mode: FakeTensorMode, real: bool) -> Any:
    if not isinstance(model, ModelSource):
        return model
    if real:
        return model.load()
    try:
        with LeanBuild(mode):
            return model.load()
    except SashError:
        # Building may read values that a stand-in does not have; if it fails for another reason, it fails the same way again.
        return model.load()


def _refuse_unreal(model: Any, inputs: Any) -> None:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    for tensor in [*tensors, *tensors_in(inputs)]:
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            raise InputError("real=True needs real tensors, and some of the model's or the inputs' are on the meta device; build them on the CPU.")


def _static(tracer: Tracer, model: Any, arguments: Any) -> list[nn.Parameter]:
    parameters = []
    if isinstance(model, nn.Module):
        for path, module in model.named_modules():
            for name, tensor in module.named_parameters(recurse=False):
                tracer.static(tensor, Category.PARAMETER, name, path)
            for name, tensor in module.named_buffers(recurse=False):
                tracer.static(tensor, Category.BUFFER, name, path)
        parameters = list(model.parameters())
    for index, tensor in enumerate(tensors_in(arguments)):
        tracer.static(tensor, Category.INPUT, f"input {index}")
    return parameters


def _make_optimizer(work: Workload, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    if work.optimizer is None:
        return None
    assert not isinstance(work.optimizer, str)
    if not parameters:
        raise InputError(f"an optimizer was asked for, and {work.name} has no parameters.")
    made = work.optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"the optimizer function returned a {type(made).__name__}; it has to return a torch.optim.Optimizer.")
    return made


def _mark_gradients(tracer: Tracer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        life = tracer.life_of(parameter.grad) if parameter.grad is not None else None
        if life is not None and life.category is None:
            life.category = Category.GRADIENT


def _mark_state(tracer: Tracer, model: Any, optimizer: torch.optim.Optimizer) -> None:
    owners = {parameter: path for path, module in model.named_modules() for parameter in module.parameters(recurse=False)}
    for parameter, state in optimizer.state.items():
        for tensor in tensors_in(state):
            life = tracer.life_of(tensor)
            if life is not None and life.category is None:
                life.category, life.module, life.operator = Category.OPTIMIZER, owners.get(parameter, ""), type(optimizer).__name__


def _watch(tracer: Tracer, spans: list[_Span]) -> Callable[[str, bool], None]:
    open_spans: list[_Span] = []

    def watch(path: str, entering: bool) -> None:
        if tracer.phase is not Phase.FORWARD:
            return  # a recomputation in backward
        if entering:
            open_spans.append(_Span(path, len(tracer.trace.moments), tracer.level))
            spans.append(open_spans[-1])
            return
        while open_spans:
            span = open_spans.pop()
            span.stop, span.held = len(tracer.trace.moments), tracer.level - span.level
            if span.path == path:
                return

    return watch


@contextmanager
def _unseen(tracer: Tracer) -> Iterator[None]:
    """What happens inside is not part of the step."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        yield


def _timelines(traced: _Traced) -> tuple[Timeline, list[int]]:
    """The steady step's timeline, and the levels of the very first step."""
    moments, lives = traced.trace.moments, traced.trace.lives
    end = len(moments)
    start, steady = traced.optimizer_start, traced.steady_start
    if start is None or steady is None:
        start = steady = end
    skipped = steady - start
    blocks = []
    first = [0] * (steady + 1)
    for life in lives:
        died = end if life.died is None else life.died
        if life.born < steady:
            first[life.born] += life.bytes
            first[min(died, steady)] -= life.bytes
        born = life.born
        if start <= born < steady and life.phase is Phase.OPTIMIZER:
            if died < steady:
                continue
            # Made by the first optimizer step, and there from the start in every later one.
            born, category = 0, Category.OPTIMIZER
        else:
            category = life.category or (Category.SAVED if life.kept_for else Category.TEMPORARY)
            born = born - skipped if born >= steady else min(born, start)
        died = died - skipped if died >= steady else min(died, start)
        if died > born and life.bytes:
            blocks.append(Block(life.bytes, category, life.module, life.operator, born, died, life.kept_for, life.shape))
    kept = moments[:start] + moments[steady:]
    if not kept:
        kept, blocks = [Moment(Phase.FORWARD, "", "nothing")], [replace(block, died=1) for block in blocks]
    return Timeline(tuple(kept), tuple(blocks)), list(accumulate(first[:-1]))


def _layers(traced: _Traced, timeline: Timeline) -> tuple[LayerCost, ...]:
    calls, held, peaks = defaultdict(int), defaultdict(int), defaultdict(int)
    levels = timeline.levels
    first_end = traced.forward_ends[0] if traced.forward_ends else len(levels)
    for span in traced.spans:
        if span.start > first_end or span.stop is None:
            continue  # one micro-batch tells for all
        calls[span.path] += 1
        held[span.path] += span.held
        at = min(span.start, len(levels) - 1)
        peaks[span.path] = max(peaks[span.path], max(levels[span.start : span.stop], default=levels[at]))
    outputs = {call.path: call.outputs or () for call in traced.scopes.calls}
    at_peak: dict[str, int] = defaultdict(int)
    for block in timeline.alive(timeline.peak_moment):
        at_peak[block.module] += block.bytes
    times = traced.micro_batches / traced.traced_micro_batches
    seen: set[int] = set()
    layers = []
    modules = list(traced.model.named_modules()) if isinstance(traced.model, nn.Module) else [("", traced.model)]
    for path, module in modules:
        own = [parameter for parameter in _own_parameters(module) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in own)
        layers.append(
            LayerCost(
                path=path,
                kind=type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", type(module).__name__),
                leaf=not (isinstance(module, nn.Module) and any(True for _ in module.children())),
                calls=calls[path],
                outputs=outputs.get(path, ()),
                params=sum(parameter.numel() for parameter in own),
                param_bytes=sum(parameter.numel() * parameter.element_size() for parameter in own),
                macs=round(traced.trace.macs.get((path, False), 0) * times),
                macs_backward=round(traced.trace.macs.get((path, True), 0) * times),
                held_bytes=held[path],
                forward_peak_bytes=peaks[path],
                at_peak_bytes=at_peak[path],
            )
        )
    return tuple(layers)


def _own_parameters(module: Any) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False)) if isinstance(module, nn.Module) else []


def _notes(traced: _Traced, peak: int, first_peak: int, real: bool) -> tuple[str, ...]:
    notes = []
    if first_peak > peak:
        notes.append(f"The very first step peaks higher, at {format_bytes(first_peak)}: the optimizer makes its state while the gradients live.")
    if traced.trace.unknown:
        names = ", ".join(sorted(traced.trace.unknown))
        notes.append(f"What these operators allocate inside is not known, and not counted: {names}.")
    if not _onednn.available():
        notes.append("This build of torch does not let oneDNN be asked for its layouts; convolutions are forecast by rules and may be a few per cent off.")
    if traced.micro_batches > traced.traced_micro_batches:
        notes.append(f"{traced.micro_batches} micro-batches; the timeline shows {traced.traced_micro_batches}, the others repeat the last.")
    if not isinstance(traced.model, nn.Module):
        notes.append("The model is a function: tensors it holds are counted when an operator first reads them.")
    if real:
        notes.append("Traced on real tensors.")
    return tuple(notes)


