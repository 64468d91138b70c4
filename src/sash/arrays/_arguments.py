"""What every operation on arrays checks alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from sash.arrays._store import Source
from sash.errors import InputError
from sash.units import format_shape


def check_numbers(source: Source, operation: str) -> None:
    """Raises `InputError` for types that no kernel takes."""
    if source.dtype.kind not in "fiu" or source.dtype == np.float16:
        raise InputError(f"the source holds {source.dtype}; {operation} takes whole numbers, float32 and float64: convert it with .astype.")


def check_fill(fill: float) -> None:
    """Raises `InputError` for a fill value that is not finite."""
    if not isfinite(fill):
        raise InputError(f"fill is {fill!r}; give a finite number.")


def written_dtype(asked: Any, usual: np.dtype, operation: str) -> np.dtype:
    """The type of the output; raises `InputError` for one that is not written."""
    if asked is None:
        return usual
    found = np.dtype(asked)
    if found.kind not in "fiu" or found == np.float16:
        raise InputError(f"dtype is {found}; {operation} writes whole numbers, float32 and float64.")
    return found


def work_dtype(source: np.dtype, tolerance: float) -> np.dtype:
    """The type of sums: fp32 where the source's numbers fit into it, and the tolerance leaves room for its rounding."""
    wide = source.itemsize > (4 if source.kind == "f" else 2)
    return np.dtype(np.float64 if wide or tolerance < 1e-6 else np.float32)


def axes_of(shape: tuple[int, ...], axes: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Axes from 0 on: those named, or the last `count`."""
    dims = len(shape)
    if axes is None:
        return tuple(range(max(dims - count, 0), dims))
    found = tuple(int(axis) for axis in axes)
    if any(not -dims <= axis < dims for axis in found) or len({axis % dims for axis in found}) != len(found):
        raise InputError(f"axes are {found}, and the array {format_shape(shape)} has axes 0 to {dims - 1}; name each once.")
    return tuple(axis % dims for axis in found)


def as_given(source: Any, made: Any) -> Any:
    """A tensor for a tensor."""
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        import torch

        return torch.from_numpy(made)
    return made
