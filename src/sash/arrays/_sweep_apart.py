"""Lanes of a pass in the processes of a cluster: each opens the matrix for itself and reads its own blocks; sums come back in order.

Vectors of columns are sent once to a process, rows of vectors to the lane that reads these rows, and back go a lane's sums or rows. What
another process made or sent is copied once where it arrives: bytes off the network lie at odd addresses, which compiled code does not take.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any
from weakref import finalize

import numpy as np
from threadpoolctl import threadpool_limits

from sash.arrays._cluster import Cluster
from sash.arrays._cluster_shared import ended_with_run
from sash.arrays._matrix import Matrix
from sash.arrays._running import MAPPED_FROM
from sash.arrays._sweep import Work
from sash.heap import blocks_given_back

Blocks = tuple[tuple[int, int], ...]
"""Start and stop of each."""


class Lanes:
    """Where lanes of passes over one matrix are worked through."""

    def __init__(self, cluster: Cluster, sharing: tuple[str, Any], told: str) -> None:
        self._cluster, self._sharing, self._told = cluster, sharing, told

    def summed(self, work: Work, blocks: Blocks, lanes: int, rows: np.ndarray | None, ended: Callable[[float], None]) -> Any:
        """What all lanes have made together."""
        found: list[Any] = []

        def take(lane: int, made: Any) -> None:
            if found:
                work.join(found[0], made)
            else:
                found.append(deepcopy(made))
            ended(1 / lanes)

        dealt = (blocks[lane::lanes] for lane in range(lanes))
        self.mapped(_Summed(work), ((own, None if rows is None else _together(rows, own)) for own in dealt), lanes, take)
        return found[0]

    def fill(self, work: Work, blocks: Blocks, lanes: int, into: np.ndarray, ended: Callable[[float], None]) -> None:
        """Fill `into` by the work's `add`, a block at a time."""

        def take(lane: int, made: np.ndarray) -> None:
            first = 0
            for start, stop in blocks[lane::lanes]:
                into[start:stop] = made[first : first + stop - start]
                first += stop - start
            ended(1 / lanes)

        self.mapped(_Filled(work, into.shape[1]), ((blocks[lane::lanes],) for lane in range(lanes)), lanes, take)

    def mapped(self, part: Callable[..., Any], each: Iterable[tuple[Any, ...]], at_once: int, take: Callable[[int, Any], None]) -> None:
        """Tell `take` what `part` makes in other processes of the matrix, a signal to end, and each."""
        self._cluster.mapped(self._told, self._sharing, _done, part, each, at_once, take)


@contextmanager
def lanes_at(cluster: Cluster, matrix: Matrix, told: str) -> Iterator[Lanes]:
    """Lanes on a cluster, for as long as this is open; the matrix is one that other processes can open."""
    with cluster.sharing(_Opened, matrix) as sharing:
        yield Lanes(cluster, sharing, told)


class _Opened:
    """A matrix in a worker's process: opened at the first task there, closed when the run lets go of it."""

    def __init__(self, pickled: bytes, token: str) -> None:
        self._pickled, self.token = pickled, token
        self._opening, self._halted = Lock(), Event()
        self._matrix: Matrix | None = None
        if ended_with_run(self):
            self._halted.set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Opened, (self._pickled, self.token)

    def do(self, part: Callable[..., Any], *own: Any) -> Any:
        """What the part makes of the matrix."""
        return part(self._open(), self._halted, *own)

    def end(self) -> None:
        """Read no further block."""
        self._halted.set()

    def _open(self) -> Matrix:
        with self._opening:
            if self._matrix is None:
                matrix: Matrix = pickle.loads(self._pickled)
                with ExitStack() as opened:
                    opened.callback(matrix.close)
                    opened.enter_context(blocks_given_back(MAPPED_FROM))
                    opened.enter_context(threadpool_limits(1, "blas"))
                    finalize(self, opened.pop_all().close)
                self._matrix = matrix
            return self._matrix


def _done(opened: _Opened, part: Callable[..., Any], *own: Any) -> Any:
    return opened.do(part, *own)


@dataclass(frozen=True, eq=False)
class _Summed:
    """A lane's blocks, and rows of an array, into what it makes."""

    work: Work

    def __call__(self, matrix: Matrix, halted: Event, blocks: Blocks, rows: np.ndarray | None) -> Any:
        work, rows = deepcopy((self.work, rows))
        made, first = work.begin(), 0
        for start, stop in blocks:
            if halted.is_set():
                return None
            work.add(made, matrix.block(start, stop), start, None if rows is None else rows[first : first + stop - start])
            first += stop - start
        return made


@dataclass(frozen=True, eq=False)
class _Filled:
    """A lane's rows, one block after the other."""

    work: Work
    width: int

    def __call__(self, matrix: Matrix, halted: Event, blocks: Blocks) -> np.ndarray | None:
        work, first = deepcopy(self.work), 0
        made = np.empty((sum(stop - start for start, stop in blocks), self.width))
        for start, stop in blocks:
            if halted.is_set():
                return None
            work.add(None, matrix.block(start, stop), start, made[first : first + stop - start])
            first += stop - start
        return made


def _together(rows: np.ndarray, blocks: Blocks) -> np.ndarray:
    """These rows, one block after the other."""
    parts = [rows[start:stop] for start, stop in blocks]
    return np.concatenate(parts) if parts else rows[:0]
