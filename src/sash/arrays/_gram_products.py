"""What a Gram matrix is added up of, compiled by numba."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True, fastmath=True)
def products(first_ptr, first_at, first, second_ptr, second_at, second, made, start, stop, lower):
    """Into row i of `made`: products of row i of the first with all columns of the second, which is turned: those from i on where lower."""
    for row in range(start, stop):
        into = made[row]
        for place in range(first_ptr[row], first_ptr[row + 1]):
            factor, column = first[place], first_at[place]
            low, high = second_ptr[column], second_ptr[column + 1]
            if lower:
                end = high
                while low < end:
                    middle = (low + end) // 2
                    if second_at[middle] < row:
                        low = middle + 1
                    else:
                        end = middle
            for other in range(low, high):
                into[second_at[other]] += factor * second[other]


@njit(nogil=True, cache=True)
def centre_triangle(made, sums, offset):
    """From the diagonal on: what is made grows by the offset, without its row's sum and its column's."""
    for row in range(len(made)):
        for column in range(row, len(made)):
            made[row, column] += offset - sums[row] - sums[column]
