"""A pass over a matrix's rows: blocks of even work in lanes side by side, so that sums come out the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sash.arrays._matrix import Matrix


@dataclass(frozen=True, eq=False)
class Sweep:
    """Blocks of rows, dealt to lanes in turn; a lane works through its own in order."""

    matrix: Matrix
    lanes: int
    stored: int
    """Numbers that a block has at most, where a row has no more."""

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

    def run(self, work: Callable[[int, int, int], None], ended: Callable[[float], None] = lambda share: None) -> None:
        """Call `work` with the start, the stop and the lane of every block; `ended` is told the share of rows of each that is done."""

        def lane(number: int) -> None:
            for start, stop in self.blocks[number :: self.lanes]:
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
