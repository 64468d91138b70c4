"""How an array job is run, whatever it is: what the caller said of it, and the bar that shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

from sash.errors import InputError
from sash.units import parse_bytes


@dataclass(frozen=True)
class Options:
    """How a job is run, whatever it is."""

    budget: str | int
    workers: int | None = None
    overwrite: bool = False
    restart: bool = False
    progress: bool | None = None

    @property
    def budget_bytes(self) -> int:
        """Bytes that may be held at once."""
        return parse_bytes(self.budget)

    @property
    def most_workers(self) -> int:
        """Threads asked for, or one a processor; raises `InputError` for less than one."""
        if self.workers is None:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise InputError(f"workers is {self.workers!r}; give a whole number of threads from 1 on.")
        return self.workers


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
