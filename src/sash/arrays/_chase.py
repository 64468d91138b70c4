"""A symmetric band becomes tridiagonal: what sticks out of the band is chased off its end, a column at a time.

A reflection for each column, and one for each width of the band that what it pushed out is moved on by. They are kept in files, as many
numbers as a triangle has; eigenvectors are turned by those of some columns at once, which are as one product where they lie alike.

Source: Bischof, Lang, Sun, A framework for symmetric band reduction, 2000; Haidar, Ltaief, Dongarra, Parallel reduction to condensed forms
for symmetric eigenvalue problems using aggregated fine-grained and memory-aware kernels, 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numba import njit

from sash.arrays._band import Each, turn_before
from sash.arrays._lapack import call, product_added
from sash.arrays._triangle import Triangle


@dataclass(eq=False)
class Chase:
    """A band on its way to a tridiagonal matrix."""

    files: tuple[Triangle, Triangle]
    """Reflections go where those of the panels are not."""
    gathered: int
    rows: np.ndarray
    """(side, two widths): a column's numbers from the diagonal down."""
    done: int = 0
    """Block columns."""

    @classmethod
    def of(cls, files: tuple[Triangle, Triangle], gathered: int, band: np.ndarray) -> Chase:
        """Nothing done yet."""
        rows = np.zeros((len(band), 2 * files[0].width))
        rows[:, : band.shape[1]] = band
        return cls(files, gathered, rows)

    def run(self, ended: Callable[[float], None], note: Callable[[], None]) -> None:
        """Go on to the end. `ended` is told the share of the work since it was last called; `note` is called after every block column."""
        count, side, width = self.files[0].count, self.files[0].side, self.files[0].width
        room = self.files[0].room()
        while self.done < count:
            shape = self.files[0].shape(self.done)
            block = room[: shape[0] * shape[1]].reshape(shape, order="F")
            block[...] = 0.0
            start = self.done * width
            if width > 1:
                _chased(self.rows, width, start, min(start + width, side - 2), block.T)
            self.files[turn_before(self.done, self.gathered)].write(self.done, block)
            self.done += 1
            left = max(shape[0] - width, 0)
            ended((shape[0] ** 2 - left**2) / side**2)
            note()

    @property
    def tridiagonal(self) -> tuple[np.ndarray, np.ndarray]:
        """Its diagonal, and what is beside."""
        return self.rows[:, 0].copy(), self.rows[:-1, 1].copy()


def turned_by_chase(vectors: np.ndarray, files: tuple[Triangle, Triangle], gathered: int, pieces: Iterable[slice], each: Each) -> None:
    """Make vectors of the tridiagonal matrix those of the band, in place: the last reflections first."""
    width, side, pieces, room = files[0].width, files[0].side, list(pieces), files[0].room()
    if width == 1:
        return
    # More at once would be more products of zeros, fewer slower ones.
    step = max(width // 2, 1)
    for place in range(files[0].count - 1, -1, -1):
        block = files[turn_before(place, gathered)].read(place, room)
        for first in range((block.shape[1] - 1) // step * step, -1, -step):
            last = min(first + step, block.shape[1], side - 2 - place * width)
            if last <= first:
                continue
            top = place * width + first + 1
            chains = _chains(block, first, last, width)
            list(each(_turned, repeat(vectors), repeat(top), repeat(width), repeat(chains), pieces))


def chains_bytes(side: int, width: int) -> int:
    """What the reflections of some columns hold, as they are multiplied."""
    step = max(width // 2, 1)
    return 2 * 8 * step * (width + step) * (side // width + 2)


def _chains(block: np.ndarray, first: int, last: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reflections of columns from the first to before the last, those of one place in their chains together: V and V T of I - V T V'."""
    rows, count = len(block) - first - 1, last - first
    found = []
    for start in range(0, rows, width):
        long = min(width + count - 1, rows - start)
        kept = min(count, long)
        vectors, factors = np.zeros((long, kept), order="F"), np.empty(kept)
        _gathered(block.T[first : first + kept], first + 1 + start, width, vectors.T, factors)
        triangle, product = np.zeros((kept, kept), order="F"), np.zeros((long, kept), order="F")
        call("dlarft", "F", "C", long, kept, vectors, long, factors, triangle, kept)
        product_added(product, vectors, triangle, 1.0)
        found.append((vectors, product))
    return found


def _turned(vectors: np.ndarray, top: int, width: int, chains: list[tuple[np.ndarray, np.ndarray]], piece: slice) -> None:
    room = np.empty((chains[0][0].shape[1], piece.stop - piece.start), order="F")
    for place, (reflectors, product) in enumerate(chains):
        start = top + place * width
        own = vectors[start : start + len(reflectors), piece]
        inner = room[: reflectors.shape[1]]
        inner[...] = 0.0
        product_added(inner, reflectors, own, 1.0, "TN")
        product_added(own, product, inner, -1.0)


@njit(nogil=True, cache=True)
def _gathered(columns, start, width, vectors, factors):
    """Each column's reflector from `start` on, one row further down in each, its first number one: in that place lies its factor."""
    for one in range(len(columns)):
        at = start + one
        stop = min(at + width, columns.shape[1])
        if at >= columns.shape[1]:
            factors[one] = 0.0
            continue
        factors[one] = columns[one, at]
        vectors[one, one] = 1.0
        for row in range(at + 1, stop):
            vectors[one, one + row - at] = columns[one, row]


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _reflector(column, vector):
    """The factor of the reflection that leaves a column its first number alone, and its vector, whose first number is one."""
    vector[0] = 1.0
    rest = 0.0
    for place in range(1, len(column)):
        rest += column[place] * column[place]
    if rest == 0.0:
        vector[1 : len(column)] = 0.0
        column[1:] = 0.0
        return 0.0
    first = column[0]
    value = -np.copysign(np.hypot(first, np.sqrt(rest)), first)
    for place in range(1, len(column)):
        vector[place] = column[place] / (first - value)
        column[place] = 0.0
    column[0] = value
    return (value - first) / value


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _chased(rows, width, first, last, found):
    """Columns from the first to before the last become tridiagonal; their reflectors, into `found`, stand in the rows that they turn."""
    side = len(rows)
    vector, later, image = np.empty(width), np.empty(width), np.empty(width)
    for sweep in range(first, last):
        into, at = found[sweep - first], sweep + 1
        count = min(width, side - at)
        factor = _reflector(rows[sweep, 1 : 1 + count], vector)
        while True:
            into[at - first] = factor
            into[at - first + 1 : at - first + count] = vector[1:count]
            _both_sides(rows[at : at + count], vector, factor, image)
            below = min(width, side - at - count)
            if below <= 0:
                break
            # The block below: turned from the right, then, so that its first column ends, from the left.
            image[:below] = 0.0
            for column in range(count):
                part, own = rows[at + column, count - column : count - column + below], factor * vector[column]
                for row in range(below):
                    image[row] += part[row] * own
            part = rows[at, count : count + below]
            for row in range(below):
                part[row] -= image[row]
            factor = _reflector(part, later)
            for column in range(1, count):
                part, own = rows[at + column, count - column : count - column + below], vector[column]
                total = 0.0
                for row in range(below):
                    part[row] -= image[row] * own
                    total += part[row] * later[row]
                total *= factor
                for row in range(below):
                    part[row] -= total * later[row]
            vector, later = later, vector
            at += count
            count = below


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _both_sides(rows, vector, factor, image):
    """A block on the diagonal, by a reflection from both sides."""
    count = len(rows)
    image[:count] = 0.0
    for column in range(count):
        part, own = rows[column, : count - column], vector[column]
        total, beside, into = part[0] * own, vector[column:count], image[column:count]
        for row in range(1, count - column):
            into[row] += part[row] * own
            total += part[row] * beside[row]
        into[0] += total
    inner = 0.0
    for row in range(count):
        image[row] *= factor
        inner += image[row] * vector[row]
    for row in range(count):
        image[row] -= 0.5 * factor * inner * vector[row]
    for column in range(count):
        part, own, other = rows[column, : count - column], vector[column], image[column]
        beside, into = vector[column:count], image[column:count]
        for row in range(count - column):
            part[row] -= beside[row] * other + into[row] * own
