"""Two passes at once: tasks of the second begin as soon as what they read is made, so that the disk has work from the start.

What lies between the passes is small and stays in memory; a file beside it has the same, for a run that is taken up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from sash.arrays._cut import LEAST_NUMBERS, TURNS, halvings, together
from sash.arrays._pass import Cut, Pass
from sash.arrays._pass_run import PassTask, run_tasks
from sash.arrays._planes import Part
from sash.arrays._ring import Ring
from sash.arrays._room import Room, plain
from sash.arrays._running import THREAD_BYTES
from sash.arrays._store import Sink
from sash.arrays._store_raw import open_npy
from sash.arrays._store_sink import partial_of
from sash.arrays._store_source import Box, slices
from sash.window import Interval

WINDOW = 2
"""Tasks for each worker from the oldest at work to the newest: those of the two passes take different times."""
MOST_BYTES, LEAST_BYTES = 16 << 20, 1 << 20
"""Of what a task writes: smaller ones begin sooner, and stay in a cache; larger ones are written in fewer calls."""
READ_SHARE = 4
"""A task of the first pass reads a part of that: its rows are passed on while they are in a cache."""


class Between(Sink):
    """What one pass makes and the next reads, in memory; and in a file, which a run that is taken up begins with."""

    def __init__(self, file: Sink, path: Path, again: bool) -> None:
        self.shape, self.dtype, self.grain = file.shape, file.dtype, file.grain
        self.numbers = np.empty(file.shape, file.dtype)
        self._file, self._unflushed = file, again
        if again:
            found = open_npy(partial_of(path))
            found.read(tuple(Interval(0, length) for length in file.shape), self.numbers)
            found.close()

    def scratch_bytes(self, box: Box) -> int:
        """As the file says."""
        return self._file.scratch_bytes(box)

    def flush(self) -> None:
        """Make what was written since the last time outlast the machine."""
        if self._unflushed:
            self._unflushed = False
            self._file.flush()

    def _put(self, box: Box, part: np.ndarray) -> None:
        self.numbers[slices(box)] = part
        self._file.write(box, part)
        self._unflushed = True


def cut_pair(first: Pass, second: Pass, between: Sink, sink: Sink, room: int, workers: int) -> tuple[tuple[Cut, Cut], int] | None:
    """How two passes are cut that run at once within `room` bytes, beside what lies between them; and what they hold. None where they
    do not fit, the first has too few rows to share, or what lies between is not laid out as the second takes it: then one after the other
    might."""
    most = MOST_BYTES if second.table is not None else 0
    while most >= LEAST_BYTES:
        cuts = _reading(first, between, workers, most // READ_SHARE), _writing(second, sink, workers, most)
        if first.count(cuts[0]) < TURNS * workers:
            return None
        held = [
            made.held_among(one, into, WINDOW * workers) for made, one, into in zip((first, second), cuts, (between, sink), strict=True)
        ]
        kept, working, rings = zip(*held, strict=True)
        taken = workers * (max(kept) + max(working) + THREAD_BYTES) + sum(rings)
        taken += first.shared_bytes(cuts[0]) + second.shared_bytes(cuts[1])
        if taken <= room:
            return cuts, taken
        most //= 2
    return None


def _reading(made: Pass, sink: Sink, workers: int, nbytes: int) -> Cut:
    """All columns, and as many rows as are made of so many bytes: the next pass can begin once the first rows are there."""
    (height, width), (deep, wide) = made.stage.shape, made.read.size
    lead = together(made, made.written.grain(sink.grain)[0], deep * wide * made.read.channels)
    lanes = made.read.lanes(tuple(Interval(0, count) for count in lead))
    one, two = (made.stage.reads(Interval(0, rows), Interval(0, width))[0].length for rows in (1, 2))
    rows = nbytes // max((two - one) * lanes * wide * made.source.dtype.itemsize, 1)
    return Cut(workers, lead, max(min(rows, ceil(height / (TURNS * workers))), 1), width, among_next=True)


def _writing(made: Pass, sink: Sink, workers: int, most: int) -> Cut:
    """As wide as can be, so that the rows from the top on are enough to begin with; whole grains of the sink."""
    (height, width), (lead, grain, _) = made.stage.shape, made.written.grain(sink.grain)
    lead = together(made, lead, height * width * made.written.channels)
    each = made.written.lanes(tuple(Interval(0, count) for count in lead)) * made.sink_dtype.itemsize
    widths = halvings(made, sink)
    columns = next((columns for columns in widths if each * grain * columns <= most), widths[-1])
    few = ceil(LEAST_NUMBERS * made.sink_dtype.itemsize / (each * columns))
    rows = min(most // (each * columns), max(ceil(height / (TURNS * workers)), few))
    return Cut(workers, lead, min(max(rows // grain, 1) * grain, ceil(height / grain) * grain), columns)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two passes, where they write, how they are cut, and the number of the first task."""

    first: Pass
    second: Pass
    """Reads `between` in memory."""
    between: Between
    sink: Sink
    cuts: tuple[Cut, Cut]
    number: int

    def run(self, done: Collection[int], ended: Callable[[int], None]) -> None:
        """Run the tasks that are not done yet; they are numbered, and told of, as those of passes one after the other."""
        workers = self.cuts[0].workers
        order = _Order(self, done)
        with ThreadPoolExecutor(workers, "sash") as pool:
            run_tasks(pool, order.tasks(), WINDOW * workers, ended, order.moved, order.needed)


class _Order:
    """In which order tasks of both passes are begun, and which of the first those of the second wait for."""

    def __init__(self, pair: Pair, done: Collection[int]) -> None:
        self._pair, self._done = pair, done
        self._kept = Room(plain).array
        self._place, self._oldest = 0, 0
        self._begun: dict[int, tuple[int, int, Ring | None]] = {}
        """Of tasks of the first pass that were begun and have not ended, by place: their index, and that in their ring."""
        self._waits: dict[int, int] = {}
        """Index of the last task of the first pass that one must wait for, by place."""

    def tasks(self) -> Iterator[PassTask]:
        """Those left. Of the first pass some are begun before they are needed, so that nobody waits for them."""
        pair, ahead = self._pair, self._pair.cuts[0].workers
        firsts = self._firsts()
        ready = next(firsts, None)
        for own, part in self._seconds():
            last = self._last_read(part)
            while ready is not None and ready[0] <= last + ahead:
                yield self._begin(*ready)
                ready = next(firsts, None)
            self._waits[self._place] = last
            self._place += 1
            yield PassTask(pair.second, pair.sink, pair.second.around([part]), 0, own, part, None, self._kept)
        while ready is not None:
            yield self._begin(*ready)
            ready = next(firsts, None)

    def needed(self, place: int) -> int:
        """The place of the last task that is to have ended before one begins."""
        last = self._waits.get(place, -1)
        return max((at for at, (index, _, _) in self._begun.items() if index <= last), default=-1)

    def moved(self, oldest: int) -> None:
        """All tasks before a place have ended."""
        for place in range(self._oldest, oldest):
            self._waits.pop(place, None)
            _, at, ring = self._begun.pop(place, (-1, -1, None))
            if ring is not None:
                ring.ended(at)
        self._oldest = oldest

    def _begin(self, index: int, at: int, first: int, ring: Ring | None, task: PassTask) -> PassTask:
        self._begun[self._place] = index, at, ring
        # Rows of another group come when those of the one before have gone.
        self._waits[self._place] = first - 1
        self._place += 1
        return task

    def _firsts(self) -> Iterator[tuple[int, int, int, Ring | None, PassTask]]:
        """Tasks of the first pass that are left: index, index in the ring, the index that the group begins with, ring, task. What lies in
        memory already needs no ring."""
        pair, first = self._pair, 0
        alone = pair.first.table is not None
        for group in pair.first.groups(pair.cuts[0]):
            left = [(index, part) for index, part in enumerate(group, first) if pair.number + index not in self._done]
            if left:
                around = pair.first.around([part for _, part in left])
                ring = None if alone else around.ring(WINDOW * pair.cuts[0].workers)
                for at, (index, part) in enumerate(left):
                    task = PassTask(pair.first, pair.between, around, at, pair.number + index, part, ring, self._kept)
                    yield index, at, first, ring, task
            first += len(group)

    def _seconds(self) -> Iterator[tuple[int, Part]]:
        """Tasks of the second pass that are left, with their numbers: planes after planes, each from the top down over all columns."""
        pair = self._pair
        begin = pair.number + pair.first.count(pair.cuts[0])
        for row, parts in enumerate(pair.second.rows_of(pair.cuts[1])):
            for column, part in enumerate(parts):
                own = begin + row * len(parts) + column
                if own not in self._done:
                    yield own, part

    def _last_read(self, part: Part) -> int:
        """The index of the last task of the first pass that makes some of what a part is made of; all before it come earlier."""
        pair, cut = self._pair, self._pair.cuts[0]
        height = pair.first.stage.shape[0]
        rows = pair.second.stage.reads(part.rows, part.columns)[0].clip(height)
        group = 0
        for size, one, count in zip(pair.first.written.shape, part.lead, cut.lead, strict=False):
            group = group * ceil(size / count) + (one.stop - 1) // count
        return group * ceil(height / cut.rows) + max(rows.stop - 1, 0) // cut.rows
