"""An array job: passes one after the other, inside a budget, from a source to a sink, taken up again where it was interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._cluster import Cluster, Seats, connected
from sash.arrays._cluster_shared import Fixed
from sash.arrays._cut import cut
from sash.arrays._filed import filed
from sash.arrays._foreseen import ForeseenSink, ForeseenSource, shards_for
from sash.arrays._overlap_save import OverlapSave
from sash.arrays._pass import Cut, Pass
from sash.arrays._pass_pair import Between, Pair, cut_pair
from sash.arrays._pass_run import run_pass, tasks_apart
from sash.arrays._plan import ArrayPlan
from sash.arrays._planes import Planes
from sash.arrays._running import MAPPED_FROM, PROCESS_BYTES, Options, does_not_fit, mapped_from, showing
from sash.arrays._stage import Stage
from sash.arrays._store import Sink, Source, open_sink, open_source
from sash.arrays._store_sink import partial_of, remove
from sash.arrays._tasks import single_threaded
from sash.heap import blocks_given_back

BETWEEN = "between.npy"
"""The kind of file that numbers lie in between passes."""


@dataclass(frozen=True, eq=False)
class Step:
    """A stage, how its planes lie in what it reads and what it makes, and the shape of the latter."""

    stage: Stage
    read: Planes
    written: Planes


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done: steps in order, each reading what the one before it made."""

    operation: str
    method: str
    steps: tuple[Step, ...]
    dtype: np.dtype
    """Of the output."""
    error: float
    facts: dict[str, Any]
    """What the output's bits depend on, beside the source: as JSON."""
    fill: float = 0.0
    held_bytes: int = 0
    """Of what the job was given beside the source: a kernel, in as many states as planning and running have of it."""
    mapped_from: int = MAPPED_FROM
    """Bytes from which on what is freed leaves the process: above those of blocks that come and go inside a library's transforms."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        return self.steps[-1].written.shape


@dataclass(frozen=True, eq=False)
class Planned:
    """A job, cut to its budget."""

    job: Job
    cuts: tuple[Cut, ...]
    """As threads of one process would take it: what ways are weighed by, wherever they run."""
    taken: tuple[Cut, ...]
    """As it is run."""
    shards: tuple[int, ...] | None
    plan: ArrayPlan
    seats: Seats


def plan_job(job: Job, source: Source, out: Any, options: Options) -> Planned:
    """The job's tasks and what they hold; raises `DoesNotFit` with the least budget that would do."""
    seats = options.seats(source, out)
    budget = options.budget_bytes
    filed = isinstance(out, (str, os.PathLike))
    shards = shards_for(out, job.shape, job.dtype, budget, seats.threads)
    cuts, bytes_held = _cuts(job, source, out, budget, seats, shards)
    if cuts is None:
        raise does_not_fit(job.operation, bytes_held, budget, not filed, job.method)
    # A cluster holds more; it takes the way that threads would all the same, since another one's last bits differ.
    weighed = (_cuts(job, source, out, budget, Seats(seats.threads), shards)[0] if seats.apart else None) or cuts
    return Planned(job, weighed, cuts, shards, _told(job, source, filed, cuts, budget, bytes_held, seats), seats)


def _cuts(
    job: Job, source: Source, out: Any, budget: int, seats: Seats, shards: tuple[int, ...] | None
) -> tuple[tuple[Cut, ...] | None, int]:
    """How each pass is cut, and what they hold at most; None where one cannot be, and the least that would do."""
    filed = isinstance(out, (str, os.PathLike))
    cuts, most = list[Cut | None](), 0
    made = passes(job, source, filed, seats.apart)
    # Between passes numbers are in memory, unless the output is a file: they are then as well, so that they outlast an interruption.
    between = BETWEEN if filed else None
    sinks = [
        *(ForeseenSink(between, one.written.shape, one.sink_dtype) for one in made[:-1]),
        ForeseenSink(out, job.shape, job.dtype, shards),
    ]
    # The source is open to the end.
    always = PROCESS_BYTES + job.held_bytes + source.held_bytes * seats.processes
    while len(cuts) < len(made):
        place = len(cuts)
        if filed and not seats.apart and place + 1 < len(made) and job.steps[place].written == job.steps[place + 1].read:
            held = always + prod(made[place].written.shape) * made[place].sink_dtype.itemsize + sinks[place + 1].held_bytes
            pair = made[place], _in_memory_between(made[place + 1])
            if (both := cut_pair(*pair, sinks[place], sinks[place + 1], budget - held, seats.threads)) is not None:
                most = max(most, held + both[1])
                cuts += both[0]
                continue
        array = made[place].source.array
        held = always + sinks[place].held_bytes + (array.nbytes if place and array is not None else 0)
        found, taken = cut(made[place], sinks[place], budget - held, seats.threads)
        most = max(most, held + taken)
        cuts.append(found)
    whole = tuple(found for found in cuts if found is not None)
    return (whole if len(whole) == len(cuts) else None), most


def _in_memory_between(second: Pass) -> Pass:
    """A pass that reads what the one before made in memory."""
    return replace(second, source=ForeseenSource(second.source.shape, second.source.dtype, True))


def _told(job: Job, source: Source, filed: bool, cuts: tuple[Cut, ...], budget: int, peak: int, seats: Seats) -> ArrayPlan:
    last, found = job.steps[-1], cuts[-1]
    height, width = last.stage.shape
    tasks = sum(made.count(one) for made, one in zip(passes(job, source, False), cuts, strict=True))
    return ArrayPlan(
        operation=job.operation + seats.told,
        method=job.method,
        shape=job.shape,
        dtype=job.dtype.name,
        tasks=tasks,
        task_shape=(prod(found.lead) * last.written.channels, min(found.rows, height), min(found.columns, width)),
        workers=found.workers,
        passes=len(job.steps),
        budget_bytes=budget,
        peak_bytes=peak,
        read_bytes=passes(job, source, filed, seats.apart)[0].read_bytes(cuts[0]),
        written_bytes=prod(job.shape) * job.dtype.itemsize,
        wall_s=None,
        error=job.error,
        methods=(),
    )


def passes(job: Job, source: Source, filed: bool, apart: int = 0) -> list[Pass]:
    """The job's passes, those after the first with stand-ins for what they read; in so many processes, or in threads of this one."""
    found = []
    for place, step in enumerate(job.steps):
        last = place == len(job.steps) - 1
        dtype = job.dtype if last else step.stage.dtype
        given = source if place == 0 else ForeseenSource(step.read.shape, job.steps[place - 1].stage.dtype, not filed)
        found.append(Pass(step.stage, step.read, step.written, given, dtype, job.fill, apart))
    return found


def run_job(planned: Planned, source: Source, out: Any, options: Options) -> Any:
    """The output: an array, or the path it was written to."""
    job = planned.job
    with ExitStack() as open_now:
        open_now.enter_context(blocks_given_back(mapped_from(source, job.mapped_from)))
        plan = planned.plan
        shown = open_now.enter_context(showing(options.progress, f"{plan.operation}, {plan.method}", plan.written_bytes))

        def tick(count: int) -> None:
            shown(plan.written_bytes / max(plan.tasks, 1) * count)

        if not isinstance(out, (str, os.PathLike)):
            return _in_memory(planned, source, out, tick)
        path = Path(out)
        made, first, cluster = passes(job, source, True, planned.seats.apart), 0, None
        if options.address is not None:
            cluster = open_now.enter_context(connected(options.address))
            cluster.check(path, made[0], options.overwrite)
        facts = {**job.facts, "source": source.identity, "cuts": [repr(one) for one in planned.taken], "numpy": np.__version__}
        scratch = [path.with_name(f"{path.name}.between-{place}.npy") for place in range(len(job.steps) - 1)]

        def opened(again: bool) -> Sink:
            shards = None if again else planned.shards
            return open_sink(path, job.shape, job.dtype, overwrite=options.overwrite, resume=again, shards=shards)

        def between(place: int, again: bool) -> Sink:
            return open_sink(scratch[place], made[place].written.shape, made[place].sink_dtype, overwrite=True, resume=again)

        run = open_now.enter_context(filed(path, facts, opened, options.restart))
        place, end = 0, 0
        while end < len(made):
            place, end = end, end + 1 + planned.taken[end].among_next
            now, cuts = made[place:end], planned.taken[place:end]
            if place:
                now[0] = replace(now[0], source=open_now.enter_context(closing(open_source(scratch[place - 1]))))
            begin, first = first, first + sum(one.count(found) for one, found in zip(now, cuts, strict=True))
            before = run.done.intersection(range(begin, first))
            tick(len(before))
            last = end == len(made)
            if not last and len(before) == first - begin and scratch[end - 1].exists():
                continue
            with ExitStack() as written:
                target = run.sink if last else written.enter_context(closing(between(end - 1, bool(before))))
                pair = None
                if len(now) > 1:
                    kept = written.enter_context(closing(Between(between(place, bool(before)), scratch[place], bool(before))))
                    second = replace(now[1], source=open_source(kept.numbers))
                    pair = Pair(now[0], second, kept, target, (cuts[0], cuts[1]), begin)
                    # Closed, it lets go of its numbers; no name is to hold them for the passes to come.
                    del kept, second
                targets: list[Sink] = [target] if pair is None else [pair.between, target]
                with run.notes(*targets) as note:

                    def ended(number: int, note: Callable[[int], None] = note) -> None:
                        note(number)
                        tick(1)

                    if pair is not None:
                        pair.run(before, ended)
                    elif cluster is None:
                        run_pass(now[0], target, cuts[0], begin, before, ended)
                    else:
                        _run_apart(cluster, plan.operation, now[0], target, cuts[0], job.mapped_from, begin, before, ended)
                if not last:
                    target.finish()
                del pair
        result = run.finish()
        for one in scratch:
            one.unlink(missing_ok=True)
            remove(partial_of(one))
    return result


def _run_apart(
    cluster: Cluster,
    told: str,
    made: Pass,
    sink: Sink,
    found: Cut,
    mapped_from: int,
    first: int,
    before: Collection[int],
    ended: Callable[[int], None],
) -> None:
    """A pass in other processes; tasks have the numbers that they have in this one."""
    left = [number for number in range(made.count(found)) if first + number not in before]
    threads = partial(_threads, isinstance(made.stage, OverlapSave), mapped_from)
    cluster.run(told, Fixed(sink, partial(tasks_apart, made, found), threads), left, found.workers, lambda number: ended(first + number))


@contextmanager
def _threads(transforms: bool, mapped_from: int, count: int) -> Iterator[Executor]:
    """Threads for tasks of a pass in a process of a cluster; torch is loaded for transforms alone."""
    with blocks_given_back(mapped_from), single_threaded(count) if transforms else ThreadPoolExecutor(count, "sash") as pool:
        yield pool


def _in_memory(planned: Planned, source: Source, out: np.ndarray | None, tick: Callable[[int], None]) -> np.ndarray:
    given = source
    sink = None
    for place, one in enumerate(passes(planned.job, source, False)):
        last = place == len(planned.taken) - 1
        sink = open_sink(out if last else None, one.written.shape, one.sink_dtype, like=source if last else None)
        run_pass(replace(one, source=given), sink, planned.taken[place], 0, (), lambda number: tick(1))
        given = open_source(sink.finish())
    assert sink is not None
    return sink.finish()
