"""Jobs whose every number rests on every other: phases, each begun when the one before it has ended, with whole arrays between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sash.arrays._cluster import Cluster, connected
from sash.arrays._cluster_shared import Fixed, Threads
from sash.arrays._device import check_device
from sash.arrays._filed import Filed, filed
from sash.arrays._running import Options, mapped_from, showing
from sash.arrays._store import Sink, Source, open_sink, open_source
from sash.arrays._store_sink import ArraySink, partial_of, remove
from sash.arrays._tasks import giving_back
from sash.arrays._turns import run_in_turn
from sash.errors import InputError
from sash.heap import blocks_given_back

if TYPE_CHECKING:
    import torch

Task = Callable[[Any, Sink], None]
"""Writes a part of what its phase makes, from what the phase before it made (None for the first)."""
Made = Callable[[Sink], Sequence[Callable[[], None]]]
"""All tasks that write to a sink, by number."""
Run = Callable[[Sink, Made, Sequence[int], int, Callable[[int], None]], None]
"""Runs some of them by their numbers, so many ahead of the slowest, and tells each one that has ended."""
Between = Literal["task", "memory", "files"]
"""Where arrays between phases are: in each task, which then does all of a group; in memory; or in files beside the output."""


@dataclass(frozen=True, eq=False)
class Phase:
    """Tasks that may run side by side, and what they write together."""

    tasks: Sequence[Task]
    made: tuple[int, ...] | None
    """The shape of an array between phases; None: it is the output."""
    dtype: np.dtype
    in_place: bool = False
    """Whether each task reads just what it writes, so that in memory one array does for both."""


@dataclass(frozen=True)
class Sizes:
    """How large tasks are, how many run side by side, and where what is between phases is."""

    between: Between
    workers: int
    lead: tuple[int, ...]
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class Phased:
    """A job: groups of phases, one group after the other, each for a part of the output of its own."""

    told: str
    groups: Sequence[Sequence[Phase]]
    between: Between
    workers: int
    shape: tuple[int, ...]
    dtype: np.dtype
    shards: tuple[int, ...] | None
    facts: dict[str, Any]
    """What the output's bits and tasks depend on, beside the source: as JSON."""

    @property
    def tasks(self) -> int:
        """How many are noted one by one."""
        return sum(len(phase.tasks) for group in self.groups for phase in group) if self.between == "files" else len(self.groups)


def run_phases(job: Phased, source: Source, out: Any, options: Options, device: torch.device | None) -> Any:
    """The output: an array, or the path it was written to, which appears when it is whole; taken up where it was interrupted.

    The device is what torch computes on, where it does.
    """
    written = int(np.prod(job.shape)) * job.dtype.itemsize
    threads = partial(_threads, device, mapped_from(source))
    with ExitStack() as now:
        shown = now.enter_context(showing(options.progress, job.told, written))
        steps = sum(len(phase.tasks) for group in job.groups for phase in group)

        def tick(count: int) -> None:
            shown(written / steps * count)

        if not isinstance(out, (str, os.PathLike)):
            sink = open_sink(out, job.shape, job.dtype, like=source)
            run = _side_by_side(now.enter_context(threads(job.workers)))
            _kept(job, run, sink, (), tick, lambda number: None)
            return sink.finish()
        path = Path(out)
        facts, files = {**job.facts, "source": source.identity, "numpy": np.__version__}, _Files(path)
        if options.address is not None:
            cluster = now.enter_context(connected(options.address))
            cluster.check(path, job.groups[0][0].tasks[0], options.overwrite, partial(check_device, device))
            run = _apart(cluster, job, threads)
        else:
            run = _side_by_side(now.enter_context(threads(job.workers)))

        def opened(again: bool) -> Sink:
            if not again:
                files.remove()
            return open_sink(path, job.shape, job.dtype, overwrite=options.overwrite, resume=again, shards=None if again else job.shards)

        begun = now.enter_context(filed(path, facts, opened, options.restart))
        if job.between == "files":
            _between_files(job, run, begun, files, tick)
        else:
            with begun.notes() as note:
                _kept(job, run, begun.sink, begun.done, tick, note)
        result = begun.finish()
        files.remove()
    return result


@contextmanager
def _threads(device: torch.device | None, mapped_from: int, count: int) -> Iterator[Executor]:
    """Threads for tasks, in each of which BLAS and torch compute alone: a product's last bits may depend on how many share it."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        if device is not None:
            with giving_back(mapped_from, count) as pool:
                yield pool
        else:
            with blocks_given_back(mapped_from), ThreadPoolExecutor(count, "sash") as pool:
                yield pool


def _side_by_side(pool: Executor) -> Run:
    """Tasks in threads of this process."""

    def run(sink: Sink, made: Made, numbers: Sequence[int], ahead: int, ended: Callable[[int], None]) -> None:
        tasks = made(sink)
        run_in_turn(pool, [tasks[number] for number in numbers], ahead, lambda place: ended(numbers[place]))

    return run


def _apart(cluster: Cluster, job: Phased, threads: Threads) -> Run:
    """Tasks in other processes."""

    def run(sink: Sink, made: Made, numbers: Sequence[int], ahead: int, ended: Callable[[int], None]) -> None:
        cluster.run(job.told, Fixed(sink, made, threads), numbers, job.workers, ended)

    return run


def _kept(job: Phased, run: Run, sink: Sink, done: Collection[int], tick: Callable[[int], None], note: Callable[[int], None]) -> None:
    """With what is between phases in memory: a group is done whole or not at all."""
    steps = [sum(len(phase.tasks) for phase in group) for group in job.groups]
    left = [number for number in range(len(job.groups)) if number not in done]
    tick(sum(steps[number] for number in done))
    if job.between == "task":

        def ended(number: int) -> None:
            note(number)
            tick(steps[number])

        run(sink, partial(_whole, job.groups), left, 2 * job.workers, ended)
        return

    def phase(target: Sink, made: Made, count: int) -> None:
        run(target, made, range(count), 2 * job.workers, lambda number: tick(1))

    for number in left:
        _group(job.groups[number], sink, phase)
        note(number)


def _whole(groups: Sequence[Sequence[Phase]], sink: Sink) -> list[Callable[[], None]]:
    """Groups as tasks, each all by itself."""

    def alone(target: Sink, made: Made, count: int) -> None:
        for task in made(target):
            task()

    return [partial(_group_of, groups, number, sink, alone) for number in range(len(groups))]


def _group_of(groups: Sequence[Sequence[Phase]], number: int, sink: Sink, run: Callable[[Sink, Made, int], None]) -> None:
    _group(groups[number], sink, run)


def _group(phases: Sequence[Phase], sink: Sink, run: Callable[[Sink, Made, int], None]) -> None:
    given: Any = None
    for phase in phases:
        if phase.made is None:
            target: Sink = sink
        elif phase.in_place and given is not None:
            target = ArraySink(given.array, 0)
        else:
            target = ArraySink(np.empty(phase.made, phase.dtype), 0)
        run(target, partial(_given, phase, given), len(phase.tasks))
        # What the phase before made is let go of here: it is not there twice while the next runs.
        given = open_source(target.array) if phase.made is not None else None


def _given(phase: Phase, given: Source | None, sink: Sink) -> list[Callable[[], None]]:
    """A phase's tasks, with what they read and write."""
    return [partial(task, given, sink) for task in phase.tasks]


def _between_files(job: Phased, run: Run, begun: Filed, files: _Files, tick: Callable[[int], None]) -> None:
    """With a file for what each phase makes: every task is noted by itself."""
    first = 0
    for group in job.groups:
        for place, phase in enumerate(group):
            numbers = range(first, first + len(phase.tasks))
            first += len(phase.tasks)
            before = begun.done.intersection(numbers)
            tick(len(before))
            if len(before) == len(numbers):
                continue
            target = begun.sink
            with ExitStack() as opened:
                given = None if place == 0 else opened.enter_context(closing(files.read(place - 1, group[place - 1])))
                if phase.made is not None:
                    target = files.write(place, phase, bool(before))
                    opened.callback(target.close)
                left = [number - numbers.start for number in numbers if number not in before]
                with begun.notes(target) as note:

                    def ended(own: int, start: int = numbers.start, note: Callable[[int], None] = note) -> None:
                        note(start + own)
                        tick(1)

                    run(target, partial(_given, phase, given), left, job.workers, ended)
                if phase.made is not None:
                    target.finish()
            if place:
                files.drop(place - 1)


class _Files:
    """What lies between phases, in two files by turns."""

    def __init__(self, out: Path) -> None:
        self._paths = [out.with_name(f"{out.name}.between-{place}.npy") for place in range(2)]

    def write(self, place: int, phase: Phase, begun: bool) -> Sink:
        """The file that a phase makes; one that was begun is gone on with."""
        path = self._paths[place % 2]
        if begun:
            self._there(partial_of(path))
        else:
            # Not what a phase before, or another group, left under the name.
            self.drop(place)
        assert phase.made is not None
        return open_sink(path, phase.made, phase.dtype, overwrite=True, resume=begun)

    def read(self, place: int, phase: Phase) -> Source:
        """What a phase made; killed between its last task and its end, it has not its name yet."""
        path = self._paths[place % 2]
        if not path.exists():
            self._there(partial_of(path))
            assert phase.made is not None
            open_sink(path, phase.made, phase.dtype, overwrite=True, resume=True).finish()
        return open_source(path)

    def drop(self, place: int) -> None:
        """Take what a phase made away."""
        remove(self._paths[place % 2])
        remove(partial_of(self._paths[place % 2]))

    def remove(self) -> None:
        """Take both away."""
        self.drop(0)
        self.drop(1)

    def _there(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"{path} is gone, which the interrupted run wrote; say restart=True (--restart) to begin anew.")
