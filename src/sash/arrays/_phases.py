"""Jobs whose every number rests on every other: phases, each begun when the one before it has ended, with whole arrays between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sash.arrays._filed import Filed, filed
from sash.arrays._running import Options, showing
from sash.arrays._store import Sink, Source, open_sink, open_source
from sash.arrays._store_sink import ArraySink, partial_of, remove
from sash.arrays._turns import run_in_turn
from sash.errors import InputError

Task = Callable[[Any, Sink], None]
"""Writes a part of what its phase makes, from what the phase before it made (None for the first)."""
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


def run_phases(job: Phased, source: Source, out: Any, options: Options) -> Any:
    """The output: an array, or the path it was written to, which appears when it is whole; taken up where it was interrupted."""
    written = int(np.prod(job.shape)) * job.dtype.itemsize
    with ExitStack() as now:
        shown = now.enter_context(showing(options.progress, job.told, written))
        steps = sum(len(phase.tasks) for group in job.groups for phase in group)

        def tick(count: int) -> None:
            shown(written / steps * count)

        if not isinstance(out, (str, os.PathLike)):
            sink = open_sink(out, job.shape, job.dtype, like=source)
            _kept(job, now, sink, (), tick, lambda number: None)
            return sink.finish()
        path = Path(out)
        facts, files = {**job.facts, "source": source.identity, "numpy": np.__version__}, _Files(path)

        def opened(again: bool) -> Sink:
            if not again:
                files.remove()
            return open_sink(path, job.shape, job.dtype, overwrite=options.overwrite, resume=again, shards=None if again else job.shards)

        run = now.enter_context(filed(path, facts, opened, options.restart))
        if job.between == "files":
            _between_files(job, now, run, files, tick)
        else:
            with run.notes() as note:
                _kept(job, now, run.sink, run.done, tick, note)
        result = run.finish()
        files.remove()
    return result


def _kept(
    job: Phased, now: ExitStack, sink: Sink, done: Sequence[int] | set[int], tick: Callable[[int], None], note: Callable[[int], None]
) -> None:
    """With what is between phases in memory: a group is done whole or not at all."""
    pool = now.enter_context(ThreadPoolExecutor(job.workers, "sash"))
    steps = [sum(len(phase.tasks) for phase in group) for group in job.groups]
    left = [number for number in range(len(job.groups)) if number not in done]
    tick(sum(steps[number] for number in done))
    if job.between == "task":

        def ended(place: int) -> None:
            note(left[place])
            tick(steps[left[place]])

        def alone(number: int) -> None:
            _group(job.groups[number], sink, lambda tasks: [task() for task in tasks])

        run_in_turn(pool, [partial(alone, number) for number in left], 2 * job.workers, ended)
        return
    for number in left:
        _group(job.groups[number], sink, lambda tasks: run_in_turn(pool, tasks, 2 * job.workers, lambda place: tick(1)))
        note(number)


def _group(phases: Sequence[Phase], sink: Sink, run: Callable[[Sequence[Callable[[], None]]], Any]) -> None:
    given: Any = None
    for phase in phases:
        if phase.made is None:
            target: Sink = sink
        elif phase.in_place and given is not None:
            target = ArraySink(given.array, 0)
        else:
            target = ArraySink(np.empty(phase.made, phase.dtype), 0)
        run([partial(task, given, target) for task in phase.tasks])
        # What the phase before made is let go of here: it is not there twice while the next runs.
        given = open_source(target.array) if phase.made is not None else None


def _between_files(job: Phased, now: ExitStack, run: Filed, files: _Files, tick: Callable[[int], None]) -> None:
    """With a file for what each phase makes: every task is noted by itself."""
    pool = now.enter_context(ThreadPoolExecutor(job.workers, "sash"))
    first = 0
    for group in job.groups:
        for place, phase in enumerate(group):
            numbers = range(first, first + len(phase.tasks))
            first += len(phase.tasks)
            before = run.done.intersection(numbers)
            tick(len(before))
            if len(before) == len(numbers):
                continue
            target = run.sink
            with ExitStack() as opened:
                given = None if place == 0 else opened.enter_context(closing(files.read(place - 1, group[place - 1])))
                if phase.made is not None:
                    target = files.write(place, phase, bool(before))
                    opened.callback(target.close)
                left = [number for number in numbers if number not in before]
                tasks = [partial(phase.tasks[number - numbers.start], given, target) for number in left]
                with run.notes(target) as note:

                    def ended(place: int, left: list[int] = left, note: Callable[[int], None] = note) -> None:
                        note(left[place])
                        tick(1)

                    run_in_turn(pool, tasks, job.workers, ended)
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
