"""Rows of a source in memory for as long as a task needs them: each is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Condition

import numpy as np

from sash.window import Interval

Read = Callable[[Interval, np.ndarray], None]
"""Fills (lane, row, column) with rows of the source."""


ROW_BYTES = 24
"""What a ring notes of each row of the plane: where it lies, who needs it last, whether it is there."""


def most_rows(needs: Sequence[np.ndarray], window: int) -> int:
    """Rows that lie in memory at once, at most, where `window` tasks in a row are at work; each task needs rows, in order, each once."""
    ends = [(int(rows[0]), int(rows[-1]) + 1) for rows in needs if len(rows)]
    if not ends:
        return 0
    start, stop = min(first for first, _ in ends), max(last for _, last in ends)
    first, last = np.full(stop - start, len(needs)), np.full(stop - start, -1)
    for task, rows in enumerate(needs):
        first[rows - start] = np.minimum(first[rows - start], task)
        last[rows - start] = task
    used = last >= 0
    # A row is there from when its first task may start, window - 1 tasks early, to the end of its last.
    came = np.bincount(np.maximum(first[used] - window + 1, 0), minlength=len(needs))
    went = np.bincount(last[used] + 1, minlength=len(needs) + 1)
    return int((np.cumsum(came) - np.cumsum(went)[: len(needs)]).max(initial=0))


class Ring:
    """A table of rows that tasks share. Task k may start once those before k - window + 1 have ended; then there is room."""

    def __init__(self, read: Read, needs: Sequence[np.ndarray], height: int, window: int, lanes: int, width: int, dtype: np.dtype) -> None:
        self._read, self._needs = read, needs
        self._last = np.full(height, -1)
        for task, rows in enumerate(needs):
            self._last[rows] = task
        count = most_rows(needs, window)
        self.table = np.empty((lanes, count, width), dtype)
        self._slots = np.full(height, -1, np.int64)
        self._ready = np.zeros(height, bool)
        self._free = np.ones(count, bool)
        self._held = np.zeros(height, bool)
        self._changed = Condition()
        self._failed = False

    def slots(self, task: int) -> np.ndarray:
        """Where in the table the rows that a task needs lie; those that are not there yet are read."""
        rows = self._needs[task]
        with self._changed:
            missing = rows[~self._held[rows]]
            self._place(missing)
        try:
            for run, place in _together(missing, self._slots[missing]):
                self._read(run, self.table[:, place : place + run.length])
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise
        with self._changed:
            self._ready[missing] = True
            self._changed.notify_all()
            # Rows that another task is reading just now.
            self._changed.wait_for(lambda: self._failed or bool(self._ready[rows].all()))
        return self._slots[rows]

    def ended(self, task: int) -> None:
        """Every task up to this one has ended: rows that none after it needs make room."""
        with self._changed:
            done = np.flatnonzero(self._held & (self._last <= task))
            self._free[self._slots[done]] = True
            self._held[done] = self._ready[done] = False

    def _place(self, rows: np.ndarray) -> None:
        count = len(self._free)
        wanted = rows % max(count, 1)
        # Rows one after the other in places one after the other, where that can be.
        if len(rows) and not (self._free[wanted].all() and len(np.unique(wanted)) == len(wanted)):
            wanted = np.flatnonzero(self._free)[: len(rows)]
            assert len(wanted) == len(rows), "the ring is too small for its tasks"
        self._free[wanted] = False
        self._slots[rows], self._held[rows] = wanted, True


def _together(rows: np.ndarray, slots: np.ndarray) -> list[tuple[Interval, int]]:
    """Runs of rows that lie together in the source and in the table: the rows, and the first one's place."""
    if not len(rows):
        return []
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(slots) != 1)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    return [(Interval(int(rows[first]), int(rows[first]) + stop - first), int(slots[first])) for first, stop in pairwise(edges)]
