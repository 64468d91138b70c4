"""Run a workload's step under the tracer: stand-ins for its tensors, its optimizer, its first and its steady step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from sash.cost._callables import static_tensors
from sash.cost._failures import explain
from sash.cost._fakes import LeanBuild, Stand, copy_of, quiet_fakes
from sash.cost._rates import Rates
from sash.cost._results import Category, Phase
from sash.cost._saved import mark_saved
from sash.cost._scopes import Scopes
from sash.cost._source import ModelSource
from sash.cost._step import make_optimizer, run_step, training_mode
from sash.cost._trace import Trace, Tracer
from sash.cost._workload import Workload, default_loss, make_tensor, map_tensors, tensors_in
from sash.errors import InputError, SashError

TRACED_MICRO_BATCHES = 2
"""Of an accumulating step: from the second one on, every micro-batch meets the same memory."""


@dataclass
class TracedStep:
    trace: Trace
    model: nn.Module
    scopes: Scopes
    spans: list[Span]
    micro_batches: int
    traced_micro_batches: int
    optimizer_start: int | None
    """First moment of the very first optimizer step; the steady one follows."""
    steady_start: int | None
    forward_ends: list[int]


@dataclass(slots=True)
class Span:
    """One forward call of a module."""

    path: str
    start: int
    level: int
    stop: int | None = None
    held: int = 0


def trace_step(work: Workload, real: bool = False, meet: Callable[[Tracer], None] | None = None, rates: Rates | None = None) -> TracedStep:
    """What a step does, written down, with its seconds where `rates` are given; `meet` is given the tracer before the step starts."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = _load(work.model, mode, real)
    stand = Stand(mode)
    positional, keyword = work.arguments()
    if real:
        _refuse_unreal(model, (positional, keyword))
        model = copy_of(model)
        arguments = map_tensors(make_tensor, positional), map_tensors(make_tensor, keyword)
    else:
        model = stand.model(model)
        arguments = tuple(stand.inputs(value) for value in positional), {key: stand.inputs(value) for key, value in keyword.items()}
    if work.rewrite is not None:
        with nullcontext() if real else mode:
            model = work.rewrite(model)
    assert not isinstance(work.autocast, str)
    trace = Trace()
    tracer = Tracer(trace, rates)
    loss = stand.model(work.loss) if work.loss is not None and not real else work.loss or default_loss
    if meet is not None:
        meet(tracer)
    spans: list[Span] = []
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
        with nullcontext() if real else mode, quiet_fakes(), training_mode(model, work.train), torch.random.fork_rng(devices=[]):
            _count_static(tracer, model, loss, arguments)
            parameters = list(model.parameters())
            optimizer = make_optimizer(work, parameters)
            if optimizer is not None:
                _count_state(tracer, model, optimizer, at_start=True)
            micro = min(work.accumulate, TRACED_MICRO_BATCHES)
            with tracer:
                outputs = run_step(model, arguments, loss, None, work.autocast, micro, work.train, enter)
                if work.train:
                    _mark_gradients(tracer, parameters)
                if optimizer is not None:
                    tracer.phase = Phase.OPTIMIZER
                    optimizer_start = len(trace.moments)
                    optimizer.step()
                    steady_start = len(trace.moments)
                    _count_state(tracer, model, optimizer, at_start=False)
                    optimizer.step()
            tracer.finish()
            del outputs, optimizer, parameters
    except Exception as error:
        raise explain(error, scopes, real) from error
    finally:
        scopes.remove()
    return TracedStep(trace, model, scopes, spans, work.accumulate, micro, optimizer_start, steady_start, forward_ends)


def stand_in(work: Workload) -> nn.Module:
    """The model as the step would meet it, its rewrite included, on stand-ins without memory: to be looked at."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = Stand(mode).model(_load(work.model, mode, real=False))
    with mode:
        return work.rewrite(model) if work.rewrite is not None else model


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
            raise InputError(
                "real=True needs real tensors, and some of the model's or the inputs' are on the meta device; build them on the CPU."
            )


def _count_static(tracer: Tracer, model: nn.Module, loss: Any, arguments: Any) -> None:
    for part in (model, loss):
        if isinstance(part, nn.Module):
            for category, path, name, tensor in static_tensors(part):
                tracer.static(tensor, category, name, path)
    for index, tensor in enumerate(tensors_in(arguments)):
        tracer.static(tensor, Category.INPUT, f"input {index}")


def _mark_gradients(tracer: Tracer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        life = tracer.life_of(parameter.grad) if parameter.grad is not None else None
        if life is not None and life.category is None:
            life.category = Category.GRADIENT


def _count_state(tracer: Tracer, model: nn.Module, optimizer: torch.optim.Optimizer, at_start: bool) -> None:
    """Give the optimizer's state to the parameters' owners; some optimizers make it before the first step."""
    owners = {parameter: path for path, module in model.named_modules() for parameter in module.parameters(recurse=False)}
    for parameter, state in optimizer.state.items():
        for tensor in tensors_in(state):
            if at_start:
                tracer.static(tensor, Category.OPTIMIZER, type(optimizer).__name__, owners.get(parameter, ""))
            life = tracer.life_of(tensor)
            if life is not None and life.category is None:
                life.category, life.module, life.operator = Category.OPTIMIZER, owners.get(parameter, ""), type(optimizer).__name__


def _watch(tracer: Tracer, spans: list[Span]) -> Callable[[str, bool], None]:
    open_spans: list[Span] = []

    def watch(path: str, entering: bool) -> None:
        if tracer.phase is not Phase.FORWARD:
            return  # a recomputation in backward
        if entering:
            open_spans.append(Span(path, len(tracer.trace.moments), tracer.level))
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
    with _disable_current_modes(), torch.no_grad():
        yield
