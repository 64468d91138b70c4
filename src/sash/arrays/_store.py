"""Where arrays come from and go to: memory, .npy, zarr, TIFF, PNG, JPEG, WAV and FLAC, a box at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_picture import JPEG, PictureSource, new_picture
from sash.arrays._store_raw import new_npy, open_map, open_npy
from sash.arrays._store_sink import ArraySink, Sink, Target
from sash.arrays._store_sound import SoundSource, new_sound
from sash.arrays._store_source import ArraySource, Box, Source, checked_dtype, checked_shape
from sash.arrays._store_tiff import new_tiff, open_tiff
from sash.arrays._store_zarr import is_zarr, new_zarr, open_zarr, open_zarr_array
from sash.errors import InputError
from sash.units import format_bytes

__all__ = ["Box", "Sink", "Source", "open_sink", "open_source"]

_TIFF = (".tif", ".tiff")
_PICTURES = (".png", *JPEG)
_SOUND = (".wav", ".flac")
_OPENED: dict[str, Callable[[Path], Source]] = {
    ".npy": open_npy,
    ".zarr": open_zarr,
    **dict.fromkeys(_TIFF, open_tiff),
    **dict.fromkeys(_PICTURES, PictureSource),
    **dict.fromkeys(_SOUND, SoundSource),
}


def open_source(source: Any) -> Source:
    """The numbers of an array, a tensor on the CPU, an open zarr array or a file.

    A `numpy.memmap` of a whole file is read from that file by parts, since mapped pages count as the process's memory. Raises
    `InputError` for what is no array of numbers, is empty, was cut off, or needs a library that is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source))
    if isinstance(source, np.memmap) and (mapped := open_map(source)) is not None:
        return mapped
    if isinstance(source, np.ma.MaskedArray):
        raise InputError("the array is masked, and sash would read what is under the mask; give array.filled(value).")
    if isinstance(source, np.ndarray):
        return ArraySource(source)
    if type(source).__module__.partition(".")[0] == "zarr" and hasattr(source, "store_path"):
        return open_zarr_array(source)
    if all(hasattr(source, name) for name in ("numpy", "detach", "device")):
        return ArraySource(_of_tensor(source))
    raise InputError(f"the input is of type {type(source).__name__}; give a numpy array, a tensor, a zarr array, or the path of a file.")


def open_sink(
    out: np.ndarray | str | os.PathLike[str] | None,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    overwrite: bool = False,
    resume: bool = False,
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
    like: Source | None = None,
    rate_hz: int | None = None,
) -> Sink:
    """Where numbers of a shape and type go: a new array (`None`), the array given, or a file of the path's kind.

    A file has the name `out` + ".partial" until it is finished; with `resume` one that was left is gone on with. `chunks` and `shards`
    are zarr's, `rate_hz` is sound's (`like`'s where not given). Raises `InputError` where the output cannot be held or written, before
    anything is.
    """
    dtype, shape = checked_dtype(dtype, "the output"), checked_shape(tuple(shape), "the output")
    if out is None or isinstance(out, np.ndarray):
        if resume:
            raise InputError("an output in memory is gone with its process; give the path of a file to resume.")
        return _to_array(out, shape, dtype, like)
    if not isinstance(out, (str, os.PathLike)):
        raise InputError(f"the output is of type {type(out).__name__}; give None, a numpy array, or the path of a file.")
    path = Path(out)
    suffix = path.suffix.lower()
    if suffix not in _OPENED:
        raise InputError(f"{path} has the suffix {suffix or 'none'}; sash writes {', '.join(_OPENED)}.")
    target = Target.of(path, overwrite, folder=suffix == ".zarr")
    if suffix == ".zarr":
        return new_zarr(target, shape, dtype, resume, chunks, shards)
    if suffix in _TIFF:
        return new_tiff(target, shape, dtype, resume)
    if suffix in _PICTURES:
        return new_picture(target, shape, dtype, resume)
    if suffix in _SOUND:
        return new_sound(target, shape, dtype, resume, rate_hz if rate_hz is not None or like is None else like.rate_hz)
    return new_npy(target, shape, dtype, resume)


def _from_path(path: Path) -> Source:
    suffix = path.suffix.lower()
    if path.is_dir():
        if suffix == ".zarr" or is_zarr(path):
            return open_zarr(path)
        raise InputError(f"{path} is a folder, and not one of zarr; give the path of a file in it.")
    if not path.exists():
        near = sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))[:4] if path.parent.is_dir() else []
        raise InputError(f"there is no file {path}." + (f" The folder has {', '.join(near)}." if near else ""))
    if suffix not in _OPENED:
        raise InputError(f"{path} has the suffix {suffix or 'none'}; sash reads {', '.join(_OPENED)}.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: its permissions do not allow it.")
    return _OPENED[suffix](path)


def _of_tensor(tensor: Any) -> np.ndarray:
    """A tensor's own memory."""
    if str(tensor.device) != "cpu":
        raise InputError(f"the tensor is on {tensor.device}; sash reads arrays on the CPU: give tensor.cpu().")
    if tensor.requires_grad:
        raise InputError("the tensor requires a gradient, which an array job does not give; give tensor.detach().")
    try:
        return tensor.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"the tensor of {tensor.dtype} is no numpy array ({error}); give tensor.float(), dense.") from error


def _to_array(out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype, like: Source | None) -> ArraySink:
    if out is None:
        nbytes = prod(shape) * dtype.itemsize
        try:
            return ArraySink(np.empty(shape, dtype), nbytes)
        except MemoryError:
            raise InputError(
                f"the output of {shape} takes {format_bytes(nbytes)}, which this machine does not give; name a file."
            ) from None
    if (out.shape, out.dtype.newbyteorder("=")) != (shape, dtype):
        raise InputError(f"the output array has the shape {out.shape} of {out.dtype}; the result has {shape} of {dtype}.")
    if not out.flags.writeable or 0 in out.strides:
        raise InputError("the output array cannot be written to; give one of its own memory, as numpy.empty makes.")
    if like is not None and like.array is not None and _shared(out, like.array):
        raise InputError("the output array lies in the input's memory, and would be overwritten while it is read; give another one.")
    return ArraySink(out, 0)


def _shared(first: np.ndarray, second: np.ndarray) -> bool:
    work: Any = 10_000
    try:
        return np.shares_memory(first, second, max_work=work)
    except np.exceptions.TooHardError:
        return True
