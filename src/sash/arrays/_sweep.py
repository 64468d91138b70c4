"""A pass over a matrix's rows: blocks of even work in lanes side by side, so that sums come out the same to the last bit.

A lane is a thread of this process, or a task in a process of a cluster, which reads its blocks itself: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sash.arrays._matrix import Matrix
from sash.arrays._running import processors

if TYPE_CHECKING:
    from sash.arrays._sweep_apart import Lanes


class Work(Protocol):
    """What a pass does with blocks of rows; a value that other processes take, with all that it needs."""

    def begin(self) -> Any:
        """What a lane begins with."""
        ...

    def add(self, made: Any, block: Any, start: int, rows: Any) -> None:
        """Take a block, which begins at a row, into what the lane has made; `rows` are the same ones of an array beside the matrix."""
        ...

    def join(self, made: Any, other: Any) -> None:
        """Take what another lane has made into the first one's, lane after lane."""
        ...


@dataclass(frozen=True, eq=False)
class Sweep:
    """Blocks of rows, dealt to lanes in turn; a lane works through its own in order."""

    matrix: Matrix
    lanes: int
    stored: int
    """Numbers that a block has at most, where a row has no more."""
    apart: Lanes | None = None
    """Where lanes are worked through, if it is not in threads of this process."""

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Start and stop of each, at least as many as lanes where there are rows enough."""
        return cut_rows(self.matrix.row_nnz(), min(self.stored, -(-self.matrix.nnz // self.lanes)))

    @cached_property
    def block_bytes(self) -> int:
        """What reading the largest holds."""
        return max(self.matrix.block_bytes(start, stop) for start, stop in self.blocks)

    @cached_property
    def block_rows(self) -> int:
        """Of the longest."""
        return max(stop - start for start, stop in self.blocks)

    @property
    def threads(self) -> int:
        """Of this process, for what is done beside passes."""
        return self.lanes if self.apart is None else min(self.lanes, processors())

    def summed(self, work: Work, rows: np.ndarray | None = None, ended: Callable[[float], None] = lambda share: None) -> Any:
        """What all lanes have made together; `rows` is an array of as many rows as the matrix, which is read."""
        if self.apart is not None:
            return self.apart.summed(work, self.blocks, self.lanes, rows, ended)
        made = [work.begin() for _ in range(self.lanes)]

        def add(start: int, stop: int, lane: int) -> None:
            work.add(made[lane], self.matrix.block(start, stop), start, None if rows is None else rows[start:stop])

        self.run(add, ended)
        for other in made[1:]:
            work.join(made[0], other)
        return made[0]

    def filled(self, work: Work, into: np.ndarray, ended: Callable[[float], None] = lambda share: None) -> np.ndarray:
        """`into`, of as many rows as the matrix, filled by the work's `add`, a block at a time."""
        if self.apart is not None:
            self.apart.fill(work, self.blocks, self.lanes, into, ended)
            return into

        def add(start: int, stop: int, lane: int) -> None:
            work.add(None, self.matrix.block(start, stop), start, into[start:stop])

        self.run(add, ended)
        return into

    def filled_and_summed(
        self, filling: Work, summing: Work, into: np.ndarray, ended: Callable[[float], None] = lambda share: None
    ) -> tuple[np.ndarray, Any]:
        """`into`, filled by the first work, and what all lanes of the second make of its rows, in one pass; on a cluster in two."""
        if self.apart is not None:
            self.filled(filling, into, lambda share: ended(share / 2))
            return into, self.summed(summing, into, lambda share: ended(share / 2))
        made = [summing.begin() for _ in range(self.lanes)]

        def add(start: int, stop: int, lane: int) -> None:
            block = self.matrix.block(start, stop)
            filling.add(None, block, start, into[start:stop])
            summing.add(made[lane], block, start, into[start:stop])

        self.run(add, ended)
        for other in made[1:]:
            summing.join(made[0], other)
        return into, made[0]

    def run(self, work: Callable[[int, int, int], None], ended: Callable[[float], None] = lambda share: None) -> None:
        """Call `work` with the start, the stop and the lane of every block; `ended` is told the share of rows of each that is done."""

        def lane(number: int) -> None:
            own = self.blocks[number :: self.lanes]
            for place, (start, stop) in enumerate(own):
                if place + 1 < len(own):
                    self.matrix.expect(*own[place + 1])
                work(start, stop, number)
                ended((stop - start) / self.matrix.shape[0])

        if self.lanes == 1 or len(self.blocks) == 1:
            for number in range(self.lanes):
                lane(number)
            return
        with ThreadPoolExecutor(self.lanes, "sash") as pool:
            for done in [pool.submit(lane, number) for number in range(self.lanes)]:
                done.result()


def cut_rows(row_nnz: np.ndarray, stored: int) -> tuple[tuple[int, int], ...]:
    """Runs of rows with at most so many numbers each, a row counting one at least; a longer row is a run by itself."""
    work = np.cumsum(np.maximum(row_nnz, 1))
    found, start = [], 0
    while start < len(work):
        before = work[start - 1] if start else 0
        stop = max(int(np.searchsorted(work, before + max(stored, 1), "right")), start + 1)
        found.append((start, stop))
        start = stop
    return tuple(found)
