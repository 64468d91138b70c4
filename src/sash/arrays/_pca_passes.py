"""How often a matrix is read while its principal components are found: parts of a pass count by their rows."""

from __future__ import annotations

from math import ceil

from sash.arrays._gram import Gram
from sash.arrays._matrix import Matrix
from sash.arrays._randqb import BLOCK, POWERS
from sash.arrays._reduced_filed import Sizes

MEANS = 1
"""Columns' means and variances take one."""
HELD = 1
"""A matrix that is taken into memory is read once more."""


def finishing(matrix: Matrix, apart: int, count: int, chunk: int, group: int | None = None) -> int:
    """For loadings, scores and residuals of all components, chunk by chunk of each group of vectors.

    Vectors of columns go there and back in one pass where lanes are threads; on a cluster, and of rows, each way is one.
    """
    groups, rest = divmod(count, group or count)
    chunks = groups * ceil((group or count) / chunk) + ceil(rest / chunk)
    return chunks * (2 if apart or matrix.shape[0] < matrix.shape[1] else 1)


def of_products(matrix: Matrix, applied: float, block: int) -> int:
    """For products of the smaller side's Gram matrix with so many vectors, some at once."""
    return ceil(applied / block) * (2 if matrix.shape[0] < matrix.shape[1] else 1)


def of_randqb(matrix: Matrix, count: int) -> int:
    """For a basis of so many vectors: products with the Gram matrix, and one that is no such."""
    return ceil(count / BLOCK) * (POWERS * (2 if matrix.shape[0] < matrix.shape[1] else 1) + 1)


def of_nystrom(apart: int, count: int, chunk: int) -> int:
    """With means among them: vectors are those of columns, whichever side is smaller, and at once or after one more that finds them."""
    each = 2 if apart else 1
    return MEANS + (each if chunk >= count else 1 + each * ceil(count / chunk))


def of_gram(matrix: Matrix, gram: Gram, filed: Sizes | None) -> float:
    """For a Gram matrix: of rows each block, or strip, meets those that come after it."""
    if not gram.of_rows:
        return ceil(gram.side / filed.strip) if filed else 1
    starts = range(0, gram.side, filed.strip) if filed else (start for start, _ in gram.blocks)
    return sum(matrix.shape[0] - start for start in starts) / matrix.shape[0]
