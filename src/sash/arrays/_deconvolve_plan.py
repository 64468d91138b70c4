"""A deconvolution inside its budget: what is tried, what is told of it, and what runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, prod
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sash.arrays._cluster import Seats
from sash.arrays._device import seats_on
from sash.arrays._diagonal import Condition
from sash.arrays._foreseen import ForeseenSink, shards_for
from sash.arrays._phases import Phase, Phased, Sizes
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._running import PROCESS_BYTES, Options, does_not_fit, fewer, settled
from sash.arrays._signal import Errors, Model
from sash.arrays._store import Sink, Source
from sash.arrays._store_tensor import TensorSource
from sash.units import format_shape

if TYPE_CHECKING:
    import torch

MOST_CONDITION = 1e15
"""Of a kernel that is inverted: above, nothing is left of the weakest frequencies in float64."""
MOST_BETWEEN = 256 << 20
"""Bytes between phases that an interrupted job to a file may lose."""
_FAR = 1.5
"""Times that an expected error's ends are apart from which on both are told."""


class Work(Protocol):
    """Phases in any sizes, and what they hold."""

    @property
    def passes(self) -> int: ...

    def groups(self, sizes: Sizes) -> Sequence[Sequence[Phase]]: ...

    def peak_bytes(self, sizes: Sizes, sink: Sink, processes: int) -> int: ...

    def read_bytes(self, sizes: Sizes) -> int: ...

    def ways(self, workers: int, sink: Sink, filed: bool, most_between: int) -> Iterator[Sizes]: ...


@dataclass(frozen=True, eq=False)
class Seen:
    """A deconvolution, chosen, and not yet cut."""

    told: str
    method: str
    work: Work
    shape: tuple[int, ...]
    dtype: np.dtype
    facts: dict[str, Any]
    methods: tuple[Method, ...]
    error: float
    condition: float
    device: torch.device | None = None
    error_range: tuple[float, float] = (nan, nan)


@dataclass(frozen=True)
class Fitted:
    """Tasks inside a budget."""

    sizes: Sizes
    shards: tuple[int, ...] | None
    budget_bytes: int
    peak_bytes: int
    seats: Seats


@dataclass(frozen=True)
class DeconvolutionPlan(ArrayPlan):
    """A deconvolution before it runs. Errors are root mean squares, by the signal's own; nan where none is known."""

    condition: float = nan
    """The largest of the kernel's spectrum by its smallest; nan where there is no spectrum."""
    error_range: tuple[float, float] = (nan, nan)
    """Between what the error is to be expected, where noise was neither stated nor found, and data alone do not tell it: with none but
    rounding, and with as much as could not be told from signal. Elsewhere both are `error`."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()
        place = next(number for number, line in enumerate(lines) if line.startswith("error "))
        told = "not known before" if isnan(self.error) else f"{self.error:.1e} of the signal, root mean square, as the methods suppose it"
        least, most = self.error_range
        if most > _FAR * least:
            told = (
                f"{least:.1e} to {most:.1e} of the signal, root mean square: from no noise but rounding to as much as could not be told "
                "from signal; state noise="
            )
        lines[place] = f"error     {told}"
        if not isnan(self.condition):
            lines.insert(place, f"condition {self.condition:.1e}")
        return "\n".join(lines)


def fitted(
    told: str,
    method: str,
    work: Work,
    before: tuple[int, int],
    source: Source,
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    options: Options,
    device: torch.device | None,
) -> Fitted:
    """The largest tasks that fit, from shapes alone; raises `DoesNotFit` with the least budget that would do.

    `before` is what looking at the data and making a model of them holds, and what stays of that. On a cluster nothing between phases is
    in memory, and a device is given the tasks that as many threads would give it, since lines beside others have other last bits there.
    """
    budget, seats, filed = options.budget_bytes, seats_on(device, options, source, out), isinstance(out, (str, PathLike))
    once = PROCESS_BYTES + before[1]
    if isinstance(source, TensorSource) and out is None:
        # The result is put together on this side, and then moved to the tensor's.
        once += prod(shape) * dtype.itemsize

    def peak(sizes: Sizes, sink: Sink, processes: int) -> int:
        own = sink.held_bytes + work.peak_bytes(sizes, sink, processes)
        return once + source.held_bytes * processes + max(own, before[0])

    def first(budget: int, seats: Seats) -> Fitted:
        least = None
        # Larger shards for a larger budget; if these leave too little to the work, the smallest.
        for room in dict.fromkeys((budget, 0)):
            shards = shards_for(out, shape, dtype, room, seats.threads)
            sink = ForeseenSink(out, shape, dtype, shards)
            for sizes in work.ways(seats.threads, sink, filed, MOST_BETWEEN):
                sizes = _outside(sizes) if seats.apart else sizes
                holds = peak(sizes, sink, seats.processes)
                if holds <= budget:
                    return Fitted(sizes, shards, budget, holds, seats)
                least = holds if least is None else min(least, holds)
        assert least is not None
        raise does_not_fit(f"{told}{seats.told}", least, budget, not filed, method)

    if device is None or not seats.apart:
        return first(budget, seats)

    def apart(budget: int) -> tuple[Fitted, int]:
        found = first(budget, Seats(seats.threads))
        sink = ForeseenSink(out, shape, dtype, found.shards)
        for workers in fewer(found.sizes.workers):
            sizes = replace(_outside(found.sizes), workers=workers)
            found = replace(found, sizes=sizes, peak_bytes=peak(sizes, sink, seats.processes), seats=seats)
            if found.peak_bytes <= budget:
                break
        return found, found.peak_bytes

    found, least = settled(apart, budget)
    if least > budget:
        raise does_not_fit(f"{told}{seats.told}", least, budget, False, method)
    return found


def _outside(sizes: Sizes) -> Sizes:
    """The same, with nothing in the memory of a process that others would have to see."""
    return replace(sizes, between="files") if sizes.between == "memory" else sizes


def planned(seen: Seen, source: Source, found: Fitted) -> tuple[Phased, DeconvolutionPlan]:
    """The job and its plan."""
    sizes, told = found.sizes, seen.told + found.seats.told
    facts = {**seen.facts, "sizes": repr(sizes)}
    job = Phased(
        f"{told}, {seen.method}", seen.work.groups(sizes), sizes.between, sizes.workers, seen.shape, seen.dtype, found.shards, facts
    )
    plan = DeconvolutionPlan(
        operation=told,
        method=seen.method,
        shape=seen.shape,
        dtype=seen.dtype.name,
        tasks=job.tasks,
        task_shape=(prod(sizes.lead), sizes.rows, sizes.columns),
        workers=sizes.workers,
        passes=seen.work.passes,
        budget_bytes=found.budget_bytes,
        peak_bytes=found.peak_bytes,
        # The data are looked at once before.
        read_bytes=prod(source.shape) * source.dtype.itemsize + seen.work.read_bytes(sizes),
        written_bytes=prod(seen.shape) * seen.dtype.itemsize,
        wall_s=None,
        error=seen.error,
        methods=seen.methods,
        condition=seen.condition,
        device=None if seen.device is None else str(seen.device),
        error_range=seen.error_range,
    )
    return job, plan


def verdicts(chosen: str, found: Condition, expected: Errors, supposed: Model, frequencies: tuple[int, int]) -> tuple[Method, ...]:
    """All methods, with their expected errors and why they were not taken."""
    weakest = f"it passes {found.least:.1e} of frequency {found.place} of {format_shape(frequencies)}"
    sound = found.number <= MOST_CONDITION
    if sound:
        inverse = f"condition {found.number:.1e}, expected error {expected.inverse:.1e} with {supposed.told}; {weakest}"
        if expected.unseen:
            inverse += (
                f"; noise of up to {supposed.unseen**0.5:.1e} would not be told from signal, and would make it {expected.unseen:.1e}: "
                "state it"
            )
    else:
        inverse = f"refused: condition {found.number:.1e}, above {MOST_CONDITION:.0e}; {weakest}"
    wiener = f"expected error {expected.wiener:.1e} with {supposed.told}, signal falling as frequency^-{supposed.slope:.1f} in power"
    if expected.wiener_least < expected.wiener / _FAR:
        wiener += f", {expected.wiener_least:.1e} if there is none but rounding"
    if expected.wiener_unseen > _FAR * expected.wiener:
        wiener += (
            f"; up to {expected.wiener_unseen:.1e} with noise of up to {supposed.unseen**0.5:.1e}, which would not be told from signal"
        )
    told = {"inverse": (expected.inverse if sound else nan, inverse), "wiener": (expected.wiener, wiener)}
    told["richardson-lucy"] = nan, "for data and kernels of 0 or more; its error is not known before"
    return tuple(
        Method(name, None, None, error, ("chosen: " if name == chosen else "") + verdict) for name, (error, verdict) in told.items()
    )
