"""Where principal components go: arrays in memory, or a zarr folder that is filled chunk by chunk and appears when it is whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._loadings import CHUNK_BYTES, FiledRows, HeldRows, Kept, StoredLoadings
from sash.arrays._store_sink import Target, sync
from sash.arrays._store_source import needs
from sash.errors import InputError

_WRITING_BYTES = 1 << 20
"""What zarr makes of objects, and its threads."""
_TOGETHER = 10
"""Chunks that it writes at once."""
SMALL = ("singular_values", "explained_variance", "explained_variance_ratio", "residuals")
"""A number for each component."""
_VECTORS = ("mean", "scale", "idf")
"""A number for each column; the first is always there."""
LEFT_OUT = "left_out"
"""One more, where not all loadings are kept."""


class Held:
    """In memory."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def begin(self, rows: int, columns: int, count: int, chunk: int) -> None:
        """Make room."""
        self.scores = np.empty((rows, count))
        sparse = self._kept.above is not None
        self._loadings = HeldRows(self._kept, columns, count) if sparse else np.empty((count, columns), self._kept.dtype)
        self.small: dict[str, Any] = {name: np.empty(count) for name in _small(self._kept)}

    def put(self, start: int, loadings: np.ndarray, scores: np.ndarray, small: dict[str, np.ndarray]) -> None:
        """Components from `start` on: loadings (columns, some), scores (rows, some), and numbers."""
        stop = start + loadings.shape[1]
        if isinstance(self._loadings, HeldRows):
            small = {**small, LEFT_OUT: self._loadings.put(start, loadings)}
        else:
            self._loadings[start:stop] = loadings.T
        self.scores[:, start:stop] = scores
        for name, values in small.items():
            self.small[name][start:stop] = values

    def components(self) -> Any:
        """All of them, once all were put."""
        return self._loadings.rows() if isinstance(self._loadings, HeldRows) else self._loadings


class Folder:
    """A zarr group; its numbers are not compressed, which takes longer than it saves of random ones."""

    def __init__(self, out: Path, kept: Kept, overwrite: bool) -> None:
        if out.suffix.lower() != ".zarr":
            raise InputError(f"out is {out}; components go to a zarr folder: give a name that ends in .zarr.")
        self.target = Target.of(out, overwrite, folder=True)
        self._kept = kept

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
        self._bytes = 8 * rows * count + self._kept.filed_bytes(columns, count)
        if not again:
            long = max(CHUNK_BYTES // (8 * chunk), 1)
            with self.target.room(self._bytes):
                words: dict[str, Any] = {"compressors": None, "overwrite": True}
                if self._kept.above is not None:
                    FiledRows.begin(self._kept, group, columns, count)
                else:
                    shape, chunks = (count, columns), (chunk, min(long, columns))
                    group.create_array("loadings", shape=shape, dtype=self._kept.dtype, chunks=chunks, **words)
                for name in _small(self._kept):
                    group.create_array(name, shape=(count,), dtype=float, chunks=(count,), overwrite=True)
                # The last one: where it is, all are.
                group.create_array("scores", shape=(rows, count), dtype=float, chunks=(min(long, rows), chunk), **words)
        self._group = group
        self._rows = FiledRows(self._kept, group["loadings"], columns) if self._kept.above is not None else None
        return not again

    def put(self, start: int, loadings: np.ndarray, scores: np.ndarray, small: dict[str, np.ndarray]) -> None:
        """Components from `start` on, on the disk when this returns."""
        stop = start + loadings.shape[1]
        with self.target.room(self._bytes):
            if self._rows is not None:
                small = {**small, LEFT_OUT: self._rows.put(start, loadings)}
            else:
                self._group["loadings"][start:stop] = np.ascontiguousarray(loadings.T, self._kept.dtype)
            self._group["scores"][:, start:stop] = scores
            for name, values in small.items():
                self._group[name][start:stop] = values
        for place, _, files in os.walk(self.target.partial):
            if Path(place).name == "c" or "zarr.json" in files:
                sync(Path(place))

    def finish(self, attributes: dict[str, Any]) -> Path:
        """The path; the folder appears under its name."""
        self._group.attrs.update(attributes)
        return self.target.publish()


def writing_bytes(longest: int, chunk: int) -> int:
    """What zarr takes while it writes so many components: chunks of them at once, as they are and encoded."""
    return _WRITING_BYTES + 2 * min(8 * longest * chunk, _TOGETHER * CHUNK_BYTES)


def _zarr(out: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise needs("zarr", f"writing {out}") from None
    return zarr


@dataclass(frozen=True)
class Written:
    """What a whole folder has."""

    attributes: dict[str, Any]
    components: Any
    scores: Any
    small: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    """The columns' means, and where there are some their scale and rarity."""

    @classmethod
    def of(cls, path: Path) -> Written:
        """Arrays that are read as they are sliced, and small ones; raises `InputError` for what is no such folder."""
        zarr = _zarr(path)
        try:
            group = zarr.open_group(path, mode="r")
        except Exception as error:
            raise InputError(f"{path} cannot be read as a folder of components ({error}); give one that pca wrote.") from error
        told = dict(group.attrs)
        kept = Kept(np.dtype(float), told.get("loadings_above"))
        wanted = {*_small(kept), *_VECTORS[:1], "scores", "loadings"} - set(group)
        wanted |= {"total_variance", "method", "weights"} - set(told)
        if told.get("weights") == "tfidf":
            wanted |= {"idf"} - set(group)
        if told.get("operation") != "pca" or wanted:
            missing = f"has no {', '.join(sorted(wanted))}" if wanted else "was written by something else"
            raise InputError(f"{path} {missing}; give a folder that pca wrote.")
        vectors = {name: _numbers(group, name, path) for name in _VECTORS if name in group}
        small = {name: _numbers(group, name, path) for name in _small(kept)}
        components = group["loadings"] if kept.above is None else StoredLoadings(group["loadings"])
        shape = len(small[SMALL[0]]), len(vectors["mean"])
        names = told.get("names", range(shape[1]))
        right = components.shape == shape and {len(names), *map(len, vectors.values())} == {shape[1]}
        if not right or set(map(len, small.values())) != {shape[0]} or group["scores"].shape[1:] != shape[:1]:
            raise InputError(f"{path} has arrays whose lengths do not go together; it was changed since pca wrote it.")
        return cls(told, components, group["scores"], small, vectors)


def _numbers(group: Any, name: str, path: Path) -> np.ndarray:
    array = group[name]
    if getattr(array, "ndim", 0) != 1 or array.dtype.kind != "f":
        raise InputError(f"{path}/{name} is no array of numbers in one axis; it was changed since pca wrote it.")
    return np.asarray(array[...])


def _small(kept: Kept) -> tuple[str, ...]:
    return SMALL if kept.above is None else (*SMALL, LEFT_OUT)
