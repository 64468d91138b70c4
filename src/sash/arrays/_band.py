"""A symmetric matrix in a file becomes a band: panels of columns by reflections, products with what is left of it block by block.

A panel's reflectors V, one a column, make of the rest A the matrix A - V W' - W V'. For W the whole of A is read once; the updates of
several panels are gathered in memory before A is written again, to the other of two files, so that one is whole whatever ends the process.
Most operations are products of matrices, four thirds of the side's cube in all.

Source: Bischof, Lang, Sun, A framework for symmetric band reduction, 2000; Schreiber, Van Loan, A storage-efficient WY representation for
products of Householder transformations, 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from sash.arrays._lapack import call, lead, product_added
from sash.arrays._triangle import Triangle

_STRIPE = 512
"""Rows that a thread multiplies at once: sums are those of stripes, so that bits do not depend on the number of threads."""
Each = Callable[..., Iterable[Any]]


@dataclass(eq=False)
class Banding:
    """A matrix on its way to a band, as wide as a block column."""

    files: tuple[Triangle, Triangle]
    """The first holds the matrix. Reflectors take the place of columns that are done, in that file of the two that is not in use then."""
    gathered: int
    """Panels whose updates are gathered, at most."""
    done: int = 0
    """Panels."""
    waiting: int = 0
    """Panels whose updates are gathered."""
    band: np.ndarray = field(init=False)
    """(side, width + 1): a column's numbers from the diagonal down."""
    vectors: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    """V and W of those panels, side by side."""

    def __post_init__(self) -> None:
        side, width = self.files[0].side, self.files[0].width
        self.band = np.zeros((side, width + 1))
        self.vectors, self.images = (np.zeros((side, width * self.gathered), order="F") for _ in range(2))

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        return self.done == self.files[0].count

    def run(self, ended: Callable[[float], None], threads: int, note: Callable[[], None]) -> None:
        """Go on to the end. `ended` is told the share of the work since it was last called; `note` is called whenever the rest was written.

        What was not noted then is done again from the last note; of the two files, that one reads the other than is written.
        """
        side, width = self.files[0].side, self.files[0].width
        with ThreadPoolExecutor(threads, "sash") as pool, ThreadPoolExecutor(1, "sash") as disk:
            each = map if threads == 1 else pool.map
            while not self.ended:
                left = side - self.done * width
                if self._panel(each, disk):
                    note()
                ended((left**3 - max(left - width, 0) ** 3) / side**3)

    def _panel(self, each: Each, disk: ThreadPoolExecutor) -> bool:
        """Whether the rest was written."""
        place, width, turn = self.done, self.files[0].width, turn_before(self.done, self.gathered)
        now, other = self.files[turn], self.files[1 - turn]
        block = now.read(place, now.room())
        columns = block.shape[1]
        start = place * width
        self._updated(block, start, each)
        for column in range(columns):
            self.band[start + column, : columns - column] = block[column:columns, column]
        below, rest = block[columns:], start + columns
        self.done += 1
        if not len(below):
            return False
        count, writes = min(len(below), columns), self.waiting == self.gathered
        factors = np.zeros((count, count), order="F")
        info = call("dgeqrt", *below.shape, count, below, lead(below), factors, count, np.empty(count * columns), 0)
        assert info == 0, info
        for column in range(columns):
            kept = min(column + 1, count)
            self.band[start + column, columns - column : columns - column + kept] = below[:kept, column]
        vectors = np.asfortranarray(below[:, :count])
        for column in range(count):
            vectors[:column, column], vectors[column, column] = 0.0, 1.0
        # The diagonal block went to the band: their factors take its place.
        block[:count, :count] = factors
        other.write(place, block)
        del block, below
        images = self._product(vectors, writes, each, disk)
        self._images(vectors, images, factors)
        own = slice(self.waiting * width, self.waiting * width + count)
        self.vectors[rest:, own], self.images[rest:, own] = vectors, images
        # A last panel may have fewer than its place.
        self.vectors[rest:, own.stop : (self.waiting + 1) * width] = self.images[rest:, own.stop : (self.waiting + 1) * width] = 0.0
        self.waiting += 1
        return writes

    def _images(self, vectors: np.ndarray, images: np.ndarray, factors: np.ndarray) -> None:
        """From A V, less the gathered updates, to W, in place."""
        count, start = len(factors), len(self.band) - len(vectors)
        if self.waiting:
            own, their = (part[start:, : self.waiting * self.files[0].width] for part in (self.vectors, self.images))
            for left, right in ((own, their), (their, own)):
                inner = np.zeros((own.shape[1], count), order="F")
                product_added(inner, right, vectors, 1.0, "TN")
                product_added(images, left, inner, -1.0)
        made = np.zeros_like(images)
        product_added(made, images, factors, 1.0)
        inner, turned = (np.zeros((count, count), order="F") for _ in range(2))
        product_added(inner, vectors, made, 1.0, "TN")
        product_added(turned, factors, inner, 1.0, "TN")
        product_added(made, vectors, turned, -0.5)
        images[...] = made

    def _product(self, vectors: np.ndarray, writes: bool, each: Each, disk: ThreadPoolExecutor) -> np.ndarray:
        """What is left of the matrix, as in its file, times vectors; with the gathered updates, and written with them, if it `writes`.

        One block column is multiplied while the next is read and the last written.
        """
        turn, first = turn_before(self.done - 1, self.gathered), self.done
        now, other = self.files[turn], self.files[1 - turn]
        made = np.zeros(vectors.shape, order="F")
        rooms = (now.room(), now.room())
        coming: Future[np.ndarray] = disk.submit(now.read, first, rooms[first % 2])
        going: list[Future[None]] = []
        for place in range(first, now.count):
            block = coming.result()
            if place + 1 < now.count:
                # After what was written from there, for the disk takes one thing after the other.
                coming = disk.submit(now.read, place + 1, rooms[(place + 1) % 2])
            if writes:
                self._updated(block, place * now.width, each)
                going.append(disk.submit(other.write, place, block))
            self._multiplied(block, (place - first) * now.width, vectors, made, each)
        for one in going:
            one.result()
        if writes:
            self.waiting = 0
        return made

    def _updated(self, block: np.ndarray, start: int, each: Each) -> None:
        """A block column with the gathered updates, in place."""
        if not self.waiting:
            return
        columns, kept = block.shape[1], self.waiting * self.files[0].width

        def stripe(row: int) -> None:
            own = block[row : row + _STRIPE]
            for left, right in ((self.vectors, self.images), (self.images, self.vectors)):
                product_added(own, left[start + row :, :kept], right[start : start + columns, :kept], -1.0, "NT")

        list(each(stripe, range(0, len(block), _STRIPE)))

    @staticmethod
    def _multiplied(block: np.ndarray, start: int, vectors: np.ndarray, made: np.ndarray, each: Each) -> None:
        """Adds what a block column, and its mirror image above the diagonal, make of vectors."""
        columns = block.shape[1]
        square = np.tril(block[:columns])
        square += np.tril(block[:columns], -1).T
        own = slice(start, start + columns)
        product_added(made[own], np.asfortranarray(square), vectors[own], 1.0)

        def stripe(row: int) -> np.ndarray:
            part, at = block[row : row + _STRIPE], slice(start + row, start + row + _STRIPE)
            product_added(made[at], part, vectors[own], 1.0)
            above = np.zeros((columns, vectors.shape[1]), order="F")
            product_added(above, part, vectors[at], 1.0, "TN")
            return above

        for above in each(stripe, range(columns, len(block), _STRIPE)):
            made[own] += above


def turn_before(panel: int, gathered: int) -> int:
    """Which of the two files holds what is left of the matrix before a panel; the panel's reflectors lie in the other."""
    return max(panel - 1, 0) // gathered % 2


def turned_by_panels(vectors: np.ndarray, files: tuple[Triangle, Triangle], gathered: int, pieces: Iterable[slice], each: Each) -> None:
    """Make vectors of the band those of the matrix, in place: the last panel's reflectors first. Columns in `pieces`, side by side."""
    pieces, room = list(pieces), files[0].room()
    for panel in range(files[0].count - 2, -1, -1):
        block = files[1 - turn_before(panel, gathered)].read(panel, room)
        columns = block.shape[1]
        below = block[columns:]
        count = min(len(below), columns)
        factors = np.asfortranarray(np.triu(block[:count, :count]))
        for column in range(count):
            below[:column, column], below[column, column] = 0.0, 1.0
        reflected(vectors[panel * files[0].width + columns :], below[:, :count], factors, pieces, each)


def reflected(vectors: np.ndarray, reflectors: np.ndarray, factors: np.ndarray, pieces: list[slice], each: Each) -> None:
    """(I - V T V') times vectors, in place, a piece of columns at a time."""
    list(each(_reflected, repeat(vectors), repeat(reflectors), repeat(factors), pieces))


def _reflected(vectors: np.ndarray, reflectors: np.ndarray, factors: np.ndarray, piece: slice) -> None:
    own = vectors[: len(reflectors), piece]
    inner, turned = (np.zeros((len(factors), own.shape[1]), order="F") for _ in range(2))
    product_added(inner, reflectors, own, 1.0, "TN")
    product_added(turned, factors, inner, 1.0)
    product_added(own, reflectors, turned, -1.0)
