"""Zarr arrays: read a few chunks at a time, written a shard at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_sink import Sink, Target, sync
from sash.arrays._store_source import Box, Seen, Source, checked_dtype, checked_shape, fetched, needs, slices, touched
from sash.arrays._store_zarr_calls import called_here, may_call_here
from sash.errors import InputError
from sash.window import Interval

_PORTION = 4 << 20
"""Bytes of chunks that one call reads, where a chunk is smaller: a call takes about a millisecond, whatever it reads."""
_TOGETHER, _OBJECT_BYTES = 128, 4 << 10
"""Chunks that one call reads, at most, and what zarr makes of objects for each; Python keeps their memory."""
_STARTED = 256 << 10
"""What opening an array leaves: the loop that zarr reads metadata in, and its threads."""
_DECODER_BYTES = 192 << 10
"""Of zstd's tables while a chunk is decoded."""

_WRITTEN: Any = {"write_empty_chunks": True}
"""zarr would compare each chunk with zeros, to leave it out, in arrays of five bytes a number."""
MOST_CHANNELS = 16
"""In the last axis of three, as planes have them."""
_CHUNK = 2 << 20
_STEP_NS = 10**9
"""Longer than a step of any file system's clock but FAT's."""
_SHARD = 64 << 20
_NAMES = ("zarr.json", ".zarray", ".zgroup")


class ZarrSource(Source):
    """An array of chunks; of shards, the chunks inside are what is read."""

    def __init__(self, array: Any, path: Path | None) -> None:
        told = str(path or array)
        self.shape, self.dtype = checked_shape(tuple(array.shape), told), checked_dtype(array.dtype, told)
        self.grain = tuple(array.chunks)
        whole = tuple(Interval(0, length) for length in self.shape)
        self.held_bytes, self.block_bytes = _STARTED + prod(self._step(whole)) * _OBJECT_BYTES, self._chunk_bytes
        self._array, self._told = array, told
        self._seen = None if path is None else Seen.now(_metadata(path))
        shards = array.shards or array.chunks
        self._index_bytes = 16 * prod(-(-shard // chunk) for shard, chunk in zip(shards, array.chunks, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._seen is None:
            return ZarrSource, (self._array, None)
        return _opened_again, (self._seen,)

    def _identified(self) -> dict[str, Any]:
        # The metadata does not change when chunks do, so all files are looked at.
        if self._seen is None:
            return {"store": str(self._array.store_path), "metadata": str(self._array.metadata)}
        # One after the other: of many chunks, a list of them would take more than a small job.
        count = size = newest = 0
        for entry in _files(str(self._seen.path.parent)):
            state = entry.stat()
            count, size, newest = count + 1, size + state.st_size, max(newest, state.st_mtime_ns)
        return {"path": str(self._seen.path.parent.resolve()), "files": count, "size": size, "mtime_ns": newest}

    def read_bytes(self, box: Box) -> int:
        """Bytes of all chunks that the box lies on, decoded."""
        return prod(part.length for part in touched(box, self.grain)) * self._chunk_bytes

    def expect(self, box: Box) -> None:
        """Have the files that the box lies on fetched."""
        if self._seen is not None:
            for cell in product(*(range(*cells) for cells in touched(box, tuple(self._array.shards or self._array.chunks)))):
                # A chunk that is not there is all fill values; what else is wrong is told when it is read.
                with suppress(OSError), (self._seen.path.parent / self._array.metadata.encode_chunk_key(cell)).open("rb") as file:
                    fetched(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    def scratch_bytes(self, box: Box) -> int:
        """Of one call's chunks, some at a time: encoded and decoded; those of shards all encoded and put together; the shard's index."""
        count = prod(self._step(box))
        some = min(count, _at_once())
        held = 2 * count + some if self._array.shards else 2 * some
        return held * self._chunk_bytes + _DECODER_BYTES + 3 * self._index_bytes

    @property
    def _chunk_bytes(self) -> int:
        return prod(self.grain) * self.dtype.itemsize

    def _step(self, box: Box) -> tuple[int, ...]:
        """Chunks that one call reads along each axis."""
        step = [1] * len(self.shape)
        for axis, cells in reversed(list(enumerate(touched(box, self.grain)))):
            step[axis] = max(1, min(cells.length, _PORTION // (prod(step) * self._chunk_bytes), _TOGETHER // prod(step)))
        return tuple(step)

    def _fill(self, box: Box, into: np.ndarray) -> None:
        from zarr.buffer.cpu import NDBuffer

        portion = tuple(count * cell for count, cell in zip(self._step(box), self.grain, strict=True))
        for cell in product(*(range(*part) for part in touched(box, portion))):
            part = _cell(cell, portion, box)
            target = into[slices(tuple(Interval(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True)))]
            buffer = NDBuffer.from_numpy_array(target)
            try:
                if self._seen is not None and may_call_here():
                    called_here(partial(self._array.async_array.get_orthogonal_selection, slices(part), out=buffer))
                else:
                    # Other stores than files may belong to zarr's own loop.
                    self._array.get_basic_selection(slices(part), out=buffer)
            except MemoryError:
                raise
            except Exception as error:
                where = ", ".join(f"{start}:{stop}" for start, stop in part)
                raise InputError(f"{self._told} cannot be read at [{where}] ({error}); a chunk is damaged or was cut off.") from error
        if self._seen is not None:
            self._seen.check(self._seen.path)


class ZarrSink(Sink):
    """An array in a folder; its grain is a shard."""

    def __init__(self, array: Any, target: Target) -> None:
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.grain = tuple(array.shards or array.chunks)
        self._array, self._target = array, target
        self._newest_ns = 0
        """The last change of what the last flush put on the disk. Not a list of files: a long job has many, and would hold more than a
        short one."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process writes to the same folder, other shards.
        return _written_again, (self._target,)

    def scratch_bytes(self, box: Box) -> int:
        """Of one shard."""
        return shard_bytes(box, self.grain, self.shape, self.dtype)

    def flush(self) -> None:
        """Make the shards that were written outlast the machine: those of other processes, and of one that was killed, as well."""
        # Clocks of files go by steps: what changed just before may have changed once more.
        root, since = str(self._target.partial), self._newest_ns - _STEP_NS
        with self._target.room(prod(self.shape) * self.dtype.itemsize):
            # Looked at first: what comes while others are synced is newer, and has its turn the next time.
            newest = max((_changed_ns(state) for _, state in _states(root)), default=0)
            for place, state in chain(_states(root), [(root, os.stat(root))]):
                if _changed_ns(state) >= since:
                    # One that zarr has not given its name yet is gone by now.
                    with suppress(FileNotFoundError):
                        sync(place)
        self._newest_ns = newest

    def finish(self) -> Path:
        """The path; the folder appears under its name."""
        self.flush()
        return self._target.publish()

    def abandon(self) -> None:
        """Take the unfinished folder away."""
        self._target.discard()

    def _put(self, box: Box, part: np.ndarray) -> None:
        # A shard at a time: zarr would encode ten of them at once.
        for cell in product(*(range(*cells) for cells in touched(box, self.grain))):
            place = _cell(cell, self.grain, box)
            inner = tuple(Interval(p.start - b.start, p.stop - b.start) for p, b in zip(place, box, strict=True))
            with self._target.room(prod(self.shape) * self.dtype.itemsize):
                # All of the shard is written; zarr would read an older one in first.
                self._file(cell).unlink(missing_ok=True)
                if may_call_here():
                    called_here(partial(self._array.async_array.setitem, slices(place), part[slices(inner)]))
                else:
                    self._array.set_basic_selection(slices(place), part[slices(inner)])

    def _file(self, cell: tuple[int, ...]) -> Path:
        return self._target.partial / self._array.metadata.encode_chunk_key(cell)


def shard_bytes(box: Box, grain: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype) -> int:
    """What writing a shard takes: its chunks encoded, in room for the worst, these put together, and its numbers where it hangs over the
    edge; and where they do not lie together, as those of channels do that are gone through one by one. One of one chunk is encoded from
    where it was put together."""
    nbytes = prod(grain) * dtype.itemsize
    if nbytes <= _CHUNK:
        return 2 * nbytes + encoder_bytes(nbytes)
    over = any(stop % cell for (_, stop), cell in zip(box, grain, strict=True))
    apart = len(shape) > 2 and 1 < shape[-1] <= MOST_CHANNELS
    return (3 + over + apart) * nbytes + encoder_bytes(_CHUNK)


def encoder_bytes(chunk_bytes: int) -> int:
    """Of zstd's tables while a chunk is encoded at zarr's level, 3: two of hashes, whose size goes with the chunk's, and sequences.

    Source: zstd's table of parameters by level and size of input, lib/compress/clevels.h.
    """
    return (512 << 10) + (768 << 10 if chunk_bytes > 256 << 10 else 512 << 10 if chunk_bytes > 128 << 10 else 384 << 10)


def open_zarr(path: Path) -> ZarrSource:
    """An array in a folder, of format 2 or 3; raises `InputError` for a group, and names the arrays in it."""
    zarr = _zarr(f"reading {path}")
    try:
        found = zarr.open(path, mode="r")
    except Exception as error:
        raise InputError(f"{path} cannot be read as zarr ({error}).") from error
    return open_zarr_array(found)


def open_zarr_array(array: Any) -> ZarrSource:
    """An array that is open already, in any store; raises `InputError` for a group."""
    from zarr import Array
    from zarr.storage import LocalStore

    store = array.store_path.store
    if not isinstance(array, Array):
        names = [name for name, member in array.members(max_depth=None) if isinstance(member, Array)]
        near = f"give one of its arrays: {', '.join(names[:6])}" if names else "it has no arrays"
        raise InputError(f"{array.store_path} is a group of zarr, not an array; {near}.")
    return ZarrSource(array, Path(store.root) / array.store_path.path if isinstance(store, LocalStore) else None)


def new_zarr(
    target: Target, shape: tuple[int, ...], dtype: np.dtype, resume: bool, chunks: tuple[int, ...] | None, shards: tuple[int, ...] | None
) -> ZarrSink:
    """A folder to be written: format 3, in shards."""
    zarr = _zarr(f"writing {target.out}")
    if resume:
        try:
            array = zarr.open_array(target.unfinished(), mode="r+", config=_WRITTEN)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{target.partial} cannot be gone on with ({error}); begin anew, without resume.") from error
        target.same(shape, dtype, tuple(array.shape), np.dtype(array.dtype))
        return ZarrSink(array, target)
    chunks, shards = zarr_layout(shape, dtype, chunks, shards)
    target.discard()
    try:
        with target.room(prod(shape) * dtype.itemsize):
            array = zarr.create_array(
                store=target.partial,
                shape=shape,
                dtype=dtype,
                chunks=chunks,
                shards=None if shards == chunks else shards,
                fill_value=0,
                config=_WRITTEN,
            )
    except BaseException:
        target.discard()
        raise
    return ZarrSink(array, target)


def zarr_layout(
    shape: tuple[int, ...], dtype: np.dtype, chunks: tuple[int, ...] | None = None, shards: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks of one to two MiB, and shards of whole chunks of up to 64 MiB; what is given stays.

    Raises `InputError` where the shards do not hold whole chunks.
    """
    for name, given in (("chunks", chunks), ("shards", shards)):
        if given is not None and (len(given) != len(shape) or min(given) < 1):
            raise InputError(f"{name} are {tuple(given)}; an array of {shape} takes {len(shape)} lengths of at least 1.")
    if chunks is None:
        chunks = _divided(shape, dtype.itemsize) if shards is None else _halved(tuple(shards), dtype.itemsize)
    chunks = tuple(chunks)
    if shards is None:
        return chunks, _gathered(shape, chunks, dtype.itemsize)
    if any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        near = tuple(-(-shard // chunk) * chunk for shard, chunk in zip(shards, chunks, strict=True))
        raise InputError(f"shards of {tuple(shards)} do not hold whole chunks of {chunks}; {near} do.")
    return chunks, tuple(shards)


def is_zarr(path: Path) -> bool:
    """Whether a folder is an array or a group of zarr."""
    return any((path / name).is_file() for name in _NAMES)


def _divided(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The longest axes cut to powers of two."""
    chunk = list(shape)
    while prod(chunk) * itemsize > _CHUNK:
        axis = max(range(len(chunk)), key=chunk.__getitem__)
        chunk[axis] = 1 << ((chunk[axis] - 1).bit_length() - 1)
    return tuple(chunk)


def _halved(shards: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    chunk = list(shards)
    while prod(chunk) * itemsize > _CHUNK and any(length % 2 == 0 for length in chunk):
        axis = max((axis for axis, length in enumerate(chunk) if length % 2 == 0), key=chunk.__getitem__)
        chunk[axis] //= 2
    return tuple(chunk)


def _gathered(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    shard = list(chunks)
    while prod(shard) * itemsize * 2 <= _SHARD and any(part < length for part, length in zip(shard, shape, strict=True)):
        axis = min((axis for axis, part in enumerate(shard) if part < shape[axis]), key=shard.__getitem__)
        shard[axis] *= 2
    return tuple(shard)


def _cell(cell: tuple[int, ...], grain: tuple[int, ...], box: Box) -> Box:
    """The part of a box on one cell of a grid."""
    return tuple(
        Interval(max(index * size, part.start), min((index + 1) * size, part.stop))
        for index, size, part in zip(cell, grain, box, strict=True)
    )


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
            else:
                yield entry


def _states(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files and folders below one, files before the folders that they are in."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _states(entry.path)
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat(follow_symlinks=False)


def _changed_ns(state: os.stat_result) -> int:
    """When it was written or named, by the file system's clock."""
    return max(state.st_mtime_ns, state.st_ctime_ns)


def _at_once() -> int:
    """Chunks that zarr works on at once in one call, at most."""
    return _zarr("reading").config.get("async.concurrency") or _TOGETHER


def _metadata(path: Path) -> Path:
    return next(path / name for name in _NAMES if (path / name).is_file())


def _opened_again(seen: Seen) -> ZarrSource:
    seen.check(seen.path)
    return open_zarr(seen.path.parent)


def _written_again(target: Target) -> ZarrSink:
    return ZarrSink(_zarr(f"writing {target.out}").open_array(target.partial, mode="r+", config=_WRITTEN), target)


def _zarr(doing: str) -> Any:
    try:
        import zarr
    except ImportError:
        raise needs("zarr", doing) from None
    return zarr
