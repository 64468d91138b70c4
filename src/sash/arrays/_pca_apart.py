"""What of `pca` is otherwise on a cluster: what may be read, and how rare terms are, which other processes count."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sash.arrays._cluster import Cluster
from sash.arrays._matrix import Matrix
from sash.arrays._sweep import Sweep
from sash.arrays._sweep_apart import lanes_at
from sash.arrays._weights import Counts, rarity_of
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes

_STORED = (1 << 20, 1 << 16, 1 << 12, 1 << 8)
"""Numbers of a block, tried in this order."""


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
    beside = "" if out else " What is put in order first lies beside `out`: give that, in a folder that all see."
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
