"""Storages in a file without a name, and how fast the disk below it is."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sash.errors import InputError
from sash.units import format_bytes

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
PROBE_BYTES = 1 << 27
"""Written and read back to find a disk's rates: enough that its own cache does not answer for it."""


class DiskFile:
    """A file that no folder lists, open to this process alone: nothing is left of it when the process ends, however it ends."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # The system's own recipe: opened without a name where the file system can, else created exclusively (0600) and unlinked at once.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (lives as long as what is in it)
        weakref.finalize(self, self._file.close)
        self._end = 0
        self._free: dict[int, list[int]] = defaultdict(list)
        self._lock = threading.Lock()
        self.bytes = 0
        """In use now."""

    def write(self, storage: torch.UntypedStorage) -> Place:
        """A copy of the storage's bytes on disk. Raises `InputError` where there is no room."""
        size = storage.nbytes()
        with self._lock:
            offset = self._free[size].pop() if self._free[size] else self._end
            self._end = max(self._end, offset + size)
            self.bytes += size
        place = Place(size, offset, self)
        left, at = _view(storage), offset
        while left:
            try:
                done = os.pwrite(self._file.fileno(), left, at)
            except OSError as error:
                raise InputError(
                    f"{format_bytes(size)} were to be offloaded to {self.folder}, which has {format_bytes(_room(self.folder))} left "
                    f"({error.strerror}); name a folder with more, as Offload(folder='/path/on/a/disk')."
                ) from error
            left, at = left[done:], at + done
        return place

    def read(self, place: Place, storage: torch.UntypedStorage) -> None:
        """Fill a storage with the bytes that were written."""
        left, at = _view(storage), place.offset
        while left:
            done = os.preadv(self._file.fileno(), [left], at)
            if not done:
                raise OSError(f"the offloaded bytes end early, after {at - place.offset} of {place.bytes}")
            left, at = left[done:], at + done

    def release(self, size: int, offset: int) -> None:
        """The bytes there are wanted no more; the next storage of that size takes their place."""
        with self._lock:
            self._free[size].append(offset)
            self.bytes -= size


class Place:
    """Bytes in a `DiskFile`; given up when nothing refers to them any more."""

    def __init__(self, size: int, offset: int, file: DiskFile) -> None:
        self.bytes = size
        self.offset = offset
        self.file = file
        weakref.finalize(self, file.release, size, offset).atexit = False


@dataclass(frozen=True)
class DiskRate:
    """How fast a folder's disk is, its cache in memory aside."""

    write_bytes_per_s: float
    read_bytes_per_s: float


def disk_rate(folder: str = "") -> DiskRate:
    """The rates of a folder's disk, measured once a process: written through to the disk, then read back from it."""
    return _rate(on_disk(folder))


@cache
def _rate(folder: str) -> DiskRate:
    data = torch.randint(0, 255, (PROBE_BYTES,), dtype=torch.uint8)
    bytes_of: Any = data.numpy()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        started = time.perf_counter()
        left, at = memoryview(bytes_of), 0
        while left:
            done = os.pwrite(file.fileno(), left, at)
            left, at = left[done:], at + done
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left, at, started_reading = memoryview(bytes_of), 0, time.perf_counter()
        while left:
            done = os.preadv(file.fileno(), [left], at)
            left, at = left[done:], at + done
        read = time.perf_counter()
    return DiskRate(PROBE_BYTES / (written - started), PROBE_BYTES / (read - started_reading))


def on_disk(folder: str = "") -> str:
    """A folder for temporary files that is on a disk: the one asked for, or the system's. Raises `InputError` where it is none."""
    candidates = [folder] if folder else [tempfile.gettempdir(), "/var/tmp", os.getcwd()]
    for candidate in candidates:
        if os.path.isdir(candidate) and os.access(candidate, os.W_OK) and _kind(candidate) not in _IN_MEMORY:
            return candidate
    if not os.path.isdir(candidates[0]):
        raise InputError(f"{candidates[0]!r} is no folder; offloading writes to one, as Offload(folder='/path/on/a/disk').")
    if not os.access(candidates[0], os.W_OK):
        raise InputError(f"{candidates[0]!r} may not be written to; name another folder, as Offload(folder='/path/on/a/disk').")
    raise InputError(
        f"{candidates[0]!r} is kept in memory ({_kind(candidates[0])}): offloading to it would free nothing. "
        "Name a folder on a disk, as Offload(folder='/path/on/a/disk')."
    )


def _kind(folder: str) -> str:
    """The type of the file system that a folder is on; empty where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    path = os.path.realpath(folder)
    above = [mount for mount in mounts if os.path.commonpath([path, mount[1]]) == mount[1]]
    # Of several mounts on one place the last is the one that is seen.
    return max(enumerate(above), key=lambda item: (len(item[1][1]), item[0]))[1][2] if above else ""


def _room(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _view(storage: torch.UntypedStorage) -> memoryview:
    whole: Any = Tensor.numpy(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)))
    return memoryview(whole)
