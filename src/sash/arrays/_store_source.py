"""What every source of numbers has in common, and arrays in memory as one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.errors import InputError
from sash.window import Interval

Box = tuple[Interval, ...]
"""One half-open interval an axis."""
KINDS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {
    "bool",
    *(f"float{bits}" for bits in (16, 32, 64)),
    *(f"complex{bits}" for bits in (64, 128)),
}
"""Types of numbers that a store holds."""

_FETCHED = 128 << 10
"""Bytes at a time: of a longer part Linux fetches only so many from its beginning, or as many as a disk takes at once."""


class Source:
    """Numbers that are read a box at a time, from any number of threads."""

    shape: tuple[int, ...]
    """As stored: (rows, columns), (planes, rows, columns), (rows, columns, channels), (frames,), (channels, frames)."""
    dtype: np.dtype
    """Of what `read` gives; in the machine's byte order."""
    grain: tuple[int, ...]
    """The smallest box that is read without decoding more than was asked."""
    held_bytes: int = 0
    """Memory that it takes for as long as it is open; the user's own arrays do not count."""
    block_bytes: int = 0
    """Of what is decoded at a time in threads of a library's own; 0 where there are none."""
    rate_hz: int | None = None
    """Frames a second, of sound."""

    @property
    def array(self) -> np.ndarray | None:
        """The numbers where they lie in memory, else None."""
        return None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a resumed run compares, as JSON: a file's path, size and time; an array's shape, type and content, which takes a pass."""
        return self._identified()

    def read(self, box: Box, into: np.ndarray) -> None:
        """Fill `into`, of the box's shape and any strides; raises `InputError` for a file that was changed or cut off."""
        assert into.dtype == self.dtype, (into.dtype, self.dtype)
        assert into.shape == lengths(box), (box, into.shape)
        assert on(box, self.shape), (box, self.shape)
        if into.size:
            self._fill(box, into)

    def expect(self, box: Box) -> None:
        """Told what will be read: the system may fetch it meanwhile, into memory of its own."""

    def read_bytes(self, box: Box) -> int:
        """Bytes that a read moves off the disk or out of decoded chunks, uncompressed."""
        return prod(lengths(box)) * self.dtype.itemsize

    def scratch_bytes(self, box: Box) -> int:
        """At most what a read allocates beside `into`."""
        return 0

    def row_scratch_bytes(self, box: Box) -> int:
        """The same where each row of `into` lies together."""
        return self.scratch_bytes(box)

    def close(self) -> None:
        """Let go of it."""

    def _fill(self, box: Box, into: np.ndarray) -> None:
        raise NotImplementedError

    def _identified(self) -> dict[str, Any]:
        raise NotImplementedError


class ArraySource(Source):
    """An array in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.dtype = checked_shape(array.shape, "the array"), checked_dtype(array.dtype, "the array")
        self.grain = (1,) * len(self.shape)
        self._array = array.view(np.ndarray)

    @property
    def array(self) -> np.ndarray | None:
        """The array itself; None where its byte order is not the machine's."""
        return self._array if self._array.dtype.isnative else None

    def _identified(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        _digest(self._array, digest)
        return {"shape": list(self.shape), "dtype": self.dtype.name, "sha256": digest.hexdigest()}

    def _fill(self, box: Box, into: np.ndarray) -> None:
        into[...] = self._array[slices(box)]


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was when it was opened."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def now(cls, path: Path) -> Seen:
        """The file as it is."""
        state = path.stat()
        return cls(path, state.st_size, state.st_mtime_ns)

    @property
    def identity(self) -> dict[str, Any]:
        """As JSON."""
        return {"path": str(self.path.resolve()), "size": self.size, "mtime_ns": self.mtime_ns}

    def check(self, place: int | Path) -> None:
        """Raise `InputError` if the file, by descriptor or path, is another one by now."""
        try:
            state = os.stat(place)
        except FileNotFoundError:
            raise InputError(f"{self.path} was taken away while it was read; put it back, and begin anew.") from None
        if (state.st_size, state.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputError(
                f"{self.path} changed while it was read: it had {self.size} bytes and has {state.st_size}. "
                "Begin anew once nothing writes to it any more."
            )


def checked_dtype(dtype: Any, told: str) -> np.dtype:
    """A type of numbers, in the machine's byte order; raises `InputError` for objects, strings, records and long doubles."""
    dtype = np.dtype(dtype)
    if dtype.hasobject or dtype.name not in KINDS:
        near = "convert it with .astype" if dtype.kind in "fcbiu" else "give an array of numbers"
        raise InputError(f"{told} holds {dtype}; sash reads and writes whole, floating and complex numbers, and bool: {near}.")
    return dtype.newbyteorder("=")


def checked_shape(shape: tuple[int, ...], told: str) -> tuple[int, ...]:
    """A shape with at least one axis and one number; raises `InputError` for any other."""
    if not shape or min(shape) < 1:
        raise InputError(
            f"{told} has the shape {tuple(shape)}, so it holds {'one number' if not shape else 'none'}; give at least one axis of some."
        )
    return tuple(int(length) for length in shape)


def lengths(box: Box) -> tuple[int, ...]:
    """A box's shape."""
    return tuple(stop - start for start, stop in box)


def slices(box: Box) -> tuple[slice, ...]:
    """A box as numpy takes it."""
    return tuple(slice(start, stop) for start, stop in box)


def on(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a box lies within a shape."""
    return len(box) == len(shape) and all(0 <= start <= stop <= length for (start, stop), length in zip(box, shape, strict=True))


def touched(box: Box, grain: tuple[int, ...]) -> Box:
    """The cells of a grid of `grain` that a box lies on, in cells."""
    return tuple(Interval(start // cell, -(-stop // cell)) for (start, stop), cell in zip(box, grain, strict=True))


def fetched(file: int, start: int, stop: int) -> None:
    """Have the system fetch these bytes of an open file; where it does not know how, it stays as it is."""
    if hasattr(os, "posix_fadvise"):
        for first in range(start, stop, _FETCHED):
            os.posix_fadvise(file, first, min(_FETCHED, stop - first), os.POSIX_FADV_WILLNEED)


def needs(library: str, doing: str) -> InputError:
    """What to say where an optional library is missing."""
    return InputError(f"{doing} needs {library}, which is not installed: pip install 'sash[arrays]'.")


def _digest(array: np.ndarray, digest: Any) -> None:
    """Its numbers in order, in the machine's byte order, at most a mebibyte copied at a time."""
    if array.nbytes <= 1 << 20 or (array.flags.c_contiguous and array.dtype.isnative):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1).view(np.uint8).data)
    elif array.ndim == 1:
        for first in range(0, len(array), 1 << 16):
            _digest(array[first : first + (1 << 16)], digest)
    else:
        for part in array:
            _digest(part, digest)
