"""The lower triangle of a square matrix in a file: block columns, each of which lies together, read and written by number."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sash.errors import InputError, SashError
from sash.units import format_bytes


def triangle_bytes(side: int, width: int) -> int:
    """Of such a file: block columns begin at their diagonal block, which is whole."""
    return _before(side, width, -(-side // width))


@dataclass(frozen=True, eq=False)
class Triangle:
    """A file, open as long as this is there. What the system keeps of it is not memory of this process, as a mapped file would be."""

    path: Path
    descriptor: int
    side: int
    width: int
    """Columns of a block; the last may have fewer."""

    @classmethod
    def at(cls, path: Path, side: int, width: int) -> Triangle:
        """The file at a path, with room for all of it on the disk; raises `InputError` where there is none."""
        size = triangle_bytes(side, width)
        with _told(path, size):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _reserve(descriptor, size)
            except BaseException:
                os.close(descriptor)
                raise
        found = cls(path, descriptor, side, width)
        weakref.finalize(found, os.close, descriptor)
        return found

    @property
    def count(self) -> int:
        """Block columns."""
        return -(-self.side // self.width)

    def shape(self, place: int) -> tuple[int, int]:
        """Rows, from the diagonal on, and columns of a block column."""
        rows = self.side - place * self.width
        return rows, min(self.width, rows)

    def room(self) -> np.ndarray:
        """What any block column is read into."""
        return np.empty(self.side * min(self.width, self.side))

    def read(self, place: int, into: np.ndarray) -> np.ndarray:
        """A block column, in Fortran's order, at the beginning of `into`."""
        rows, columns = self.shape(place)
        part = into[: rows * columns]
        left, at = part.view(np.uint8).data, _before(self.side, self.width, place)
        with _told(self.path, 0):
            while left:
                got = os.preadv(self.descriptor, [left], at)
                if not got:
                    raise SashError(f"{self.path} was cut off at {format_bytes(at)} while it was in use; begin anew with restart=True.")
                left, at = left[got:], at + got
        return part.reshape((rows, columns), order="F")

    def write(self, place: int, block: np.ndarray) -> None:
        """A block column, in Fortran's order."""
        assert block.shape == self.shape(place), (block.shape, place)
        left, at = block.reshape(-1, order="F").view(np.uint8).data, _before(self.side, self.width, place)
        with _told(self.path, triangle_bytes(self.side, self.width)):
            while left:
                put = os.pwritev(self.descriptor, [left], at)
                left, at = left[put:], at + put

    def sync(self) -> None:
        """Make what was written outlast the machine."""
        with _told(self.path, triangle_bytes(self.side, self.width)):
            os.fsync(self.descriptor)


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            # Some file systems cannot.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


def _before(side: int, width: int, place: int) -> int:
    """Bytes of the block columns before one."""
    whole = min(place, side // width)
    numbers = width * (whole * side - width * whole * (whole - 1) // 2)
    if place > whole:
        numbers += (side - whole * width) ** 2
    return 8 * numbers


@contextmanager
def _told(path: Path, size: int) -> Iterator[None]:
    """What the disk refuses, as an `InputError`."""
    try:
        yield
    except OSError as error:
        near = f"it takes {format_bytes(size)}; make room there, or choose an output on another disk" if size else "is the disk sound?"
        raise InputError(f"{path} cannot be {'written' if size else 'read'} ({error.strerror}): {near}.") from error
