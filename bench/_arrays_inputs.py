"""Inputs of array jobs, written by the libraries that others write them with, not by sash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Noise over most of what a type holds, or from 0 to 1."""
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "f":
        return rng.random(shape, np.float32).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min // 2, info.max // 2 + 1, shape, dtype)


def write(path: Path, array: np.ndarray, layout: Any = None, rate_hz: int = 48_000) -> Path:
    """A file of the path's kind. `layout`: chunks of zarr; "tiled" for TIFF in deflated tiles."""
    kind = path.suffix
    if kind == ".npy":
        np.save(path, array)
    elif kind == ".zarr":
        import zarr

        made = zarr.create_array(store=path, shape=array.shape, dtype=array.dtype, chunks=tuple(layout))
        made[...] = array
    elif kind == ".tif":
        import tifffile

        colours = {"photometric": "rgb"} if array.ndim == 3 and array.shape[-1] == 3 else {"photometric": "minisblack"}
        tiled = {"tile": (256, 256), "compression": "zlib"} if layout == "tiled" else {}
        tifffile.imwrite(path, array, **colours, **tiled)
    elif kind == ".png":
        from PIL import Image

        Image.fromarray(array).save(path, compress_level=1)
    elif kind in (".wav", ".flac"):
        import soundfile

        soundfile.write(path, array.T, rate_hz, subtype="FLOAT" if array.dtype == np.float32 else "PCM_16")
    else:
        raise AssertionError(path)
    return path


def picture(path: Path, side: int, rows: int = 256) -> Path:
    """A square of float32 in a .npy file, blocks and noise, written band by band."""
    header = {"shape": (side, side), "fortran_order": False, "descr": "<f4"}
    rng = np.random.default_rng(0)
    noise = rng.random((rows, side), np.float32) * np.float32(0.5)
    columns = np.arange(side) // 512
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for top in range(0, side, rows):
            count = min(rows, side - top)
            blocks = ((np.arange(top, top + count)[:, None] // 512 + columns) % 2).astype(np.float32)
            blocks *= 0.5
            # The same noise, shifted: drawing it anew would take longer than the job.
            blocks += np.roll(noise[:count], 997 * (top // rows), axis=1)
            file.write(blocks.data)
    return path
