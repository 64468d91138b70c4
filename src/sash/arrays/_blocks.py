"""Array jobs by blocks of any number of axes, each with all that lies around it, whose arithmetic torch does on a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._block_filters import Filter
from sash.arrays._border import Boundary
from sash.arrays._cluster import Seats
from sash.arrays._device import check_device, in_type, moved_back, new_tensor, seats_on, settle, staging, stream_of, torch_type
from sash.arrays._foreseen import ForeseenSink, shards_for
from sash.arrays._neighbourhood import neighbourhood
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._room import Room
from sash.arrays._running import MAPPED_FROM, Options, does_not_fit, fewer, settled
from sash.arrays._store import Sink, Source, open_sink
from sash.arrays._store_tensor import TensorSink, TensorSource
from sash.arrays._tasks import giving_back, run_job
from sash.units import format_bytes
from sash.window import Interval

if TYPE_CHECKING:
    import torch

TASK_BYTES = 1 << 20
"""What a task takes beside its arrays: its thread, and small things."""
STARTING_BYTES = 8 << 20
"""What the first transforms and threads of torch in a process load."""
LEAST, MOST = 14, 27
"""Powers of two of numbers that a block makes, at least and at most."""
KERNELS = (2.0, 0.7, 0.1)
"""Shares of what a filter reaches that a block's sides have at least."""
READ_S = 1e-9
"""Of a sample that is read, and moved to where it is used."""
TASK_S = 2e-4
"""Of a task, whatever it makes."""


@dataclass(frozen=True, eq=False)
class BlockJob:
    """What is to be done, in one way."""

    told: str
    name: str
    method: str
    filter: Filter
    axes: tuple[int, ...]
    """Those filtered along, rising."""
    dtype: np.dtype
    """Of the output."""
    boundary: Boundary
    fill: float
    error: float
    facts: dict[str, Any]
    """What the output's bits depend on, beside source and blocks: as JSON."""


@dataclass(frozen=True, eq=False)
class _Block:
    """A way, and how it is cut: sides of blocks of output along all axes."""

    job: BlockJob
    filter: Filter
    sides: tuple[int, ...]
    workers: int
    peak_bytes: int
    seconds: float
    each_bytes: int
    """Of the peak, what every process holds whatever it is at."""
    task_bytes: int

    def apart(self, processes: int, budget: int) -> _Block:
        """The same blocks in so many processes, as many side by side as the budget lets, or one."""
        alone = self.peak_bytes - self.workers * self.task_bytes + (processes - 1) * self.each_bytes
        count = next((one for one in fewer(self.workers) if alone + one * self.task_bytes <= budget), 1)
        return replace(self, workers=count, peak_bytes=alone + count * self.task_bytes)


@dataclass(frozen=True, eq=False)
class PlannedBlocks:
    """A job that fits its budget."""

    source: Source
    out: Any
    options: Options
    device: torch.device
    shards: tuple[int, ...] | None
    block: _Block
    plan: ArrayPlan

    def run(self) -> Any:
        """The output: an array, a tensor for a tensor on a device, or the path it was written to."""
        found, plan = self.block, self.plan
        if isinstance(self.source, TensorSource):
            settle(self.device)
        told, written = f"{plan.operation}, {plan.method}", plan.written_bytes
        threads, able = partial(_threads, found.filter, self.device), partial(check_device, self.device)
        return run_job(told, self.out, self._facts, self._open, self._tasks, found.workers, written, self.options, threads, able)

    def _facts(self) -> dict[str, Any]:
        import torch

        own = {"sides": list(self.block.sides), "device": self.device.type, "torch": torch.__version__}
        return {**self.block.job.facts, **own, "source": self.source.identity}

    def _open(self, again: bool) -> Sink:
        shape, dtype = self.plan.shape, self.block.job.dtype
        if self.out is None and isinstance(self.source, TensorSource):
            return new_tensor(shape, dtype, self.source.tensor.device)
        shards = None if again else self.shards
        return open_sink(self.out, shape, dtype, overwrite=self.options.overwrite, resume=again, shards=shards, like=self.source)

    def _tasks(self, sink: Sink) -> Sequence[Callable[[], None]]:
        room = staging(self.device)
        edges = [_edges(size, side) for size, side in zip(self.plan.shape, self.block.sides, strict=True)]
        return [partial(self._task, sink, room, box) for box in product(*edges)]

    def _task(self, sink: Sink, room: Room, box: tuple[Interval, ...]) -> None:
        job, axes = self.block.job, self.block.job.axes
        with stream_of(self.device):
            parts = tuple(box[axis] for axis in axes)
            reads = dict(zip(axes, self.block.filter.reads(parts), strict=True))
            lead = [axis for axis in range(len(box)) if axis not in axes]
            around = [reads.get(axis, part) for axis, part in enumerate(box)]
            kind = torch_type(self.block.filter.dtype)
            near = neighbourhood(self.source, around, [*lead, *axes], job.boundary, job.fill, kind, room, self.device)
            near = near.reshape(-1, *near.shape[len(lead) :])
            made = in_type(self.block.filter.run(near, parts), job.dtype)
            del near
            made = made.reshape([*(box[axis].length for axis in lead), *made.shape[1:]])
            made = made.permute([[*lead, *axes].index(axis) for axis in range(len(box))])
            if isinstance(sink, TensorSink):
                sink.tensor[tuple(slice(*part) for part in box)] = made
                return
            written = room.array("written", tuple(made.shape), job.dtype)
            moved_back(made, written)
        sink.write(box, written)


@contextmanager
def _threads(made: Filter, device: torch.device, count: int) -> Iterator[Executor]:
    """Threads for tasks, after what all of a process share was made in one of them: alike, then, wherever it is."""

    def prepare() -> None:
        made.prepare(device)
        settle(device)

    with giving_back(MAPPED_FROM, count) as pool:
        pool.submit(prepare).result()
        yield pool


def plan_blocks(
    ways: Iterable[BlockJob], source: Source, out: Any, options: Options, device: torch.device, told_device: bool, method: str = "auto"
) -> PlannedBlocks:
    """The way and the blocks that take the least work within the budget; raises `DoesNotFit` with the least that one would keep.

    On a cluster they are those of as many threads, since others have other last bits. The plan names the device where the caller did.
    """
    out = Path(out) if isinstance(out, (str, os.PathLike)) else out
    seats, tried = seats_on(device, options, source, out), list(ways)

    def apart(budget: int) -> tuple[_Chosen, int]:
        found = _chosen(tried, source, out, budget, seats.threads, device, method)
        block = found.block.apart(seats.apart, budget)
        return replace(found, block=block), block.peak_bytes

    if seats.apart:
        found, least = settled(apart, options.budget_bytes)
        if least > options.budget_bytes:
            raise does_not_fit(found.block.job.told + seats.told, least, options.budget_bytes, False, found.block.job.method)
    else:
        found = _chosen(tried, source, out, options.budget_bytes, seats.threads, device, method)
    plan = _told(found, source, options.budget_bytes, str(device) if told_device else None, seats)
    return PlannedBlocks(source, out, options, device, found.shards, found.block, plan)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The best way, and the others."""

    block: _Block
    shards: tuple[int, ...] | None
    able: tuple[_Block, ...]
    refused: tuple[tuple[BlockJob, int], ...]
    """Ways that do not fit, and the least that each would hold."""

    def methods(self) -> Iterator[Method]:
        """All of them."""
        for one in self.able:
            ratio = one.seconds / self.block.seconds
            chosen, verdict = one.job is self.block.job, f"about {ratio:.{2 if ratio < 10 else 0}f} times the work"
            peak = self.block.peak_bytes if chosen else one.peak_bytes
            yield Method(one.job.name, peak, None, one.job.error, "chosen" if chosen else verdict)
        for job, least in self.refused:
            yield Method(job.name, least, None, job.error, f"holds {format_bytes(least)} at least")


def _chosen(ways: Sequence[BlockJob], source: Source, out: Any, budget: int, workers: int, device: torch.device, method: str) -> _Chosen:
    """The best way in so many threads of one process; raises `DoesNotFit` where there is none."""
    found, refused = list[tuple[_Block, tuple[int, ...] | None]](), list[tuple[BlockJob, int]]()
    for job in ways:
        shards = shards_for(out, _shape(job, source), job.dtype, budget, workers)
        best, least = _cut(job, source, out, shards, budget, workers, device)
        if best is None:
            refused.append((job, least))
        else:
            found.append((best, shards))
    able = [one for one in found if method in ("auto", one[0].job.name)]
    if not able:
        job, least = min((one for one in refused if method in ("auto", one[0].name)), key=lambda one: one[1])
        raise does_not_fit(job.told, least, budget, not isinstance(out, Path), job.method)
    block, shards = min(able, key=lambda one: one[0].seconds)
    return _Chosen(block, shards, tuple(one for one, _ in found), tuple(refused))


def _told(found: _Chosen, source: Source, budget: int, device: str | None, seats: Seats) -> ArrayPlan:
    block, job = found.block, found.block.job
    shape = _shape(job, source)
    lead = prod(side for axis, side in enumerate(block.sides) if axis not in job.axes)
    filtered = tuple(block.sides[axis] for axis in job.axes)
    return ArrayPlan(
        operation=job.told + seats.told,
        method=job.method,
        shape=shape,
        dtype=job.dtype.name,
        tasks=prod(ceil(size / side) for size, side in zip(shape, block.sides, strict=True)),
        task_shape=(lead, *filtered),
        workers=block.workers,
        passes=1,
        budget_bytes=budget,
        peak_bytes=block.peak_bytes,
        read_bytes=prod(source.shape) * source.dtype.itemsize,
        written_bytes=prod(shape) * job.dtype.itemsize,
        wall_s=None,
        error=job.error,
        methods=tuple(found.methods()),
        device=device,
    )


def _shape(job: BlockJob, source: Source) -> tuple[int, ...]:
    sizes = dict(zip(job.axes, job.filter.sizes, strict=True))
    return tuple(sizes.get(axis, size) for axis, size in enumerate(source.shape))


def _cut(
    job: BlockJob, source: Source, out: Any, shards: tuple[int, ...] | None, budget: int, workers: int, device: torch.device
) -> tuple[_Block | None, int]:
    """The blocks that take the least work within the budget, None where there are none; and the least budget."""
    shape = _shape(job, source)
    sink = ForeseenSink(out, shape, job.dtype, shards)
    best: _Block | None = None
    least = 0
    for sides in dict.fromkeys(_sides(job, shape, sink.grain)):
        own = job.filter.fitted(tuple(sides[axis] for axis in job.axes), device)
        lanes = prod(side for axis, side in enumerate(sides) if axis not in job.axes)
        filtered = tuple(sides[axis] for axis in job.axes)
        tasks = prod(ceil(size / side) for size, side in zip(shape, sides, strict=True))
        near = lanes * prod(part.length for part in own.reads(tuple(Interval(0, side) for side in filtered)))
        seconds = own.seconds(lanes, filtered) + READ_S * near + TASK_S
        each = source.held_bytes + STARTING_BYTES + 2 * own.held_bytes
        held = sink.held_bytes + each
        task = _task_bytes(job, own, source, sink, sides, device)
        least = min(least or held + task, held + task)
        for count in fewer(workers):
            peak = held + count * task
            whole = ceil(tasks / count) * seconds
            if peak <= budget and (best is None or whole < best.seconds):
                best = _Block(job, own, sides, count, peak, whole, each, task)
    return best, least


def _sides(job: BlockJob, shape: tuple[int, ...], grain: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Sides of blocks to look at: of ever more numbers, no axis shorter than a share of what the filter reaches along it."""
    reaches = job.filter.reads(tuple(Interval(0, 1) for _ in job.axes))
    for power, share in product(range(LEAST, MOST + 1), KERNELS):
        left, sides = float(1 << power), dict[int, int]()
        for place, axis in enumerate(sorted(job.axes, key=lambda axis: shape[axis])):
            # Those after it have as much each.
            each = max(left ** (1 / (len(job.axes) - place)), share * reaches[job.axes.index(axis)].length, 1)
            sides[axis] = _even(shape[axis], int(each), grain[axis])
            left = max(left / sides[axis], 1)
        for axis in reversed([axis for axis in range(len(shape)) if axis not in job.axes]):
            sides[axis] = _even(shape[axis], int(left), grain[axis])
            left = max(left / sides[axis], 1)
        yield tuple(sides[axis] for axis in range(len(shape)))


def _even(size: int, side: int, grain: int) -> int:
    """A side near the one wanted, whole grains of it, with as little as can be left for the last."""
    count = ceil(size / max(side, 1))
    return min(ceil(ceil(size / count) / grain) * grain, size)


def _task_bytes(job: BlockJob, own: Filter, source: Source, sink: Sink, sides: tuple[int, ...], device: torch.device) -> int:
    """Bytes of one task on both sides, samples, work and outputs."""
    filtered = tuple(sides[axis] for axis in job.axes)
    lanes = prod(side for axis, side in enumerate(sides) if axis not in job.axes)
    reads = dict(zip(job.axes, own.reads(tuple(Interval(0, side) for side in filtered)), strict=True))
    near = lanes * prod(part.length for part in reads.values())
    inside = tuple(
        Interval(0, min(reads[axis].length if axis in reads else side, size))
        for axis, (side, size) in enumerate(zip(sides, source.shape, strict=True))
    )
    read = prod(part.length for part in inside) * source.dtype.itemsize
    made = prod(sides) * job.dtype.itemsize
    here = read + source.scratch_bytes(inside) if not isinstance(source, TensorSource) else 0
    here += made + sink.scratch_bytes(tuple(Interval(0, side) for side in sides))
    # As they came, in the type of the sums, and what lies beyond the ends in between.
    gathered = (read if device.type == "cuda" else 0) + 3 * near * own.dtype.itemsize // 2
    work = own.run_bytes(lanes, filtered) + (2 * made if job.dtype != own.dtype else 0)
    places = 64 * sum(part.length - side for part, side in zip(reads.values(), filtered, strict=True))
    return here + max(gathered, work) + places + TASK_BYTES


def _edges(size: int, side: int) -> list[Interval]:
    return [Interval(first, min(first + side, size)) for first in range(0, size, side)]
