"""Convolution by Fourier transforms of tiles: each tile reads the kernel's reach beside it, and only what is whole is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from sash.arrays._border import Boundary
from sash.arrays._stage import Near
from sash.window import Interval

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 1 << 20
"""Of rows, or of columns, that are transformed together: they stay in the second-level cache."""
_LEFT = {256: 2.0, 512: 1.0, 1024: 3.3, 2048: 3.3, 3840: 6.3}
"""By the side of a tile: blocks of rows and columns that stay when a kernel was transformed, measured in a process of its own."""
MAPPED_FROM = 2 << 20
"""Bytes from which on freed memory leaves the process while tiles are transformed: torch takes blocks inside its transforms, and new pages
for each would double the time."""
LEAST_TOGETHER = 8
"""Columns transformed together, at least: fewer would use a part of each line of memory that they touch."""


@dataclass(frozen=True, eq=False)
class OverlapSave:
    """out[y, x] is the sum over k, l of kernel[k, l]·sample(y + reach - k, x + reach - l), tile by tile.

    A tile is transformed along its rows, a block of them at a time; then, a block of columns at a time, along the columns, multiplied by
    the kernel's transform, and back; then back along the rows that are kept. So each number of a tile comes from memory three times, as
    often as with any transform of two axes alone, and rows without samples, or without whole outputs, are left out.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    boundary: Boundary
    kernel: np.ndarray
    before: tuple[int, int]
    """Samples of input before an output's own that its kernel reaches."""
    tile: tuple[int, int]
    """Sides of a transform."""

    @property
    def unit(self) -> tuple[int, int]:
        """Outputs along each axis of which parts are best a multiple."""
        return self.whole

    @property
    def whole(self) -> tuple[int, int]:
        """Outputs of a tile."""
        return self.tile[0] - self.kernel.shape[0] + 1, self.tile[1] - self.kernel.shape[1] + 1

    def reads(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        sides = zip((rows, columns), self.before, self.kernel.shape, strict=True)
        top, left = (Interval(part.start - before, part.stop - before + taps - 1) for part, before, taps in sides)
        return top, left

    def run(self, near: Near, rows: Interval, columns: Interval, out: np.ndarray) -> None:
        high, wide = self.whole
        # Before a thread's own blocks are: while it is made, it takes twice its bytes.
        kernel = self._kernel_spectrum
        room = self._kept.room = self._kept.room or _Room.of(self)
        for top in range(0, rows.length, high):
            for left in range(0, columns.length, wide):
                part = out[top : top + high, left : left + wide]
                rows_of, columns_of = near.rows[top : top + self.tile[0]], near.columns[left : left + self.tile[1]]
                if not self._run_tile(near, rows_of, columns_of, kernel, room, part):
                    turned = np.ascontiguousarray(self.kernel[::-1, ::-1])
                    _mark(near.table, rows_of, columns_of, near.fill, turned, part)

    def _run_tile(self, near: Near, rows: np.ndarray, columns: np.ndarray, kernel: Tensor, room: _Room, part: np.ndarray) -> bool:
        """Whether all samples are finite; those that are not count as zeros."""
        import torch

        finite, spectrum, lines = True, room.spectrum, room.lines
        for first in range(0, len(rows), len(lines)):
            some = rows[first : first + len(lines)]
            finite &= _gather(near.table, some, columns, near.fill, lines.numpy())
            torch.fft.rfft(lines[: len(some)], out=room.half[: len(some)])
            spectrum[first : first + len(some)] = room.half[: len(some)]
        spectrum[len(rows) :] = 0
        self._along_columns(kernel, room)
        top, left = self.kernel.shape[0] - 1, self.kernel.shape[1] - 1
        for first in range(0, part.shape[0], len(lines)):
            kept = part[first : first + len(lines)]
            made = lines[: len(kept)]
            torch.fft.irfft(spectrum[top + first : top + first + len(kept)], n=self.tile[1], out=made)
            kept[...] = made[:, left : left + part.shape[1]].numpy()
        return bool(finite)

    def _along_columns(self, kernel: Tensor, room: _Room) -> None:
        import torch

        spectrum, (one, other) = room.spectrum, room.turned
        for first in range(0, spectrum.shape[1], len(one)):
            some = slice(first, min(first + len(one), spectrum.shape[1]))
            here, there = one[: some.stop - first], other[: some.stop - first]
            # Turned round, columns are rows: transforms of what lies together are quicker by more than the turning takes.
            here[...] = spectrum[:, some].T
            torch.fft.fft(here, out=there)
            there *= kernel[some]
            torch.fft.ifft(there, out=here)
            spectrum[:, some] = here.T

    @cached_property
    def _kept(self) -> _Kept:
        return _Kept()

    @cached_property
    def _kernel_spectrum(self) -> Tensor:
        """Of the kernel, on a tile, (column, row): made once."""
        import torch

        height, width = self.kernel.shape
        spectrum = torch.zeros(self.spectrum_shape, dtype=_complex(self.dtype))
        padded = np.zeros((self.together[0], self.tile[1]), self.dtype)
        for first in range(0, height, self.together[0]):
            some = self.kernel[first : first + self.together[0]]
            padded[: len(some), :width] = some
            spectrum[first : first + len(some)] = torch.fft.rfft(torch.from_numpy(padded[: len(some)]))
        turned = spectrum.T.contiguous()
        del spectrum
        for first in range(0, len(turned), self.together[1]):
            some = slice(first, first + self.together[1])
            turned[some] = torch.fft.fft(turned[some])
        return turned

    @property
    def spectrum_shape(self) -> tuple[int, int]:
        """Of a tile."""
        return self.tile[0], self.tile[1] // 2 + 1

    @property
    def together(self) -> tuple[int, int]:
        """Rows, and columns, that are transformed at a time."""
        rows = max(BLOCK_BYTES // (self.tile[1] * self.dtype.itemsize), 1)
        columns = max(BLOCK_BYTES // (2 * self.tile[0] * self.dtype.itemsize), LEAST_TOGETHER)
        return min(rows, self.tile[0]), min(columns, self.tile[1] // 2 + 1)

    def scratch_bytes(self, rows: int, columns: int) -> int:
        """The tile's spectrum, blocks that are transformed, as much again inside the transforms, and what the C library keeps of both."""
        blocks = 4 * sum(self._blocks)
        return self._spectrum_bytes + blocks + min(blocks, 2 * MAPPED_FROM)

    @property
    def held_bytes(self) -> int:
        """Of the kernel's spectrum, and what MKL and the C library keep of its making."""
        left = float(np.interp(max(self.tile), list(_LEFT), list(_LEFT.values())))
        return self._spectrum_bytes + ceil(left * sum(self._blocks))

    @property
    def _blocks(self) -> tuple[int, int]:
        """Bytes of rows, and of columns, that are transformed together."""
        item, (lines, turned) = self.dtype.itemsize, self.together
        return lines * (self.tile[1] + 2) * item, turned * self.tile[0] * 2 * item

    @property
    def _spectrum_bytes(self) -> int:
        return self.spectrum_shape[0] * self.spectrum_shape[1] * 2 * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class _Room:
    """What a thread works in, tile after tile: blocks that come and go would cost new pages each time."""

    spectrum: Tensor
    lines: Tensor
    half: Tensor
    """Of lines, transformed."""
    turned: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, made: OverlapSave) -> _Room:
        """For tiles of that size."""
        import torch

        kind = _complex(made.dtype)
        high, wide = made.spectrum_shape
        rows, columns = made.together
        lines = torch.empty(rows, made.tile[1], dtype=torch.float32 if made.dtype == np.float32 else torch.float64)
        half, one, other = (torch.empty(shape, dtype=kind) for shape in ((rows, wide), (columns, high), (columns, high)))
        return cls(torch.empty(made.spectrum_shape, dtype=kind), lines, half, (one, other))


class _Kept(local):
    """What each thread has."""

    room: _Room | None = None


def _complex(dtype: np.dtype) -> Any:
    import torch

    return torch.complex64 if dtype == np.float32 else torch.complex128


@njit(nogil=True, cache=True)
def _gather(table, rows, columns, fill, block):
    """Fill rows of a tile with the samples around it, zeros where it hangs over and for what is not finite; whether all are."""
    finite = True
    for y in range(rows.size):
        line = block[y]
        if rows[y] < 0:
            line[: columns.size] = fill
        else:
            source = table[rows[y]]
            for x in range(columns.size):
                sample = line.dtype.type(fill if columns[x] < 0 else source[columns[x]])
                good = np.isfinite(sample)
                line[x] = sample if good else 0
                finite &= good
        line[columns.size :] = 0
    return finite


@njit(nogil=True, cache=True)
def _mark(table, rows, columns, fill, taps, out):
    """Outputs over samples that are not finite become what sums of products make of them; `taps` meet samples in their own order.

    How many samples of each kind lie under an output is kept as it moves along. Only where that does not tell what comes out, its samples
    are looked at one by one.
    """
    high, wide = taps.shape
    least, most = taps.min(), taps.max()
    counts = np.zeros((3, columns.size), np.int64)
    for y in range(rows.size):
        _count(table, rows[y], columns, fill, counts, 1)
        if y < high - 1:
            continue
        top = y - high + 1
        if top >= out.shape[0]:
            break
        none, above, below = np.int64(0), np.int64(0), np.int64(0)
        for x in range(columns.size):
            none, above, below = none + counts[0, x], above + counts[1, x], below + counts[2, x]
            left = x - wide + 1
            if left < 0 or left >= out.shape[1]:
                continue
            if none:
                out[top, left] = np.nan
            elif above + below:
                if least > 0 and not (above and below):
                    out[top, left] = np.inf if above else -np.inf
                elif most < 0 and not (above and below):
                    out[top, left] = -np.inf if above else np.inf
                else:
                    out[top, left] = _sum_of(table, rows[top : top + high], columns[left : left + wide], taps)
            none, above, below = none - counts[0, left], above - counts[1, left], below - counts[2, left]
        _count(table, rows[top], columns, fill, counts, -1)


@njit(nogil=True, cache=True)
def _count(table, row, columns, fill, counts, sign):
    """Add a row's samples that are no numbers, infinite, and minus infinite."""
    if row < 0:
        return
    source = table[row]
    for x in range(columns.size):
        sample = fill if columns[x] < 0 else np.float64(source[columns[x]])
        if sample != sample:
            counts[0, x] += sign
        elif sample == np.inf:
            counts[1, x] += sign
        elif sample == -np.inf:
            counts[2, x] += sign


@njit(nogil=True, cache=True)
def _sum_of(table, rows, columns, taps):
    """What infinities under taps of either sign add up to."""
    found = 0.0
    for y in range(rows.size):
        if rows[y] < 0:
            continue
        for x in range(columns.size):
            sample = 0.0 if columns[x] < 0 else np.float64(table[rows[y], columns[x]])
            if abs(sample) == np.inf:
                found += sample * taps[y, x]
                if found != found:
                    return found
    return found


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Transforms run in the thread that asks for them, for as long as this is open: tiles are done side by side already."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
