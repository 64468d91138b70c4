"""Tasks of a transform: run side by side, each with one thread of torch's own, noted down, shown, and taken up again."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

from sash.arrays._cluster import connected
from sash.arrays._cluster_shared import Fixed, Threads
from sash.arrays._filed import filed
from sash.arrays._running import Options, mapped_from, showing
from sash.arrays._store import Sink, Source
from sash.arrays._turns import run_in_turn
from sash.heap import blocks_given_back, blocks_kept

if TYPE_CHECKING:
    import torch

MOST_TASK_BYTES = 16 << 20
"""Of output that a task makes, as a rule: more would make progress coarse and an interruption dear."""
KEPT, KEPT_APART = 1, 20
"""Blocks of spectra a worker that are counted; the latter where those that are freed stay with the process."""
_LITTLE_MORE = 1.25
"""Times the bytes held, for blocks that stay."""
_MAPPED_ALONE = 4 << 20
"""Bytes from which on a block leaves the process when it is freed in any case: its transform takes longer than its pages."""
TURNS = 4
"""Tasks for each worker, at least, where there is work for so many."""


@dataclass(frozen=True)
class Cut:
    """How a job is divided."""

    lanes: int
    """Signals that a task reads together."""
    step: int
    """Frames, or samples, that a task makes."""
    chunk: int
    """Those in a chunk of what is written; 1 where it is written in any parts."""
    workers: int
    peak_bytes: int
    keeps: bool = False
    """Whether blocks of spectra stay with the process until the end, to be taken again."""

    def keeping(self, block_bytes: int, budget: int, apart: bool) -> Cut:
        """The same with blocks of spectra kept, of that many bytes, where they are a small part of what is held, and fit."""
        peak = self.peak_bytes + self.workers * (KEPT_APART - KEPT) * block_bytes
        little = peak <= min(budget, _LITTLE_MORE * self.peak_bytes) and block_bytes < _MAPPED_ALONE
        return replace(self, peak_bytes=peak, keeps=True) if little and not apart else self

    def blocks(self, source: Source) -> AbstractContextManager[None]:
        """While it runs, and reads this: what the C library does with freed blocks."""
        return blocks_kept(_MAPPED_ALONE) if self.keeps else blocks_given_back(mapped_from(source))


class Tasks(Sequence[Callable[[], None]]):
    """Tasks by number, each made when it is asked for: a list of all would grow with the job."""

    def __init__(self, many: int, made: Callable[[int], Callable[[], None]]) -> None:
        self._many, self._made = many, made

    def __len__(self) -> int:
        return self._many

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._many:
            raise IndexError(place)
        return self._made(place)


def longest(unit: int, wanted: int, fits: Callable[[int], bool]) -> int | None:
    """The largest unit times a power of two, up to `wanted`, that fits; None where the unit itself does not."""
    if not fits(unit):
        return None
    while 2 * unit <= wanted and fits(2 * unit):
        unit *= 2
    return unit


@contextmanager
def single_threaded(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch computes alone: they share the processors already.

    The number that torch keeps for the process is put back as soon as all have taken theirs.
    """
    import torch

    before = torch.get_num_threads()
    started = Barrier(workers + 1)

    def alone() -> None:
        torch.get_num_threads()  # torch sets a new thread's number at its first question, over what was set before
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(workers, "sash") as pool:
        for _ in range(workers):
            pool.submit(alone)
        started.wait()
        torch.set_num_threads(before)
        yield pool


@contextmanager
def giving_back(mapped_from: int, workers: int) -> Iterator[ThreadPoolExecutor]:
    """The same in a process whose freed blocks, from so many bytes on, go back to the system."""
    with blocks_given_back(mapped_from), single_threaded(workers) as pool:
        yield pool


def threads_for(device: torch.device | None, options: Options, source: Source) -> Threads:
    """Those for what torch does on a device; in a cluster's processes freed blocks go back to the system, which compiled code counts."""
    return single_threaded if device is None or options.address is None else partial(giving_back, mapped_from(source))


def run_job(
    told: str,
    out: Any,
    facts: Callable[[], dict[str, Any]],
    opened: Callable[[bool], Sink],
    tasks: Callable[[Sink], Sequence[Callable[[], None]]],
    workers: int,
    written_bytes: int,
    options: Options,
    threads: Threads = single_threaded,
    able: Callable[[], Any] | None = None,
) -> Any:
    """The output, after all tasks: an array, or the path, which appears when it is whole.

    `opened` opens the sink, and is told whether it goes on with what was left; `facts` are what the output's bits and tasks rest on.
    Tasks run in `threads`, in each process; `able` raises `InputError` in a process that has not what they need.
    """
    if not isinstance(out, (str, os.PathLike)):
        sink = opened(False)
        run_tasks(told, tasks(sink), workers, written_bytes, options.progress, threads=threads)
        return sink.finish()
    with ExitStack() as now:
        apart = None
        if options.address is not None:
            cluster = now.enter_context(connected(options.address))
            cluster.check(Path(out), tasks, options.overwrite, able)
            apart = lambda sink, left, end: cluster.run(told, Fixed(sink, tasks, threads), left, workers, end)  # noqa: E731
        run = now.enter_context(filed(Path(out), facts(), opened, options.restart))
        elsewhere = None if apart is None else partial(apart, run.sink)
        with run.notes() as note:
            run_tasks(told, tasks(run.sink), workers, written_bytes, options.progress, run.done, note, elsewhere, threads)
        return run.finish()


def run_tasks(
    told: str,
    tasks: Sequence[Callable[[], None]],
    workers: int,
    written_bytes: int,
    progress: bool | None,
    done: Collection[int] = (),
    note: Callable[[int], None] | None = None,
    apart: Callable[[list[int], Callable[[int], None]], None] | None = None,
    threads: Threads = single_threaded,
) -> None:
    """Run the tasks that are not done; `note` is told each one that has ended.

    `apart` runs them elsewhere, by their numbers, and tells a function each one that has ended.
    """
    left = [number for number in range(len(tasks)) if number not in done]
    with showing(progress, told, written_bytes) as tick:
        share = written_bytes / max(len(tasks), 1)
        tick(share * (len(tasks) - len(left)))

        def end(number: int) -> None:
            tick(share)
            if note is not None:
                note(number)

        if apart is not None:
            apart(left, end)
            return
        with threads(workers) as pool:
            run_in_turn(pool, (tasks[number] for number in left), 2 * workers, lambda place: end(left[place]))
