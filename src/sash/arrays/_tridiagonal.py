"""All eigenvalues of a symmetric matrix, and the eigenvectors of the largest, in little more memory than the matrix.

The matrix becomes tridiagonal a panel of columns at a time, in place (LAPACK's own steps, DLATRD and DSYR2K, in a loop that can tell how far
it is and write down where it stands); DSTERF gives all eigenvalues, DSTEMR the vectors of those that are wanted, DORMQR turns them back.

Source: Dongarra, Sorensen, Hammarling, Block reduction of matrices to condensed forms, 1989; Dhillon, Parlett, Vömel, The design and
implementation of the MRRR algorithm, 2006.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from sash.arrays._lapack import call
from sash.errors import SashError

PANEL = 32
"""Columns that become tridiagonal before the rest is updated."""
LAST = 64
"""Columns that are left to LAPACK in one go."""
NOTED_S = 240.0
"""Seconds from one note of where it stands to the next."""
_MAGIC = "sash.tridiagonal/1"


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

    def run(self, ended: Callable[[float], None], note: Path | None = None, every_s: float = NOTED_S) -> None:
        """Go on to the end. `ended` is told the share of the work since it was last called; at `note` lies where it stands."""
        side, noted = len(self.matrix), monotonic()
        # Rows that a panel's reflectors are in.
        beside = np.empty((side, PANEL), order="F")
        while side - self.done > PANEL + LAST:
            self._panel(beside)
            ended(((side - self.done + PANEL) ** 3 - (side - self.done) ** 3) / side**3)
            if note is not None and monotonic() - noted >= every_s:
                self.write(note)
                noted = monotonic()
        if self.done < side:
            self._rest()
            ended(0.0)
            if note is not None:
                self.write(note)

    def _panel(self, beside: np.ndarray) -> None:
        matrix, at, side = self.matrix, self.done, len(self.matrix)
        left, after = side - at, at + PANEL
        call("dlatrd", "L", left, PANEL, matrix[at:, at:], side, self.beside[at:], self.factors[at:], beside, side)
        call(
            "dsyr2k", "L", "N", left - PANEL, PANEL, -1.0, matrix[after:, at:], side, beside[PANEL:], side, 1.0, matrix[after:, after:], side
        )  # fmt: skip
        for column in range(at, after):
            matrix[column + 1, column] = self.beside[column]
            self.diagonal[column] = matrix[column, column]
        self.done = after

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

    def eigenvalues(self) -> np.ndarray:
        """All of them, the largest first."""
        values, beside = self.diagonal.copy(), np.append(self.beside, 0.0)
        info = call("dsterf", len(values), values, beside, 0)
        if info:
            raise SashError(f"LAPACK's DSTERF found only {len(values) - info} of {len(values)} eigenvalues; the matrix holds huge numbers?")
        return values[::-1]

    def vectors(self, first: int, last: int) -> np.ndarray:
        """Eigenvectors of the tridiagonal matrix, of eigenvalues from the first to before the last, the largest counted 0."""
        side, count = len(self.diagonal), last - first
        found = np.empty((side, count), order="F")
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
        return found[:, ::-1]

    def turned_back(self, vectors: np.ndarray) -> None:
        """Make eigenvectors of the tridiagonal matrix those of the matrix, in place; Fortran's order or its columns from the last to first."""
        side = len(self.matrix)
        if side < 2:
            return
        forward = vectors if vectors.strides[1] > 0 else vectors[:, ::-1]
        work = np.empty(64 * forward.shape[1] + 65 * 64)
        call(
            "dormqr", "L", "N", side - 1, forward.shape[1], side - 1, self.matrix[1:, :], side, self.factors, forward[1:, :], side,
            work, len(work), 0,
        )  # fmt: skip
