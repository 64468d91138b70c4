"""Windows on signals of several axes: one chain an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import TypeVar

from sash.errors import InputError
from sash.window._chain import Chain, Link, Tile
from sash.window._interval import Interval

Box = tuple[Interval, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, init=False)
class Grid:
    """A window along each axis of a signal; an output reads the box that its windows span.

    Shapes, boxes and tiles have one entry an axis, first axis first. Raises `InputError` where one has another number of them.
    """

    axes: tuple[Chain, ...]
    """One an axis."""

    def __init__(self, axes: Iterable[Link | Chain]) -> None:
        object.__setattr__(self, "axes", tuple(Chain((axis,)) for axis in axes))
        if not self.axes:
            raise InputError("A grid has at least one axis; Grid([Window(3), Window(3)]) has two.")

    def then(self, second: Grid) -> Grid:
        """The grid with `second` after it."""
        return Grid(first.then(after) for first, after in self._pairs(second.axes, "a grid to go on with"))

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """The most samples under one output, along each axis."""
        return tuple(axis.receptive_field for axis in self.axes)

    @property
    def jump(self) -> tuple[int | Fraction, ...]:
        """Samples from one output to the next, along each axis."""
        return tuple(axis.jump for axis in self.axes)

    @property
    def offset(self) -> tuple[int | Fraction, ...]:
        """Centre of the first output's receptive field."""
        return tuple(axis.offset for axis in self.axes)

    def outputs(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Outputs along each axis on a signal of `shape`."""
        return tuple(axis.outputs(length) for axis, length in self._pairs(shape, "a shape"))

    def reads(self, box: Sequence[tuple[int, int]], shape: Sequence[int] | None = None) -> Box:
        """The box of samples under a box of outputs; clipped to the signal where `shape` is given."""
        lengths = [None] * len(self.axes) if shape is None else [length for _, length in self._pairs(shape, "a shape")]
        pairs = zip(self._pairs(box, "a box"), lengths, strict=True)
        return tuple(axis.reads(*interval, length) for (axis, interval), length in pairs)

    def project(self, box: Sequence[tuple[int, int]], shape: Sequence[int] | None = None) -> Box:
        """The box of outputs over a box of samples; only outputs that exist where `shape` is given."""
        lengths = [None] * len(self.axes) if shape is None else [length for _, length in self._pairs(shape, "a shape")]
        pairs = zip(self._pairs(box, "a box"), lengths, strict=True)
        return tuple(axis.project(interval, length) for (axis, interval), length in pairs)

    def halo(self) -> tuple[tuple[int, int], ...]:
        """Samples before and after any tile's own share of the input, along each axis."""
        return tuple(axis.halo() for axis in self.axes)

    def tiles(self, shape: Sequence[int], tile: Sequence[int]) -> tuple[tuple[Tile, ...], ...]:
        """The outputs cut into tiles of `tile` outputs, row after row; each has one `Tile` an axis."""
        sizes = [size for _, size in self._pairs(tile, "a tile")]
        return tuple(
            product(*(axis.tiles(length, size) for (axis, length), size in zip(self._pairs(shape, "a shape"), sizes, strict=True)))
        )

    def coverage(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """How often samples are read, along each axis; a sample is read the product of its axes' counts times."""
        return tuple(axis.coverage(length) for axis, length in self._pairs(shape, "a shape"))

    def _pairs(self, values: Sequence[T], what: str) -> list[tuple[Chain, T]]:
        if len(values) != len(self.axes):
            raise InputError(f"{what} for this grid has {len(self.axes)} entries, one an axis, not {len(values)}: {tuple(values)!r}.")
        return list(zip(self.axes, values, strict=True))
