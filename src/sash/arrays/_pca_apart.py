"""What of `pca` and of its estimate is otherwise on a cluster: what may be read, and how rare terms are, which other processes count."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sash.arrays._cluster import Cluster, Seats, connected
from sash.arrays._matrix import Matrix
from sash.arrays._running import Options
from sash.arrays._sweep import Sweep
from sash.arrays._sweep_apart import Lanes, lanes_at
from sash.arrays._weights import Counts, rarity, rarity_of
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

_STORED = (1 << 20, 1 << 16, 1 << 12, 1 << 8)
"""Numbers of a block, tried in this order."""


@dataclass(frozen=True)
class Place:
    """Where passes over a matrix run: in threads of this process, or in those of a cluster's workers."""

    source: Any
    out: Any
    cluster: Cluster | None
    seats: Seats

    def check(self, matrix: Matrix) -> None:
        """Raise `InputError` where workers do not see the same matrix, or would not compute the same."""
        if self.cluster is not None:
            check_apart(self.cluster, self.source, matrix, self.out)

    def lanes(self, matrix: Matrix, told: str) -> AbstractContextManager[Lanes | None]:
        """Where lanes are worked through, for as long as it is open; None: in this process."""
        return nullcontext() if self.cluster is None else lanes_at(self.cluster, matrix, told)

    @property
    def counted(self) -> Callable[[Matrix, int], np.ndarray]:
        """How rare columns are, counted there."""
        return rarity if self.cluster is None else partial(rarity_apart, self.cluster, self.source, self.out)


@contextmanager
def placed(options: Options, source: Any, out: Any) -> Iterator[Place]:
    """Where an operation's passes run, for as long as this is open; raises `InputError` for a source that workers cannot open."""
    if options.address is None:
        yield Place(source, out, None, Seats(options.most_workers))
        return
    check_filed(source, options.address)
    with connected(options.address) as cluster:
        yield Place(source, out, cluster, cluster.seats)


def check_filed(source: Any, address: str) -> None:
    """Raise `InputError` for what is no file, which other processes would open."""
    if not isinstance(source, (str, os.PathLike)):
        path = getattr(source, "filename", None)
        near = "save it as .npy or .npz and give the path" if path is None else f"give its path, {path}"
        raise InputError(
            f"the source is a {type(source).__name__} in this process, which the workers of {address} do not have; "
            f"{near}, or let workers be a number of threads."
        )


def check_apart(cluster: Cluster, source: Any, matrix: Matrix, out: Any) -> None:
    """Raise `InputError` where workers do not see the same matrix, or would not compute the same."""
    if not matrix.filed:
        raise InputError(f"{source} is read into this process's memory, which other processes do not have; save it as .npy or .npz.")
    beside = "" if out else " What is put in order first lies, where there is no `out` to be beside, in TMPDIR: name a folder that all see."
    cluster.check_read(matrix, f"Mount what is read there under the same name.{beside}")


def rarity_apart(cluster: Cluster, source: Any, out: Any, matrix: Matrix, budget_bytes: int) -> np.ndarray:
    """`rarity`, counted on a cluster, whose workers hold no more than the budget of blocks together."""
    check_apart(cluster, source, matrix, out)
    lanes, least = cluster.seats.threads, 0
    for stored in _STORED:
        if (least := lanes * Sweep(matrix, lanes, stored).block_bytes) <= budget_bytes:
            with lanes_at(cluster, matrix, "counting terms") as apart:
                return rarity_of(Sweep(matrix, lanes, stored, apart).summed(Counts(matrix.shape[1])), matrix.shape[0])
    raise DoesNotFit(f"{lanes} workers that count terms hold {format_bytes(least)}; there are {format_bytes(budget_bytes)} for it.", least)
