"""Loadings of which only those above a size are kept: rows of a sparse matrix, in memory or in a folder, where they lie as AnnData's do."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import scipy.sparse
from numba import njit

_TOGETHER = 8 << 20
"""Bytes of loadings that are made ready and written at once, where one component has fewer."""
CHUNK_BYTES = 2 << 20
"""Of a chunk of components or scores in a folder."""
_WORDS = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Kept:
    """What is kept of each component: numbers of `dtype`, those of them whose size is above `above`; all where that is None."""

    dtype: np.dtype
    above: float | None = None

    def most(self, columns: int) -> int:
        """Of one component: squares of a unit vector sum to one, so that fewer than 1 / above² are larger than their roots."""
        # One more: its length is rounded.
        return columns if not self.above or self.above**2 * columns <= 1 else min(columns, int(self.above**-2) + 1)

    def held_bytes(self, columns: int, count: int) -> int:
        """Of so many components, at most."""
        if self.above is None:
            return self.dtype.itemsize * columns * count
        most = self.most(columns) * count
        return (self.dtype.itemsize + _index(columns, most).itemsize) * most + 8 * (count + 1)

    def filed_bytes(self, columns: int, count: int) -> int:
        """In a folder, at most."""
        if self.above is None:
            return self.dtype.itemsize * columns * count
        return (self.dtype.itemsize + _index(columns, 0).itemsize) * self.most(columns) * count + 16 * (count + 1)


class HeldRows:
    """Sparse rows in memory. Room is made for as many as there can be, of which the system gives what is written."""

    def __init__(self, kept: Kept, columns: int, count: int) -> None:
        most = kept.most(columns) * count
        self._kept, self._shape = kept, (count, columns)
        self._values, self._indices = np.empty(most, kept.dtype), np.empty(most, _index(columns, most))
        self._pointers = np.zeros(count + 1, self._indices.dtype)

    def put(self, start: int, loadings: np.ndarray) -> np.ndarray:
        """Components from `start` on, in columns; the length of what is left out of each."""
        assert self._kept.above is not None
        left_out = _pointed(loadings, self._kept.above, self._pointers[start : start + loadings.shape[1] + 1])
        places = self._pointers[start : start + loadings.shape[1]].astype(np.int64)
        _fill(loadings, self._kept.above, places, self._indices, self._values)
        return left_out

    def rows(self) -> scipy.sparse.csr_array:
        """All of them; nothing can be put any more."""
        stored = int(self._pointers[-1])
        for array in (self._values, self._indices):
            # In place: what is behind is given back, and nothing is copied.
            array.resize(stored, refcheck=False)
        return scipy.sparse.csr_array((self._values, self._indices, self._pointers), self._shape)


class FiledRows:
    """Sparse rows in a zarr group, which grows component by component; what an ended run had not noted is written over."""

    def __init__(self, kept: Kept, group: Any, columns: int) -> None:
        self._kept, self._group, self._columns = kept, group, columns

    @staticmethod
    def begin(kept: Kept, parent: Any, columns: int, count: int) -> None:
        """Make the group, with no rows yet."""
        attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [count, columns]}
        group = parent.create_group("loadings", overwrite=True, attributes=attributes)
        most = max(kept.most(columns) * count, 1)
        for name, dtype in (("data", kept.dtype), ("indices", _index(columns, 0))):
            chunk = min(CHUNK_BYTES // dtype.itemsize, most)
            group.create_array(name, shape=(0,), dtype=dtype, chunks=(chunk,), compressors=None)
        group.create_array("indptr", shape=(count + 1,), dtype=np.int64, chunks=(count + 1,), compressors=None)

    def put(self, start: int, loadings: np.ndarray) -> np.ndarray:
        """Components from `start` on, in columns; the length of what is left out of each."""
        assert self._kept.above is not None
        each = (self._kept.dtype.itemsize + 8) * self._kept.most(self._columns)
        step = max(_TOGETHER // each, 1)
        left_out = [self._some(start + first, loadings[:, first : first + step]) for first in range(0, loadings.shape[1], step)]
        return np.concatenate(left_out)

    def _some(self, start: int, loadings: np.ndarray) -> np.ndarray:
        above, count = self._kept.above, loadings.shape[1]
        assert above is not None
        pointers = np.zeros(count + 1, np.int64)
        pointers[0] = begin = int(self._group["indptr"][start])
        left_out = _pointed(loadings, above, pointers)
        stored = int(pointers[-1]) - begin
        indices, values = np.empty(stored, _index(self._columns, 0)), np.empty(stored, self._kept.dtype)
        _fill(loadings, above, pointers[:-1] - begin, indices, values)
        for name, numbers in (("indices", indices), ("data", values)):
            self._group[name].resize((begin + stored,))
            self._group[name][begin:] = numbers
        self._group["indptr"][start : start + count + 1] = pointers
        return left_out


class StoredLoadings:
    """Components in a folder of which the largest loadings are kept: slices of rows are read as sparse arrays."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._pointers = np.asarray(group["indptr"][...])
        self.shape: tuple[int, int] = tuple(group.attrs["shape"])
        self.dtype: np.dtype = group["data"].dtype
        self.nnz = int(self._pointers[-1])

    def __getitem__(self, places: int | slice | EllipsisType) -> scipy.sparse.csr_array:
        """Rows: one alone has one dimension, as in scipy."""
        if isinstance(places, (int, np.integer)):
            first = range(self.shape[0])[places]
            return self._rows(first, first + 1)[0]
        wanted = range(self.shape[0])[slice(None) if isinstance(places, EllipsisType) else places]
        if not wanted:
            return self._rows(0, 0)
        return self._rows(min(wanted), max(wanted) + 1)[:: wanted.step]

    def _rows(self, start: int, stop: int) -> Any:
        pointers = self._pointers[start : stop + 1]
        own = slice(int(pointers[0]), int(pointers[-1]))
        parts = self._group["data"][own], self._group["indices"][own], pointers - pointers[0]
        return scipy.sparse.csr_array(parts, shape=(stop - start, self.shape[1]))


def is_sparse(components: Any) -> bool:
    """Whether only the largest loadings are kept, in memory or in a folder."""
    return isinstance(components, StoredLoadings) or scipy.sparse.issparse(components)


def dense_loadings(components: Any) -> np.ndarray:
    """Components, or a slice of them, as float64 whether they are sparse or not."""
    return np.asarray(components.toarray() if scipy.sparse.issparse(components) else components, np.float64)


def _index(columns: int, stored: int) -> np.dtype:
    """Of places, as small as those of so many numbers can be."""
    return np.dtype(np.int32 if max(columns, stored) <= _WORDS else np.int64)


def _pointed(loadings: np.ndarray, above: float, pointers: np.ndarray) -> np.ndarray:
    """Where each component ends, counted on from the first pointer; the length of what is left out of each."""
    counts, squares = np.zeros(loadings.shape[1], np.int64), np.zeros(loadings.shape[1])
    _count(loadings, above, counts, squares)
    pointers[1:] = pointers[0] + np.cumsum(counts)
    return np.sqrt(squares)


@njit(nogil=True, cache=True)
def _count(loadings, above, counts, squares):
    """How many are larger, and the squares of the others."""
    for row in range(loadings.shape[0]):
        for place in range(loadings.shape[1]):
            value = loadings[row, place]
            if abs(value) > above:
                counts[place] += 1
            else:
                squares[place] += value * value


@njit(nogil=True, cache=True)
def _fill(loadings, above, places, indices, values):
    """Those that are larger, each component's from its place on, which moves."""
    for row in range(loadings.shape[0]):
        for place in range(loadings.shape[1]):
            value = loadings[row, place]
            if abs(value) > above:
                indices[places[place]] = row
                values[places[place]] = value
                places[place] += 1
