"""The default allocator of glibc, followed block by block: how large a process grows, not only how much it asked for.

Freed memory in the middle of the heap stays resident, blocks above a threshold are mapped on their own, and the threshold grows with
what was freed. Each rule is one of glibc's; per-thread caches and bins by size class are left out.

Source: glibc 2.36, `malloc/malloc.c`: `_int_malloc`, `sysmalloc`, `_int_free`, `systrim`, and the note on the dynamic mmap threshold.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_LEAST_THRESHOLD = 128 << 10
LARGEST_IN_HEAP = 32 << 20
"""Larger blocks are always mapped on their own."""
_TOP_PAD = 128 << 10
_PAGE = 4096
_OVERHEAD = 16
_ALIGNMENT = 64
"""torch asks for this alignment."""
_SLACK = _ALIGNMENT + 32
"""An aligned request looks for this much more than it keeps: a hole left by a block of the same size does not fit it."""


class Heap:
    """What a process holds from the system while blocks come and go."""

    def __init__(self) -> None:
        self.mapped = 0
        """Bytes in blocks of their own."""
        self.end = 0
        """Bytes of the heap, holes included."""
        self.peak = 0
        """The most that was held at once."""
        self.fresh = 0
        """Bytes that the system handed over so far in blocks of their own: their pages are made when they are first written."""
        self.grown = 0
        """Bytes that the heap's end grew by so far, those that it had given back included."""
        self._threshold = _LEAST_THRESHOLD
        self._top = 0
        """Where the heap's free end begins."""
        self._holes: list[tuple[int, int]] = []
        """(size, start), by size."""
        self._hole_at: dict[int, int] = {}
        self._hole_before: dict[int, int] = {}
        """Start of the hole that ends at an address."""

    def take(self, size: int) -> tuple[int, int]:
        """A block of `size` bytes: (start, chunk size), the start negative where it is mapped on its own."""
        chunk = -(-(size + _OVERHEAD) // _ALIGNMENT) * _ALIGNMENT
        at = bisect_left(self._holes, (chunk + _SLACK, -1))
        if at < len(self._holes):
            room, start = self._holes.pop(at)
            self._forget(start, room)
            if room > chunk:
                self._keep(start + chunk, room - chunk)
        elif self.end - self._top >= chunk + _SLACK or chunk < self._threshold:
            start = self._top
            self._top += chunk
            if self._top > self.end:
                before, self.end = self.end, -(-(self._top + _TOP_PAD) // _PAGE) * _PAGE
                self.grown += self.end - before
        else:
            start, chunk = -1, -(-chunk // _PAGE) * _PAGE
            self.mapped += chunk
            self.fresh += chunk
        self.peak = max(self.peak, self.mapped + self.end)
        return start, chunk

    def give(self, block: tuple[int, int]) -> None:
        """Free what `take` returned."""
        start, size = block
        if start < 0:
            self.mapped -= size
            if self._threshold < size <= LARGEST_IN_HEAP:
                self._threshold = size
            return
        before = self._hole_before.get(start)
        if before is not None:
            room = self._hole_at[before]
            self._drop(before, room)
            start, size = before, size + room
        after = self._hole_at.get(start + size)
        if after is not None:
            self._drop(start + size, after)
            size += after
        if start + size == self._top:
            self._top = start
            if self.end - self._top >= 2 * self._threshold:
                self.end = -(-(self._top + _TOP_PAD) // _PAGE) * _PAGE
        else:
            self._keep(start, size)

    def _keep(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._hole_at[start] = size
        self._hole_before[start + size] = start

    def _drop(self, start: int, size: int) -> None:
        self._holes.pop(bisect_left(self._holes, (size, start)))
        self._forget(start, size)

    def _forget(self, start: int, size: int) -> None:
        del self._hole_at[start]
        del self._hole_before[start + size]
