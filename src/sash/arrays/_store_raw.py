"""Numbers that lie in a file as they are: .npy files, uncompressed TIFF, and what `numpy.memmap` maps.

They are read and written, not mapped: mapped pages count as the process's own memory.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from sash.arrays._room import Room
from sash.arrays._store_sink import Sink, Target, remove
from sash.arrays._store_source import Box, Seen, Source, checked_dtype, checked_shape, fetched, lengths
from sash.errors import InputError

BUFFER = 1 << 18
"""Bytes that go through a buffer at a time, where a part does not lie together in memory as it does in the file."""

_PAGE = 4096
"""A gap in the file up to this long is read along: the disk would fetch it anyway."""
SCRATCH_BYTES = BUFFER + _PAGE
"""Of a buffer, with the page that its head takes."""
_CALL = 1 << 30
_synced: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""Without the time of the last change, where the system can: the file has its length from the start."""


class RawSource(Source):
    """Numbers in a file, from an offset on; with several offsets, one for each part along the first `paged` axes."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        stored: np.dtype,
        offsets: Sequence[int] | np.ndarray,
        paged: int = 0,
        seen: Seen | None = None,
    ) -> None:
        self.shape, self.dtype = shape, stored.newbyteorder("=")
        self.grain = (1,) * len(shape)
        self.held_bytes = 8 * len(offsets) if paged else 0
        self._stored, self._offsets, self._paged = stored, offsets, paged
        self._file = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        self._seen = seen or Seen.now(path)
        self._seen.check(self._file)
        needed = max(offsets) + prod(shape[paged:]) * stored.itemsize
        if self._seen.size < needed:
            self.close()
            raise InputError(f"{path} was cut off: its shape {shape} of {stored} takes {needed} bytes, and it has {self._seen.size}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return RawSource, (self._seen.path, self.shape, self._stored, self._offsets, self._paged, self._seen)

    def _identified(self) -> dict[str, Any]:
        return self._seen.identity

    def read_bytes(self, box: Box) -> int:
        """Bytes of the box, and of gaps that are read along."""
        inner, shape = box[self._paged :], self.shape[self._paged :]
        axis = self._gapped(inner)
        count = prod(lengths(inner)) if axis is None else prod(lengths(inner[: axis + 1])) * prod(shape[axis + 1 :])
        return prod(lengths(box[: self._paged])) * count * self.dtype.itemsize

    def expect(self, box: Box) -> None:
        """Have it fetched, where it is one part of the file."""
        if not self._paged and lengths(box[1:]) == self.shape[1:]:
            pitch = prod(self.shape[1:]) * self.dtype.itemsize
            fetched(self._file, *(int(self._offsets[0]) + place * pitch for place in box[0]))

    def scratch_bytes(self, box: Box) -> int:
        """One buffer, which only parts with gaps, in memory or in the file, go through."""
        return SCRATCH_BYTES

    def row_scratch_bytes(self, box: Box) -> int:
        """A buffer for gaps in the file."""
        return 0 if self._gapped(box[self._paged :]) is None else SCRATCH_BYTES

    def close(self) -> None:
        """Let go of the file."""
        self._close()
        self._file = -1

    def _fill(self, box: Box, into: np.ndarray) -> None:
        pages, inner, room = box[: self._paged], box[self._paged :], Room(_buffer)
        axis = self._gapped(inner)
        strides = _strides(self.shape[: self._paged])
        for place in product(*(range(*page) for page in pages)):
            part = into[tuple(index - page.start for index, page in zip(place, pages, strict=True))]
            offset = self._offsets[sum(index * stride for index, stride in zip(place, strides, strict=True))]
            if axis is None:
                for start, piece in _pieces(self.shape[self._paged :], inner, part):
                    self._read(int(offset) + start * self.dtype.itemsize, piece, room)
            else:
                self._read_along(int(offset), axis, inner, part, room)
        if not self._stored.isnative:
            into.byteswap(inplace=True)
        self._seen.check(self._file)

    def _gapped(self, box: Box) -> int | None:
        return gapped(self.shape[self._paged :], box, self.dtype.itemsize)

    def _read_along(self, offset: int, axis: int, box: Box, into: np.ndarray, room: Room) -> None:
        shape = self.shape[self._paged :]
        strides = _strides(shape)
        below = shape[axis + 1 :]
        step = max(1, BUFFER // (strides[axis] * self.dtype.itemsize))
        buffer = room.array("raw", (min(step, box[axis].length), *below), self.dtype)
        for place in product(*(range(*part) for part in box[:axis])):
            start = sum(index * stride for index, stride in zip(place, strides, strict=False))
            part = into[tuple(index - edge.start for index, edge in zip(place, box, strict=False))]
            for first in range(box[axis].start, box[axis].stop, step):
                count = min(step, box[axis].stop - first)
                self._read(offset + (start + first * strides[axis]) * self.dtype.itemsize, buffer[:count], room)
                done = first - box[axis].start
                part[done : done + count] = buffer[:count, box[axis + 1].start : box[axis + 1].stop]

    def _read(self, offset: int, piece: np.ndarray, room: Room) -> None:
        whole = piece if piece.flags.c_contiguous else room.array("raw", piece.shape, piece.dtype)
        view = whole.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            got = os.preadv(self._file, [view[done : done + _CALL]], offset + done)
            if not got:
                self._seen.check(self._file)
                raise InputError(f"{self._seen.path} ended at byte {offset + done} while it was read.")
            done += got
        if whole is not piece:
            piece[...] = whole


class TransposedSource(Source):
    """A source with its axes in reverse: a file in Fortran order."""

    def __init__(self, inner: Source) -> None:
        self.shape, self.dtype, self.grain = inner.shape[::-1], inner.dtype, inner.grain[::-1]
        self._inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        return TransposedSource, (self._inner,)

    def _identified(self) -> dict[str, Any]:
        return self._inner.identity

    def read_bytes(self, box: Box) -> int:
        """As the file counts."""
        return self._inner.read_bytes(box[::-1])

    def scratch_bytes(self, box: Box) -> int:
        """As the file says."""
        return self._inner.scratch_bytes(box[::-1])

    def close(self) -> None:
        """Let go of the file."""
        self._inner.close()

    def _fill(self, box: Box, into: np.ndarray) -> None:
        self._inner.read(box[::-1], into.T)


class RawSink(Sink):
    """Numbers of a file that is there already, with room for all of them from an offset on."""

    def __init__(self, target: Target, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> None:
        self.shape, self.dtype, self.grain = shape, dtype, (1,) * len(shape)
        self._target, self._offset = target, offset
        self._file = os.open(target.partial, os.O_WRONLY)
        self._close = weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process writes to the same file.
        return RawSink, (self._target, self.shape, self.dtype, self._offset)

    def scratch_bytes(self, box: Box) -> int:
        """One buffer, which only parts with gaps in memory go through."""
        return SCRATCH_BYTES

    def flush(self) -> None:
        """Make what was written outlast the machine."""
        with self._target.room(prod(self.shape) * self.dtype.itemsize):
            _synced(self._file)

    def finish(self) -> Path:
        """The path; the file appears under its name."""
        self.flush()
        self.close()
        return self._target.publish()

    def abandon(self) -> None:
        """Take the unfinished file away."""
        self.close()
        self._target.discard()

    def close(self) -> None:
        """Let go of the file."""
        self._close()
        self._file = -1

    def _put(self, box: Box, part: np.ndarray) -> None:
        room = Room(_buffer)
        with self._target.room(prod(self.shape) * self.dtype.itemsize):
            for start, piece in _pieces(self.shape, box, part):
                whole = piece
                if not piece.flags.c_contiguous:
                    whole = room.array("raw", piece.shape, piece.dtype)
                    whole[...] = piece
                view = whole.reshape(-1).view(np.uint8).data
                offset = self._offset + start * self.dtype.itemsize
                done = 0
                while done < len(view):
                    done += os.pwritev(self._file, [view[done : done + _CALL]], offset + done)


def _buffer(nbytes: int) -> np.ndarray:
    """A large one of no less than the C library gives pages of its own, which go when it is freed: in the heap of a thread they stay."""
    return np.empty(max(nbytes, BUFFER) if nbytes > BUFFER // 4 else nbytes, np.uint8)


def gapped(shape: tuple[int, ...], box: Box, item: int) -> int | None:
    """The axis whose gaps in a file are read along, if the box is narrow and the gaps are short."""
    inner = _together(shape, box)
    if inner == 0:
        return None
    pitch = prod(shape[inner:]) * item
    run = box[inner].length * prod(shape[inner + 1 :]) * item
    return inner - 1 if run < _PAGE and pitch - run <= _PAGE else None


def open_npy(path: Path) -> Source:
    """A .npy file, in C or Fortran order and either byte order; raises `InputError` for what is no array of numbers."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, stored = read(file)
            offset = file.tell()
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        raise InputError(f"{path} cannot be read as an array of numbers ({error}); save one with numpy.save.") from error
    checked_dtype(stored, str(path))
    shape = checked_shape(shape, str(path))
    if fortran and len(shape) > 1:
        return TransposedSource(RawSource(path, shape[::-1], stored, (offset,)))
    return RawSource(path, shape, stored, (offset,))


def open_map(array: np.memmap) -> RawSource | None:
    """The file under a map, read by parts; None where the array is not all of the map, in order, or its changes are its own."""
    path: Any = array.filename
    whole = isinstance(array.base, mmap.mmap) and array.flags.c_contiguous and array.mode != "c"
    if not whole or path is None or not Path(path).is_file():
        return None
    if array.mode != "r":
        array.flush()
    checked_dtype(array.dtype, "the array")
    return RawSource(Path(path), checked_shape(array.shape, "the array"), array.dtype, (int(array.offset),))


def new_npy(target: Target, shape: tuple[int, ...], dtype: np.dtype, resume: bool) -> RawSink:
    """A .npy file to be written."""

    def begin(path: Path) -> int:
        with path.open("wb") as file:
            descr = np.lib.format.dtype_to_descr(dtype)
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
            return file.tell()

    def again(path: Path) -> Source:
        return open_npy(path)

    return new_raw(target, shape, dtype, begin, again if resume else None)


def new_raw(
    target: Target, shape: tuple[int, ...], dtype: np.dtype, begin: Callable[[Path], int], again: Callable[[Path], Source] | None
) -> RawSink:
    """A file to be written: `begin` writes its header and returns the numbers' offset; `again` opens one that was left."""
    if again is not None:
        found = again(target.unfinished())
        found.close()
        target.same(shape, dtype, found.shape, found.dtype)
        assert isinstance(found, RawSource), found
        return RawSink(target, shape, dtype, int(found._offsets[0]))
    nbytes = prod(shape) * dtype.itemsize
    target.discard()
    if nbytes > shutil.disk_usage(target.final.parent).free:
        raise target.full(nbytes)
    try:
        with target.room(nbytes):
            offset = begin(target.partial)
            _reserve(target.partial, offset + nbytes)
    except BaseException:
        remove(target.partial)
        raise
    return RawSink(target, shape, dtype, offset)


def _reserve(path: Path, size: int) -> None:
    """Make a file `size` long; where the file system can, its blocks are taken at once, so that the disk cannot fill up later."""
    file = os.open(path, os.O_RDWR)
    try:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file, 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
                    raise
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)
    finally:
        os.close(file)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Numbers from one to the next along each axis, in C order."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _together(shape: tuple[int, ...], box: Box) -> int:
    """The first axis from which on a box lies together in a file."""
    axis = len(shape) - 1
    while axis > 0 and box[axis] == (0, shape[axis]):
        axis -= 1
    return axis


def _pieces(shape: tuple[int, ...], box: Box, array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of `array` that lie together in the file, and in memory or else within a buffer; with where they begin, in numbers."""
    axis = _together(shape, box)
    strides = _strides(shape)
    for place in product(*(range(*part) for part in box[:axis])):
        start = sum(index * stride for index, stride in zip(place, strides, strict=False)) + box[axis].start * strides[axis]
        yield from _cut(start, array[tuple(index - part.start for index, part in zip(place, box, strict=False))])


def _cut(start: int, part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    if part.flags.c_contiguous or part.nbytes <= BUFFER:
        yield start, part
        return
    inner = prod(part.shape[1:])
    step = BUFFER // (inner * part.itemsize)
    if step:
        for first in range(0, len(part), step):
            yield start + first * inner, part[first : first + step]
    else:
        for index in range(len(part)):
            yield from _cut(start + index * inner, part[index])
