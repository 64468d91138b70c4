"""Convolution by Fourier transforms of tiles: each tile reads the kernel's reach beside it, and only what is whole is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from scipy.signal import fftconvolve

from sash.arrays._border import Boundary
from sash.arrays._stage import Near
from sash.window import Interval


@dataclass(frozen=True, eq=False)
class OverlapSave:
    """out[y, x] is the sum over k, l of kernel[k, l]·sample(y + reach - k, x + reach - l), tile by tile."""

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
        import torch

        tile = np.empty(self.tile, self.dtype)
        seen = torch.from_numpy(tile)
        high, wide = self.whole
        for top in range(0, rows.length, high):
            for left in range(0, columns.length, wide):
                part = out[top : top + high, left : left + wide]
                rows_of, columns_of = near.rows[top : top + self.tile[0]], near.columns[left : left + self.tile[1]]
                finite = _gather(near.table, rows_of, columns_of, near.fill, tile)
                odd = None if finite else self._not_finite(tile)
                found = torch.fft.rfft2(seen)
                found *= self.spectrum
                made = torch.fft.irfft2(found, s=self.tile).numpy()
                first = self.kernel.shape[0] - 1, self.kernel.shape[1] - 1
                part[...] = made[first[0] : first[0] + part.shape[0], first[1] : first[1] + part.shape[1]]
                if odd is not None:
                    told, values = odd
                    told, values = told[: part.shape[0], : part.shape[1]], values[: part.shape[0], : part.shape[1]]
                    part[told] = values[told]

    @cached_property
    def spectrum(self):
        """Of the kernel, on a tile: made once."""
        import torch

        padded = np.zeros(self.tile, self.dtype)
        padded[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        return torch.fft.rfft2(torch.from_numpy(padded))

    def scratch_bytes(self, rows: int, columns: int) -> int:
        """The tile, its spectrum, and one more of each inside the transforms."""
        size = self.tile[0] * self.tile[1] * self.dtype.itemsize
        return size * 4

    @property
    def held_bytes(self) -> int:
        """Of the kernel's spectrum."""
        return self.tile[0] * (self.tile[1] // 2 + 1) * self.dtype.itemsize * 2

    def _not_finite(self, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outputs that meet NaN or infinities, and what they are, as sums of products have it; those samples become 0 in the tile."""
        kernel = self.kernel

        def met(samples: np.ndarray, taps: np.ndarray) -> np.ndarray:
            return fftconvolve(samples.astype(float), taps.astype(float), "valid") > 0.5

        above, below, none = tile == np.inf, tile == -np.inf, np.isnan(tile)
        tile[above | below | none] = 0
        up = met(above, kernel > 0) | met(below, kernel < 0)
        down = met(above, kernel < 0) | met(below, kernel > 0)
        neither = met(above | below, kernel == 0) | met(none, np.ones_like(kernel)) | (up & down)
        return up | down | neither, np.where(neither, np.nan, np.where(up, np.inf, -np.inf)).astype(tile.dtype)


@njit(nogil=True, cache=True)
def _gather(table, rows, columns, fill, tile):
    """Fill a tile with the samples around it, zeros where it hangs over its part; whether all are finite."""
    finite = True
    for y in range(tile.shape[0]):
        line = tile[y]
        if y >= rows.size:
            line[:] = 0
        elif rows[y] < 0:
            line[: columns.size] = fill
            line[columns.size :] = 0
        else:
            source = table[rows[y]]
            for x in range(columns.size):
                line[x] = fill if columns[x] < 0 else source[columns[x]]
                finite &= np.isfinite(line[x])
            line[columns.size :] = 0
    return finite


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
