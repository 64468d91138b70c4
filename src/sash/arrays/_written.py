"""Where transforms go: kinds of output, their chunks, and what writing them takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_zarr import encoder_bytes
from sash.errors import InputError

CHUNK_BYTES = 4 << 20
"""Of a chunk in a zarr output: all rows of some frames. Chunks half as large take a third longer to write, and shards twice as long."""
_HALVINGS = 4
"""Times that a chunk is halved, at most, for a small budget: from there on other things take more."""


def output_kind(out: Any, allowed: Sequence[str]) -> str:
    """The suffix of a file, "array" for a given one, or "" for a new one; raises `InputError` for other files than those allowed."""
    if out is None or isinstance(out, np.ndarray):
        return "" if out is None else "array"
    if not isinstance(out, (str, os.PathLike)):
        raise InputError(f"the output is of type {type(out).__name__}; give None, a numpy array, or the path of a file.")
    suffix = Path(out).suffix.lower()
    if suffix not in allowed:
        raise InputError(f"{out} has the suffix {suffix or 'none'}; this writes {', '.join(allowed)}.")
    return suffix


def write_bytes(kind: str, chunk_bytes: int) -> int:
    """What a write takes, at most, beside what is written: of zarr, a chunk put together and encoded. Others take it as it lies."""
    return 2 * chunk_bytes + encoder_bytes(chunk_bytes) if kind == ".zarr" else 0


def chunks_of(kind: str, row_bytes: int, count: int) -> list[int]:
    """Lengths of chunks to try, longest first: powers of two, as blocks are."""
    if kind != ".zarr":
        return [1]
    most = min(max(CHUNK_BYTES // row_bytes, 1).bit_length() - 1, (count - 1).bit_length())
    return [1 << power for power in range(most, max(most - _HALVINGS, 0) - 1, -1)]


def by_frames(array: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """An array in memory, (..., rows, frames), as (lane, frame, row) without a copy; None where the rows of a frame do not lie together."""
    if array is None or array.dtype != dtype or not array.flags.aligned:
        return None
    found = array.swapaxes(-1, -2)
    found = found if found.ndim == 3 else found[None]
    return found if found.strides[1:] == (found.shape[2] * dtype.itemsize, dtype.itemsize) else None
