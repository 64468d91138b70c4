"""Where principal components go: arrays in memory, or a zarr folder that is filled chunk by chunk and appears when it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_sink import Target, sync
from sash.arrays._store_source import needs

_CHUNK_BYTES = 2 << 20
_WRITING_BYTES = 1 << 20
"""What zarr makes of objects, and its threads."""
_TOGETHER = 10
"""Chunks that it writes at once."""
SMALL = ("singular_values", "explained_variance", "explained_variance_ratio", "residuals")
"""A number for each component."""


class Held:
    """In memory."""

    def __init__(self, loadings: np.dtype) -> None:
        self._loadings = loadings

    def begin(self, rows: int, columns: int, count: int, chunk: int) -> None:
        """Make room."""
        self.scores, self.components = np.empty((rows, count)), np.empty((count, columns), self._loadings)
        self.small = {name: np.empty(count) for name in SMALL}

    def put(self, start: int, loadings: np.ndarray, scores: np.ndarray, small: dict[str, np.ndarray]) -> None:
        """Components from `start` on: loadings (columns, some), scores (rows, some), and numbers."""
        stop = start + loadings.shape[1]
        self.components[start:stop] = loadings.T
        self.scores[:, start:stop] = scores
        for name, values in small.items():
            self.small[name][start:stop] = values


class Folder:
    """A zarr group; its numbers are not compressed, which takes longer than it saves of random ones."""

    def __init__(self, out: Path, loadings: np.dtype, overwrite: bool) -> None:
        if out.suffix.lower() != ".zarr":
            from sash.errors import InputError

            raise InputError(f"out is {out}; components go to a zarr folder: give a name that ends in .zarr.")
        self.target = Target.of(out, overwrite, folder=True)
        self._loadings = loadings

    def begin(self, attributes: dict[str, Any], vectors: dict[str, np.ndarray]) -> None:
        """A new folder with what is known before: it is there for a resumed run to find."""
        self.target.discard()
        with self.target.room(1 << 20):
            group = _zarr(self.target.out).create_group(self.target.partial, attributes=attributes)
            for name, values in vectors.items():
                group.create_array(name, data=values)

    def arrange(self, rows: int, columns: int, count: int, chunk: int) -> bool:
        """Arrays for so many components; False where they were there, of the same shape."""
        group = _zarr(self.target.out).open_group(self.target.partial, mode="r+")
        again = "scores" in group and group["scores"].shape == (rows, count)
        if not again:
            long = max(_CHUNK_BYTES // (8 * chunk), 1)
            with self.target.room(8 * rows * count + self._loadings.itemsize * columns * count):
                words: dict[str, Any] = {"compressors": None, "overwrite": True}
                group.create_array("scores", shape=(rows, count), dtype=float, chunks=(min(long, rows), chunk), **words)
                shape, chunks = (count, columns), (chunk, min(long, columns))
                group.create_array("loadings", shape=shape, dtype=self._loadings, chunks=chunks, **words)
                for name in SMALL:
                    group.create_array(name, shape=(count,), dtype=float, chunks=(count,), overwrite=True)
        self._group = group
        self._bytes = 8 * rows * count + self._loadings.itemsize * columns * count
        return not again

    def put(self, start: int, loadings: np.ndarray, scores: np.ndarray, small: dict[str, np.ndarray]) -> None:
        """Components from `start` on, on the disk when this returns."""
        stop = start + loadings.shape[1]
        with self.target.room(self._bytes):
            self._group["loadings"][start:stop] = np.ascontiguousarray(loadings.T, self._loadings)
            self._group["scores"][:, start:stop] = scores
            for name, values in small.items():
                self._group[name][start:stop] = values
        for place, _, files in os.walk(self.target.partial):
            if Path(place).name == "c" or "zarr.json" in files:
                sync(Path(place))

    def read(self, name: str) -> np.ndarray:
        """A small array."""
        return np.asarray(self._group[name][...])

    def finish(self, attributes: dict[str, Any]) -> Path:
        """The path; the folder appears under its name."""
        self._group.attrs.update(attributes)
        return self.target.publish()


def writing_bytes(longest: int, chunk: int) -> int:
    """What zarr takes while it writes so many components: chunks of them at once, as they are and encoded."""
    return _WRITING_BYTES + 2 * min(8 * longest * chunk, _TOGETHER * _CHUNK_BYTES)


def _zarr(out: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise needs("zarr", f"writing {out}") from None
    return zarr


def opened(path: Path) -> Any:
    """The group in a folder, to be read."""
    return _zarr(path).open_group(path, mode="r")
