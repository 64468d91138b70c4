"""Sizes of Nyström's method: how many vectors its pass sketches with, and how components are made of them after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from sash.arrays._matrix import Matrix
from sash.arrays._nystrom import RUNS, rows_at_once
from sash.arrays._pca_passes import of_nystrom
from sash.arrays._pca_ways import CHUNK, NARROW, Asked, Way, file_s, finishing_bytes, fixed_bytes, portions_of, seconds, sent_bytes
from sash.arrays._rates import ArrayRates
from sash.arrays._running import fewer
from sash.arrays._sweep import Sweep

WIDE, NARROWER, MORE = 2.0, (1.5, 1.0), 10
"""Vectors for each component, less where memory asks for it, and some more."""
EVEN = 8
"""Vectors come by so many: as compiled products take them."""


def nystrom_ways(
    matrix: Matrix, asked: Asked, workers: int, rates: ArrayRates, reading: Callable[[int, int], tuple[Sweep, int]]
) -> Iterator[Way]:
    """The nearest first: all components in one pass after the first, of as many vectors as there is room for; else chunk by chunk."""
    assert asked.components is not None
    count = asked.components
    widths = [min(-(-int(times * count + MORE) // EVEN) * EVEN, asked.most) for times in (WIDE, *NARROWER)]
    chunks = ([count] if count <= CHUNK else []), [size for size in (CHUNK, 64, NARROW) if size < count]
    sizes = [*product(chunks[0], widths), *product(chunks[1], widths)]
    for threads in fewer(workers):
        # Small blocks cost less than one pass more.
        for chunk, width in dict.fromkeys(sizes):
            for stored in portions_of(matrix):
                yield _way(matrix, asked, threads, stored, width, chunk, rates, *reading(threads, stored))


def _way(
    matrix: Matrix, asked: Asked, threads: int, stored: int, width: int, chunk: int, rates: ArrayRates, sweep: Sweep, reading: int
) -> Way:
    rows, columns = matrix.shape
    assert asked.components is not None
    count, here = asked.components, asked.here(threads)
    fixed, looking = fixed_bytes(matrix, asked, threads, reading, count)
    vectors = 8 * columns * width
    # A dense block's product is there before it is added.
    lanes = threads * (1 if matrix.sparse else 2)
    product_rows = 0 if matrix.sparse else 8 * threads * sweep.block_rows * width
    small = 8 * width * width * (RUNS + 2 * threads + 8)
    # Random vectors, which lanes share, and sums of each.
    first = looking + (1 + lanes) * vectors + product_rows + sent_bytes(matrix, asked.apart, threads, width, 0)
    if chunk >= count:
        # The basis, once more as scaled, and sums; then what is on its way to a file; scores all the time.
        made = (2 + lanes) * vectors + product_rows + reading + sent_bytes(matrix, asked.apart, threads, width, rows)
        later = 8 * rows * width + max(made, vectors + 8 * count * (rows + columns))
    else:
        gram = 2 * vectors + 2 * 8 * threads * rows_at_once(width) * width + reading + sent_bytes(matrix, asked.apart, threads, width, 0)
        own = vectors + finishing_bytes(matrix, threads, reading, chunk, False) + sent_bytes(matrix, asked.apart, threads, chunk, rows)
        later = max(gram, own)
    passes = of_nystrom(asked.apart, count, chunk)
    met = 2 * matrix.nnz * (width + width + (0 if chunk >= count else count))
    flops = 14.0 * columns * width**2 + (rows + 2.0 * columns) * width * (width + count) + 30.0 * width**3
    wall_s = seconds(matrix, met, flops, file_s(matrix, passes, threads), threads, rates, here)
    return Way("nystrom", threads, stored, False, 0, width, chunk, width, fixed + small + max(first, later), wall_s, passes=passes)
