"""Pictures of spectrograms: time from left to right, low frequencies at the bottom, the loudest white."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from sash.arrays._spectra import FLOOR
from sash.window import Interval

WIDTH, HEIGHT = 4000, 4000
"""The most columns, and rows of one signal: of bins and frames that share a pixel, the loudest is shown."""
RANGE_DB = 80.0
"""From white to black."""


@dataclass(frozen=True, eq=False)
class Picture:
    """The highest power under each pixel, so far; signals one above the other."""

    rows: int
    frames: int
    lanes: int
    highest: np.ndarray = field(init=False)
    _lock: Lock = field(init=False, default_factory=Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "highest", np.full((self.lanes, *self.pixels), -np.inf, np.float32))

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of one signal."""
        return min(self.rows, HEIGHT), min(self.frames, WIDTH)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the picture."""
        return self.lanes * self.pixels[0], self.pixels[1]

    @property
    def held_bytes(self) -> int:
        """Of powers, and what becomes of them at the end: in decibels, and pixels."""
        return self.lanes * self.pixels[0] * self.pixels[1] * 10

    def add(self, lane: int, frames: Interval, powers: np.ndarray) -> None:
        """Take powers, (frame, row), into account."""
        height, width = self.pixels
        across = np.arange(frames.start, frames.stop) * width // self.frames
        first = np.flatnonzero(np.diff(across, prepend=-1))
        pooled = np.fmax.reduceat(powers, first, axis=0) if len(first) < len(powers) else powers
        if height < self.rows:
            pooled = np.fmax.reduceat(pooled, np.flatnonzero(np.diff(np.arange(self.rows) * height // self.rows, prepend=-1)), axis=1)
        here = self.highest[lane, ::-1, across[0] : across[-1] + 1]
        with self._lock:
            np.fmax(here, pooled.T, out=here, casting="same_kind")

    def drawn(self) -> np.ndarray:
        """The picture in 256 greys; what is no number is black."""
        levels = self.highest.reshape(self.shape)
        np.maximum(levels, np.float32(FLOOR), out=levels)
        np.log10(levels, out=levels)
        levels *= 10
        top = float(levels.max(where=np.isfinite(levels), initial=10 * np.log10(FLOOR)))
        levels -= top - RANGE_DB
        levels *= 255 / RANGE_DB
        np.nan_to_num(levels, copy=False, nan=0.0, posinf=255.0)
        np.rint(levels, out=levels)
        return np.clip(levels, 0, 255, out=levels).astype(np.uint8)
