"""A convolution and its exact adjoint on a region of a plane, and the fixed grid of regions that a plane is made of.

The grid depends on plane and kernel alone, so that the numbers are the same whatever the budget, the workers and the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from scipy import fft

from sash.arrays._border import Boundary, places
from sash.window import Interval

_SIDE = 768
"""About the side of a transform: larger ones hold more, smaller ones do more twice."""
_MARGIN = 0.3
"""Share of a transform's side that is given to margins, at most, where several operations are done in a region."""


@dataclass(frozen=True)
class Side:
    """One axis of the grid."""

    size: int
    taps: int
    boundary: Boundary
    margin: int
    """Samples on either side that a region has beside its core."""
    core: int
    """Samples of a region that are kept; all, where the region is the axis."""

    @property
    def whole(self) -> bool:
        """Whether a region is the axis."""
        return self.core >= self.size

    @property
    def transform(self) -> int:
        """Samples that are transformed."""
        return int(fft.next_fast_len(self.region + self.taps - 1, real=True) or 0)

    @property
    def region(self) -> int:
        """Samples of the largest region."""
        return self.size if self.whole else self.core + 2 * self.margin

    @property
    def cores(self) -> int:
        """Regions along the axis."""
        return ceil(self.size / self.core)

    def around(self, place: int) -> tuple[Interval, Interval]:
        """A core, and its region; that may reach beyond the ends where these are no ends."""
        core = Interval(place * self.core, min((place + 1) * self.core, self.size))
        if self.whole:
            return core, core
        region = Interval(core.start - self.margin, core.stop + self.margin)
        return core, region if self.boundary == "wrap" else region.clip(self.size)

    def beyond(self, region: Interval) -> tuple[np.ndarray, np.ndarray]:
        """Samples around a region, by their place in it with all around, that copy others, and which."""
        ahead = self.taps // 2
        around = Interval(region.start - ahead, region.stop + self.taps - 1 - ahead)
        if self.boundary == "wrap" and not self.whole:
            return np.zeros(0, int), np.zeros(0, int)
        found = places(around, self.size, self.boundary)
        own = np.arange(around.start, around.stop)
        inside = (found >= region.start) & (found < region.stop)
        copies = np.flatnonzero(inside & ((own < 0) | (own >= self.size)))
        return copies, found[copies] - around.start


def side_of(size: int, taps: int, boundary: Boundary, operations: int, most: int) -> tuple[Side, int]:
    """An axis of the grid, and how many operations of one kernel's reach a region's margin is enough for."""
    reach = taps - 1
    if size + reach <= most + most // 3:
        return Side(size, taps, boundary, 0, size), operations
    most = max(most, 8 * reach)
    done = min(max(int(_MARGIN * most / (2 * reach)), 1), operations) if reach else operations
    return _tiled(size, taps, boundary, done, most), done


def _tiled(size: int, taps: int, boundary: Boundary, done: int, most: int) -> Side:
    margin = done * (taps - 1)
    core = most - 2 * margin - (taps - 1)
    # Powers of two go together with chunks of files, if that wastes little.
    core = 1 << (core.bit_length() - 1) if core < 1.35 * (1 << (core.bit_length() - 1)) else core // 64 * 64 or core
    side = Side(size, taps, boundary, margin, core)
    return Side(size, taps, boundary, 0, size) if boundary == "wrap" and side.region >= size else side


@dataclass(frozen=True, eq=False)
class Grid:
    """Regions of a plane, and the kernel's operator on each."""

    taps: np.ndarray
    sides: tuple[Side, Side]

    @classmethod
    def of(cls, size: tuple[int, int], taps: np.ndarray, boundary: Boundary, operations: int) -> tuple[Grid, int]:
        """The grid for some operations in a row, or as many as pay at once; and that number."""
        short = min(size[axis] + taps.shape[axis] - 1 for axis in range(2))
        most = max(_SIDE, min(_SIDE * _SIDE // max(short, 1), 1 << 18)) if short < _SIDE else _SIDE
        found = [side_of(size[axis], taps.shape[axis], boundary, operations, most) for axis in range(2)]
        done = min(count for _, count in found)
        sides = [one if one.whole else _tiled(one.size, one.taps, boundary, done, max(most, 8 * (one.taps - 1))) for one, _ in found]
        if all(side.whole for side in sides):
            done = operations
        return cls(taps, (sides[0], sides[1])), done

    @property
    def transform(self) -> tuple[int, int]:
        """Sides of a transform."""
        return self.sides[0].transform, self.sides[1].transform

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Of the kernel, on a transform."""
        padded = np.zeros(self.transform)
        padded[: self.taps.shape[0], : self.taps.shape[1]] = self.taps
        return fft.rfft2(padded)  # pyright: ignore[reportReturnType]

    @cached_property
    def conjugate(self) -> np.ndarray:
        """Its conjugate."""
        return np.conj(self.spectrum)

    @property
    def region_bytes(self) -> int:
        """Of one array of a region."""
        return self.sides[0].region * self.sides[1].region * 8

    @property
    def spectrum_bytes(self) -> int:
        """Of a spectrum of a region."""
        down, along = self.transform
        return 16 * down * (along // 2 + 1)

    @property
    def scratch_bytes(self) -> int:
        """While an operator is applied, beside what it is applied to and what it makes."""
        down, along = self.transform
        return 8 * down * along + 2 * self.spectrum_bytes + 160 * max(down, along)

    def meeting(self, rows: Interval, columns: Interval) -> Iterator[Region]:
        """Regions whose cores meet a part of the plane."""
        down, along = self.sides
        first = range(rows.start // down.core, ceil(rows.stop / down.core))
        second = range(columns.start // along.core, ceil(columns.stop / along.core))
        for top, left in product(first, second):
            pair = down.around(top), along.around(left)
            yield Region(self, (pair[0][0], pair[1][0]), (pair[0][1], pair[1][1]))


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a plane with what its core rests on."""

    grid: Grid
    core: tuple[Interval, Interval]
    around: tuple[Interval, Interval]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.around[0].length, self.around[1].length

    @property
    def at_end(self) -> bool:
        """Whether it has an end of the plane in it, where that is an end."""
        return any(
            side.boundary != "wrap" and (part.start == 0 or part.stop == side.size)
            for side, part in zip(self.grid.sides, self.around, strict=True)
        )

    def apply(self, signal: np.ndarray) -> np.ndarray:
        """The convolution; near the region's cuts, the kernel's reach of it is not."""
        grid = self.grid
        ahead = [side.taps // 2 for side in grid.sides]
        padded = np.zeros(grid.transform)
        padded[ahead[0] : ahead[0] + self.shape[0], ahead[1] : ahead[1] + self.shape[1]] = signal
        for axis, (copies, copied) in enumerate(self.beyond):
            lines = padded if axis == 0 else padded.T
            lines[copies] = lines[copied]
        found: Any = fft.rfft2(padded)
        del padded
        found *= grid.spectrum
        made: Any = fft.irfft2(found, grid.transform, overwrite_x=True)
        first = [side.taps - 1 for side in grid.sides]
        return made[first[0] : first[0] + self.shape[0], first[1] : first[1] + self.shape[1]]

    def adjoint(self, signal: np.ndarray) -> np.ndarray:
        """The transposed convolution: what lies beyond ends is added to what it was a copy of."""
        grid = self.grid
        first = [side.taps - 1 for side in grid.sides]
        padded = np.zeros(grid.transform)
        padded[first[0] : first[0] + self.shape[0], first[1] : first[1] + self.shape[1]] = signal
        found: Any = fft.rfft2(padded)
        del padded
        found *= self.grid.conjugate
        made: Any = fft.irfft2(found, grid.transform, overwrite_x=True)
        for axis, (copies, copied) in enumerate(self.beyond):
            lines = made if axis == 0 else made.T
            for copy, place in zip(copies.tolist(), copied.tolist(), strict=True):
                lines[place] += lines[copy]
        ahead = [side.taps // 2 for side in grid.sides]
        return made[ahead[0] : ahead[0] + self.shape[0], ahead[1] : ahead[1] + self.shape[1]]

    @cached_property
    def beyond(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Along both axes: places around the region that copy others, and which."""
        return [side.beyond(part) for side, part in zip(self.grid.sides, self.around, strict=True)]
