"""What a document-term matrix's counts weigh: as they are, by their logarithm, or by how rare their term is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
from numba import njit

from sash.arrays._matrix import Matrix, canonical
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

Weights = Literal["counts", "log", "tfidf"]
"""counts: numbers as they are. log: ln(1 + count). tfidf: count · (ln((1 + rows) / (1 + rows with the term)) + 1), then every row over
its Euclidean length; what scikit-learn's TfidfTransformer does unless told otherwise. An empty row stays empty."""

_PASS_BYTES = 64 << 20


def weighted(
    matrix: Matrix, weights: Weights, *, budget_bytes: int = _PASS_BYTES, counted: Callable[[Matrix, int], np.ndarray] | None = None
) -> Matrix:
    """The matrix with its numbers weighed as they are read; what is stored stays as it is.

    "tfidf" takes a pass over the matrix first, in blocks of up to `budget_bytes`: `rarity`, unless it is `counted` otherwise.
    Raises `InputError` for counts below zero.
    """
    if weights not in get_args(Weights):
        raise InputError(f"weights are {weights!r}; they are one of {', '.join(get_args(Weights))}.")
    if weights == "counts":
        return matrix
    return Weighted(matrix, weights, (counted or rarity)(matrix, budget_bytes) if weights == "tfidf" else None)


class Weighted(Matrix):
    """A matrix whose blocks are weighed when they are read; float32 stays float32, all else is float64."""

    def __init__(self, matrix: Matrix, weights: Weights, idf: np.ndarray | None) -> None:
        self.shape, self.nnz, self.names = matrix.shape, matrix.nnz, matrix.names
        self.idf = idf
        """What "tfidf" multiplies the counts of each column by: other rows, of the same columns, are weighed by the same."""
        self.held_bytes = matrix.held_bytes + (0 if idf is None else idf.nbytes)
        self.file_bytes, self.opening_bytes, self.converted = matrix.file_bytes, matrix.opening_bytes, matrix.converted
        self._matrix = matrix
        self._weights: Weights = weights

    @property
    def sparse(self) -> bool:
        """As the matrix."""
        return self._matrix.sparse

    def block_bytes(self, start: int, stop: int) -> int:
        """The block as it is read, and weighed."""
        numbers = int(self.row_nnz()[start:stop].sum()) if self.sparse else (stop - start) * self.shape[1]
        return self._matrix.block_bytes(start, stop) + numbers * 8 + 8 * (stop - start)

    def block(self, start: int, stop: int) -> scipy.sparse.csr_array | np.ndarray:
        """These rows, weighed."""
        return weigh(self._matrix.block(start, stop), self._weights, self.idf, start)

    def expect(self, start: int, stop: int) -> None:
        """As stored."""
        self._matrix.expect(start, stop)

    def row_nnz(self) -> np.ndarray:
        """As stored."""
        return self._matrix.row_nnz()

    @property
    def filed(self) -> bool:
        """As the matrix."""
        return self._matrix.filed

    def __reduce__(self) -> tuple[Any, ...]:
        return Weighted, (self._matrix, self._weights, self.idf)

    def close(self) -> None:
        """Let go of the matrix."""
        self._matrix.close()

    def _identified(self) -> dict[str, Any]:
        return {"weights": self._weights, "of": self._matrix.identity}


def weigh(
    block: scipy.sparse.csr_array | np.ndarray, weights: Weights, idf: np.ndarray | None, first_row: int = 0
) -> scipy.sparse.csr_array | np.ndarray:
    """Rows, weighed; "tfidf" takes the rarity of the columns. Raises `InputError` for counts below zero."""
    values = block if isinstance(block, np.ndarray) else block.data
    shape: Any = block.shape
    if weights == "counts":
        return block
    if values.size and values.min() < 0:
        raise InputError(f"there are numbers below zero in rows {first_row} to {first_row + shape[0] - 1}; {weights} weighs counts.")
    wide = np.float32 if values.dtype == np.float32 else np.float64
    if weights == "log":
        made = np.log1p(values, dtype=wide)
        return made if isinstance(block, np.ndarray) else canonical((made, block.indices, block.indptr), shape)
    assert idf is not None
    if isinstance(block, np.ndarray):
        dense = np.multiply(block, idf, dtype=wide)
        length = np.sqrt(np.einsum("ij,ij->i", dense, dense, dtype=np.float64))
        dense /= np.where(length > 0, length, 1)[:, None].astype(wide)
        return dense
    made = np.empty(values.shape, wide)
    _scale(values, block.indices, block.indptr, idf, made)
    return canonical((made, block.indices, block.indptr), shape)


def rarity(matrix: Matrix, budget_bytes: int) -> np.ndarray:
    """ln((1 + rows) / (1 + rows in which it is not zero)) + 1 of each column."""
    counts = Counts(matrix.shape[1])
    found = counts.begin()
    for start, stop in row_blocks(matrix, budget_bytes):
        counts.add(found, matrix.block(start, stop), start, None)
    return rarity_of(found, matrix.shape[0])


def rarity_of(found: np.ndarray, rows: int) -> np.ndarray:
    """The same, of how many rows have a number of each column."""
    return np.log((1 + rows) / (1 + found)) + 1


@dataclass(frozen=True)
class Counts:
    """Rows that have a number of each column, counted in a pass."""

    columns: int

    def begin(self) -> np.ndarray:
        """None yet."""
        return np.zeros(self.columns, np.int64)

    def add(self, made: np.ndarray, block: Any, start: int, rows: None) -> None:
        """Count a block's."""
        if isinstance(block, np.ndarray):
            made += np.count_nonzero(block, axis=0)
        else:
            _count(block.data, block.indices, made)

    def join(self, made: np.ndarray, other: np.ndarray) -> None:
        """Add another lane's."""
        made += other


def row_blocks(matrix: Matrix, budget_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows from start to stop, as many as are read within the budget; raises `DoesNotFit` for a row that is not."""
    return blocks_within(matrix.shape[0], matrix.block_bytes, budget_bytes)


def blocks_within(rows: int, needed: Callable[[int, int], int], budget_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows from start to stop, as many as take no more than the budget; raises `DoesNotFit` for a row that takes more."""
    start = 0
    while start < rows:
        count = _within(start, rows, needed, budget_bytes)
        if not count:
            told, least, row = needed(start, start + 1), budget_bytes, start
            while row < rows:
                # Later rows may take more than this one.
                count = _within(row, rows, needed, least)
                least, row = (least, row + count) if count else (needed(row, row + 1), row + 1)
            raise DoesNotFit(f"Row {start} takes {format_bytes(told)} to read; there are {format_bytes(budget_bytes)} for it.", least)
        yield start, start + count
        start += count


def _within(start: int, rows: int, needed: Callable[[int, int], int], budget_bytes: int) -> int:
    """How many rows from `start` on take no more than the budget."""
    low, high = 0, rows - start
    while low < high:
        middle = (low + high + 1) // 2
        if needed(start, start + middle) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


@njit(nogil=True, cache=True)
def _count(values, columns, found):
    """One more for the column of every value; a zero that is stored is none of its term."""
    for place in range(values.size):
        if values[place] != 0:
            found[columns[place]] += 1


@njit(nogil=True, cache=True)
def _scale(values, columns, pointers, idf, made):
    """Values times the rarity of their columns, over the length of their row."""
    for row in range(pointers.size - 1):
        total = 0.0
        for place in range(pointers[row], pointers[row + 1]):
            value = values[place] * idf[columns[place]]
            made[place] = value
            total += value * value
        length = np.sqrt(total)
        if length > 0:
            for place in range(pointers[row], pointers[row + 1]):
                made[place] /= length
