"""Products of sparse rows with a few dense vectors, compiled by numba; every row's sum is made in the order of its numbers."""

from __future__ import annotations

import numpy as np
from numba import njit

_FAST = {"contract", "reassoc", "nsz"}


@njit(nogil=True, cache=True, fastmath=_FAST)
def _added(own, at, values, vectors, place, stop):
    """Four numbers at once: the sum stays where it is meanwhile."""
    width = vectors.shape[1]
    while place + 3 < stop:
        first, second, third, fourth = vectors[at[place]], vectors[at[place + 1]], vectors[at[place + 2]], vectors[at[place + 3]]
        a, b, c, d = values[place], values[place + 1], values[place + 2], values[place + 3]
        for column in range(width):
            own[column] += (a * first[column] + b * second[column]) + (c * third[column] + d * fourth[column])
        place += 4
    while place < stop:
        value, other = values[place], vectors[at[place]]
        for column in range(width):
            own[column] += value * other[column]
        place += 1


@njit(nogil=True, cache=True, fastmath=_FAST)
def gathered(pointers, at, values, vectors, offset, into, start, stop):
    """`into[row] = rows[row] @ vectors - offset`, of rows from start to stop."""
    for row in range(start, stop):
        own = into[row]
        own[:] = -offset
        _added(own, at, values, vectors, pointers[row], pointers[row + 1])


@njit(nogil=True, cache=True, fastmath=_FAST)
def scattered(pointers, at, values, vectors, into):
    """`into += rows.T @ vectors`."""
    width = vectors.shape[1]
    for row in range(len(pointers) - 1):
        own = vectors[row]
        for place in range(pointers[row], pointers[row + 1]):
            value, other = values[place], into[at[place]]
            for column in range(width):
                other[column] += value * own[column]


@njit(nogil=True, cache=True, fastmath=_FAST)
def there_and_back(pointers, at, values, vectors, offset, into, sums):
    """`into += rows.T @ made` and `sums += made.sum(0)`, of `made = rows @ vectors - offset`, which is never held."""
    width = vectors.shape[1]
    made = np.empty(width)
    for row in range(len(pointers) - 1):
        made[:] = -offset
        _added(made, at, values, vectors, pointers[row], pointers[row + 1])
        for place in range(pointers[row], pointers[row + 1]):
            value, target = values[place], into[at[place]]
            for column in range(width):
                target[column] += value * made[column]
        sums += made


@njit(nogil=True, cache=True)
def centre(made, mean, sums, scale):
    """`made = (made - outer(mean, sums)) * scale`, row by row, in place."""
    for row in range(len(made)):
        for column in range(made.shape[1]):
            made[row, column] = (made[row, column] - mean[row] * sums[column]) * scale[row]
