"""What every sink of numbers has in common, where an unfinished one lies, and arrays in memory as one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_source import Box, lengths, on, slices
from sash.errors import InputError
from sash.units import format_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Sink:
    """Where numbers are written a box at a time; from any number of threads, as long as their boxes are apart."""

    shape: tuple[int, ...]
    dtype: np.dtype
    grain: tuple[int, ...]
    """Boxes start at multiples of it, and end at one or at the array's end."""
    held_bytes: int = 0
    """Memory that it takes for as long as it is open; an array of the user's own does not count."""

    @property
    def array(self) -> np.ndarray | None:
        """The numbers where they lie in memory, else None."""
        return None

    def write(self, box: Box, part: np.ndarray) -> None:
        """Put a part, of any strides, into its box."""
        assert part.dtype == self.dtype, (part.dtype, self.dtype)
        assert part.shape == lengths(box), (box, part.shape)
        assert on(box, self.shape), (box, self.shape)
        edges = zip(box, self.grain, self.shape, strict=True)
        assert all(start % cell == 0 and (stop % cell == 0 or stop == length) for (start, stop), cell, length in edges), (box, self.grain)
        if part.size:
            self._put(box, part)

    def scratch_bytes(self, box: Box) -> int:
        """At most what a write allocates."""
        return 0

    def flush(self) -> None:
        """Make what was written outlast the machine."""

    def finish(self) -> Any:
        """The path or the array; the output appears under its name, whole."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Take the unfinished output away."""

    def close(self) -> None:
        """Let go of it; what was written stays, to be taken up with `resume`."""

    def _put(self, box: Box, part: np.ndarray) -> None:
        raise NotImplementedError


class ArraySink(Sink):
    """An array in memory: a new one, or the user's."""

    def __init__(self, array: np.ndarray, held_bytes: int) -> None:
        self.shape, self.dtype, self.held_bytes = array.shape, array.dtype.newbyteorder("="), held_bytes
        self.grain = (1,) * array.ndim
        self._array = array

    @property
    def array(self) -> np.ndarray | None:
        """The array itself."""
        return self._array

    def finish(self) -> np.ndarray:
        """The array."""
        return self._array

    def _put(self, box: Box, part: np.ndarray) -> None:
        self._array[slices(box)] = part


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output goes, and where it lies until it is whole."""

    out: Path
    """As the user gave it."""
    final: Path
    """Behind links."""

    @classmethod
    def of(cls, out: Path, overwrite: bool, folder: bool) -> Target:
        """Checked: raises `InputError` where nothing can be written, or where something is that may not be written over."""
        final = _behind_links(out)
        if not final.parent.is_dir():
            raise InputError(f"there is no folder {final.parent} for {out.name}; make it first.")
        if not os.access(final.parent, os.W_OK | os.X_OK):
            raise InputError(f"the folder {final.parent} cannot be written to; choose another one for {out.name}.")
        if final.exists():
            if not overwrite:
                raise InputError(f"{out} is there already; say overwrite=True to replace it, or give another name.")
            ours = folder and any((final / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
            if final.is_dir() and not ours:
                raise InputError(f"{out} is a folder, and not one of zarr, so it is not replaced; give another name.")
        return cls(out, final)

    @property
    def partial(self) -> Path:
        """Its name until it is whole."""
        return partial_of(self.final)

    @property
    def told(self) -> str:
        """The output in a message."""
        return str(self.out)

    def unfinished(self) -> Path:
        """What an interrupted run left; raises `InputError` if nothing."""
        if not self.partial.exists():
            raise InputError(f"there is no {self.partial.name} in {self.partial.parent} to go on with; begin anew, without resume.")
        return self.partial

    def same(self, shape: tuple[int, ...], dtype: np.dtype, found_shape: tuple[int, ...], found_dtype: np.dtype) -> None:
        """Raise `InputError` if what was left is not of this shape and type."""
        if (shape, dtype) != (found_shape, found_dtype):
            raise InputError(
                f"{self.partial} was left with the shape {found_shape} of {found_dtype}; the output has {shape} of {dtype}. "
                "Begin anew, without resume."
            )

    def publish(self) -> Path:
        """Give the whole output its name."""
        if self.partial.is_dir():
            # A folder cannot replace one that is not empty; the old one steps aside first.
            old = self.final.with_name(self.final.name + ".replaced")
            remove(old)
            if self.final.exists():
                os.rename(self.final, old)
            os.rename(self.partial, self.final)
            remove(old)
        else:
            os.replace(self.partial, self.final)
        sync(self.final.parent)
        return self.out

    def discard(self) -> None:
        """Take the unfinished output away."""
        remove(self.partial)

    @contextmanager
    def room(self, needed: int) -> Iterator[None]:
        """A full or a failing disk, or a folder that cannot be written to, as an `InputError`."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self.full(needed) from error
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                raise InputError(f"{self.partial} cannot be written ({error.strerror}); choose another folder.") from error
            if error.errno == errno.EIO:
                raise InputError(
                    f"{self.partial} cannot be written ({error.strerror}): is the disk sound? Choose a folder on another one."
                ) from error
            raise

    def full(self, needed: int) -> InputError:
        """What to say where the disk is too small."""
        free = shutil.disk_usage(self.final.parent).free
        return InputError(
            f"{self.out} takes {format_bytes(needed)}; {self.final.parent} has {format_bytes(free)} free. "
            "Make room there, or choose a folder on another disk."
        )


def partial_of(out: Path) -> Path:
    """The name of an output until it is whole; beside the file itself where `out` is a link."""
    final = _behind_links(out)
    return final.with_name(final.name + ".partial")


def remove(path: Path) -> None:
    """Take a file or a folder away, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path | str) -> None:
    """Make a file, or a folder's list of names, outlast the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _behind_links(out: Path) -> Path:
    return out.resolve() if out.is_symlink() else out
