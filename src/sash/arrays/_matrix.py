"""A matrix of numbers as jobs read it: rows in blocks, sparse or dense, from any number of threads."""

from __future__ import annotations

import hashlib
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import scipy.sparse

from sash.errors import InputError


class Matrix:
    """Rows are read in blocks, from any number of threads."""

    shape: tuple[int, int]
    nnz: int
    """Numbers that are stored: rows times columns where it is dense."""
    names: tuple[str, ...] | None = None
    """Of columns."""
    held_bytes: int = 0
    """Memory that it holds for as long as it is open; the user's own arrays do not count."""
    file_bytes: int = 0
    """What one pass reads."""
    opening_bytes: int = 0
    """Memory that opening it took at most, where that was more than it holds now."""
    converted: bool = True
    """Whether its numbers are copied to become float64."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a resumed run compares, as JSON: a file's path, size and time, or a digest of numbers in memory, which takes a pass."""
        return self._identified()

    @property
    def sparse(self) -> bool:
        """Whether blocks are sparse."""
        return self.nnz != prod(self.shape)

    def block_bytes(self, start: int, stop: int) -> int:
        """At most what reading these rows holds, the block itself included."""
        raise NotImplementedError

    def block(self, start: int, stop: int) -> scipy.sparse.csr_array | np.ndarray:
        """These rows: numbers as stored, float64, float32 or whole ones, in C order; indices sorted, none twice."""
        raise NotImplementedError

    def expect(self, start: int, stop: int) -> None:
        """Told which rows will be read next: a file's are fetched meanwhile, into the system's memory."""

    def row_nnz(self) -> np.ndarray:
        """Numbers stored in each row, int64: for cutting blocks of even work."""
        raise NotImplementedError

    @property
    def filed(self) -> bool:
        """Whether it lies in files, which other processes open by themselves: pickled, it tells where."""
        return False

    def close(self) -> None:
        """Let go of it."""

    def _identified(self) -> dict[str, Any]:
        raise NotImplementedError


class HeldMatrix(Matrix):
    """A matrix in memory: a numpy array, or one of scipy.sparse.

    `told` names it in messages, `identity` stands for its content where it came from a file, `owned` says that its memory counts.
    """

    def __init__(
        self,
        values: Any,
        told: str = "the matrix",
        identity: dict[str, Any] | None = None,
        names: tuple[str, ...] | None = None,
        owned: bool = False,
    ) -> None:
        check_numbers(values.dtype, values.shape, told)
        if scipy.sparse.issparse(values):
            held = scipy.sparse.csr_array(values)
            if not held.has_canonical_format:
                # A copy: what is the user's own stays as it is.
                held = held if owned else held.copy()
                held.sum_duplicates()
            self._held: scipy.sparse.csr_array | np.ndarray = held
            self._parts = (held.data, held.indices, held.indptr)
            self.nnz = int(held.nnz)
            # A matrix of coordinates has no data of its own to share, one of lists an array of objects.
            own = getattr(values, "data", None)
            shared = isinstance(own, np.ndarray) and np.shares_memory(held.data, own)
        else:
            self._held = np.asarray(values)
            self._parts = (self._held,)
            self.nnz = self._held.size
            shared = True
        if self.nnz == 0:
            raise no_numbers(told, values.shape)
        check_finite(self._held, 0, told)
        self.shape = int(values.shape[0]), int(values.shape[1])
        self.names = names
        self.held_bytes = 0 if shared and not owned else sum(part.nbytes for part in self._parts)
        self.converted = self._held.dtype != np.float64
        self._known = identity

    @property
    def sparse(self) -> bool:
        """Whether blocks are sparse."""
        return scipy.sparse.issparse(self._held)

    def block_bytes(self, start: int, stop: int) -> int:
        """Row pointers that are copied, of a sparse one; slices of what is held otherwise, or rows put in order."""
        if isinstance(self._held, np.ndarray):
            return 0 if self._ordered else (stop - start) * self.shape[1] * self._held.itemsize
        return 8 * (stop - start + 1)

    def block(self, start: int, stop: int) -> scipy.sparse.csr_array | np.ndarray:
        """These rows, sharing memory with what is held."""
        held = self._held
        if isinstance(held, np.ndarray):
            return np.ascontiguousarray(held[start:stop], held.dtype.newbyteorder("="))
        first, last = held.indptr[start], held.indptr[stop]
        parts = held.data[first:last], held.indices[first:last], held.indptr[start : stop + 1] - first
        return canonical(parts, (stop - start, self.shape[1]))

    def row_nnz(self) -> np.ndarray:
        """Numbers stored in each row."""
        if isinstance(self._held, np.ndarray):
            return np.full(self.shape[0], self.shape[1], np.int64)
        return np.diff(self._held.indptr).astype(np.int64)

    @property
    def _ordered(self) -> bool:
        return self._held.flags.c_contiguous and self._held.dtype.isnative if isinstance(self._held, np.ndarray) else True

    def _identified(self) -> dict[str, Any]:
        if self._known is not None:
            return self._known
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return {"shape": list(self.shape), "dtype": self._held.dtype.name, "sha256": digest.hexdigest()}


def canonical(parts: tuple[np.ndarray, np.ndarray, np.ndarray], shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """A block of values, indices and row pointers that are known to be in order, without a copy or another look."""
    block = scipy.sparse.csr_array(parts, shape=shape, copy=False)
    block.has_sorted_indices = True
    block.has_canonical_format = True
    return block


def check_numbers(dtype: np.dtype, shape: tuple[int, ...], told: str) -> None:
    """Raises `InputError` for what is no matrix of real numbers that sums take."""
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(f"{told} has the shape {tuple(shape)}; give rows and columns, at least one of each.")
    if dtype.kind not in "fiub" or dtype.name in ("float16", "float128", "longdouble"):
        near = "give its real part" if dtype.kind == "c" else "convert it with .astype(float)"
        raise InputError(f"{told} holds {dtype}; a matrix here holds whole numbers, float32 or float64: {near}.")


def check_finite(block: scipy.sparse.csr_array | np.ndarray, first_row: int, told: str) -> None:
    """Raises `InputError` at a NaN or infinite number, and says where it stands; rows and columns count from 0."""
    values = block if isinstance(block, np.ndarray) else block.data
    # A sum is finite unless a number is not, or it overflows: the look at each waits for that.
    if values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float64)):
        return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    place = int(np.argmax(bad))
    if isinstance(block, np.ndarray):
        row, column = divmod(place, block.shape[1])
        value = block[row, column]
    else:
        row, column = int(np.searchsorted(block.indptr, place, "right")) - 1, int(block.indices[place])
        value = values[place]
    raise InputError(f"{told} holds {value} at row {first_row + row}, column {column}; give finite numbers.")


def no_numbers(told: str, shape: tuple[int, ...]) -> InputError:
    """What to say of a matrix without non-zeros."""
    return InputError(f"{told} of {shape[0]} × {shape[1]} holds no number but zero, so that nothing varies; give one that does.")
