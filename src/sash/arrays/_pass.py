"""A stage over all planes of an array: cut into tasks, whose memory is counted before it is taken. `_pass_run.py` runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Any, overload

import numpy as np

from sash.arrays._border import FILL, places
from sash.arrays._fir import ROWS
from sash.arrays._planes import Part, Planes
from sash.arrays._ring import ROW_BYTES, Ring, most_rows
from sash.arrays._room import Room
from sash.arrays._stage import Correlate, Near, Stage
from sash.arrays._store import Sink, Source
from sash.window import Interval

CONVERTED = 1 << 17
"""Numbers that are made before they are converted to another type: half a MiB of fp32, which is in a cache still."""
FEW = 12
"""Tasks in a row that are looked at where there are many alike."""
MANY = 256
"""Pieces of an axis up to which each is looked at for what it reads."""


PART_BYTES = 400
"""Of a part as an object: those of a group are there together."""


@dataclass(frozen=True)
class Cut:
    """How large tasks are, and how many run side by side."""

    workers: int
    lead: tuple[int, ...]
    rows: int
    columns: int
    among_next: bool = False
    """Whether these tasks run among those of the next pass, as soon as one of those needs what they make."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A stage, and how its planes lie in the arrays that it reads and writes."""

    stage: Stage
    read: Planes
    written: Planes
    source: Source
    sink_dtype: np.dtype
    fill: float = 0.0
    apart: int = 0
    """Processes that tasks run in, each task with rows of its own; 0: threads of this one, with rows that they share."""

    @cached_property
    def table(self) -> np.ndarray | None:
        """The source's lanes where they lie in memory as the stage takes them."""
        return self.read.table(self.source)

    @property
    def converts(self) -> bool:
        """Whether what the stage makes is written in another type."""
        return self.sink_dtype != self.stage.dtype

    def together(self, part: Part) -> int:
        """Rows of a part that are made before they are converted: few, where these are made as fast as many."""
        few = max(CONVERTED // max(part.columns.length, 1), ROWS) if isinstance(self.stage, Correlate) else part.rows.length
        return min(few, part.rows.length)

    def groups(self, cut: Cut) -> Iterator[list[Part]]:
        """All tasks, one group at a time, as there may be a great many: those whose rows come through one ring together, from the top
        down; apart, each by itself."""
        tops, bands = self._edges(cut)
        for lead in self.written.leads(cut.lead):
            for columns in bands:
                group = [Part(lead, rows, columns) for rows in tops]
                yield from ([part] for part in group) if self.apart else [group]

    def rows_of(self, cut: Cut) -> Iterator[list[Part]]:
        """The same tasks, those beside each other together: planes after planes, each from the top down."""
        tops, bands = self._edges(cut)
        for lead in self.written.leads(cut.lead):
            for rows in tops:
                yield [Part(lead, rows, columns) for columns in bands]

    def count(self, cut: Cut) -> int:
        """How many tasks there are."""
        tops, bands = self._edges(cut)
        leads = (ceil(size / together) for size, together in zip(self.written.shape, cut.lead, strict=False))
        return prod(leads) * len(tops) * len(bands)

    def _edges(self, cut: Cut) -> tuple[_Pieces, _Pieces]:
        """Rows and columns of parts."""
        height, width = self.stage.shape
        return _Pieces(height, cut.rows), _Pieces(width, cut.columns)

    def around(self, group: Sequence[Part]) -> Around:
        """What a group's tasks read."""
        return Around(self, group)

    def peak_bytes(self, cut: Cut, sink: Sink) -> int:
        """Bytes that are held while the pass runs, beside what source and sink hold for themselves; the largest group's."""
        found = 0
        for group in self._kinds(cut):
            # The groups of a source that is read have a ring each, one group after the other.
            many = self.count(cut) if self.apart or self.table is not None else len(group)
            workers = min(cut.workers, many)
            rings, window = (workers, 1) if self.apart else (1, workers)
            kept, working, ring = self._held(group, cut, sink, window)
            found = max(found, workers * (kept + working) + rings * ring)
        return found + self.shared_bytes(cut)

    def held_among(self, cut: Cut, sink: Sink, window: int) -> tuple[int, int, int]:
        """What tasks hold that run among others: what a thread keeps of one, what one takes while it is at work, and the ring that they
        share, where `window` of them in a row may be at work."""
        kept, working, rings = zip(*(self._held(group, cut, sink, window) for group in self._kinds(cut)), strict=True)
        return max(kept), max(working), max(rings)

    def shared_bytes(self, cut: Cut) -> int:
        """What all tasks share beside rows."""
        return max(self.apart, 1) * self.stage.held_bytes + len(self._edges(cut)[0]) * PART_BYTES

    def _held(self, group: Sequence[Part], cut: Cut, sink: Sink, window: int) -> tuple[int, int, int]:
        """Of one task: what stays with its thread for the next, and the rest; and of the group's ring."""
        part = max(group, key=lambda one: one.rows.length)
        there = self.written.part_of(sink.array, part) is not None
        kept = 0 if there else self.written.lanes(part.lead) * part.rows.length * part.columns.length * self.sink_dtype.itemsize
        kept += self.together(part) * part.columns.length * self.stage.dtype.itemsize if self.converts else 0
        around = self.around(group)
        lasting = self._lasting(cut) if not self.apart and len(group) < ceil(self.stage.shape[0] / cut.rows) else 0
        ring, reading = around.ring_bytes(window, lasting) if self.table is None else (0, 0)
        # A task reads, then works, then writes.
        working = self.stage.scratch_bytes(part.rows.length, part.columns.length)
        return kept, max(reading, working, sink.scratch_bytes(self.written.box(part))) + around.index_bytes, ring

    def read_bytes(self, cut: Cut) -> int:
        """Bytes that the tasks read of the source, what several of them read counted as often; of an array in memory, its own."""
        if self.table is not None:
            return prod(self.source.shape) * self.source.dtype.itemsize
        tops, bands = self._edges(cut)
        alone = _weighed(tops) if self.apart else [(Interval(0, self.stage.shape[0]), 1)]
        found = 0
        for lead, planes in _weighed(list(self.written.leads(cut.lead))):
            for columns, many in _weighed(bands):
                for rows, times in alone:
                    near = self.stage.reads(rows, columns)[0].clip(self.read.size[0])
                    runs = self.around([Part(lead, rows, columns)]).held if near.length else []
                    boxes = (self.read.box(Part(lead, near, run)) for run in runs)
                    found += planes * many * times * sum(map(self.source.read_bytes, boxes))
        return found

    def _lasting(self, cut: Cut) -> int:
        """Rows that are held from the first task to the last, as one end of the plane reads the other: whole grains."""
        if self.stage.boundary != "wrap":
            return 0
        (tops, bands), height, grain = self._edges(cut), self.read.size[0], self.read.grain(self.source.grain)[1]
        first, last = (self.stage.reads(rows, bands[0])[0] for rows in (tops[0], tops[-1]))
        return min(sum((ceil(beyond / grain) + 1) * grain for beyond in (-first.start, last.stop - height) if beyond > 0), height)

    def _kinds(self, cut: Cut) -> list[Sequence[Part]]:
        """Tasks in a row of which some hold the most: of the first group, one in the middle, and the last."""
        if self.apart:
            tops, bands = self._edges(cut)
            high = _largest(tops, lambda one: self.stage.reads(one, bands[0])[0].clip(self.read.size[0]))
            wide = _largest(bands, lambda one: self.stage.reads(tops[0], one)[1].clip(self.read.size[1]))
            return [[Part(next(iter(self.written.leads(cut.lead))), rows, columns)] for rows in high for columns in wide]
        tops, bands = self._edges(cut)
        leads = list(self.written.leads(cut.lead))
        # Enough of them to go from one chunk of the source to the next but one.
        first, last = (self.stage.reads(rows, bands[0])[0].start for rows in (tops[0], tops[-1]))
        grain = self.read.grain(self.source.grain)[1]
        few = max(FEW, 4 * cut.workers, 2 * (ceil(grain * len(tops) / max(last - first, 1)) + cut.workers))
        count = len(leads) * len(bands)
        if len(tops) <= 3 * few:
            rows = [list(tops)]
        else:
            # Tasks away from the ends hold alike.
            middle = len(tops) // 2
            rows = [tops[:few], tops[middle - few // 2 : middle + few // 2], tops[-few:]]
        places_of = sorted({0, count // 2, count - 1})
        return [[Part(leads[at // len(bands)], top, bands[at % len(bands)]) for top in some] for at in places_of for some in rows]


@dataclass(frozen=True)
class _Pieces(Sequence[Interval]):
    """An axis in pieces of one length but for the last."""

    size: int
    step: int

    def __len__(self) -> int:
        return ceil(self.size / self.step)

    @overload
    def __getitem__(self, place: int) -> Interval: ...

    @overload
    def __getitem__(self, place: slice) -> list[Interval]: ...

    def __getitem__(self, place: int | slice) -> Interval | list[Interval]:
        starts = range(0, self.size, self.step)[place]
        if isinstance(starts, range):
            return [Interval(start, min(start + self.step, self.size)) for start in starts]
        return Interval(starts, min(starts + self.step, self.size))


class Around:
    """What the tasks of a group read. Places of rows and columns are looked up by each task: all of a wide plane's would take more than
    its samples."""

    def __init__(self, made: Pass, group: Sequence[Part]) -> None:
        self._pass, self._group = made, group
        self._height, self._width = made.read.size
        self.across = made.stage.reads(group[0].rows, group[0].columns)[1]

    @property
    def index_bytes(self) -> int:
        """Of places, while a task looks up its own: of rows in several states, of columns once, and beyond an end as rows are."""
        rows = max(self._down(task).length for task in range(len(self._group)))
        beyond = self.across.length - self.across.clip(self._width).length
        return 8 * (4 * rows + self.across.length + 4 * beyond)

    @cached_property
    def held(self) -> list[Interval]:
        """Runs of columns that a ring holds, the one under the part itself first."""
        step = max(self._pass.read.grain(self._pass.source.grain)[2], self._pass.read.step)
        inside = self.across.clip(self._width)
        own = Interval(inside.start // step, ceil(inside.stop / step))
        cells = [own] if inside.length else []
        for part in self._beyond:
            at = places(part, self._width, self._pass.stage.boundary)
            found = np.unique(at[at >= 0] // step).tolist()
            cells += [Interval(cell, cell + 1) for cell in found if not (inside.length and own.start <= cell < own.stop)]
        runs = list[Interval]()
        for cell in sorted(set(cells)):
            if runs and runs[-1].stop == cell.start:
                runs[-1] = Interval(runs[-1].start, cell.stop)
            else:
                runs.append(cell)
        held = [Interval(run.start * step, min(run.stop * step, self._width)) for run in runs]
        return sorted(held, key=lambda run: not run.start <= inside.start < run.stop)

    @cached_property
    def needs(self) -> _Needs:
        """Rows that each task reads."""
        return _Needs(self._needed, len(self._group))

    @property
    def width(self) -> int:
        """Columns in the ring."""
        return sum(run.length for run in self.held)

    def ring_bytes(self, window: int, lasting: int = 0) -> tuple[int, int]:
        """Of the ring, with rows that last beside those of the group, and of what reading into it takes beside, in each task."""
        source, lead = self._pass.source, self._group[0].lead
        lanes = self._pass.read.lanes(lead)
        needs = list[np.ndarray]()
        for rows in self.needs:
            # Of a picture that is decoded whole, every task reads all rows: one list of them does for all.
            needs.append(needs[-1] if needs and np.array_equal(needs[-1], rows) else rows)
        most = Part(lead, Interval(0, max(map(len, needs))), self.held[0] if self.held else Interval(0, 0))
        ring = lanes * (most_rows(needs, window) + lasting) * self.width * source.dtype.itemsize
        return ring + ROW_BYTES * self._height, self._pass.read.reading_bytes(source, most)

    def ring(self, window: int) -> Ring:
        """The rows, read as they are needed."""
        made = self._pass
        lanes = made.read.lanes(self._group[0].lead)
        return Ring(self._read, self.needs, self._height, window, lanes, self.width, made.source.dtype)

    def _read(self, rows: Interval, into: np.ndarray) -> None:
        first = 0
        for run in self.held:
            part = Part(self._group[0].lead, rows, run)
            self._pass.read.read(self._pass.source, part, into[:, :, first : first + run.length])
            first += run.length

    def rows_alone(self, kept: Room) -> RowsAlone:
        """The rows of a group's first task, read now."""
        made, part, needed = self._pass, self._group[0], self.needs[0]
        table = kept.array("rows", (made.read.lanes(part.lead), len(needed), self.width), made.source.dtype)
        for own in np.split(np.arange(len(needed)), np.flatnonzero(np.diff(needed) != 1) + 1):
            if len(own):
                self._read(Interval(int(needed[own[0]]), int(needed[own[-1]]) + 1), table[:, own[0] : own[-1] + 1])
        return RowsAlone(table)

    def near(self, task: int, table: np.ndarray, ring: Ring | RowsAlone | None) -> Callable[[int], Near]:
        """The neighbourhood of a task in each lane."""
        rows = self._rows(task)
        before, inside = max(-self.across.start, 0), self.across.clip(self._width)
        if ring is None:
            columns = self._columns([Interval(0, self._width)])
            return lambda lane: Near(table[lane], rows, columns, (before, inside.start, inside.length), self._pass.fill)
        slots, needed = ring.slots(task), self.needs[task]
        # All of a task may lie beyond the plane: then it reads no rows, or no columns.
        lent = np.where(rows < 0, rows, slots[np.searchsorted(needed, rows).clip(0, len(needed) - 1)]) if len(needed) else rows
        columns = self._columns(self.held)
        run = (before, inside.start - self.held[0].start, inside.length) if self.held else (before, 0, 0)
        return lambda lane: Near(table[lane], lent, columns, run, self._pass.fill)

    def _down(self, task: int) -> Interval:
        part = self._group[task]
        return self._pass.stage.reads(part.rows, part.columns)[0]

    def _rows(self, task: int) -> np.ndarray:
        return places(self._down(task), self._height, self._pass.stage.boundary)

    def _needed(self, task: int) -> np.ndarray:
        """In order, whole grains of them."""
        grain = self._pass.read.grain(self._pass.source.grain)[1]
        rows = self._rows(task)
        wanted = _distinct(rows[rows >= 0] // grain)
        near = (wanted[:, None] * grain + np.arange(grain)).reshape(-1)
        return near[near < self._height]

    @property
    def _beyond(self) -> list[Interval]:
        """Columns that the plane has not."""
        start, stop = self.across
        found = Interval(start, min(stop, 0)), Interval(max(start, self._width), stop)
        return [part for part in found if part.length]

    def _columns(self, held: list[Interval]) -> np.ndarray:
        """Where each column of the neighbourhood lies in a table of runs of columns, the one under the part itself first."""
        first = held[0].start if held else 0
        found = np.arange(self.across.start - first, self.across.stop - first)
        for part in self._beyond:
            at = places(part, self._width, self._pass.stage.boundary)
            into, place = found[part.start - self.across.start :][: part.length], 0
            into[...] = FILL
            for run in held:
                there = (at >= run.start) & (at < run.stop)
                into[there] = at[there] - (run.start - place)
                place += run.length
        return found


class _Needs(Sequence[np.ndarray]):
    """Rows that each task reads, looked up when they are asked for."""

    def __init__(self, needed: Callable[[int], np.ndarray], count: int) -> None:
        self._needed, self._count = needed, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._count:
            raise IndexError(place)
        return self._needed(place)


@dataclass(frozen=True, eq=False)
class RowsAlone:
    """Rows that one task has for itself, in order."""

    table: np.ndarray

    def slots(self, task: int) -> np.ndarray:
        """Where they lie."""
        return np.arange(self.table.shape[1])


def _distinct(places: np.ndarray) -> np.ndarray:
    """Each once, in order; where they lie close together they are marked, in a tenth of the time of looking each up."""
    if not len(places):
        return places
    first, last = int(places.min()), int(places.max())
    if last - first > 8 * len(places):
        return np.unique(places)
    there = np.zeros(last - first + 1, bool)
    there[places - first] = True
    return np.flatnonzero(there) + first


def _weighed(items: Sequence[Any]) -> list[tuple[Any, int]]:
    """All of them, once each; of a great many the first, the last, and one for those between."""
    if len(items) <= MANY:
        return [(one, 1) for one in items]
    return [(items[0], 1), (items[len(items) // 2], len(items) - 2), (items[-1], 1)]


def _largest(parts: Sequence[Interval], reads: Callable[[Interval], Interval]) -> list[Interval]:
    """The first and the last, which may reach beyond an end, and of those in the middle the one that reads most."""
    middle = len(parts) // 2
    return list(dict.fromkeys([parts[0], max(parts[max(middle - 32, 0) : middle + 32], key=lambda one: reads(one).length), parts[-1]]))
