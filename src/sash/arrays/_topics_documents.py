"""Where the shares of topics in rows go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_sink import Target
from sash.arrays._store_zarr import zarr_layout


class Documents:
    """Shares of topics in rows: in memory, or in a zarr folder that gets its name when it is whole."""

    def __init__(self, target: Target | None, rows: int, topics: int) -> None:
        self._target = target
        if target is None:
            self._array: Any = np.empty((rows, topics))
            return
        import zarr

        target.discard()
        with target.room(8 * rows * topics):
            self._root = zarr.create_group(store=target.partial)
            chunks, _ = zarr_layout((rows, topics), np.dtype(float))
            self._array = self._root.create_array("documents", shape=(rows, topics), dtype=float, chunks=(chunks[0], topics))

    def put(self, first: int, shares: np.ndarray) -> None:
        """Rows from `first` on."""
        if self._target is None:
            self._array[first : first + len(shares)] = shares
            return
        with self._target.room(8 * shares.size):
            self._array[first : first + len(shares)] = shares

    def finish(self, order: np.ndarray, terms: np.ndarray, names: tuple[str, ...] | None) -> np.ndarray | Path:
        """Topics in that order; the array, or the path."""
        if self._target is None:
            return self._array[:, order]
        step = self._array.chunks[0]
        with self._target.room(terms.nbytes):
            for first in range(0, self._array.shape[0], step):
                self._array[first : first + step] = self._array[first : first + step][:, order]
            self._root.create_array("topics", data=terms)
            if names is not None:
                self._root.create_array("names", shape=(len(names),), dtype=str)[:] = np.array(names, dtype=object)
        return self._target.publish()

    def abandon(self) -> None:
        """Take away what was written."""
        if self._target is not None:
            self._target.discard()
