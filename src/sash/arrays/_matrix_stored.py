"""Matrices that lie on disk and are read a block of rows at a time: compressed sparse rows, and dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from sash.arrays._matrix import Matrix, canonical, check_finite, check_numbers
from sash.arrays._store import Source
from sash.errors import InputError
from sash.window import Interval


class StoredRows(Matrix):
    """Compressed sparse rows: values and columns are read from where they lie, row pointers are held.

    Whole numbers come as float64, so that no sum of them overflows. Entries that stand twice are summed. `lying` is where the row pointers
    are read from, by other processes too.
    """

    def __init__(
        self,
        values: Source,
        columns: Source,
        pointers: np.ndarray,
        width: int,
        told: str,
        identity: Callable[[], dict[str, Any]],
        names: tuple[str, ...] | None = None,
        lying: Source | None = None,
    ) -> None:
        self.shape = len(pointers) - 1, width
        self.nnz = int(pointers[-1])
        self.names = names
        self._values, self._columns, self._pointers = values, columns, pointers
        self._told, self._known, self._lying = told, identity, lying
        self._check()
        self.held_bytes = pointers.nbytes + values.held_bytes + columns.held_bytes + (0 if lying is None else lying.held_bytes)
        self.file_bytes = self.nnz * (values.dtype.itemsize + columns.dtype.itemsize)
        self.converted = values.dtype == np.float32
        self._wide = columns.dtype.itemsize > 4 or columns.dtype == np.uint32

    @property
    def sparse(self) -> bool:
        """Always."""
        return True

    def block_bytes(self, start: int, stop: int) -> int:
        """Values as stored and as floats, columns, row pointers; twice that where entries have to be put in order first."""
        first, last = int(self._pointers[start]), int(self._pointers[stop])
        box = (Interval(first, last),)
        stored = self._values.dtype.itemsize + (8 if self._values.dtype.kind != "f" else 0)
        # Comparing neighbours takes a byte each, columns of other types are converted.
        each = stored + self._columns.dtype.itemsize + (8 if self._wide or self._columns.dtype.itemsize < 4 else 0) + 2
        scratch = max(self._values.scratch_bytes(box), self._columns.scratch_bytes(box)) if last > first else 0
        return (last - first) * each + 24 * (stop - start + 1) + scratch

    def block(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """These rows; raises `InputError` for columns out of range and numbers that are not finite."""
        first, last = int(self._pointers[start]), int(self._pointers[stop])
        box = (Interval(first, last),)
        values = np.empty(last - first, self._values.dtype)
        columns = np.empty(last - first, self._columns.dtype)
        if last > first:
            self._values.read(box, values)
            self._columns.read(box, columns)
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        pointers = self._pointers[start : stop + 1] - first
        self._check_columns(columns, pointers, start)
        columns = columns.astype(np.int32 if self.shape[1] < 1 << 31 else np.int64, copy=False)
        # Row pointers of the columns' own type: scipy would convert the columns to theirs.
        parts = values, columns, pointers.astype(columns.dtype if last - first < 1 << 31 else np.int64)
        shape = stop - start, self.shape[1]
        if _in_order(columns, pointers):
            block = canonical(parts, shape)
        else:
            block = scipy.sparse.csr_array(parts, shape=shape)
            block.sum_duplicates()
        check_finite(block, start, self._told)
        return block

    def expect(self, start: int, stop: int) -> None:
        """Have these rows fetched."""
        first, last = int(self._pointers[start]), int(self._pointers[stop])
        if last > first:
            self._values.expect((Interval(first, last),))
            self._columns.expect((Interval(first, last),))

    def row_nnz(self) -> np.ndarray:
        """Numbers stored in each row."""
        return np.diff(self._pointers)

    @property
    def filed(self) -> bool:
        """Where its row pointers lie in a file as well."""
        return self._lying is not None

    def close(self) -> None:
        """Let go of the files."""
        for one in (self._values, self._columns, self._lying):
            if one is not None:
                one.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rows_again, (self._values, self._columns, self._lying, self.shape[1], self._told)

    def _identified(self) -> dict[str, Any]:
        return self._known()

    def _check(self) -> None:
        told, pointers = self._told, self._pointers
        check_numbers(self._values.dtype, self.shape, told)
        if self._columns.dtype.kind not in "iu":
            raise InputError(f"{told} numbers its columns in {self._columns.dtype}; they are whole numbers.")
        if pointers[0] != 0 or (np.diff(pointers) < 0).any():
            raise InputError(f"{told} has row pointers that do not rise from 0; it is damaged, or its rows are not compressed.")
        found = self._values.shape, self._columns.shape
        if found != ((self.nnz,),) * 2:
            raise InputError(
                f"{told} has row pointers up to {self.nnz}, {self._values.shape[0]} values and {self._columns.shape[0]} columns; "
                "a whole one has as many of each."
            )

    def _check_columns(self, columns: np.ndarray, pointers: np.ndarray, start: int) -> None:
        if columns.size and (columns.min() < 0 or columns.max() >= self.shape[1]):
            place = int(np.argmax((columns < 0) | (columns >= self.shape[1])))
            row = start + int(np.searchsorted(pointers, place, "right")) - 1
            raise InputError(f"{self._told} has column {columns[place]} in row {row}; its {self.shape[1]} columns count from 0.")


class StoredDense(Matrix):
    """A dense matrix in any store that is read a box at a time."""

    def __init__(self, source: Source, told: str, names: tuple[str, ...] | None = None) -> None:
        check_numbers(source.dtype, source.shape, told)
        self.shape = source.shape[0], source.shape[1]
        self.nnz = self.shape[0] * self.shape[1]
        self.names = names
        self.held_bytes = source.held_bytes
        self.file_bytes = self.nnz * source.dtype.itemsize
        self._source, self._told = source, told

    @property
    def sparse(self) -> bool:
        """Never."""
        return False

    def block_bytes(self, start: int, stop: int) -> int:
        """The rows, and what reading them takes."""
        return (stop - start) * self.shape[1] * self._source.dtype.itemsize + self._source.scratch_bytes(self._box(start, stop))

    def block(self, start: int, stop: int) -> np.ndarray:
        """These rows; raises `InputError` for numbers that are not finite."""
        into = np.empty((stop - start, self.shape[1]), self._source.dtype)
        self._source.read(self._box(start, stop), into)
        check_finite(into, start, self._told)
        return into

    def expect(self, start: int, stop: int) -> None:
        """Have these rows fetched."""
        self._source.expect(self._box(start, stop))

    def row_nnz(self) -> np.ndarray:
        """All columns of each row."""
        return np.full(self.shape[0], self.shape[1], np.int64)

    @property
    def filed(self) -> bool:
        """Unless the store is in memory."""
        return self._source.array is None

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredDense, (self._source, self._told)

    def _identified(self) -> dict[str, Any]:
        return self._source.identity

    def _box(self, start: int, stop: int) -> tuple[Interval, Interval]:
        return Interval(start, stop), Interval(0, self.shape[1])


def read_pointers(lying: Source) -> np.ndarray:
    """Row pointers, from where they lie."""
    found = np.empty(lying.shape, lying.dtype)
    lying.read((Interval(0, len(found)),), found)
    return found.astype(np.int64, copy=False)


def _rows_again(values: Source, columns: Source, lying: Source, width: int, told: str) -> StoredRows:
    return StoredRows(values, columns, read_pointers(lying), width, told, dict, lying=lying)


def _in_order(columns: np.ndarray, pointers: np.ndarray) -> bool:
    """Whether columns rise within every row."""
    rising = columns[1:] > columns[:-1]
    # From the last of a row to the first of the next they may fall.
    edges = pointers[1:-1]
    rising[edges[(edges > 0) & (edges < columns.size)] - 1] = True
    return bool(rising.all())
