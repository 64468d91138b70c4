"""The C library's heap: what a job frees, given back to the system."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_MAPPED_FROM, _TRIMMED_FROM = -3, -1
"""glibc's M_MMAP_THRESHOLD: bytes from which on a block has its own pages; M_TRIM_THRESHOLD: free bytes at the end of a heap that stay."""
_CEILING = 32 * 2**20
"""Up to where glibc moves the first by itself; the second is then twice as much."""
_PLAIN_TRIM = 128 << 10
"""What glibc keeps before it has moved anything."""
_stand = [(_CEILING, 2 * _CEILING)]
"""The limits as they stand, the innermost last; before the first, where glibc's own adaptation ends."""


@contextmanager
def blocks_given_back(mapped_from: int = 1 << 20) -> Iterator[None]:
    """Blocks of `mapped_from` bytes and more go back to the system when they are freed, where the C library is glibc.

    Blocks of several sizes follow each other, and glibc keeps freed ones below 32 MiB: a tiled run that needs 212 MiB grew the process by
    738, and by 277 with this. Afterwards the threshold stands as before, or where glibc's own adaptation ends.
    """
    with _limits(mapped_from, _PLAIN_TRIM):
        yield


@contextmanager
def blocks_kept(mapped_from: int = 4 << 20) -> Iterator[None]:
    """Blocks of fewer bytes that are freed stay with the process until the end, and are taken again; then the system has them back.

    New pages for a block of spectra take three times as long as the transform that fills it.
    """
    with _limits(mapped_from, 2 * _CEILING) as library:
        yield
    if library is not None:
        library.malloc_trim(0)


@contextmanager
def _limits(mapped_from: int, trimmed_from: int) -> Iterator[ctypes.CDLL | None]:
    """glibc's limits, and the library, where it is that; afterwards they stand as before."""
    if platform.libc_ver()[0] != "glibc":
        yield None
        return
    library = ctypes.CDLL(None)

    def stand() -> None:
        library.mallopt(_MAPPED_FROM, _stand[-1][0])
        library.mallopt(_TRIMMED_FROM, _stand[-1][1])

    own = (mapped_from, trimmed_from)
    _stand.append(own)
    stand()
    # What was freed before, as by planning, lies in the heap of one thread, and others would not take it.
    library.malloc_trim(0)
    try:
        yield library
    finally:
        _stand.remove(own)
        stand()
