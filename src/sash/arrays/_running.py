"""How an array job is run, whatever it is: what the caller said of it, and the bar that shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

from sash.arrays._cluster import Seats, check_filed, is_address, seats_at
from sash.arrays._store import Source
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes, parse_bytes

MAPPED_FROM = 256 << 10
"""Bytes from which on what a task frees leaves the process: less would cost more in new pages than it keeps of a budget. Of torch's blocks
glibc kept up to twenty a worker."""


PROCESS_BYTES = 448 << 10
"""What a job takes once, whatever its size: small objects of its plan, its pool and its files, filters that were tried, and what the
system's count of pages is ahead or behind by, up to 64 pages of a processor."""
THREAD_BYTES = 176 << 10
"""What a worker takes beside its arrays: its stack, and what the C library keeps of its small blocks, up to 128 KiB."""
LEAST_MAPPED = 64 << 10
"""Blocks below that stay with the C library, whatever they are."""
Chosen = TypeVar("Chosen")


def mapped_from(source: Source, most: int = MAPPED_FROM) -> int:
    """Bytes from which on freed blocks leave the process while this is read: below those of its chunks, which are decoded in many threads.

    Each thread has a heap of its own, and what it kept of blocks that came and went was, of all of them, more than the budget of a job.
    """
    return min(most, max(source.block_bytes // 4, LEAST_MAPPED)) if source.block_bytes else most


@dataclass(frozen=True)
class Options:
    """How a job is run, whatever it is."""

    budget: str | int
    workers: int | str | None = None
    """Threads of this process, one a processor unless said; or the address of a Dask scheduler."""
    overwrite: bool = False
    restart: bool = False
    progress: bool | None = None

    @property
    def budget_bytes(self) -> int:
        """Bytes that may be held at once."""
        return parse_bytes(self.budget)

    @property
    def address(self) -> str | None:
        """Of a Dask scheduler, if tasks run there; raises `InputError` for a string that is none."""
        if not isinstance(self.workers, str):
            return None
        if not is_address(self.workers):
            raise InputError(
                f"workers is {self.workers!r}; give a whole number of threads, or the address of a Dask scheduler, as 'tcp://127.0.0.1:8786'."
            )
        return self.workers

    def seats(self, source: Source, out: Any) -> Seats:
        """Where tasks run; raises `InputError` where a cluster is asked for that is not there, or cannot read and write these."""
        if self.address is None:
            return Seats(self.most_workers)
        check_filed(source, out, self.address)
        return self._counted

    @cached_property
    def _counted(self) -> Seats:
        # Once for all ways that are weighed.
        assert self.address is not None
        return seats_at(self.address)

    @property
    def most_workers(self) -> int:
        """Threads of this process asked for, or one a processor; raises `InputError` for less than one, and for a cluster."""
        if self.workers is None:
            return processors()
        if self.address is not None:
            raise InputError(f"workers is {self.address!r}; this operation runs in threads of this process: give their number.")
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise InputError(f"workers is {self.workers!r}; give a whole number of threads from 1 on.")
        return self.workers


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fewer(workers: int) -> list[int]:
    """Numbers of workers to try, most first."""
    found = [workers]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def settled(choose: Callable[[int], tuple[Chosen, int]], budget: int) -> tuple[Chosen, int]:
    """What is chosen for a budget, and the budget; where it holds more, or nothing fits, for the next one that is kept.

    In the processes of a cluster that is so: the choice is that of threads, for the sake of the last bits, and each process holds more.
    """
    try:
        found, holds = choose(budget)
    except DoesNotFit as error:
        found, holds = choose(budget := error.least_bytes)
    while holds > budget:
        found, holds = choose(budget := holds)
    return found, budget


def does_not_fit(told: str, least: int, budget: int, in_memory: bool, method: str = "") -> DoesNotFit:
    """What to say where even the smallest tasks hold too much."""
    how = f", at {method}" if method else ""
    also = " To a file, the output would not count: give `out`." if in_memory else ""
    return DoesNotFit(f"{told} holds {format_bytes(least)} at least{how}; the budget is {format_bytes(budget)}.{also}", least)


@contextmanager
def showing(progress: bool | None, told: str, written_bytes: int) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, in bytes of output, with rate and time left; the function that is told how many more were made."""
    shown = sys.stderr.isatty() if progress is None else progress
    if not shown:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(told, total=written_bytes)
        yield lambda count: bar.update(task, advance=count)
