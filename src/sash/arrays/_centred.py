"""A centred (and scaled) matrix as an operator: (X - 1 m') D and its transpose times a few vectors, without ever being formed.

Sums of what is taken off are products with the means: X B - 1 (m' B). Where a sparse matrix lies in memory, so does its transpose, and both
products gather; else a pass over the rows makes both at once, in lanes whose sums are added in order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from sash.arrays._moments import Moments
from sash.arrays._row_slices import sum_in_order
from sash.arrays._spmm import centre, gathered, scattered, there_and_back
from sash.arrays._sweep import Sweep, cut_rows

if TYPE_CHECKING:
    from sash.arrays._nystrom import Sketch

STRIP = 32
"""Vectors at once, where there are many: as many as a processor's caches hold beside a matrix's rows."""
_LINE = 64
"""Bytes that come from memory together: rows of eight numbers that begin with one are read in one, and else in two."""


@dataclass(eq=False)
class Centred:
    """(X - 1 m') D, and its Gram matrix on the smaller side."""

    sweep: Sweep
    moments: Moments
    held: bool
    """Whether the matrix is taken into memory, and its transpose beside it."""
    passed: Callable[[float], None] = lambda share: None
    """Told the share of a pass over the file that has been done."""
    sketch: Sketch | None = None
    """What the pass for means made beside, where it did; it goes to who uses it up."""
    _between: np.ndarray | None = field(default=None, init=False)
    """What a product there and back has in the middle."""

    @property
    def of_rows(self) -> bool:
        """Whether rows are the smaller side."""
        return self.sweep.matrix.shape[0] < self.sweep.matrix.shape[1]

    @property
    def side(self) -> int:
        """The smaller one."""
        return min(self.sweep.matrix.shape)

    def gram(self, vectors: np.ndarray) -> np.ndarray:
        """The Gram matrix of the smaller side times vectors."""
        if self.of_rows and self.held:
            return self._back_and_forth(vectors)
        if self.of_rows:
            return self.forth(self.back(vectors))
        if self.held or not vectors.flags.c_contiguous:
            return self.back(self.forth(vectors))
        return self._there_and_back(vectors)

    def forth(self, vectors: np.ndarray) -> np.ndarray:
        """(X - 1 m') D times vectors of as many numbers as there are columns."""
        scaled = self._scaled(vectors)
        offset = self.moments.mean @ scaled
        if self.held:
            made = lines((self.sweep.matrix.shape[0], scaled.shape[1]))
            self._gathered(self._rows, scaled, offset, made)
            return made
        return self.sweep.filled(_Forth(scaled, offset), np.empty((self.sweep.matrix.shape[0], scaled.shape[1])), self.passed)

    def back(self, vectors: np.ndarray) -> np.ndarray:
        """The transpose times vectors of as many numbers as there are rows."""
        vectors = np.ascontiguousarray(vectors)
        sums = vectors.sum(axis=0)
        if self.held:
            made = lines((self.sweep.matrix.shape[1], vectors.shape[1]))
            self._gathered(self._columns, vectors, np.zeros(vectors.shape[1]), made)
        else:
            made = self.sweep.summed(_Back((self.sweep.matrix.shape[1], vectors.shape[1])), vectors, self.passed)
        centre(made, self.moments.mean, sums, self.moments.scale)
        return made

    def forth_and_back(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `forth` makes of vectors, and what `back` makes of that, to the same bits: in one pass where lanes are threads."""
        if self.held:
            return (made := self.forth(vectors)), self.back(made)
        scaled = self._scaled(vectors)
        rows, columns = self.sweep.matrix.shape
        filling, summing = _Forth(scaled, self.moments.mean @ scaled), _Back((columns, scaled.shape[1]))
        made, found = self.sweep.filled_and_summed(filling, summing, np.empty((rows, scaled.shape[1])), self.passed)
        centre(found, self.moments.mean, made.sum(axis=0), self.moments.scale)
        return made, found

    def _back_and_forth(self, vectors: np.ndarray) -> np.ndarray:
        """What lies between stays in the same memory, and every thread centres what it has just made."""
        vectors = _in_lines(vectors)
        sums, (mean, scale) = vectors.sum(axis=0), (self.moments.mean, self.moments.scale)
        shape = self.sweep.matrix.shape[1], vectors.shape[1]
        if self._between is None or self._between.shape != shape:
            self._between = lines(shape)
        between = self._between

        def centred(part: tuple[int, int]) -> np.ndarray:
            rows = slice(*part)
            own = between[rows]
            centre(own, mean[rows], sums, scale[rows])
            if self._scales:
                own *= scale[rows, None]
            return mean[rows] @ own

        parts = self._gathered(self._columns, vectors, np.zeros(shape[1]), between, centred)
        made = lines(vectors.shape)
        self._gathered(self._rows, between, sum_in_order(parts), made)
        return made

    def _there_and_back(self, vectors: np.ndarray) -> np.ndarray:
        scaled = self._scaled(vectors)
        offset = self.moments.mean @ scaled
        made, sums = self.sweep.summed(ThereAndBack(scaled, offset), None, self.passed)
        centre(made, self.moments.mean, sums, self.moments.scale)
        return made

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Numbers of columns as scaled, in C's order."""
        if self._scales:
            return np.multiply(vectors, self.moments.scale[:, None], out=lines(vectors.shape))
        return _in_lines(vectors)

    @cached_property
    def _scales(self) -> bool:
        return bool((self.moments.scale != 1).any())

    @cached_property
    def _rows(self) -> scipy.sparse.csr_array:
        return scipy.sparse.csr_array(self.sweep.matrix.block(0, self.sweep.matrix.shape[0]), dtype=np.float64)

    @cached_property
    def _columns(self) -> scipy.sparse.csr_array:
        return self._rows.T.tocsr()

    def _gathered(
        self, rows: Any, vectors: np.ndarray, offset: np.ndarray, made: np.ndarray, then: Callable[[tuple[int, int]], Any] | None = None
    ) -> list[Any]:
        """Make `rows @ vectors - offset`, in parts; what `then` says of each part once it is made, in their order."""
        parts = cut_rows(np.diff(rows.indptr), max(rows.nnz // (4 * self.sweep.lanes), 1)) if self.sweep.lanes > 1 else ((0, len(made)),)
        strips = range(0, vectors.shape[1], STRIP)

        def work(part: tuple[int, int]) -> Any:
            for first in strips:
                own = slice(first, first + STRIP)
                gathered(rows.indptr, rows.indices, rows.data, given[first // STRIP], offset[own], made[:, own], *part)
            return then(part) if then else None

        given = [_in_lines(vectors[:, first : first + STRIP]) for first in strips]
        if self.sweep.lanes == 1:
            return [work(parts[0])]
        with ThreadPoolExecutor(self.sweep.lanes, "sash") as pool:
            return list(pool.map(work, parts))


def lines(shape: tuple[int, ...], zero: bool = False) -> np.ndarray:
    """An array that begins where a line of memory does."""
    size = 8 * int(np.prod(shape))
    memory = (np.zeros if zero else np.empty)(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(np.float64).reshape(shape)


def _in_lines(vectors: np.ndarray) -> np.ndarray:
    """The same vectors, in rows one after the other."""
    if vectors.flags.c_contiguous and (vectors.ctypes.data % _LINE == 0 or vectors.itemsize * vectors.shape[1] % _LINE):
        return vectors
    made = lines(vectors.shape)
    made[...] = vectors
    return made


@dataclass(frozen=True, eq=False)
class _Forth:
    """Rows of a product."""

    vectors: np.ndarray
    offset: np.ndarray

    def begin(self) -> None:
        """Nothing: rows are made where they belong."""

    def add(self, made: None, block: Any, start: int, rows: np.ndarray) -> None:
        """Make the block's rows."""
        if isinstance(block, np.ndarray):
            np.subtract(block @ self.vectors, self.offset, out=rows)
        else:
            gathered(block.indptr, block.indices, block.data, self.vectors, self.offset, rows, 0, len(rows))

    def join(self, made: None, other: None) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class _Back:
    """The transpose times rows of vectors."""

    shape: tuple[int, int]

    def begin(self) -> np.ndarray:
        """Sums for columns."""
        return lines(self.shape, True)

    def add(self, made: np.ndarray, block: Any, start: int, rows: np.ndarray) -> None:
        """Add the block's."""
        if isinstance(block, np.ndarray):
            made += block.T @ rows
        else:
            scattered(block.indptr, block.indices, block.data, rows, made)

    def join(self, made: np.ndarray, other: np.ndarray) -> None:
        """Add another lane's."""
        made += other


@dataclass(frozen=True, eq=False)
class ThereAndBack:
    """The transpose times rows of a product, and the sum of these."""

    vectors: np.ndarray
    offset: np.ndarray

    def begin(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums for columns, and of rows."""
        return lines(self.vectors.shape, True), np.zeros(self.vectors.shape[1])

    def add(self, made: tuple[np.ndarray, np.ndarray], block: Any, start: int, rows: None) -> None:
        """Add the block's."""
        sums, total = made
        if isinstance(block, np.ndarray):
            own = block @ self.vectors
            own -= self.offset
            sums += block.T @ own
            total += own.sum(axis=0)
        else:
            there_and_back(block.indptr, block.indices, block.data, self.vectors, self.offset, sums, total)

    def join(self, made: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> None:
        """Add another lane's."""
        for ours, theirs in zip(made, other, strict=True):
            ours += theirs
