"""Jobs whose parts rest on their neighbourhood: Richardson–Lucy and the adjoint, region by region of a fixed grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._device import stream_of, workspace
from sash.arrays._fir import converted
from sash.arrays._phases import Between, Phase, Sizes
from sash.arrays._planes import Part, Planes
from sash.arrays._region import Grid, Region
from sash.arrays._region_device import NUMBERS, adjoint_on, richardson_lucy_on
from sash.arrays._running import THREAD_BYTES, fewer
from sash.arrays._store import Sink, Source
from sash.arrays._store_raw import SCRATCH_BYTES
from sash.window import Interval

if TYPE_CHECKING:
    import torch

GROUP_NUMBERS = 1 << 18
"""Numbers of small planes that a task takes together."""
_NOTHING = 1e-15
"""Of the largest: what is below is rounding, and no light."""


def richardson_lucy(region: Region, data: np.ndarray, found: np.ndarray, iterations: int) -> np.ndarray:
    """Some more iterations of x ← x · Aᵀ(y / Ax) / Aᵀ1, in place.

    Source: W. H. Richardson 1972; L. B. Lucy 1974.
    """
    grid = region.grid
    whole = float(grid.taps.sum())
    sizes = region.adjoint(np.ones(region.shape)) if region.at_end else None
    for _ in range(iterations):
        seen = region.apply(found)
        ratio = np.zeros(region.shape)
        np.divide(data, seen, out=ratio, where=seen > _NOTHING * seen.max())
        del seen
        change = region.adjoint(ratio)
        del ratio
        found *= change.clip(0, out=change)
        del change
        if sizes is None:
            found /= whole
        else:
            np.divide(found, sizes, out=found, where=sizes > _NOTHING * whole)
    return found


@dataclass(frozen=True, eq=False)
class Tiled:
    """What is done, and where it goes."""

    source: Source
    planes: Planes
    dtype: np.dtype
    grid: Grid
    iterations: tuple[int, ...]
    """Of Richardson–Lucy, in each phase; none: the adjoint."""
    device: torch.device | None = None
    """Where regions are filtered, by torch; None: here, by scipy."""

    @property
    def passes(self) -> int:
        """Times that numbers are gone through."""
        return max(len(self.iterations), 1)

    def between_bytes(self) -> int:
        """Of an array between phases."""
        return 8 * prod(self.planes.shape) if self.passes > 1 else 0

    def groups(self, sizes: Sizes) -> Sequence[Sequence[Phase]]:
        """One group: phases over all planes."""
        parts = [Part(lead, rows, columns) for lead in self.planes.leads(sizes.lead) for rows, columns in self._parts(sizes)]
        if not self.iterations:
            return [[Phase([partial(self._adjoint, part) for part in parts], None, self.dtype)]]
        last = len(self.iterations) - 1
        return [
            [
                Phase(
                    [partial(self._iterate, part, count) for part in parts],
                    None if place == last else self.planes.shape,
                    self.dtype if place == last else np.dtype(np.float64),
                )
                for place, count in enumerate(self.iterations)
            ]
        ]

    def _adjoint(self, part: Part, given: Source | None, sink: Sink) -> None:
        def made(region: Region, lane: int) -> np.ndarray:
            signal = self._signal(self.source, part, lane, region)
            return region.adjoint(signal) if self.device is None else adjoint_on(self.device, region, signal)

        self._make(part, sink, made)

    def _iterate(self, part: Part, count: int, given: Source | None, sink: Sink) -> None:
        def made(region: Region, lane: int) -> np.ndarray:
            found = np.ones(region.shape) if given is None else self._signal(given, part, lane, region)
            data = self._signal(self.source, part, lane, region)
            if self.device is None:
                return richardson_lucy(region, data, found, count)
            return richardson_lucy_on(self.device, region, data, found, count)

        self._make(part, sink, made)

    def _make(self, part: Part, sink: Sink, work: Any) -> None:
        lanes = self.planes.lanes(part.lead)
        out = np.empty((lanes, part.rows.length, part.columns.length), sink.dtype)
        for region in self.grid.meeting(part.rows, part.columns):
            target, found = list[slice](), list[slice]()
            for core, around, mine in zip(region.core, region.around, (part.rows, part.columns), strict=True):
                start, stop = max(core.start, mine.start), min(core.stop, mine.stop)
                target.append(slice(start - mine.start, stop - mine.start))
                found.append(slice(start - around.start, stop - around.start))
            for lane in range(lanes):
                with stream_of(self.device) if self.device is not None else nullcontext():
                    made = work(region, lane)
                converted(made[tuple(found)], out[lane][tuple(target)])
        self.planes.write(sink, part, out)

    def _signal(self, source: Source, part: Part, lane: int, region: Region) -> np.ndarray:
        """A region's samples in one lane: whole samples of files are read, and one channel is kept."""
        lead, channel = self._lane(part.lead, lane)
        signal = np.empty(region.shape)
        for rows, top in _inside(region.around[0], self.planes.size[0], 1):
            for columns, left in _inside(region.around[1], self.planes.size[1], self.planes.step):
                raw = np.empty((self.planes.channels, rows.length, columns.length), source.dtype)
                self.planes.read(source, Part(lead, rows, columns), raw)
                place = slice(top.start, top.stop), slice(left.start, left.stop)
                inner = left.start + region.around[1].start, left.length
                signal[place] = raw[channel][:, (inner[0] % self.planes.size[1]) - columns.start :][:, : inner[1]]
        return signal

    def _lane(self, lead: tuple[Interval, ...], lane: int) -> tuple[tuple[Interval, ...], int]:
        place, channel = divmod(lane, self.planes.channels)
        counts = [one.length for one in lead]
        index = np.unravel_index(place, counts) if counts else ()
        return tuple(Interval(one.start + int(own), one.start + int(own) + 1) for one, own in zip(lead, index, strict=True)), channel

    def read_bytes(self, sizes: Sizes) -> int:
        """Bytes that tasks read of the source: in each phase every region's samples, once for each channel that it has."""
        found = 0
        lead = (Interval(0, 1),) * self.planes.lead
        for rows, columns in self._parts(sizes):
            for region in self.grid.meeting(rows, columns):
                down = [one for one, _ in _inside(region.around[0], self.planes.size[0], 1)]
                along = [one for one, _ in _inside(region.around[1], self.planes.size[1], self.planes.step)]
                found += sum(self.source.read_bytes(self.planes.box(Part(lead, *one))) for one in product(down, along))
        return self.passes * found * self.planes.channels * prod(self.planes.shape[: self.planes.lead])

    def _parts(self, sizes: Sizes) -> list[tuple[Interval, Interval]]:
        """Rows and columns that tasks make."""
        height, width = self.planes.size
        tops = [Interval(top, min(top + sizes.rows, height)) for top in range(0, height, sizes.rows)]
        lefts = [Interval(left, min(left + sizes.columns, width)) for left in range(0, width, sizes.columns)]
        return list(product(tops, lefts))

    def task_bytes(self, sizes: Sizes, sink: Sink) -> int:
        """Bytes that a task holds at most."""
        grid, lanes = self.grid, prod(sizes.lead) * self.planes.channels
        part = lanes * sizes.rows * sizes.columns
        lead = tuple(Interval(0, count) for count in sizes.lead)
        box = self.planes.box(Part(lead, Interval(0, sizes.rows), Interval(0, sizes.columns)))
        region = min(grid.sides[0].region, self.planes.size[0]), min(grid.sides[1].region, self.planes.size[1])
        wide = min(ceil(region[1] / self.planes.step) + 1, self.planes.size[1] // self.planes.step) * self.planes.step
        near = Part(tuple(Interval(0, 1) for _ in sizes.lead), Interval(0, region[0]), Interval(0, wide))
        raw = self.planes.channels * region[0] * wide * self.source.dtype.itemsize + self.planes.reading_bytes(self.source, near)
        arrays = (4 if self.iterations else 1) * grid.region_bytes
        files = 2 * SCRATCH_BYTES if sizes.between == "files" else 0
        written = part * (8 if self.passes > 1 else self.dtype.itemsize)
        there = 0 if self.device is None else 8 * NUMBERS * prod(grid.transform) + workspace(16 * prod(grid.transform), True, self.device)
        work = max(raw + 2 * grid.region_bytes, arrays + grid.scratch_bytes + there, sink.scratch_bytes(box))
        return written + work + files + THREAD_BYTES

    def peak_bytes(self, sizes: Sizes, sink: Sink, processes: int = 1) -> int:
        """Bytes held at once, in so many processes."""
        arrays = min(self.passes - 1, 2) if sizes.between == "memory" else 0
        return sizes.workers * self.task_bytes(sizes, sink) + arrays * self.between_bytes() + processes * 2 * self.grid.spectrum_bytes

    def ways(self, workers: int, sink: Sink, filed: bool, most_between: int) -> Iterator[Sizes]:
        """Sizes to try, the best first."""
        lead, grain, wide = self.planes.grain(sink.grain)
        height, width = self.planes.size
        wide = max(wide, self.planes.step)
        down, along = self.grid.sides
        rows = min(ceil(down.core / grain) * grain, ceil(height / grain) * grain)
        columns = min(ceil(along.core / wide) * wide, ceil(width / wide) * wide)
        rows, columns = min(rows, height), min(columns, width)
        together = lead
        if lead and self.grid.sides[0].whole and self.grid.sides[1].whole:
            more = max(GROUP_NUMBERS // max(height * width * self.planes.channels * prod(lead), 1), 1) * lead[-1]
            together = (*lead[:-1], min(more, ceil(self.planes.shape[len(lead) - 1] / lead[-1]) * lead[-1]))
        kinds: list[Between] = ["files"] if filed else ["memory"]
        if filed and self.passes > 1 and 2 * self.between_bytes() <= most_between:
            kinds.insert(0, "memory")
        for between in kinds:
            for own in fewer(workers):
                for group in dict.fromkeys((together, lead)):
                    yield Sizes(between, own, tuple(min(a, b) for a, b in zip(group, self.planes.shape, strict=False)), rows, columns)


def _inside(region: Interval, size: int, step: int) -> Iterator[tuple[Interval, Interval]]:
    """Pieces of a region that goes round, as they lie on the axis, in whole steps, and in the region."""
    first = region.start
    while first < region.stop:
        place = first % size
        count = min(region.stop - first, size - place)
        whole = Interval(place // step * step, min(ceil((place + count) / step) * step, size))
        yield whole, Interval(first - region.start, first - region.start + count)
        first += count
