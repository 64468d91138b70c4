"""What one pass over a matrix tells: columns' means and variances, the total variance, and where numbers are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from sash.arrays._matrix import Matrix, check_finite
from sash.arrays._sweep import Sweep

LANE_BYTES = 8 * 6
"""A column and lane: what is added up, and what a block brings."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the columns of a matrix."""

    mean: np.ndarray
    variance: np.ndarray
    """By rows - 1."""
    scale: np.ndarray
    """What columns are multiplied by once they are centred: ones, or one by the standard deviation."""
    column_nnz: np.ndarray
    row_nnz: np.ndarray

    @property
    def total(self) -> float:
        """The sum of all explained variances, as scaled."""
        return float(np.sum(self.variance * self.scale**2))


class Lane:
    """Rows added up so far: merged block by block, which keeps variances right where means are large."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self.mean, self.squares, self.counts = np.zeros(columns), np.zeros(columns), np.zeros(columns, np.int64)

    def merge(self, rows: int, mean: np.ndarray, squares: np.ndarray, counts: np.ndarray) -> None:
        """Add others; `mean` and `squares` are overwritten."""
        total = self.rows + rows
        mean -= self.mean
        self.squares += squares
        np.multiply(mean, mean, out=squares)
        squares *= self.rows * rows / max(total, 1)
        self.squares += squares
        mean *= rows / max(total, 1)
        self.mean += mean
        self.counts += counts
        self.rows = total


@dataclass(frozen=True)
class Means:
    """Means and squares of blocks."""

    columns: int

    def begin(self) -> Lane:
        """No rows."""
        return Lane(self.columns)

    def add(self, made: Lane, block: Any, start: int, rows: None) -> None:
        """Take a block in; raises `InputError` for numbers that are not finite."""
        check_finite(block, start, "the matrix")
        rows_here = block.shape[0]
        if isinstance(block, np.ndarray):
            mean = block.mean(axis=0, dtype=np.float64)
            centred = block - mean
            squares = np.square(centred, out=centred).sum(axis=0)
            counts = np.full(self.columns, rows_here)
        else:
            mean, squares, counts = np.zeros(self.columns), np.zeros(self.columns), np.zeros(self.columns, np.int64)
            _sparse(block.indices, block.data, rows_here, mean, squares, counts)
        made.merge(rows_here, mean, squares, counts)

    def join(self, made: Lane, other: Lane) -> None:
        """Take another lane in; its numbers are overwritten."""
        made.merge(other.rows, other.mean, other.squares, other.counts)


def moments(sweep: Sweep, scale: bool) -> Moments:
    """In one pass; raises `InputError` for NaN and infinities."""
    return moments_of(sweep.summed(Means(sweep.matrix.shape[1])), sweep.matrix, scale)


def moments_of(found: Lane, matrix: Matrix, scale: bool) -> Moments:
    """Of all rows of a matrix, added up."""
    rows, columns = matrix.shape
    variance = found.squares / max(rows - 1, 1)
    # What is left of a column of equal numbers is rounding.
    variance[variance <= (4 * np.finfo(float).eps * np.abs(found.mean)) ** 2 * rows] = 0.0
    factors = np.ones(columns)
    if scale:
        factors[variance > 0] = 1 / np.sqrt(variance[variance > 0])
    return Moments(found.mean, variance, factors, found.counts, matrix.row_nnz())


@njit(nogil=True, cache=True)
def _sparse(at, values, rows, mean, squares, counts):
    """Means, sums of squares about them, and counts, of a block."""
    for place in range(len(at)):
        mean[at[place]] += values[place]
        counts[at[place]] += 1
    for column in range(len(mean)):
        mean[column] /= rows
        squares[column] = (rows - counts[column]) * mean[column] ** 2
    for place in range(len(at)):
        squares[at[place]] += (values[place] - mean[at[place]]) ** 2
