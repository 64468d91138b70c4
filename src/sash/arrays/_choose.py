"""Which way of doing a job is the quickest: seconds by the laws of filters and transforms, at the rates of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, log, prod
from typing import Any

import numpy as np

from sash.arrays._gaussian import Direct, Filter
from sash.arrays._job import Job, Planned, Step, plan_job
from sash.arrays._overlap_save import OverlapSave
from sash.arrays._pass import Cut
from sash.arrays._plan import Method
from sash.arrays._rates import SIDES, SPLINE_FEATURES, ArrayRates
from sash.arrays._running import Options
from sash.arrays._stage import Coarse, Correlate, Restored, Stage, Sum, Thinned
from sash.arrays._store import Source
from sash.errors import DoesNotFit
from sash.units import format_bytes


@dataclass(frozen=True, eq=False)
class Way:
    """One way to do a job; several may share a method's name."""

    name: str
    job: Job | None
    """None where it is known to lose: then `verdict` says why."""
    error: float
    verdict: str = ""


def quickest(ways: Iterable[Way], source: Source, out: Any, options: Options, method: str, rates: ArrayRates) -> Planned:
    """The way that takes the least time within the budget, of those that `method` allows ("auto": all), with all of them told.

    Raises `DoesNotFit` with the least budget that one of those allowed keeps.
    """
    fitting: list[tuple[float, Way, Planned]] = []
    refused: list[tuple[Way, DoesNotFit]] = []
    lost: list[Way] = []
    threads = options.seats(source, out).threads
    told: set[str] = set()
    least_s = float("inf")
    for bound, way in sorted(((_least_seconds(way.job, threads, rates), way) for way in ways), key=lambda one: one[0]):
        if way.job is None:
            lost.append(way)
            continue
        # What cannot be quicker than what fits is planned only to be told.
        if bound >= least_s and way.name in told:
            continue
        try:
            planned = plan_job(way.job, source, out, options)
        except DoesNotFit as too_small:
            refused.append((way, too_small))
        else:
            fitting.append((job_seconds(way.job, planned.cuts, rates), way, planned))
            told.add(way.name)
            if method in ("auto", way.name):
                least_s = min(least_s, fitting[-1][0])
    able = [one for one in fitting if method in ("auto", one[1].name)]
    if not able:
        raise min((one for way, one in refused if method in ("auto", way.name)), key=lambda one: one.least_bytes)
    seconds, chosen, planned = min(able, key=lambda one: one[0])
    methods = []
    for name in dict.fromkeys(way.name for way in (*(one for _, one, _ in fitting), *(one for one, _ in refused), *lost)):
        best = min((one for one in fitting if one[1].name == name), key=lambda one: one[0], default=None)
        if best is not None:
            taken, way, made = best
            verdict = "chosen" if name == chosen.name else f"{taken / seconds:.{2 if taken < 10 * seconds else 0}f} times as long"
            methods.append(Method(name, made.plan.peak_bytes, taken, way.error, verdict))
        elif any(way.name == name for way, _ in refused):
            way, too_small = min((one for one in refused if one[0].name == name), key=lambda one: one[1].least_bytes)
            verdict = f"holds {format_bytes(too_small.least_bytes)} at least"
            methods.append(Method(name, too_small.least_bytes, None, way.error, verdict))
        else:
            way = next(way for way in lost if way.name == name)
            methods.append(Method(name, None, None, way.error, way.verdict))
    plan = replace(planned.plan, wall_s=seconds, methods=tuple(methods))
    return replace(planned, plan=plan)


def job_seconds(job: Job, cuts: Iterable[Cut], rates: ArrayRates) -> float:
    """Of a job as it is cut: computing and moving numbers through memory; what a disk takes is not known."""
    total = rates["job.s"] + (len(job.steps) - 1) * rates["pass.s"]
    for step, cut in zip(job.steps, cuts, strict=True):
        stage = step.stage
        planes = _planes(step)
        tall, wide = ceil(stage.shape[0] / cut.rows), ceil(stage.shape[1] / cut.columns)
        tasks = tall * wide * max(planes // max(prod(cut.lead), 1), 1)
        seconds = planes * stage_seconds(stage, rates) * _again(stage, cut)
        # A last round in which only some have work takes as long as another; each band of columns has one.
        turns = ceil(tall / cut.workers) * cut.workers / tall if wide > 1 else ceil(tasks / cut.workers) * cut.workers / tasks
        total += seconds * turns / cut.workers + _once_s(stage, rates)
    return total


def _once_s(stage: Stage, rates: ArrayRates) -> float:
    """What one thread does before the others can begin: a kernel's transform, the way there of a tile's way there and back."""
    if not isinstance(stage, OverlapSave):
        return 0.0
    return prod(stage.tile) * _transform_s(stage.tile, "f32" if stage.dtype == np.float32 else "f64", rates) / 2


def _least_seconds(job: Job | None, threads: int, rates: ArrayRates) -> float:
    """Before it is cut: no way of cutting is quicker."""
    if job is None:
        return float("inf")
    return sum(_planes(step) * stage_seconds(step.stage, rates) for step in job.steps) / threads


def _planes(step: Step) -> int:
    return prod(step.written.shape) // max(prod(step.stage.shape), 1)


def _again(stage: Stage, cut: Cut) -> float:
    """How many times over the work is done, since tasks have ends of their own."""
    if not isinstance(stage, OverlapSave):
        return 1.0
    sides = zip(stage.shape, (cut.rows, cut.columns), stage.whole, strict=True)
    made = prod(size // part * ceil(part / whole) + ceil(size % part / whole) for size, part, whole in sides)
    return max(made, 1) / tiles_of(stage)


def stage_seconds(stage: Stage, rates: ArrayRates) -> float:
    """Of one thread, for a plane of outputs."""
    kind = "f32" if stage.dtype == np.float32 else "f64"
    outputs = stage.shape[0] * stage.shape[1]
    match stage:
        case Correlate():
            return outputs * _taps_s((len(stage.down), len(stage.along)), kind, rates)
        case Sum():
            # Each term but the first is written and added: what a sample costs at the least.
            terms = sum(stage_seconds(term, rates) for term in stage.terms)
            return terms + (len(stage.terms) - 1) * outputs * rates[f"{kind}.taps.sample_s"]
        case OverlapSave():
            return tiles_of(stage) * stage.tile[0] * stage.tile[1] * _transform_s(stage.tile, kind, rates)
        case Restored():
            return stage.shape[0] * stage.shape[1] * _splines_s(stage.axes, kind, rates)
        case Thinned():
            # The law of `Restored` is that of both.
            return 0.0
    raise TypeError(f"there is no law for {type(stage).__name__}.")


def tiles_of(stage: OverlapSave) -> int:
    """Tiles that a plane takes."""
    return ceil(stage.shape[0] / stage.whole[0]) * ceil(stage.shape[1] / stage.whole[1])


def axis_seconds(found: Filter, rates: ArrayRates, kind: str) -> float:
    """About what one axis of a separable filter adds to a sample: to compare filters of one axis."""
    if isinstance(found, Direct):
        return len(found.weights) * rates[f"{kind}.taps.tap_s"]
    axis = Coarse.of(1 << 20, found)
    return _splines_s((axis, axis), kind, rates) / 2


def _taps_s(taps: tuple[int, int], kind: str, rates: ArrayRates) -> float:
    return rates[f"{kind}.taps.sample_s"] + sum(taps) * rates[f"{kind}.taps.tap_s"]


def _splines_s(axes: tuple[Coarse, Coarse], kind: str, rates: ArrayRates) -> float:
    down, along = axes
    found = sum(
        amount * rates[f"{kind}.splines.{name}_s"] for name, amount in zip(SPLINE_FEATURES, spline_features(down, along), strict=True)
    )
    return found + _taps_s((len(down.taps), len(along.taps)), kind, rates) / (down.step * along.step)


def spline_features(down: Coarse, along: Coarse) -> tuple[float, ...]:
    """What a sample costs besides the coarse taps: itself; products where samples lie together (along on the way down, across on the way
    up); products along on the way up, whose results lie a step apart; and products across on the way down, of thinned rows."""
    together = len(along.down) / along.step + down.up.shape[1]
    return 1.0, together, along.up.shape[1] / down.step, len(down.down) / down.step / along.step


def _transform_s(tile: tuple[int, int], kind: str, rates: ArrayRates) -> float:
    """Of a tile's sample: between the sides that were measured by their logarithm, beyond them as at the last."""
    sides = SIDES[kind]
    seen = [rates[f"{kind}.fft.{side}.sample_s"] for side in sides]
    return float(np.interp(log(tile[0] * tile[1]) / 2, [log(side) for side in sides], seen))
