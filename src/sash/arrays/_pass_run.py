"""A pass is run: its tasks side by side, in threads that share rows, or by number where processes have rows of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sash.arrays._fir import converted
from sash.arrays._pass import Around, Cut, Pass, RowsAlone
from sash.arrays._planes import Part
from sash.arrays._ring import Ring
from sash.arrays._room import Room, plain
from sash.arrays._stage import Near
from sash.arrays._store import Sink
from sash.arrays._turns import run_in_turn
from sash.window import Interval


def tasks_apart(made: Pass, cut: Cut, sink: Sink) -> list[Callable[[], None]]:
    """All tasks, by number; each reads what it needs."""
    kept = Room(plain)
    return [partial(_alone, made, sink, kept, part) for group in made.groups(cut) for part in group]


def _alone(made: Pass, sink: Sink, kept: Room, part: Part) -> None:
    around = made.around([part])
    PassTask(made, sink, around, 0, 0, part, around.rows_alone(kept), kept.array)()


def run_pass(made: Pass, sink: Sink, cut: Cut, first: int, done: Collection[int], ended: Callable[[int], None]) -> int:
    """Run the tasks that are not done yet; how many there are in all.

    Tasks are numbered from `first` on. `ended` is called with each one's number once it is written, from the thread that wrote it.
    """
    number, kept = first, Room(plain).array
    with ThreadPoolExecutor(cut.workers, "sash") as pool:
        if made.table is not None:
            # No ring binds the groups: all of their tasks come one after the other.
            every = enumerate((made.around([part]), part) for group in made.groups(cut) for part in group)
            works = (
                PassTask(made, sink, around, 0, first + own, part, None, kept) for own, (around, part) in every if first + own not in done
            )
            run_tasks(pool, works, 2 * cut.workers, ended)
            return made.count(cut)
        for group in made.groups(cut):
            left = [(own, part) for own, part in enumerate(group, number) if own not in done]
            number += len(group)
            if not left:
                continue
            around = made.around([part for _, part in left])
            ring = around.ring(cut.workers)
            tasks = (PassTask(made, sink, around, place, own, part, ring, kept) for place, (own, part) in enumerate(left))
            run_tasks(pool, tasks, cut.workers, ended, lambda oldest, ring=ring: ring.ended(oldest - 1))
    return number - first


def run_tasks(
    pool: Executor,
    tasks: Iterable[PassTask],
    window: int,
    ended: Callable[[int], None],
    moved: Callable[[int], None] | None = None,
    needed: Callable[[int], int] = lambda place: -1,
) -> None:
    """Run them as `run_in_turn` does; `ended` is called with the number of each."""
    begun: dict[int, PassTask] = {}

    def each() -> Iterator[PassTask]:
        for place, task in enumerate(tasks):
            begun[place] = task
            yield task

    def end(place: int) -> None:
        ended(begun.pop(place).number)

    run_in_turn(pool, each(), window, end, moved, needed)


@dataclass(frozen=True, eq=False)
class PassTask:
    """One part, from its rows to the sink."""

    made: Pass
    sink: Sink
    around: Around
    place: int
    number: int
    part: Part
    ring: Ring | RowsAlone | None
    empty: Callable[[str, tuple[int, ...], np.dtype], np.ndarray]

    def __call__(self) -> None:
        made, part, ring = self.made, self.part, self.ring
        whole = ring.table if ring is not None else made.table
        assert whole is not None
        lanes = range(len(whole)) if ring is not None else made.read.lane_numbers(part.lead)
        near = self.around.near(self.place, whole, ring)
        into, new = made.written.part_of(self.sink.array, part), None
        if into is None:
            new = self.empty("written", (len(lanes), part.rows.length, part.columns.length), made.sink_dtype)
            into = list(new)
        for lane, out in zip(lanes, into, strict=True):
            if made.converts:
                self._converted(near(lane), out)
            else:
                made.stage.run(near(lane), part.rows, part.columns, out)
        if new is not None:
            made.written.write(self.sink, part, new)

    def _converted(self, near: Near, out: np.ndarray) -> None:
        """A lane in another type than the stage's, some rows at a time."""
        stage, part = self.made.stage, self.part
        step = self.made.together(part)
        buffer = self.empty("buffer", (step, part.columns.length), stage.dtype)
        for top in range(0, part.rows.length, step):
            rows = Interval(part.rows.start + top, min(part.rows.start + top + step, part.rows.stop))
            own = near.rows[top : top + stage.reads(rows, part.columns)[0].length] if step < part.rows.length else near.rows
            stage.run(replace(near, rows=own), rows, part.columns, buffer[: rows.length])
            converted(buffer[: rows.length], out[top : top + rows.length])
