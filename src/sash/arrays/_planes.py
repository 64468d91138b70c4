"""Planes of rows and columns in an array of any number of axes, read and written a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from sash.arrays._store import Box, Sink, Source
from sash.window import Interval

CHANNELS = 16
"""The most numbers at a place of a picture, after rows and columns, that are gone through side by side."""


@dataclass(frozen=True)
class Part:
    """A part of the planes: which of them, one interval a leading axis; which rows; which columns, counted as if in one axis."""

    lead: tuple[Interval, ...]
    rows: Interval
    columns: Interval


@dataclass(frozen=True)
class Planes:
    """How planes lie in an array: `lead` axes, one of rows, one or several that are columns together, and at most one of channels.

    An array of one axis is a plane of one row. Lanes are planes: leading places times channels.
    """

    shape: tuple[int, ...]
    lead: int
    """Leading axes."""
    spread: int
    """Axes that are columns."""
    flat: bool = False
    """Whether there is no axis of rows."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a plane."""
        return (1 if self.flat else self.shape[self.lead]), prod(self._columns)

    def resized(self, size: tuple[int, int]) -> Planes:
        """The same leading axes and channels around planes of another size, whose columns are one axis."""
        rows = [] if self.flat else [size[0]]
        return Planes((*self.shape[: self.lead], *rows, size[1], *([self.channels] if self._has_channels else [])), self.lead, 1, self.flat)

    def sized(self, size: tuple[int, int]) -> Planes:
        """The same axes, with another number of rows, and of columns where these are one axis."""
        if size == self.size:
            return self
        assert self.spread == 1 or size[1] == self.size[1]
        shape = list(self.shape)
        if not self.flat:
            shape[self.lead] = size[0]
        if self.spread == 1:
            shape[self._first] = size[1]
        return Planes(tuple(shape), self.lead, self.spread, self.flat)

    @property
    def channels(self) -> int:
        """Numbers at every place; 1 where there is no such axis."""
        return self.shape[-1] if self._has_channels else 1

    @property
    def step(self) -> int:
        """Columns that can only be taken together."""
        return prod(self._columns[1:])

    @property
    def _first(self) -> int:
        """The first axis of columns."""
        return self.lead + (not self.flat)

    @property
    def _columns(self) -> tuple[int, ...]:
        return self.shape[self._first : self._first + self.spread]

    @property
    def _has_channels(self) -> bool:
        return self._first + self.spread < len(self.shape)

    def lanes(self, lead: tuple[Interval, ...]) -> int:
        """Planes in a part."""
        return prod(part.length for part in lead) * self.channels

    def grain(self, grain: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
        """A store's smallest boxes in places of leading axes, rows and columns."""
        own = dict(enumerate(grain))
        rows = 1 if self.flat else own[self.lead]
        return tuple(own[axis] for axis in range(self.lead)), rows, min(own[self._first], self._columns[0]) * self.step

    def leads(self, together: tuple[int, ...]) -> Iterator[tuple[Interval, ...]]:
        """All places of the leading axes, so many together along each."""
        axes = zip(self.shape[: self.lead], together, strict=True)
        return product(*([Interval(first, min(first + count, size)) for first in range(0, size, count)] for size, count in axes))

    def box(self, part: Part) -> Box:
        """Where a part lies in the array."""
        columns = [Interval(0, size) for size in self._columns]
        columns[0] = Interval(part.columns.start // self.step, part.columns.stop // self.step)
        rows = [] if self.flat else [part.rows]
        return (*part.lead, *rows, *columns, *([Interval(0, self.channels)] if self._has_channels else []))

    def as_boxed(self, lanes: np.ndarray, part: Part) -> np.ndarray:
        """The numbers of a part, (lane, row, column), seen as the box that they are in the array."""
        box = self.box(part)
        lead = [one.length for one in part.lead]
        channels = [self.channels] if self._has_channels else []
        rows = [] if self.flat else [part.rows.length]
        columns = [one.length for one in box[self._first : self._first + self.spread]]
        seen = lanes.reshape([*lead, *channels, *rows, *columns])
        assert np.may_share_memory(seen, lanes)
        return np.moveaxis(seen, len(lead), -1) if channels else seen

    def table(self, source: Source) -> np.ndarray | None:
        """All lanes of an array in memory without a copy, (lane, row, column); None where it is not laid out so."""
        array = source.array
        plain = array is not None and array.dtype.isnative and array.flags.c_contiguous and not self._has_channels
        return array.reshape(-1, *self.size) if plain and array is not None else None

    def lane_numbers(self, lead: tuple[Interval, ...]) -> list[int]:
        """Where a part's lanes are among all, for planes without channels."""
        places = [range(*part) for part in lead]
        if not places:
            return [0]
        return np.ravel_multi_index(np.meshgrid(*places, indexing="ij"), self.shape[: self.lead]).reshape(-1).tolist()

    def part_of(self, array: np.ndarray | None, part: Part) -> list[np.ndarray] | None:
        """A part's lanes in an array in memory, (row, column) each, without a copy; None where rows do not lie one after the other."""
        plain = array is not None and array.dtype.isnative and array.flags.c_contiguous and not self._has_channels
        if not plain or array is None or part.columns.length != self.size[1]:
            return None
        lanes = array.reshape(-1, *self.size)
        return [lanes[lane, part.rows.start : part.rows.stop] for lane in self.lane_numbers(part.lead)]

    def reading_bytes(self, source: Source, part: Part) -> int:
        """At most what `read` allocates beside `into`, whose rows lie together: those of channels then do not in the array."""
        return source.scratch_bytes(self.box(part)) if self._has_channels else source.row_scratch_bytes(self.box(part))

    def read(self, source: Source, part: Part, into: np.ndarray) -> None:
        """Fill `into`, (lane, row, column)."""
        source.read(self.box(part), self.as_boxed(into, part))

    def write(self, sink: Sink, part: Part, made: np.ndarray) -> None:
        """Put a part in its place."""
        sink.write(self.box(part), self.as_boxed(made, part))


def planes_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[Planes, tuple[int | None, int | None]]]:
    """Passes that go along all of the axes: how each sees the array, and which axes are its rows and columns (None: not filtered along).

    Two neighbouring axes, the last ones or followed by channels, are one pass; any other axis is a pass of its own.
    """
    left, found = sorted(axes), []
    dims = len(shape)
    while left:
        axis = left.pop()
        if left and left[-1] == axis - 1 and (axis == dims - 1 or (axis == dims - 2 and shape[-1] <= CHANNELS)):
            left.pop()
            found.append((Planes(shape, axis - 1, 1), (axis - 1, axis)))
        elif axis == dims - 1:
            flat = dims == 1
            found.append((Planes(shape, 0 if flat else dims - 2, 1, flat), (None, axis)))
        else:
            found.append((Planes(shape, axis, dims - 1 - axis), (axis, None)))
    return found
