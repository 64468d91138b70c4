"""All eigenvalues of a symmetric matrix, and the eigenvectors of the largest, in little more memory than the matrix.

The matrix becomes tridiagonal a panel of columns at a time, in place, by the steps of LAPACK's DSYTRD in a loop that can tell how far it
is, write down where it stands, and share work among threads that sleep while they wait. Half of the operations are products with the matrix
that is left, one a column, each of which reads all of it once: memory sets the pace. DSTERF gives all eigenvalues, DSTEMR the vectors of
those that are wanted, DORMQR turns them back.

Source: Dongarra, Sorensen, Hammarling, Block reduction of matrices to condensed forms, 1989; Dhillon, Parlett, Vömel, The design and
implementation of the MRRR algorithm, 2006.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numba import njit

from sash.arrays._lapack import call, lower_added
from sash.errors import SashError

PANEL = 64
"""Columns that become tridiagonal before the rest is updated."""
LAST = 128
"""Columns that are left to LAPACK in one go."""
_PARTS = 8
"""Of a product with the matrix, summed in order, so that the bits do not depend on how many threads there are."""
_PIECE = 2048
"""Eigenvectors that a thread finds at once, at most."""
_GAP = 1e-9
"""Of the largest eigenvalue: vectors to both sides of a wider one are orthogonal to 1e-7 or better."""
_TURNED = 64
"""Vectors that a thread turns at once."""
NOTED_S = 240.0
"""Seconds from one note of where it stands to the next."""
_MAGIC = "sash.tridiagonal/1"


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """A symmetric tridiagonal matrix."""

    diagonal: np.ndarray
    beside: np.ndarray

    def eigenvalues(self) -> np.ndarray:
        """All of them, the largest first."""
        values, beside = self.diagonal.copy(), np.append(self.beside, 0.0)
        info = call("dsterf", len(values), values, beside, 0)
        if info:
            raise SashError(f"LAPACK's DSTERF found only {len(values) - info} of {len(values)} eigenvalues; the matrix holds huge numbers?")
        return values[::-1]

    def vectors(self, first: int, last: int, values: np.ndarray, threads: int = 1) -> np.ndarray:
        """Its eigenvectors, of eigenvalues from the first to before the last, the largest counted 0."""
        found = np.empty((len(self.diagonal), last - first), order="F")
        pieces = parted(values, first, last, _PIECE) or [(first, last)]

        def piece(own: tuple[int, int]) -> None:
            # The smallest comes first there.
            self._vectors(*own, found[:, last - own[1] : last - own[0]])

        with ThreadPoolExecutor(threads, "sash") as pool:
            list(map(piece, pieces) if threads == 1 else pool.map(piece, pieces))
        return found[:, ::-1]

    def _vectors(self, first: int, last: int, found: np.ndarray) -> None:
        side, count = len(self.diagonal), last - first
        values, counted, tried = np.empty(side), np.zeros(1, np.int32), np.ones(1, np.int32)
        work, whole, support = np.empty(18 * side), np.empty(10 * side, np.int32), np.empty(2 * max(count, 1), np.int32)
        diagonal, beside = self.diagonal.copy(), np.append(self.beside, 0.0)
        place = (side - last + 1, side - first)
        info = call(
            "dstemr", "V", "I", side, diagonal, beside, 0.0, 0.0, *place, counted, values, found, side, count, support, tried,
            work, len(work), whole, len(whole), 0,
        )  # fmt: skip
        if info or counted[0] != count:
            raise SashError(f"LAPACK's DSTEMR ended with {info} and {counted[0]} of {count} eigenvectors.")


@dataclass(eq=False)
class Reduced:
    """A symmetric matrix on its way to a tridiagonal one."""

    matrix: np.ndarray
    """Lower triangle, Fortran's order: reflectors below the diagonal in the columns that are done, the rest to do."""
    diagonal: np.ndarray
    beside: np.ndarray
    factors: np.ndarray
    """Of the reflectors."""
    done: int = 0
    """Columns."""

    @classmethod
    def of(cls, matrix: np.ndarray) -> Reduced:
        """Nothing done yet."""
        side = len(matrix)
        return cls(matrix, np.zeros(side), np.zeros(max(side - 1, 0)), np.zeros(max(side - 1, 1)))

    def run(self, ended: Callable[[float], None], note: Path | None = None, threads: int = 1) -> None:
        """Go on to the end. `ended` is told the share of the work since it was last called; at `note` lies where it stands."""
        side, noted = len(self.matrix), monotonic()
        with ThreadPoolExecutor(threads, "sash") as pool:
            each = map if threads == 1 else pool.map
            while side - self.done > PANEL + LAST:
                self._panel(threads, each)
                ended(((side - self.done + PANEL) ** 3 - (side - self.done) ** 3) / side**3)
                if note is not None and monotonic() - noted >= NOTED_S:
                    self.write(note)
                    noted = monotonic()
        if self.done < side:
            self._rest()
            ended(((PANEL + LAST) / side) ** 3)
            if note is not None:
                self.write(note)

    def _panel(self, threads: int, each: Callable[..., Iterable[Any]]) -> None:
        """Columns one after the other, each by a reflector, and what these change of the rest at once.

        The rest is A - V W' - W V', of reflectors V and W = A V less what came before.
        """
        rest = self.matrix[self.done :, self.done :]
        left = len(rest)
        # V and W beside each other, and W and V.
        both, turned = np.zeros((left, 2 * PANEL), order="F"), np.empty((left, 2 * PANEL), order="F")
        for place in range(PANEL):
            vectors, images = both[:, :place], both[:, PANEL : PANEL + place]
            column = rest[place:, place]
            column -= vectors[place:] @ images[place]
            column -= images[place:] @ vectors[place]
            at, below = self.done + place, rest[place + 1 :, place]
            factor, value = _reflector(below)
            self.diagonal[at], self.beside[at], self.factors[at] = column[0], value, factor
            vector = both[place + 1 :, place]
            vector[...] = below
            vector[0] = 1.0
            image = _product(rest[place + 1 :, place + 1 :], np.ascontiguousarray(vector), each)
            after_vectors, after_images = vectors[place + 1 :], images[place + 1 :]
            image -= after_vectors @ (after_images.T @ vector)
            image -= after_images @ (after_vectors.T @ vector)
            image *= factor
            image -= 0.5 * factor * (image @ vector) * vector
            both[place + 1 :, PANEL + place] = image
        turned[:, :PANEL], turned[:, PANEL:] = both[:, PANEL:], both[:, :PANEL]
        lower_added(rest[PANEL:, PANEL:], both[PANEL:], turned[PANEL:], -1.0, threads)
        self.done += PANEL

    def _rest(self) -> None:
        at, side = self.done, len(self.matrix)
        left = side - at
        work = np.empty(max(64 * left, 1))
        rest = self.matrix[at:, at:]
        info = call("dsytrd", "L", left, rest, side, self.diagonal[at:], self.beside[at:], self.factors[at:], work, len(work), 0)
        assert info == 0, info
        self.done = side

    def write(self, note: Path) -> None:
        """Note where it stands: half the matrix's bytes; an older note stays until this one is whole."""
        fresh = note.with_name(note.name + ".new")
        with fresh.open("wb") as file:
            file.write(f"{_MAGIC} {len(self.matrix)} {self.done}\n".encode())
            for part in (self.diagonal, self.beside, self.factors):
                file.write(np.ascontiguousarray(part).data)
            for column in range(len(self.matrix)):
                file.write(self.matrix[column:, column].data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, note)

    @classmethod
    def read(cls, note: Path, side: int) -> Reduced | None:
        """What an interrupted run noted; None where that is nothing, or of another size."""
        if not note.exists():
            return None
        with note.open("rb") as file:
            magic, *numbers = file.readline().decode("ascii", "replace").split()
            if magic != _MAGIC or int(numbers[0]) != side:
                return None
            found = cls.of(np.zeros((side, side), order="F"))
            for part in (found.diagonal, found.beside, found.factors):
                file.readinto(part.data)
            for column in range(side):
                file.readinto(found.matrix[column:, column].data)
            found.done = int(numbers[1])
        return found

    @property
    def tridiagonal(self) -> Tridiagonal:
        """What the matrix has become."""
        return Tridiagonal(self.diagonal, self.beside)

    def turned_back(self, vectors: np.ndarray, threads: int = 1) -> None:
        """Make eigenvectors of the tridiagonal matrix those of the matrix, in place; Fortran's order, or its columns from last to first."""
        side = len(self.matrix)
        if side < 2:
            return
        forward = vectors if vectors.strides[1] > 0 else vectors[:, ::-1]

        def turn(start: int) -> None:
            own = forward[:, start : start + _TURNED]
            work = np.empty(64 * own.shape[1] + 65 * 64)
            size = side - 1
            call("dormqr", "L", "N", size, own.shape[1], size, self.matrix[1:], side, self.factors, own[1:], side, work, len(work), 0)

        starts = range(0, forward.shape[1], _TURNED)
        with ThreadPoolExecutor(threads, "sash") as pool:
            list(map(turn, starts) if threads == 1 else pool.map(turn, starts))


def parted(values: np.ndarray, first: int, last: int, most: int) -> list[tuple[int, int]] | None:
    """Runs of at most so many eigenvalues, cut where they lie apart, late if they do there; None where as many lie together.

    Vectors of one run are orthogonal however near their values; those of two runs are as far as the gap between them is wide.
    """
    found, start = list[tuple[int, int]](), first
    while last - start > most:
        low, high = start + max(most * 3 // 4, 1), start + most
        gaps = values[low - 1 : high] - values[low : high + 1]
        place = low + int(np.argmax(gaps))
        if gaps[place - low] <= _GAP * values[0]:
            wide = np.flatnonzero(values[start : low - 1] - values[start + 1 : low] > _GAP * values[0])
            if not len(wide):
                return None
            place = start + 1 + int(wide[-1])
        found.append((start, place))
        start = place
    return [*found, (start, last)]


def _reflector(column: np.ndarray) -> tuple[float, float]:
    """The factor of the reflection that leaves a column's first number alone, and that number; below it lies the vector, after a one."""
    first, rest = float(column[0]), float(np.linalg.norm(column[1:]))
    if rest == 0.0:
        return 0.0, first
    value = -np.copysign(np.hypot(first, rest), first)
    column[1:] /= first - value
    column[0] = value
    return float((value - first) / value), float(value)


def _product(matrix: np.ndarray, vector: np.ndarray, each: Callable[..., Iterable[Any]]) -> np.ndarray:
    """A symmetric matrix, of which the lower triangle is read once, times a vector."""
    side = len(matrix)
    edges = (np.round((1 - np.sqrt(1 - np.arange(_PARTS + 1) / _PARTS)) * side / 4) * 4).astype(int)
    edges[-1] = side
    parts = np.zeros((_PARTS, side))
    rows = matrix.T
    list(each(lambda part: _symmetric(rows, vector, parts[part], edges[part], edges[part + 1]), range(_PARTS)))
    return parts.sum(axis=0)


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _symmetric(rows, vector, into, start, stop):
    """Adds what rows of the upper triangle, and the columns below their diagonal, make of a vector: four rows at once, each read once."""
    side = len(rows)
    row = start
    while row < stop:
        last = min(row + 4, stop)
        if last - row < 4:
            for one in range(row, last):
                total = rows[one, one] * vector[one]
                for place in range(one + 1, side):
                    total += rows[one, place] * vector[place]
                    into[place] += rows[one, place] * vector[one]
                into[one] += total
            return
        for one in range(row, last):
            total = rows[one, one] * vector[one]
            for place in range(one + 1, last):
                total += rows[one, place] * vector[place]
                into[place] += rows[one, place] * vector[one]
            into[one] += total
        first, second, third, fourth = rows[row, last:side], rows[row + 1, last:side], rows[row + 2, last:side], rows[row + 3, last:side]
        a, b, c, d = vector[row], vector[row + 1], vector[row + 2], vector[row + 3]
        beyond, target = vector[last:side], into[last:side]
        own_a, own_b, own_c, own_d = 0.0, 0.0, 0.0, 0.0
        for place in range(side - last):
            e, f, g, h, other = first[place], second[place], third[place], fourth[place], beyond[place]
            own_a += e * other
            own_b += f * other
            own_c += g * other
            own_d += h * other
            target[place] += (a * e + b * f) + (c * g + d * h)
        into[row] += own_a
        into[row + 1] += own_b
        into[row + 2] += own_c
        into[row + 3] += own_d
        row += 4
