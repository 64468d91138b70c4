"""The bands that a separable convolution works in: how large, what each reads, and where its gradient goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sash.errors import InputError
from sash.window import Window

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Pads = tuple[tuple[int, int], ...]

BAND_BYTES = 8 << 20
"""Of a band's intermediate map and output together: they, and the copies the kernels make of them, then stay in the third-level cache.
Measured flat from 6 to 12 MiB; from about 24 MiB on the blocks are mapped afresh each time, which costs more than the arithmetic."""
WHOLE_BYTES, WHOLE_BYTES_LAST = 20 << 20, 48 << 20
"""Of intermediate map and output together, up to which the pair runs whole, for it is quicker: they stay in the cache by themselves.
Channels-last maps, the second figure, are not copied into a blocked layout and back."""
MOST_BANDS = 256
"""Larger maps get larger bands: a forecast meets every band's operators."""


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the output worked on at a time: so many rows (of the first spatial axis) of one image, or so many whole images."""

    images: int
    rows: int

    def __post_init__(self) -> None:
        if not all(isinstance(count, int) and count >= 1 for count in (self.images, self.rows)):
            raise InputError(f"a band of {self.images!r} images and {self.rows!r} rows was asked for; it has at least 1 of each.")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the depthwise window slides, one entry a spatial axis."""

    windows: tuple[Window, ...]
    mode: PaddingMode

    @property
    def stride(self) -> list[int]:
        return [window.stride for window in self.windows]

    @property
    def dilation(self) -> list[int]:
        return [window.dilation for window in self.windows]

    @property
    def pads(self) -> Pads:
        return tuple(window.pad for window in self.windows)

    def outputs(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Sides of the output."""
        return tuple(window.outputs(side) for window, side in zip(self.windows, sides, strict=True))


@dataclass(frozen=True, slots=True)
class Reading:
    """The input under a band: which images, which rows of the signal, and the virtual samples around what was taken."""

    images: slice
    rows: slice | tuple[int, ...]
    """A stretch of the first spatial axis; single rows where the padding brings some from elsewhere."""
    pads: Pads

    def take(self, x: Tensor) -> Tensor:
        """The rows: a view where they are a stretch."""
        x = x[self.images]
        return x[:, :, self.rows] if isinstance(self.rows, slice) else x.index_select(2, self._index(x))

    def give(self, gradient: Tensor, part: Tensor) -> None:
        """Adds a gradient of what was taken to the whole input's."""
        gradient = gradient[self.images]
        if isinstance(self.rows, slice):
            gradient[:, :, self.rows].add_(part)
        else:
            gradient.index_add_(2, self._index(gradient), part)

    def _index(self, x: Tensor) -> Tensor:
        return torch.tensor(self.rows, device=x.device)


def band_of(
    images: int, channels: int, sides: Sequence[int], itemsize: int, *, window: Window | None = None, whole_bytes: int = WHOLE_BYTES
) -> Band:
    """The band for a batch of output maps; `Band(images, sides[0])` is all of it at once.

    `channels` counts those of the intermediate map and of the output together, `sides` are the output's. What fits into `whole_bytes` is
    not cut; else a band holds about `BAND_BYTES`: whole images where they are small, else rows of one, so many that by the halo of `window`
    (along the rows) no sample is read more than about twice.
    """
    row_bytes = channels * math.prod(sides[1:]) * itemsize
    image_bytes = row_bytes * sides[0]
    if images * image_bytes <= whole_bytes:
        return Band(images, sides[0])
    size = max(BAND_BYTES, images * image_bytes // MOST_BANDS)
    if image_bytes <= size:
        return Band(_even(images, size // image_bytes), sides[0])
    least = 1 if window is None else math.ceil((window.span - 1) / window.stride)
    return Band(1, _even(sides[0], max(size // row_bytes, least)))


def _even(total: int, most: int) -> int:
    """The part, of at most `most`, that cuts the total into as many, but more equal parts."""
    return math.ceil(total / math.ceil(total / max(most, 1)))


def bands(images: int, rows: int, band: Band) -> Iterator[tuple[slice, slice]]:
    """Images and rows of each band, first to last."""
    for image, row in product(range(0, images, band.images), range(0, rows, band.rows)):
        yield slice(image, min(image + band.images, images)), slice(row, min(row + band.rows, rows))


def reading(geometry: Geometry, images: slice, rows: slice, length: int, last: int) -> Reading:
    """What the output rows read of a signal of `length` rows, of whose outputs there are `last`."""
    window, *_ = geometry.windows
    if rows.start == 0 and rows.stop == last:
        return Reading(images, slice(0, length), geometry.pads)
    rest = geometry.pads[1:]
    start, stop = window.reads(rows.start, rows.stop)
    if start >= 0 and stop <= length:
        return Reading(images, slice(start, stop), ((0, 0), *rest))
    if geometry.mode != "zeros":
        return Reading(images, tuple(_source(row, length, geometry.mode) for row in range(start, stop)), ((0, 0), *rest))
    inside = window.reads(rows.start, rows.stop, length)
    # A window may lie in the padding altogether, on either side.
    before = min(max(inside.start - start, 0), stop - start)
    return Reading(images, slice(*inside), ((before, stop - start - before - inside.length), *rest))


def _source(row: int, length: int, mode: PaddingMode) -> int:
    """The row of the signal that stands at a place in its padding."""
    if mode == "circular":
        return row % length
    if mode == "replicate":
        return min(max(row, 0), length - 1)
    return length - 1 - abs(length - 1 - abs(row))


def pad(x: Tensor, pads: Pads, mode: PaddingMode) -> tuple[Tensor, list[int]]:
    """The signal with the padding that a convolution cannot add by itself, and what it is then to add on both sides of each axis."""
    symmetric = mode == "zeros"
    kept = [before if symmetric and before == after else 0 for before, after in pads]
    left = [0 if keeps else side for keeps, pair in zip(kept, pads, strict=True) for side in pair]
    if any(left):
        # F.pad counts axes from the last.
        flat = [side for axis in reversed(range(len(pads))) for side in left[2 * axis : 2 * axis + 2]]
        x = F.pad(x, flat, "constant" if mode == "zeros" else mode)
    return x, kept


def read_geometry(sizes: tuple[int, ...], stride: Any, padding: Any, dilation: Any, mode: str) -> Geometry:
    """The geometry in words of `nn.Conv`, its `padding` also as (before, after) an axis; raises `InputError` for what cannot be read."""
    return _read_geometry(sizes, _frozen(stride), _frozen(padding), _frozen(dilation), mode)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=1024)  # a layer asks at every call
def _read_geometry(
    sizes: tuple[int, ...],
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int | tuple[int, int], ...],
    dilation: int | tuple[int, ...],
    mode: str,
) -> Geometry:
    known: tuple[PaddingMode, ...] = get_args(PaddingMode)
    if mode not in known:
        raise InputError(f"padding_mode is {mode!r}; it may be {', '.join(map(repr, known))}.")
    axes = len(sizes)
    strides, dilations = _each("stride", stride, axes), _each("dilation", dilation, axes)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise InputError(f"padding is {padding!r}; as a word it may be 'same' or 'valid'.")
        if padding == "same" and any(step != 1 for step in strides):
            raise InputError(f"padding='same' was asked for with stride {stride}; it keeps the size at stride 1 only: give the padding.")
        pads = [(0, 0)] * axes
        if padding == "same":
            pads = [Window.same(size, dilation=gap).pad for size, gap in zip(sizes, dilations, strict=True)]
    else:
        pads = [(side, side) if isinstance(side, int) else side for side in _each("padding", padding, axes)]
    windows = tuple(Window(*values) for values in zip(sizes, strides, dilations, pads, strict=True))
    return Geometry(windows, next(one for one in known if one == mode))


def _each(name: str, value: object, axes: int) -> tuple:
    """One entry an axis."""
    if not isinstance(value, tuple):
        return (value,) * axes
    if len(value) == 1:
        return value * axes
    if len(value) != axes:
        raise InputError(f"{name} is {value}, {len(value)} entries, and the depthwise weight has {axes} spatial axes; give 1 or {axes}.")
    return value
