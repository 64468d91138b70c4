"""The centred Gram matrix of a matrix's smaller side, block by block into the lower triangle of one dense array.

Columns with many numbers are centred and multiplied as dense ones, in portions; the others stay sparse and are centred by
(x - m)·(y - m) = x·y - x·m - y·m + m·m, which loses nothing where means are small beside the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from sash.arrays._gram_products import centre_triangle, products
from sash.arrays._lapack import call, lead, lower_added, product_added
from sash.arrays._matrix import Matrix
from sash.arrays._moments import Moments

if TYPE_CHECKING:
    from sash.arrays._sweep_apart import Lanes

HEAVY = 1 / 16
"""Share of a column's places with numbers from which on it is multiplied as a dense one."""
PORTION = 256
"""Dense columns at once."""
DENSE = 0.05
"""Share of numbers from which on columns of a sparse matrix are multiplied as dense ones, where they are the smaller side."""
_STRIPE = 512
"""Rows that a thread multiplies at once."""


@dataclass(frozen=True, eq=False)
class Gram:
    """What is to be multiplied, and how."""

    matrix: Matrix
    moments: Moments
    of_rows: bool
    """Whether rows are the smaller side."""
    blocks: tuple[tuple[int, int], ...]
    """Rows that are read at once."""
    threads: int = 1

    @property
    def side(self) -> int:
        """Rows and columns of the Gram matrix."""
        return self.matrix.shape[0 if self.of_rows else 1]

    def working_bytes(self) -> int:
        """Held beside the Gram matrix while it is made."""
        rows, columns = self._longest, self.matrix.shape[1]
        block, stored = self._block_bytes, self._most_stored
        if not self.matrix.sparse:
            return (2 if self.of_rows and len(self.blocks) > 1 else 1) * (block + 8 * rows * columns)
        if self.of_rows:
            pairs = 2 if len(self.blocks) > 1 else 1
            return pairs * (block + 40 * stored + 8 * rows * PORTION) + 24 * columns
        # Dense rows are there as stored while they are centred.
        return block + (16 * rows * columns if self._densely else 60 * stored + 8 * columns)

    @cached_property
    def _block_bytes(self) -> int:
        """What reading the largest block holds."""
        return max(self.matrix.block_bytes(start, stop) for start, stop in self.blocks)

    @cached_property
    def _longest(self) -> int:
        """Rows of a block, at most."""
        return max(stop - start for start, stop in self.blocks)

    @cached_property
    def _most_stored(self) -> int:
        """Numbers of a block, at most."""
        return int(max(self.moments.row_nnz[start:stop].sum() for start, stop in self.blocks))

    @property
    def _densely(self) -> bool:
        return self.matrix.nnz > DENSE * self.matrix.shape[0] * self.matrix.shape[1]

    def make(self, ended: Callable[[float], None], apart: Lanes | None = None, lanes: int = 1) -> np.ndarray:
        """The lower triangle, in Fortran's order; above it lies what may.

        `ended` is told the share that has been done since it was last called. On a cluster so many lanes are each a sum over rows, where
        these are the larger side; else parts of the matrix, to the bits that threads of this process make.
        """
        made = np.zeros((self.side, self.side), order="F")
        if self.of_rows:
            self._rows(made, ended, apart, lanes)
        else:
            self._columns(made, ended, apart, lanes)
        return made

    def added(self, made: np.ndarray, start: int, stop: int) -> None:
        """Add the products of these rows' columns, where columns are the smaller side; sparse ones as they are, not centred."""
        block, moments = self.matrix.block(start, stop), self.moments
        if isinstance(block, np.ndarray) or self._densely:
            full = block if isinstance(block, np.ndarray) else block.toarray()
            centred = np.ascontiguousarray(full - moments.mean)
            centred *= moments.scale
            lower_added(made, centred.T, centred.T, 1.0, self.threads)
        else:
            rows = _scaled(block, moments.scale)
            self._sparse(rows.T.tocsr(), rows, made, True)

    def stripe(self, place: int, made: np.ndarray, ended: Callable[[], None]) -> np.ndarray:
        """Fill the columns of a block of rows, where rows are the smaller side, from the diagonal on; their rows' sums for centring."""
        start, stop = self.blocks[place]
        first = self._block(start, stop)
        for own_start, own_stop in self.blocks[place:]:
            second = first if own_start == start else self._block(own_start, own_stop)
            self._pair(first, second, made[own_start:own_stop])
            # Else both it and the next would be held.
            del second
            ended()
        return first.sums

    def strip(self, start: int, stop: int, ended: Callable[[float], None]) -> np.ndarray:
        """The same of columns from `start` to before `stop`, their diagonal block and what is below.

        `ended` is told shares of this strip.
        """
        made = np.zeros((self.side - start, stop - start), order="F")
        if self.of_rows:
            self._strip_of_rows(made, start, stop, ended)
        else:
            self._strip_of_columns(made, start, stop, ended)
        return made

    def strip_bytes(self, width: int) -> int:
        """Held while strips of so many columns are made, the strip included."""
        rows, columns = self.matrix.shape
        made, width = 8 * self.side * width, min(width, self.side)
        block, longest, stored = self._block_bytes, self._longest, self._most_stored
        if not self.of_rows:
            if not self.matrix.sparse or self._densely:
                return made + block + 2 * 8 * longest * columns
            return made + block + 100 * stored + 24 * columns
        strips = [(start, min(start + width, rows)) for start in range(0, rows, width)]
        both = block + max(self.matrix.block_bytes(*own) for own in strips)
        if not self.matrix.sparse:
            return made + both + 8 * (longest + width) * columns
        sums = np.concatenate([[0], np.cumsum(self.moments.row_nnz)])
        stored += int(max(sums[stop] - sums[start] for start, stop in strips))
        return made + both + 40 * stored + 8 * (longest + width) * PORTION + 24 * columns

    def _strip_of_rows(self, made: np.ndarray, start: int, stop: int, ended: Callable[[float], None]) -> None:
        first, sums = self._block(start, stop), np.zeros(self.side - start)
        sums[: stop - start] = first.sums
        self._pair(first, first, made[: stop - start])
        ended((stop - start) / len(made))
        for low, high in self.blocks:
            low = max(low, stop)
            if low < high:
                second = self._block(low, high)
                self._pair(first, second, made[low - start : high - start])
                sums[low - start : high - start] = second.sums
                del second
                ended((high - low) / len(made))
        if self.matrix.sparse:
            made -= sums[: stop - start]
            made += (self._offset - sums)[:, None]

    def _strip_of_columns(self, made: np.ndarray, start: int, stop: int, ended: Callable[[float], None]) -> None:
        moments = self.moments
        densely = not self.matrix.sparse or self._densely
        for low, high in self.blocks:
            block = self.matrix.block(low, high)
            if densely or isinstance(block, np.ndarray):
                full = np.array(block if isinstance(block, np.ndarray) else block.toarray(), np.float64, order="C")
                full -= moments.mean
                full *= moments.scale
                centred = full.T[start:]
                self._stripes(made, centred, centred[: stop - start])
                del full, centred
            else:
                rows = _scaled(block, moments.scale)
                self._sparse(rows[:, start:stop].T.tocsr(), rows[:, start:].tocsr(), made, True)
                del rows
            del block
            ended((high - low) / self.matrix.shape[0])
        if not densely:
            mean = moments.mean * moments.scale
            for column in range(stop - start):
                made[:, column] -= self.matrix.shape[0] * mean[start + column] * mean[start:]

    def _stripes(self, made: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        """`made += left @ right.T`, some rows of it in each thread."""

        def stripe(row: int) -> None:
            own = slice(row, row + _STRIPE)
            product_added(made[own], left[own], right, 1.0, "NT")

        with ThreadPoolExecutor(self.threads, "sash") as pool:
            list(pool.map(stripe, range(0, len(made), _STRIPE)))

    def _columns(self, made: np.ndarray, ended: Callable[[float], None], apart: Lanes | None, lanes: int) -> None:
        side, moments = self.side, self.moments
        if apart is not None:

            def take(lane: int, part: np.ndarray) -> None:
                np.add(made, part, out=made)
                ended(1 / lanes)

            apart.mapped(Summed(self.told), ((self.blocks[lane::lanes],) for lane in range(lanes)), lanes, take)
        else:
            for start, stop in self.blocks:
                self.added(made, start, stop)
                ended((stop - start) / self.matrix.shape[0])
        if self.matrix.sparse and not self._densely:
            mean = moments.mean * moments.scale
            call("dsyr", "L", side, -float(self.matrix.shape[0]), mean, 1, made, side)

    def _rows(self, made: np.ndarray, ended: Callable[[float], None], apart: Lanes | None, lanes: int) -> None:
        total = len(self.blocks) * (len(self.blocks) + 1) // 2
        sums = np.zeros(self.side)
        if apart is not None:
            places = _evenly(len(self.blocks), lanes)

            def take(number: int, found: tuple[np.ndarray, np.ndarray]) -> None:
                place = places[number]
                start, stop = self.blocks[place]
                made[start:, start:stop], sums[start:stop] = found
                ended((len(self.blocks) - place) / total)

            apart.mapped(Stripe(self.told, self.blocks), ((place,) for place in places), 2 * lanes, take)
        else:
            for place, (start, stop) in enumerate(self.blocks):
                sums[start:stop] = self.stripe(place, made[:, start:stop], lambda: ended(1 / total))
        # Sparse columns are centred here.
        if self.matrix.sparse:
            centre_triangle(made.T, sums, self._offset)

    @property
    def _offset(self) -> float:
        """What centring adds to every product of sparse parts."""
        return float(np.square(self.moments.mean * self.moments.scale)[~self._heavy].sum())

    @property
    def told(self) -> Moments:
        """What other processes need of the moments."""
        return replace(self.moments, row_nnz=np.zeros(0, np.int64))

    @property
    def _heavy(self) -> np.ndarray:
        return self.moments.column_nnz > HEAVY * self.matrix.shape[0]

    def _block(self, start: int, stop: int) -> _Block:
        block, moments = self.matrix.block(start, stop), self.moments
        if isinstance(block, np.ndarray):
            # In place: two more of the size would be held on the way.
            whole = np.array(block, np.float64, order="F")
            whole -= moments.mean
            whole *= moments.scale
            return _Block(stop - start, None, None, whole, None, np.zeros(stop - start))
        heavy = self._heavy
        rows = _scaled(block, moments.scale)
        dense = rows.tocsc()[:, heavy]
        rows = _only(rows, ~heavy)
        mean = moments.mean * moments.scale
        return _Block(stop - start, rows, rows.T.tocsr(), None, (dense, mean[heavy]), rows @ np.where(heavy, 0.0, mean))

    def _pair(self, first: _Block, second: _Block, made: np.ndarray) -> None:
        """Products of the second block's rows with the first's, into a part of the lower triangle."""
        same = first is second
        for left, right, count in _dense_pairs(first, second):
            if same:
                lower_added(made, left, left, 1.0, self.threads)
            else:
                call("dgemm", "N", "T", second.rows, first.rows, count, 1.0, right, second.rows, left, first.rows, 1.0, made, lead(made))
        if first.light is not None and second.turned is not None:
            self._sparse(first.light, second.turned, made, same)

    def _sparse(self, first: Any, second: Any, made: np.ndarray, lower: bool) -> None:
        """Rows of the first by columns of the second, each thread its own rows."""

        def work(start: int, stop: int) -> None:
            products(first.indptr, first.indices, first.data, second.indptr, second.indices, second.data, made.T, start, stop, lower)

        step = max(first.shape[0] // (16 * self.threads), 1)
        starts = range(0, first.shape[0], step)
        if self.threads == 1 or len(starts) == 1:
            work(0, first.shape[0])
            return
        with ThreadPoolExecutor(self.threads, "sash") as pool:
            list(pool.map(work, starts, (min(start + step, first.shape[0]) for start in starts)))


def _evenly(places: int, lanes: int) -> list[int]:
    """Stripes in an order in which lanes that take them in turn have as much to do: the first is the longest, the last the shortest."""
    rounds = [list(range(first, min(first + lanes, places))) for first in range(0, places, lanes)]
    return [place for number, own in enumerate(rounds) for place in (own[::-1] if number % 2 else own)]


@dataclass(frozen=True, eq=False)
class Summed:
    """The products of a lane's rows, in another process."""

    moments: Moments

    def __call__(self, matrix: Matrix, halted: Event, blocks: tuple[tuple[int, int], ...]) -> np.ndarray | None:
        gram = Gram(matrix, deepcopy(self.moments), False, blocks)
        made = np.zeros((gram.side, gram.side), order="F")
        for start, stop in blocks:
            if halted.is_set():
                return None
            gram.added(made, start, stop)
        return made


@dataclass(frozen=True, eq=False)
class Stripe:
    """Columns of one block of rows, in another process."""

    moments: Moments
    blocks: tuple[tuple[int, int], ...]

    def __call__(self, matrix: Matrix, halted: Event, place: int) -> tuple[np.ndarray, np.ndarray] | None:
        start, stop = self.blocks[place]
        gram = Gram(matrix, deepcopy(self.moments), True, self.blocks)
        # As long as the whole one: BLAS and compiled code meet the same strides.
        made = np.zeros((gram.side, stop - start), order="F")
        sums = gram.stripe(place, made, lambda: None)
        return made[start:], sums


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows of the matrix, apart into what is multiplied sparse and what dense."""

    rows: int
    light: scipy.sparse.csr_array | None
    turned: scipy.sparse.csr_array | None
    whole: np.ndarray | None
    heavy: tuple[scipy.sparse.csc_array, np.ndarray] | None
    """Columns, and their means."""
    sums: np.ndarray
    """Products of light parts with their columns' means."""


def _scaled(block: scipy.sparse.csr_array, factors: np.ndarray) -> scipy.sparse.csr_array:
    """Of its own numbers: those of the block may be the user's."""
    return scipy.sparse.csr_array((block.data * factors[block.indices], block.indices, block.indptr), shape=block.shape, copy=False)


def _only(rows: scipy.sparse.csr_array, columns: np.ndarray) -> scipy.sparse.csr_array:
    """Without the numbers of other columns."""
    kept = columns[rows.indices]
    ends = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    return scipy.sparse.csr_array((rows.data[kept], rows.indices[kept], ends), shape=rows.shape, copy=False)


def _dense_pairs(first: _Block, second: _Block) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Portions of both blocks' dense columns, and their width."""
    if first.whole is not None and second.whole is not None:
        yield first.whole, second.whole, first.whole.shape[1]
        return
    assert first.heavy is not None
    columns: Any = first.heavy[0]
    width = columns.shape[1]
    for at in range(0, width, PORTION):
        left = _portion(first, at)
        yield left, left if first is second else _portion(second, at), left.shape[1]


def _portion(block: _Block, at: int) -> np.ndarray:
    assert block.heavy is not None
    columns, mean = block.heavy
    dense = columns[:, at : at + PORTION].toarray(order="F")
    dense -= mean[at : at + PORTION]
    return np.asfortranarray(dense)
