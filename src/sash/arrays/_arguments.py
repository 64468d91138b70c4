"""What every operation on arrays checks alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from math import isfinite
from typing import Any

import numpy as np

from sash.arrays._planes import CHANNELS, planes_of
from sash.arrays._store import Source, open_source
from sash.errors import InputError
from sash.units import format_shape
from sash.window import Interval


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


def check_kernel_axes(kernel: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Raises `InputError` for axes that a kernel does not go along."""
    neighbours = kernel.ndim == len(axes) == 3 and axes == tuple(range(axes[0], axes[0] + 3)) and _last(shape, axes[-1])
    if len(axes) != kernel.ndim or not (neighbours or (kernel.ndim < 3 and len(planes_of(shape, axes)) == 1)):
        raise InputError(
            f"the kernel has {kernel.ndim} axes, and goes along axes {axes} of {format_shape(shape)}; "
            "give as many, neighbours in order, and last or before channels."
        )


def _last(shape: tuple[int, ...], axis: int) -> bool:
    return axis == len(shape) - 1 or (axis == len(shape) - 2 and shape[-1] <= CHANNELS)


def of_two_axes(kernel: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """A kernel of one axis as one of planes: along rows where it goes along the array's last axis, else along columns."""
    return kernel if kernel.ndim == 2 else kernel[None] if axes[0] == len(shape) - 1 else kernel[:, None]


def kernel_taps(kernel: Any, most: int = 2) -> np.ndarray:
    """The taps in float64, of at most so many axes; raises `InputError` for what is none."""
    kernel = kernel.detach().cpu() if hasattr(kernel, "detach") and hasattr(kernel, "cpu") else kernel
    with closing(open_source(np.asarray(kernel) if isinstance(kernel, (list, tuple)) else kernel)) as opened:
        if not 1 <= len(opened.shape) <= most:
            told = "one or two" if most == 2 else "one to three"
            raise InputError(f"the kernel is {format_shape(opened.shape)}; kernels have {told} axes here.")
        if opened.dtype.kind not in "fiub":
            raise InputError(f"the kernel holds {opened.dtype}; its taps are real numbers.")
        taps = np.empty(opened.shape, opened.dtype)
        opened.read(tuple(Interval(0, length) for length in opened.shape), taps)
    taps = taps.astype(np.float64)
    if not np.isfinite(taps).all():
        raise InputError("the kernel has taps that are NaN or infinite; give finite ones.")
    return taps
