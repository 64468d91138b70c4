"""Work on slices of rows, by threads that take turns; slices are the same whatever the threads, so that sums have the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

_BYTES = 2 << 20
"""Of a slice: what a processor's own cache holds."""
_LEAST = 256

Each = Callable[[Callable[[slice], Any]], list[Any]]
"""Calls a function for every slice; what it returned, in the order of the rows."""


@contextmanager
def slices_of(rows: int, row_bytes: int, threads: int) -> Iterator[Each]:
    """Slices of so many rows of `row_bytes`, each as large as a cache, for as long as this is open."""
    step = max(_BYTES // max(row_bytes, 1), _LEAST)
    slices = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    if threads == 1 or len(slices) == 1:
        yield lambda work: [work(own) for own in slices]
        return
    with ThreadPoolExecutor(threads, "sash") as pool:
        yield lambda work: list(pool.map(work, slices))


def sum_in_order(parts: list[np.ndarray]) -> np.ndarray:
    """Of arrays, into the first."""
    for other in parts[1:]:
        parts[0] += other
    return parts[0]
