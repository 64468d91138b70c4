"""A filter on each frequency of planes that are larger than memory: along rows, down columns and up again, along rows back.

Every line is transformed by itself, so that the numbers are the same however the planes are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._device import in_type, moved, stream_of, workspace
from sash.arrays._diagonal import Line, Spectrum
from sash.arrays._fir import converted
from sash.arrays._frames import is_smooth
from sash.arrays._lines_device import NUMBERS, backward, forward, on_this_side
from sash.arrays._phases import Between, Phase, Sizes, Task
from sash.arrays._planes import Part, Planes
from sash.arrays._running import THREAD_BYTES, fewer
from sash.arrays._signal import Model
from sash.arrays._store import Sink, Source
from sash.arrays._store_raw import SCRATCH_BYTES
from sash.window import Interval

if TYPE_CHECKING:
    import torch

GROUP_NUMBERS = 1 << 20
"""Numbers of small planes that are filtered together."""


@dataclass(frozen=True, eq=False)
class Inverse:
    """Each frequency by the kernel's own."""

    spectrum: Spectrum

    def apply(self, found: Any, columns: Interval) -> None:
        """Filter frequencies in place: the last axis is a part along, the one before all down."""
        for part in self.spectrum.blocks(columns):
            own = _own(found, self.spectrum, part, columns)
            own /= _beside(found, self.spectrum.block(part))


@dataclass(frozen=True, eq=False)
class Wiener:
    """conj(H) / (|H|² + N/S): noise of power N, signal of power S, the least error in the mean.

    Source: N. Wiener 1949; R. C. Gonzalez, R. E. Woods, "Digital Image Processing", chapter 5.8.
    """

    spectrum: Spectrum
    supposed: Model

    def apply(self, found: Any, columns: Interval) -> None:
        """Filter frequencies in place: the last axis is a part along, the one before all down."""
        count = prod(line.size for line in self.spectrum.lines if line is not None)
        rows = np.arange(self.spectrum.shape[0])
        for part in self.spectrum.blocks(columns):
            passed = self.spectrum.block(part)
            signal = self.supposed.signal(self.spectrum.radii(rows, np.arange(*part)))
            if part.start == 0:
                signal[0, 0] += self.supposed.constant * count
            whole = np.square(np.abs(passed))
            with np.errstate(divide="ignore", invalid="ignore"):
                whole += np.where(signal > 0, self.supposed.noise / signal, np.inf)
            passed = np.conj(passed, out=passed)
            # A frequency that is lost, where there is no noise either, is 0.
            np.divide(passed, whole, out=passed, where=whole > 0)
            own = _own(found, self.spectrum, part, columns)
            own *= _beside(found, passed)


def _beside(found: Any, numbers: np.ndarray) -> Any:
    """Numbers where the others are: those of a tensor on its device."""
    return numbers if isinstance(found, np.ndarray) else moved(np.ascontiguousarray(numbers), found.device)


def _own(found: Any, spectrum: Spectrum, part: Interval, columns: Interval) -> Any:
    """Of a part of the frequencies along; all columns, where these are no frequencies."""
    return found if spectrum.lines[1] is None else found[..., part.start - columns.start : part.stop - columns.start]


@dataclass(frozen=True, eq=False)
class Filtered:
    """What is filtered, how, and where it goes."""

    source: Source
    planes: Planes
    dtype: np.dtype
    filter: Inverse | Wiener
    device: torch.device | None = None
    """Where lines are transformed, by torch; None: here, by scipy."""

    @property
    def lines(self) -> tuple[Line | None, Line | None]:
        """How both axes are transformed."""
        return self.filter.spectrum.lines

    @property
    def passes(self) -> int:
        """Times that numbers are gone through."""
        return 3 if None not in self.lines else 1

    @property
    def _kept(self) -> tuple[int, np.dtype]:
        """Frequencies along that are between phases, and their type."""
        along = self.lines[1]
        return (self.planes.size[1], np.dtype(np.float64)) if along is None else (along.bins, along.dtype)

    def between_bytes(self, sizes: Sizes) -> int:
        """Of a group's array between phases."""
        if None in self.lines:
            return 0
        bins, dtype = self._kept
        width = min(sizes.columns, bins)
        return prod(sizes.lead) * self.planes.channels * ceil(bins / width) * width * self.planes.size[0] * dtype.itemsize

    def groups(self, sizes: Sizes) -> _Groups:
        """Phases for each group of planes."""
        return _Groups(self, sizes)

    def phases(self, lead: tuple[Interval, ...], sizes: Sizes) -> list[Phase]:
        """Of one group."""
        height, width = self.planes.size
        down, along = self.lines
        rows = [Interval(top, min(top + sizes.rows, height)) for top in range(0, height, sizes.rows)]
        if down is None:
            return [Phase([self._task(self._rows, Part(lead, part, Interval(0, width))) for part in rows], None, self.dtype)]
        if along is None:
            bands = [Interval(left, min(left + sizes.columns, width)) for left in range(0, width, sizes.columns)]
            return [Phase([self._task(self._columns, Part(lead, Interval(0, height), part)) for part in bands], None, self.dtype)]
        lanes, (bins, dtype) = self.planes.lanes(lead), self._kept
        wide = min(sizes.columns, bins)
        blocks = [Interval(left, min(left + wide, bins)) for left in range(0, bins, wide)]
        made = lanes, len(blocks), height, wide
        wholes = [Part(lead, part, Interval(0, width)) for part in rows]
        return [
            Phase([self._task(self._forward, part, blocks) for part in wholes], made, dtype),
            Phase([self._task(self._middle, lane, *own) for lane in range(lanes) for own in enumerate(blocks)], made, dtype, True),
            Phase([self._task(self._backward, part, blocks) for part in wholes], None, self.dtype),
        ]

    def _task(self, work: Callable[..., None], *told: Any) -> Task:
        return partial(self._run, partial(work, *told))

    def _run(self, work: Callable[..., None], given: Source | None, sink: Sink) -> None:
        if self.device is None:
            work(given, sink)
            return
        with stream_of(self.device):
            work(given, sink)

    def _there(self, numbers: np.ndarray) -> Any:
        """Numbers where they are transformed."""
        return numbers if self.device is None else moved(numbers, self.device)

    def _forward_of(self, line: Line, signal: Any, axis: int) -> Any:
        return line.forward(signal, axis) if self.device is None else forward(line, signal, axis)

    def _backward_of(self, line: Line, found: Any, axis: int) -> Any:
        return line.backward(found, axis) if self.device is None else backward(line, found, axis)

    def _signal(self, part: Part) -> Any:
        shape = self.planes.lanes(part.lead), part.rows.length, part.columns.length
        raw = np.empty(shape, self.source.dtype)
        self.planes.read(self.source, part, raw)
        return raw.astype(np.float64, copy=False) if self.device is None else self._there(raw).double()

    def _write(self, sink: Sink, part: Part, signal: Any) -> None:
        if self.device is not None:
            self.planes.write(sink, part, np.ascontiguousarray(on_this_side(in_type(signal, self.dtype))))
            return
        written = signal
        if signal.dtype != self.dtype:
            written = np.empty(signal.shape, self.dtype)
            for own, out in zip(signal, written, strict=True):
                converted(own, out)
        self.planes.write(sink, part, np.ascontiguousarray(written))

    def _rows(self, part: Part, given: Source | None, sink: Sink) -> None:
        line = self.lines[1]
        assert line is not None
        found = self._forward_of(line, self._signal(part), 2)
        self.filter.apply(found, Interval(0, line.bins))
        made = self._backward_of(line, found, 2)
        del found
        self._write(sink, part, made)

    def _columns(self, part: Part, given: Source | None, sink: Sink) -> None:
        line = self.lines[0]
        assert line is not None
        found = self._forward_of(line, self._signal(part), 1)
        self.filter.apply(found, Interval(0, 1))
        made = self._backward_of(line, found, 1)
        del found
        self._write(sink, part, made)

    def _forward(self, part: Part, blocks: Sequence[Interval], given: Source | None, sink: Sink) -> None:
        line = self.lines[1]
        assert line is not None
        found = on_this_side(self._forward_of(line, self._signal(part), 2))
        for box, own in _pieces(part.rows, blocks, len(found)):
            sink.write(box, found[:, None, :, own])

    def _middle(self, lane: int, place: int, columns: Interval, given: Source, sink: Sink) -> None:
        line = self.lines[0]
        assert line is not None
        block = np.empty((1, 1, line.size, columns.length), self._kept[1])
        box = Interval(lane, lane + 1), Interval(place, place + 1), Interval(0, line.size), Interval(0, columns.length)
        given.read(box, block)
        found = self._forward_of(line, self._there(block[0, 0]), 0)
        self.filter.apply(found, columns)
        made = self._backward_of(line, found, 0)
        sink.write(box, on_this_side(made)[None, None])

    def _backward(self, part: Part, blocks: Sequence[Interval], given: Source, sink: Sink) -> None:
        line = self.lines[1]
        assert line is not None
        lanes = self.planes.lanes(part.lead)
        found = np.empty((lanes, part.rows.length, line.bins), line.dtype)
        for box, own in _pieces(part.rows, blocks, lanes):
            given.read(box, found[:, None, :, own])
        made = self._backward_of(line, self._there(found), 2)
        del found
        self._write(sink, part, made)

    def read_bytes(self, sizes: Sizes) -> int:
        """Bytes that tasks read of the source: each number once, and what is decoded with it."""
        height, width = self.planes.size
        down, along = (sizes.rows, width) if self.lines[0] is None or self.lines[1] is not None else (height, sizes.columns)
        lead = next(iter(self.planes.leads(sizes.lead)))
        parts = [
            Part(lead, Interval(top, min(top + down, height)), Interval(left, min(left + along, width)))
            for top in range(0, height, down)
            for left in range(0, width, along)
        ]
        found = sum(self.source.read_bytes(self.planes.box(part)) for part in parts)
        return found * prod(self.planes.shape[: self.planes.lead]) // prod(one.length for one in lead)

    def task_bytes(self, sizes: Sizes, sink: Sink) -> int:
        """Bytes that a task holds at most, on both sides where there are two."""
        here = self._here_bytes(sizes, sink)
        if self.device is None:
            return here
        lanes, (height, width) = prod(sizes.lead) * self.planes.channels, self.planes.size
        rows, columns = (sizes.rows, width) if self.lines[1] is not None else (height, sizes.columns)
        numbers = max(lanes * rows * columns, height * sizes.columns * 2 if None not in self.lines else 0)
        lengths = [line.size for line in self.lines if line is not None]
        there = workspace(16 * numbers, all(map(is_smooth, lengths)), self.device)
        return here + 8 * NUMBERS * numbers + there + 2 * self.filter.spectrum.scratch_bytes()

    def _here_bytes(self, sizes: Sizes, sink: Sink) -> int:
        down, along = self.lines
        height, width = self.planes.size
        lanes = prod(sizes.lead) * self.planes.channels
        spectrum = self.filter.spectrum
        lead = tuple(Interval(0, count) for count in sizes.lead)
        rows, columns = Interval(0, min(sizes.rows, height)), Interval(0, width)
        if along is None:
            rows, columns = Interval(0, height), Interval(0, min(sizes.columns, width))
        box = self.planes.box(Part(lead, rows, columns))
        numbers = lanes * rows.length * columns.length
        ends = self.planes.reading_bytes(self.source, Part(lead, rows, columns)), sink.scratch_bytes(box)

        if down is None or along is None:
            line = along or down
            assert line is not None
            kept = lanes * (rows.length if down is None else columns.length) * line.bins * line.dtype.itemsize
            made = numbers * 8 + (0 if line.real else kept) + line.scratch_bytes()
            filtered = (numbers * 8 if line.real else kept) + spectrum.scratch_bytes()
            return max(self._ends(numbers, *ends), made, filtered) + THREAD_BYTES
        bins, dtype = self._kept
        wide = lanes * rows.length * bins * dtype.itemsize
        files = SCRATCH_BYTES if sizes.between == "files" else 0
        made = max((0 if along.real else numbers * 8) + wide + along.scratch_bytes(), wide + files)
        middle = height * min(sizes.columns, bins) * dtype.itemsize + max(spectrum.scratch_bytes() + down.scratch_bytes(), files)
        return max(self._ends(numbers, *ends), made, middle) + THREAD_BYTES

    def _ends(self, numbers: int, reading: int, writing: int) -> int:
        """Bytes while so many numbers are read and put in float64, or while they are put in the output's type and written."""
        raw, out = self.source.dtype.itemsize, self.dtype.itemsize
        read = max(numbers * raw + reading, numbers * 8 + (numbers * raw if self.source.dtype != np.float64 else 0))
        return max(read, numbers * 8 + (numbers * out if self.dtype != np.float64 else 0) + writing)

    def peak_bytes(self, sizes: Sizes, sink: Sink, processes: int = 1) -> int:
        """Bytes held at once, in so many processes."""
        between = self.between_bytes(sizes)
        task = self.task_bytes(sizes, sink)
        each = between + task if sizes.between == "task" else task
        return sizes.workers * each + (between if sizes.between == "memory" else 0) + processes * self.filter.spectrum.held_bytes

    def ways(self, workers: int, sink: Sink, filed: bool, most_between: int) -> Iterator[Sizes]:
        """Sizes to try, the best first: whole planes a task, a plane in memory, planes in files; ever smaller."""
        lead, *grain = self.planes.grain(sink.grain)
        lead = tuple(min(own, size) for own, size in zip(lead, self.planes.shape, strict=False))
        height, width = self.planes.size
        together = self._together(lead, height * width * self.planes.channels)
        if None in self.lines:
            kinds: list[tuple[Between, tuple[int, ...]]] = [("files" if filed else "memory", together)]
        else:
            kinds = [("memory", lead)]
            if prod(self.planes.shape[: self.planes.lead]) // max(prod(together), 1) >= workers:
                kinds.insert(0, ("task", together))
            if filed:
                # In memory, what was done is lost with the process: only where that is little.
                kinds = [one for one in kinds if self.between_bytes(Sizes("memory", 1, one[1], 1, width)) <= most_between]
                kinds.append(("files", lead))
        for between, lead in kinds:
            for own in fewer(workers):
                for size in _halvings(1 << (21 if between == "files" else 20), 1 << 16):
                    yield Sizes(between, own, lead, *self._cut(size, prod(lead) * self.planes.channels, own, (grain[0], grain[1])))

    def _cut(self, numbers: int, lanes: int, workers: int, grain: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a task that goes through so many numbers: whole grains, and enough tasks for all workers."""
        height, width = self.planes.size
        rows = min(numbers // (lanes * width), ceil(height / workers))
        columns = min(numbers // height, ceil(self._kept[0] / workers))
        step = 1
        if self.lines[1] is None:
            step = max(grain[1], self.planes.step)
            columns = min(numbers // (height * lanes), ceil(width / workers))
        found = max(rows // grain[0], 1) * grain[0], max(columns // step, 1) * step
        return min(found[0], height), min(found[1], width)

    def _together(self, written: tuple[int, ...], numbers: int) -> tuple[int, ...]:
        """Small planes, several at once along the last leading axis."""
        if not written:
            return written
        more = max(GROUP_NUMBERS // max(numbers * prod(written), 1), 1) * written[-1]
        return (*written[:-1], min(more, ceil(self.planes.shape[len(written) - 1] / written[-1]) * written[-1]))


@dataclass(frozen=True, eq=False)
class _Groups(Sequence[Any]):
    """Phases of each group, made when they are asked for."""

    made: Filtered
    sizes: Sizes

    @cached_property
    def _leads(self) -> list[tuple[Interval, ...]]:
        return list(self.made.planes.leads(self.sizes.lead))

    def __len__(self) -> int:
        return len(self._leads)

    def __getitem__(self, place: Any) -> Any:
        return self.made.phases(self._leads[place], self.sizes)


def _pieces(rows: Interval, blocks: Sequence[Interval], lanes: int) -> Iterator[tuple[tuple[Interval, ...], slice]]:
    """Where rows of each block lie between phases, (lane, block, row, column), and among all columns."""
    for place, block in enumerate(blocks):
        yield (Interval(0, lanes), Interval(place, place + 1), rows, Interval(0, block.length)), slice(block.start, block.stop)


def _halvings(most: int, least: int) -> list[int]:
    found = [most]
    while found[-1] > least:
        found.append(found[-1] // 2)
    return found
