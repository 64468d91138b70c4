"""What a step will need, found without running it."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import accumulate

from torch import nn

from sash.cost import _onednn
from sash.cost._callables import named_layers
from sash.cost._environment import environment
from sash.cost._process import beside_bytes, bound_bytes, run_heap
from sash.cost._rates import Rates, calibrate, stored_rates
from sash.cost._results import Block, Category, Forecast, LayerCost, Moment, Phase, Timeline
from sash.cost._time import Estimate
from sash.cost._traced import TracedStep, trace_step
from sash.cost._why import reasons
from sash.cost._why_slow import slow_reasons
from sash.cost._workload import Workload
from sash.errors import MeasureError
from sash.units import format_bytes


def forecast(work: Workload, real: bool = False) -> Forecast:
    """What one step of `work` will need: memory over time, work, parameters, and why.

    The step is run over tensors that have shapes and no memory, so nothing of its size is allocated and nothing is computed; the
    model is left as it is. With `real=True` it is traced on real tensors instead (a copy of the model, at the step's full cost), which
    data-dependent code needs. Error of `peak_bytes` against the allocator's own record: bench/results/forecast.json.
    Raises `ShapeError`, `TraceError`, `ModelError`, `InputError`.
    """
    started = time.perf_counter()
    rates, trouble = _rates()
    traced = trace_step(work, real, rates=rates)
    heap = run_heap(traced.trace, traced.optimizer_start, traced.steady_start)
    seconds = _seconds(traced, heap.fresh, rates)
    timeline, first = _timelines(traced, seconds)
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
        notes=(*_notes(traced, peak, first_peak, real), *trouble),
        mapped_bytes=0,
        first_step_peak_bytes=first_peak,
        reasons=(),
        forecast_s=0.0,
        wall_s=_wall(traced, timeline),
        paging_s=_paging(traced, heap.fresh, rates),
    )
    beside = beside_bytes(timeline, _transposes(traced.model))
    mapped = peak + beside
    process = bound_bytes(max(heap.peak_bytes, peak), timeline, beside)
    why = (*reasons(found), *slow_reasons(timeline.moments, _steady(traced), _times(traced), found.wall_s, layers))
    return replace(found, process_bytes=process, mapped_bytes=mapped, reasons=why, forecast_s=time.perf_counter() - started)


_STATIC = (Category.PARAMETER, Category.BUFFER, Category.INPUT, Category.OPTIMIZER)


def _rates() -> tuple[Rates | None, tuple[str, ...]]:
    """This machine's rates, measured if they never were; a note instead where that fails: memory can be forecast without them."""
    found = stored_rates()
    if found is not None:
        return found, ()
    if sys.stderr.isatty():
        print("Measuring how fast this machine is, once, in some ten seconds ...", file=sys.stderr, flush=True)
    try:
        return calibrate(), ()
    except MeasureError as error:
        return None, (f"Times are not forecast: {error}",)


def _seconds(traced: TracedStep, fresh: dict[int, int], rates: Rates | None) -> list[float]:
    """Of each moment: its operator, and the pages that are made for it."""
    if rates is None:
        return [0.0] * len(traced.trace.moments)
    page_s = rates["fresh.s_per_byte"]
    found = []
    for index, moment in enumerate(traced.trace.moments):
        one = traced.trace.estimates.get(index)
        if one is None:
            found.append(0.0)
            continue
        taken = one.seconds + fresh.get(index, 0) * page_s
        if moment.phase is Phase.OPTIMIZER:
            # The same few operators for each parameter: starting them again takes less than starting them in a model.
            taken += rates["optimizer.s"] - one.start_s
        else:
            taken += rates["backward.s" if moment.phase is Phase.BACKWARD else "module.s"]
        found.append(taken)
    return found


def _steady(traced: TracedStep) -> dict[int, Estimate]:
    """Estimates by index into the steady step's moments: the first optimizer step is left out."""
    start, steady = traced.optimizer_start, traced.steady_start
    if start is None or steady is None:
        return traced.trace.estimates
    found = traced.trace.estimates.items()
    return {index if index < start else index - steady + start: one for index, one in found if index < start or index >= steady}


def _times(traced: TracedStep) -> float:
    """How often a step repeats what was traced of its forwards and backwards."""
    return traced.micro_batches / traced.traced_micro_batches


def _wall(traced: TracedStep, timeline: Timeline) -> float:
    """Seconds of a whole steady step: the traced micro-batches stand for all, the optimizer steps once."""
    times = _times(traced)
    return sum(moment.seconds * (1 if moment.phase is Phase.OPTIMIZER else times) for moment in timeline.moments)


def _paging(traced: TracedStep, fresh: dict[int, int], rates: Rates | None) -> float:
    """Of `_wall`, the seconds of new pages."""
    if rates is None:
        return 0.0
    times, trace = _times(traced), traced.trace
    made = [(size, trace.moments[index].phase) for index, size in fresh.items() if index in trace.estimates]
    return sum(size * (1 if phase is Phase.OPTIMIZER else times) for size, phase in made) * rates["fresh.s_per_byte"]


def _timelines(traced: TracedStep, seconds: list[float]) -> tuple[Timeline, list[int]]:
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
    timed = [replace(moment, seconds=round(taken, 9)) for moment, taken in zip(moments, seconds, strict=True)]
    kept = timed[:start] + timed[steady:]
    if not kept:
        kept, blocks = [Moment(Phase.FORWARD, "", "nothing")], [replace(block, died=1) for block in blocks]
    return Timeline(tuple(kept), tuple(blocks)), list(accumulate(first[:-1]))


def _layers(traced: TracedStep, timeline: Timeline) -> tuple[LayerCost, ...]:
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
    times = _times(traced)
    taken: dict[tuple[str, Phase], float] = defaultdict(float)
    for moment in timeline.moments:
        taken[moment.module, moment.phase] += moment.seconds * times
    layers = []
    for layer in named_layers(traced.model):
        path = layer["path"]
        layers.append(
            LayerCost(
                **layer,
                calls=calls[path],
                outputs=outputs.get(path, ()),
                macs=round(traced.trace.macs.get((path, False), 0) * times),
                macs_backward=round(traced.trace.macs.get((path, True), 0) * times),
                held_bytes=held[path],
                forward_peak_bytes=peaks[path],
                at_peak_bytes=at_peak[path],
                forward_s=taken[path, Phase.FORWARD],
                backward_s=taken[path, Phase.BACKWARD],
            )
        )
    return tuple(layers)


def _transposes(model: nn.Module) -> bool:
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return any(isinstance(module, kinds) for module in model.modules())


def _notes(traced: TracedStep, peak: int, first_peak: int, real: bool) -> tuple[str, ...]:
    notes = []
    if first_peak > peak:
        notes.append(
            f"The very first step peaks higher, at {format_bytes(first_peak)}: the optimizer makes its state while the gradients live."
        )
    if traced.trace.unknown:
        names = ", ".join(sorted(traced.trace.unknown))
        notes.append(f"What these operators allocate inside is not known, and not counted: {names}.")
    if not _onednn.available():
        notes.append(
            "This build of torch does not let oneDNN be asked for its layouts: what its convolutions allocate inside is not counted."
        )
    if traced.micro_batches > traced.traced_micro_batches:
        notes.append(f"{traced.micro_batches} micro-batches; the timeline shows {traced.traced_micro_batches}, the others repeat the last.")
    if real:
        notes.append("Traced on real tensors.")
    return tuple(notes)
