"""One pass over planes: what a part of its output reads, what it needs in memory, and the work itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from sash.arrays import _fir, _spline
from sash.arrays._border import Boundary
from sash.arrays._gaussian import Direct, Filter
from sash.window import Interval

PAGE_BYTES = 4096
"""What the system gives memory by."""
_HEAD_BYTES = 64
"""Of a block that the C library maps, before the numbers begin."""


@dataclass(frozen=True, eq=False)
class Near:
    """The samples around a part of an output: a table, and where in it each row and column of the neighbourhood lies."""

    table: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    run: tuple[int, int, int]
    """The columns that lie in the table one after the other: from which of the neighbourhood on, where in the table, and how many."""
    fill: float


class Stage(Protocol):
    """Planes of output from planes of input, a part of rows and columns at a time; the same bits however it is cut."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of an output plane."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """What it makes."""
        ...

    @property
    def boundary(self) -> Boundary: ...

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        """Rows and columns of input that a part of the output is made of; may reach beyond the plane."""
        ...

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        """Write the part of the output into `out`."""
        ...

    def scratch_bytes(self, rows: int, columns: int) -> int:
        """Bytes beside input and output while a part of that size is made."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes that all parts share."""
        ...

    @property
    def unit(self) -> tuple[int, int]:
        """Outputs along each axis of which parts are best a multiple."""
        ...


@dataclass(frozen=True, eq=False)
class Correlate:
    """Taps across rows and along columns at every sample."""

    shape: tuple[int, int]
    dtype: np.dtype
    boundary: Boundary
    down: np.ndarray
    along: np.ndarray
    before: tuple[int, int]
    """Samples of input before an output's own at which its first tap lies, along rows and columns."""

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        sides = zip((rows, columns), self.before, (self._down.size, self._along.size), strict=True)
        top, left = (Interval(part.start - before, part.stop - before + taps - 1) for part, before, taps in sides)
        return top, left

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        _fir.correlate(near.table, near.rows, near.columns, near.run, near.fill, self._down, self._along, out)

    held_bytes = 0
    unit = (1, 1)

    def scratch_bytes(self, rows: int, columns: int) -> int:
        return _fir.scratch_bytes(self._down.size, self._along.size, rows, columns, self.dtype.itemsize)

    @cached_property
    def _down(self) -> np.ndarray:
        return np.ascontiguousarray(self.down, self.dtype)

    @cached_property
    def _along(self) -> np.ndarray:
        return np.ascontiguousarray(self.along, self.dtype)


@dataclass(frozen=True, eq=False)
class Sum:
    """Several of them added up: a kernel as a sum of such as are an outer product."""

    terms: tuple[Correlate, ...]

    held_bytes = 0
    unit = (1, 1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.terms[0].shape

    @property
    def dtype(self) -> np.dtype:
        return self.terms[0].dtype

    @property
    def boundary(self) -> Boundary:
        return self.terms[0].boundary

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        return self.terms[0].reads(rows, columns)

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        first, *others = self.terms
        first.run(near, rows, columns, out)
        term = np.empty_like(out) if others else out
        for other in others:
            other.run(near, rows, columns, term)
            out += term

    def scratch_bytes(self, rows: int, columns: int) -> int:
        first, *others = self.terms
        return first.scratch_bytes(rows, columns) + bool(others) * rows * columns * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Coarse:
    """One axis between two rates. A direct filter is the case of step 1, whose taps are all among the coarse ones."""

    size: int
    """Samples on the signal."""
    step: int
    down: np.ndarray
    taps: np.ndarray
    up: np.ndarray
    first_up: int
    margin: int
    """Coarse samples before the one at the signal's first sample, and after that at its last."""

    @classmethod
    def of(cls, size: int, found: Filter) -> Coarse:
        """The axis of a filter."""
        if isinstance(found, Direct):
            return cls(size, 1, np.ones(1), found.weights, np.ones((1, 1)), 0, found.radius)
        return cls(size, found.step, found.down, found.coarse, found.up, found.first_up, found.margin)

    @property
    def count(self) -> int:
        """Coarse samples, margins included."""
        return (self.size - 1) // self.step + 1 + 2 * self.margin

    def fine(self, part: Interval) -> Interval:
        """Samples that a part of the coarse ones is made of."""
        half = len(self.down) // 2
        return Interval((part.start - self.margin) * self.step - half, (part.stop - 1 - self.margin) * self.step + half + 1)

    def between(self, part: Interval) -> Interval:
        """Filtered coarse samples that a part of the output is made of."""
        first = part.start // self.step + self.first_up + self.margin
        return Interval(first, (part.stop - 1) // self.step + self.first_up + self.margin + self.up.shape[1])

    def coarse(self, part: Interval) -> Interval:
        """Coarse samples, before their filter, that a part of the output is made of."""
        found, radius = self.between(part), len(self.taps) // 2
        return Interval(found.start - radius, found.stop + radius)


@dataclass(frozen=True, eq=False)
class Thinned:
    """Every step-th sample of a smoothed plane, with a margin around it that holds what the border's rule puts there."""

    axes: tuple[Coarse, Coarse]
    dtype: np.dtype
    boundary: Boundary

    @property
    def shape(self) -> tuple[int, int]:
        return self.axes[0].count, self.axes[1].count

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        return self.axes[0].fine(rows), self.axes[1].fine(columns)

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        down, along = (axis.down.astype(self.dtype) for axis in self.axes)
        _spline.down(near.table, near.rows, near.columns, near.run, near.fill, down, self.axes[0].step, along, self.axes[1].step, out)

    held_bytes = 0
    unit = (1, 1)

    def scratch_bytes(self, rows: int, columns: int) -> int:
        line = columns * self.axes[1].step + len(self.axes[1].down)
        return 2 * (line + self.axes[1].step) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Restored:
    """The output at every sample, from the coarse plane that `Thinned` made."""

    axes: tuple[Coarse, Coarse]
    dtype: np.dtype
    boundary: Boundary = "nearest"
    """Never asked: what is read lies on the coarse plane."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.axes[0].size, self.axes[1].size

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        return self.axes[0].coarse(rows), self.axes[1].coarse(columns)

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        vertical, horizontal = self.axes
        high, wide = vertical.between(rows), horizontal.between(columns)
        down, along = (axis.taps.astype(self.dtype) for axis in self.axes)
        filtered = np.empty((high.length, wide.length), self.dtype)
        _fir.correlate(near.table, near.rows, near.columns, near.run, near.fill, down, along, filtered)
        up, across = vertical.up.astype(self.dtype), horizontal.up.astype(self.dtype)
        _spline.up(filtered, rows.start, up, rows.start // vertical.step, columns.start, across, columns.start // horizontal.step, out)

    held_bytes = 0
    unit = (1, 1)

    def scratch_bytes(self, rows: int, columns: int) -> int:
        vertical, horizontal = self.axes
        high = rows // vertical.step + vertical.up.shape[1] + 2
        wide = columns // horizontal.step + horizontal.up.shape[1] + 2
        lines = _fir.scratch_bytes(len(vertical.taps), len(horizontal.taps), high, wide, self.dtype.itemsize)
        return (high * wide + vertical.up.shape[1] * columns) * self.dtype.itemsize + lines
