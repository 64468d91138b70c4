"""How principal components may be found, what each way holds, and how long it takes by this machine's rates."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from math import ceil, inf

import numpy as np

from sash.arrays._centred import STRIP
from sash.arrays._gram import Gram
from sash.arrays._krylov import space_bytes
from sash.arrays._loadings import Kept
from sash.arrays._matrix import Matrix
from sash.arrays._moments import LANE_BYTES, Moments
from sash.arrays._pca_passes import HELD, MEANS, finishing, of_gram, of_products, of_randqb
from sash.arrays._rates import ArrayRates
from sash.arrays._reduced_filed import Sizes
from sash.arrays._running import fewer, processors
from sash.arrays._sweep import Sweep, cut_rows
from sash.arrays._tridiagonal import PANEL

STARTING_BYTES = 1 << 20
"""Threads, and what Python and the C library keep of small objects; code and libraries, which a process loads once, are no job's own."""
_PACKED, _MOST_PACKED = 3072, 32 << 20
"""Bytes for each column that a thread of a dense product packs: 384 rows of OpenBLAS's; and its whole buffer."""
BLOCK, BLOCK_APART = 8, 16
"""Vectors at once; where products wait for a disk, or are of a dense matrix. Wider blocks take more vectors: for 400 components 1536 by
blocks of 32, 1088 by 8. Of a file that the system keeps, 50 components took 23 s in 31 passes by 8, and 25 s in 20 by 16."""
CHUNK = 256
"""Components that are made and written at once, at most."""
NARROW = 16
"""The fewest, where there are as many."""
SPACES = (5, 4, 3, 2)
"""Columns of the Krylov space for each component, tried in this order."""
GROWING = 3.6
"""Products for each component until the residuals are small, about: of texts."""
SMALL_SIDE = 512
"""Up to which all eigenvalues cost nothing to speak of."""
REDUCTIONS = ((128, 8), (128, 4), (64, 8), (64, 4), (64, 2), (32, 2), (32, 1))
"""Columns of a panel, and panels whose updates are gathered, of a Gram matrix on disk: the wider, the fewer bytes are read."""
PACKING_BYTES = 3 << 20
"""What a thread's products of panels pack: measured, see the tests."""
DISK_BYTE_S, KEPT_BYTE_S = 1e-9, 3e-10
"""Of a file on an ordinary disk; of one that the system keeps in memory that is free: up to a quarter of all that there is."""
CHASED = 2.0
"""Of the seconds of a product's operation: one of a band that becomes tridiagonal, which a single thread does."""


@dataclass(frozen=True)
class Asked:
    """What is to be found."""

    components: int | None
    variance: float | None
    tolerance: float
    filed: bool
    loadings: Kept
    likely: int
    """Components, about, where their number is not known before."""
    most: int
    """That there can be."""
    disk: float = inf
    """Bytes that are free for what is larger than memory."""
    apart: int = 0
    """Processes of a cluster that passes run in; 0: threads of this one."""

    def here(self, threads: int) -> int:
        """Threads of this process, of so many lanes."""
        return min(threads, processors()) if self.apart else threads


@dataclass(frozen=True)
class Way:
    """One way to find components, and its sizes."""

    method: str
    workers: int
    stored: int
    """Numbers of a block of rows that is read."""
    held: bool
    """Whether a sparse matrix is taken into memory, with its transpose."""
    block: int
    most: int
    """Columns of the Krylov space, or of Nyström's sketch."""
    chunk: int
    """Components that are made and written at once."""
    group: int
    """Eigenvectors that are in memory at once."""
    peak_bytes: int
    wall_s: float
    filed: Sizes | None = None
    """How the Gram matrix is reduced on disk; None where it is in memory."""
    passes: float = 0.0
    """How often the matrix is read; of "krylov" and "randqb", and for a share of the variance, about."""

    @property
    def disk_bytes(self) -> int:
        """Taken on disk beside the output."""
        return self.filed.disk_bytes if self.filed else 0


def ways(
    name: str,
    matrix: Matrix,
    asked: Asked,
    budget: int,
    workers: int,
    rates: ArrayRates,
    reading: Callable[[int, int], tuple[Sweep, int]],
) -> Iterator[Way]:
    """A method's sizes, the quickest first."""
    side, count = min(matrix.shape), min(asked.components or asked.likely, min(matrix.shape))
    gram_of = cache(partial(_gram_of, matrix, asked))
    portions = portions_of(matrix)
    for threads in fewer(workers):
        for stored in portions:
            if name == "gram":
                for chunk in dict.fromkeys((min(CHUNK, count), min(64, count), min(NARROW, count))):
                    given = matrix, asked, threads, stored, chunk, rates, reading(threads, stored)[1], gram_of(threads, stored), budget
                    yield _grouped(*given, None)
                continue
            for held in (True, False) if matrix.sparse and not asked.apart else (False,):
                if held and stored != portions[0]:
                    continue
                blocks = (BLOCK,) if held or (matrix.sparse and _kept(matrix.file_bytes)) else (BLOCK_APART, BLOCK)
                for block in blocks:
                    for many in SPACES:
                        most = min(many * count + 10 * block, side)
                        widest = STRIP if held and not asked.filed else CHUNK
                        for chunk in dict.fromkeys((min(widest, count), min(NARROW, count))):
                            yield _krylov(
                                name, matrix, asked, threads, stored, held, block, most, chunk, rates, reading(threads, stored)[1]
                            )
    if name == "gram" and side >= SMALL_SIDE:
        for threads, (width, gathered), stored in product(fewer(workers), REDUCTIONS, portions):
            for chunk in dict.fromkeys((min(CHUNK, count), min(64, count), min(NARROW, count))):
                given = matrix, asked, threads, stored, chunk, rates, reading(threads, stored)[1], gram_of(threads, stored), budget
                yield _grouped(*given, Sizes(side, width, gathered))


def portions_of(matrix: Matrix) -> list[int]:
    """Numbers of a block of rows that is read, most first."""
    row_most = max(matrix.nnz // matrix.shape[0], 1)
    return sorted({max(size // 16, row_most) for size in (64 << 20, 16 << 20, 4 << 20, 1 << 20, 1 << 16)}, reverse=True)


def _gram_of(matrix: Matrix, asked: Asked, threads: int, stored: int) -> Gram:
    # What is dense is not known before the columns were counted: as if none were sparse.
    counts = matrix.row_nnz()
    unknown = Moments(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1, np.int64), counts)
    return Gram(matrix, unknown, matrix.shape[0] < matrix.shape[1], gram_blocks(matrix, asked, stored, threads), threads)


def _grouped(
    matrix: Matrix,
    asked: Asked,
    threads: int,
    stored: int,
    chunk: int,
    rates: ArrayRates,
    reading: int,
    gram: Gram,
    budget: int,
    filed: Sizes | None,
) -> Way:
    """With as many eigenvectors at once as there is room for: those of one group are orthogonal whatever their values."""
    most = asked.components or gram.side

    def of(group: int) -> Way:
        return _gram(matrix, asked, threads, stored, chunk, group, rates, reading, gram, filed)

    least = of(chunk)
    room = max(budget - least.peak_bytes, 0) // (8 * gram.side)
    group = min(chunk + room, most)
    if filed and least.peak_bytes <= budget:
        # What was held while the matrix was reduced is free by then.
        group += bisect_right(range(group + 1, most + 1), budget, key=lambda more: of(more).peak_bytes)
    return of(group)


def reading_bytes(matrix: Matrix, threads: int, stored: int) -> tuple[Sweep, int]:
    """A pass, and what it holds beside sums: blocks in lanes, and dense ones in float64."""
    sweep = Sweep(matrix, threads, stored)
    dense = 0 if matrix.sparse else 8 * sweep.block_rows * matrix.shape[1]
    return sweep, threads * (sweep.block_bytes + dense)


def fixed_bytes(matrix: Matrix, asked: Asked, threads: int, reading: int, count: int) -> tuple[int, int]:
    """Bytes that are held all the time, and while columns' means are found."""
    rows, columns = matrix.shape
    fixed = (1 + asked.apart) * (STARTING_BYTES + matrix.held_bytes) + 8 * 6 * columns + 8 * 3 * rows
    if not asked.filed:
        fixed += 8 * rows * count + asked.loadings.held_bytes(columns, count)
    return fixed, threads * LANE_BYTES * columns + reading


def finishing_bytes(matrix: Matrix, threads: int, reading: int, chunk: int, held: bool) -> int:
    """What a chunk of components takes: its vectors on both sides, on their way once more those that travel, and sums in lanes."""
    rows, columns = matrix.shape
    # Scores that are the longer side are made where they stay, with one block of them on its way to a file.
    many = (3 if rows < columns else 2) * rows + 3 * columns
    # A dense block's product is there before it is added.
    lanes = threads * (1 if matrix.sparse else 2)
    return 8 * chunk * (many + (0 if held else lanes * columns)) + (0 if held else reading)


def sent_bytes(matrix: Matrix, apart: int, threads: int, width: int, rows: int) -> int:
    """What a pass on a cluster holds beside: vectors of columns on their way, in each process and each lane; rows as they come and go."""
    return 8 * width * (3 * rows + (2 + apart + threads) * matrix.shape[1]) if apart else 0


def gram_blocks(matrix: Matrix, asked: Asked, stored: int, threads: int) -> tuple[tuple[int, int], ...]:
    """Rows of which the Gram matrix is made: on a cluster two blocks for each lane at least, so that all have work."""
    return cut_rows(matrix.row_nnz(), min(stored, -(-matrix.nnz // (2 * threads))) if asked.apart else stored)


def _making(gram: Gram, asked: Asked, threads: int) -> int:
    """While the Gram matrix is made: on a cluster by each lane, with what it makes, and twice as many parts of it on their way."""
    if not asked.apart:
        return gram.working_bytes()
    longest, columns = max(stop - start for start, stop in gram.blocks), gram.matrix.shape[1]
    # Dense rows are centred, and then put in Fortran's order.
    each = gram.working_bytes() + (0 if gram.matrix.sparse else 8 * longest * columns)
    part = 2 * longest if gram.of_rows else gram.side
    return threads * each + 8 * 4 * columns * (asked.apart + threads) + 8 * gram.side * part * (threads + 1)


def _krylov(
    name: str,
    matrix: Matrix,
    asked: Asked,
    threads: int,
    stored: int,
    held: bool,
    block: int,
    most: int,
    chunk: int,
    rates: ArrayRates,
    reading: int,
) -> Way:
    rows, columns = matrix.shape
    side, other = min(rows, columns), max(rows, columns)
    count = min(asked.components or asked.likely, side)
    fixed, looking = fixed_bytes(matrix, asked, threads, reading, count)
    here = (20 if matrix.converted else 12) * matrix.nnz + 8 * (rows + columns) + matrix.block_bytes(0, rows) if held else 0
    lanes = 0 if held else (threads + 1) * (side if rows >= columns and matrix.sparse else columns)
    # Where columns are the smaller side a pass goes there and back, and no rows travel.
    sent = sent_bytes(matrix, asked.apart, threads, block, rows if rows < columns or name == "randqb" else 0)
    product = 8 * block * (2 * other + 3 * side + lanes) + (0 if held else reading) + sent
    working = space_bytes(side, most, block) + 8 * side * count + product
    finished = (
        8 * side * count + finishing_bytes(matrix, threads, reading, chunk, held) + sent_bytes(matrix, asked.apart, threads, chunk, rows)
    )
    peak = fixed + here + max(looking, working, finished)
    applied = min(GROWING * count + 6 * block, side) * (1 if most >= GROWING * count + 6 * block else 1.5)
    if name == "randqb":
        applied = 3 * count
    pairs = 2 * matrix.nnz * (applied + 1.5 * count)
    flops = 6.0 * side * applied * min(most, applied) + 10.0 * most**3
    products = of_randqb(matrix, count) if name == "randqb" else of_products(matrix, applied, block)
    passes = MEANS + (HELD if held else products + finishing(matrix, asked.apart, count, chunk))
    wall_s = seconds(matrix, pairs, flops, file_s(matrix, passes, threads), threads, rates, asked.here(threads))
    return Way(name, threads, stored, held, block, most, chunk, count, peak, wall_s, passes=passes)


def _gram(
    matrix: Matrix,
    asked: Asked,
    threads: int,
    stored: int,
    chunk: int,
    group: int,
    rates: ArrayRates,
    reading: int,
    gram: Gram,
    filed: Sizes | None,
) -> Way:
    rows, columns = matrix.shape
    side = min(rows, columns)
    count = min(asked.components or asked.likely, side)
    fixed, looking = fixed_bytes(matrix, asked, threads, reading, count)
    vectors = 8 * side * min(group, side) + 8 * 40 * side
    finished = vectors + finishing_bytes(matrix, threads, reading, chunk, False) + sent_bytes(matrix, asked.apart, threads, chunk, rows)
    here = asked.here(threads)
    if filed:
        making = gram.strip_bytes(filed.strip) + 8 * side * filed.width
        packing = here * PACKING_BYTES
        working = max(making, filed.reducing_bytes(here) + packing, vectors + filed.turning_bytes() + packing, finished)
    else:
        packing = here * min(_PACKED * side, _MOST_PACKED)
        reducing = 8 * side * (4 * PANEL + 8)
        working = 8 * side**2 + max(_making(gram, asked, threads) + packing, reducing + packing, finished)
    peak = fixed + max(looking, working)
    groups = ceil(count / max(group, 1))
    flops = (2 / 3) * side**3 + 2.0 * side**2 * count + side**2 * min(columns, 2000)
    # Half of the reduction only reads what is left of the matrix.
    passes = MEANS + of_gram(matrix, gram, filed) + finishing(matrix, asked.apart, count, chunk, min(group, count))
    moved = 8 / 6 * side**3 * rates["matrix.byte_s"]
    if filed:
        # All of it multiplies; what turns back the chase adds half as much again as the panels to their share, and the chase is no product.
        flops += (2 / 3) * side**3 + 3.0 * side**2 * count + CHASED * here * 6.0 * side**2 * filed.width
        moved = filed.moved_bytes(groups) * threads * _byte_s(filed.disk_bytes)
    pairs = 2 * matrix.nnz * 1.5 * count
    extra = 1 + 0.02 * (groups - 1)
    wall_s = extra * seconds(matrix, pairs, flops, moved + file_s(matrix, passes, threads), threads, rates, here)
    return Way("gram", threads, stored, False, BLOCK, 0, chunk, group, peak, wall_s, filed, passes)


def file_s(matrix: Matrix, passes: float, threads: int) -> float:
    """What reading takes of all threads together: they wait for the same disk."""
    return passes * matrix.file_bytes * _byte_s(matrix.file_bytes) * threads


def _kept(size: int) -> bool:
    """Whether the system keeps a file of so many bytes in memory, once it was read."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return size <= memory // 4


def _byte_s(size: int) -> float:
    return KEPT_BYTE_S if _kept(size) else DISK_BYTE_S


def seconds(matrix: Matrix, pairs: float, flops: float, moved_s: float, threads: int, rates: ArrayRates, here: int) -> float:
    """By this machine's rates: numbers of the matrix that meet one of a vector, dense operations in threads `here`, and what is moved.

    What goes over a network is not counted.
    """
    sparse_s = pairs * (rates["matrix.pair_s"] if matrix.sparse else 2 * rates["matrix.flop_s"])
    return rates["job.s"] + (sparse_s + moved_s) / threads + flops * rates["matrix.flop_s"] / here


def without_time(way: Way) -> Way:
    """What the bits of a result may depend on."""
    return replace(way, wall_s=0.0, peak_bytes=0, passes=0.0)
