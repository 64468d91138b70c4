"""Arrays that do not exist yet, as far as a plan has to know them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_raw import SCRATCH_BYTES, gapped
from sash.arrays._store_sink import Sink
from sash.arrays._store_source import Box, Source
from sash.arrays._store_zarr import MOST_CHANNELS, shard_bytes, zarr_layout

LEAST_SHARD, MOST_SHARD = 1 << 20, 64 << 20


class ForeseenSource(Source):
    """An array between two passes: in memory, or a file of plain numbers."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, in_memory: bool) -> None:
        self.shape, self.dtype, self.grain = shape, dtype, (1,) * len(shape)
        self._in_memory = in_memory

    @property
    def array(self) -> np.ndarray | None:
        """A stand-in of that shape without numbers of its own."""
        return _stand_in(self.shape, self.dtype) if self._in_memory else None

    def scratch_bytes(self, box: Box) -> int:
        return 0 if self._in_memory else SCRATCH_BYTES

    def row_scratch_bytes(self, box: Box) -> int:
        return 0 if self._in_memory or gapped(self.shape, box, self.dtype.itemsize) is None else SCRATCH_BYTES


class ForeseenSink(Sink):
    """What an output of that kind will take of memory."""

    def __init__(self, out: Any, shape: tuple[int, ...], dtype: np.dtype, shards: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self.grain = shape, dtype, (1,) * len(shape)
        self._shards = shards
        self._given = out
        suffix = "" if out is None or isinstance(out, np.ndarray) else Path(out).suffix.lower()
        # Parts are written as they lie, but where channels do not lie together.
        self._scratch = SCRATCH_BYTES if suffix and (shape[-1] <= MOST_CHANNELS or suffix in (".wav", ".flac")) else 0
        if out is None:
            self.held_bytes = prod(shape) * dtype.itemsize
        elif suffix in (".png", ".jpg", ".jpeg"):
            self.held_bytes = prod(shape) * dtype.itemsize + 4 * prod(shape[:2])
        elif suffix == ".zarr":
            self.grain = zarr_layout(shape, dtype, None, shards)[1]

    @property
    def array(self) -> np.ndarray | None:
        """The user's own, or a stand-in of that shape without numbers of its own."""
        if self._given is None:
            return _stand_in(self.shape, self.dtype)
        return self._given if isinstance(self._given, np.ndarray) else None

    def scratch_bytes(self, box: Box) -> int:
        if self._shards is None:
            return self._scratch
        return shard_bytes(box, self.grain, self.shape, self.dtype)


def _stand_in(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array as numpy lays one out, to be asked for its layout only: it has the memory of one number."""
    return np.lib.stride_tricks.as_strided(
        np.empty(1, dtype), shape, [prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))], writeable=False
    )


def shards_for(out: Any, shape: tuple[int, ...], dtype: np.dtype, budget: int, workers: int) -> tuple[int, ...] | None:
    """Shards of a zarr output whose writing leaves most of the budget to the work; None for other outputs."""
    if out is None or isinstance(out, np.ndarray) or Path(out).suffix.lower() != ".zarr":
        return None
    chunks, shards = zarr_layout(shape, dtype)
    wanted = min(max(budget // (16 * workers), LEAST_SHARD), MOST_SHARD)
    found = list(shards)
    while prod(found) * dtype.itemsize > wanted and tuple(found) != chunks:
        axis = max((axis for axis in range(len(found)) if found[axis] > chunks[axis]), key=lambda axis: found[axis] // chunks[axis])
        found[axis] = max(found[axis] // chunks[axis] // 2, 1) * chunks[axis]
    return tuple(found)
