"""Images and outputs of a tiled run: arrays in memory, and .npy files that are read and written a box at a time.

Files are read and written, not mapped: mapped pages would count as the process's own memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sash.errors import InputError
from sash.window import Interval

Box = tuple[Interval, ...]
"""One interval a dimension."""
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class Image:
    """A batch of images: `shape` is (batch, channels, *axes)."""

    def __init__(self, array: Tensor | BoxFile, shape: tuple[int, ...], held: int, identity: dict[str, Any]) -> None:
        self._array, self.shape = array, shape
        self.held = held
        """Bytes in memory for as long as the run."""
        self.identity = identity
        self.dtype = array.dtype

    def read(self, box: Box) -> Tensor:
        """The part in a box: a view where the image is in memory."""
        shape = [part.length for part in box]
        skipped = len(self.shape) - self._array.dim()
        part = self._array.narrow_all(box[skipped:]) if isinstance(self._array, BoxFile) else _narrowed(self._array, box[skipped:])
        return part.reshape(shape) if skipped else part

    def close(self) -> None:
        """Let go of its file."""
        if isinstance(self._array, BoxFile):
            self._array.close()

    def stand_in(self, box: Box) -> Tensor:
        """What `read` takes of memory, without reading."""
        shape = [part.length for part in box]
        return torch.empty(1, dtype=self.dtype).expand(shape) if isinstance(self._array, Tensor) else torch.empty(shape, dtype=self.dtype)


class BoxFile:
    """The numbers of an .npy file, a box at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int, mode: str = "rb") -> None:
        self.shape, self.path = shape, path
        self._numpy, self._offset = dtype, offset
        self.dtype = torch_type(dtype)
        self._file: Any = open(path, mode, buffering=0)  # noqa: SIM115 (open for as long as the run)

    @classmethod
    def existing(cls, path: Path) -> BoxFile:
        """For reading; raises `InputError` for what is no array of numbers in C order."""
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                offset = file.tell()
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path} cannot be read as an array of numbers ({error}); save one with numpy.save.") from error
        if dtype.hasobject or dtype.kind not in "fiub":
            raise InputError(f"{path} holds {dtype}; an image is of whole or floating numbers, as uint8 or float32.")
        if fortran and len(shape) > 1:
            raise InputError(f"{path} is in Fortran order; save it with numpy.save(path, numpy.ascontiguousarray(array)).")
        if path.stat().st_size < offset + prod(shape) * dtype.itemsize:
            raise InputError(f"{path} is shorter than its shape {shape} of {dtype} says; it was cut off.")
        return cls(path, shape, dtype, offset)

    @classmethod
    def new(cls, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> BoxFile:
        """A file of that shape, filled with zeros; one that is there is written over."""
        numpy = np.dtype(str(dtype).removeprefix("torch."))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(numpy)})
        with path.open("wb") as file:
            file.write(header.getvalue())
            file.truncate(header.tell() + prod(shape) * numpy.itemsize)
        return cls(path, shape, numpy, header.tell(), "r+b")

    @classmethod
    def again(cls, path: Path) -> BoxFile:
        """A file that `new` made, to go on writing."""
        found = cls.existing(path)
        found._file.close()
        return cls(path, found.shape, found._numpy, found._offset, "r+b")

    def dim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    def narrow_all(self, box: Box) -> Tensor:
        """Read a box."""
        shape = [part.length for part in box]
        made = torch.empty(shape, dtype=self.dtype)
        into = made.reshape(-1).view(torch.uint8).numpy().data.cast("B")
        place = 0
        for offset, count in self._runs(box):
            self._file.seek(offset)
            done = 0
            while done < count:
                got = self._file.readinto(into[place + done : place + count])
                if not got:
                    raise InputError(f"{self.path} ended while it was read; it was changed since the run began.")
                done += got
            place += count
        if self._numpy.byteorder == ">":
            array = made.numpy().view(self._numpy)
            made = torch.from_numpy(array.astype(self._numpy.newbyteorder("=")))
        return made

    def write(self, box: Box, part: Tensor) -> None:
        """Write a box."""
        part = part.contiguous()
        bytes_of = part.reshape(-1).view(torch.uint8).numpy().data.cast("B")
        place = 0
        for offset, count in self._runs(box):
            self._file.seek(offset)
            done = 0
            while done < count:
                done += self._file.write(bytes_of[place + done : place + count])
            place += count

    def flush(self) -> None:
        """Make what was written outlast the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _runs(self, box: Box) -> Iterator[tuple[int, int]]:
        """Stretches of bytes that lie together in the file: offset and count."""
        joined = len(box) - 1
        while joined > 0 and box[joined] == (0, self.shape[joined]):
            joined -= 1
        inner = prod(self.shape[joined + 1 :])
        strides = [prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        count = box[joined].length * inner * self._numpy.itemsize
        for places in product(*(range(*part) for part in box[:joined])):
            start = sum(place * stride for place, stride in zip(places, strides, strict=False)) + box[joined].start * inner
            yield self._offset + start * self._numpy.itemsize, count


def open_image(image: Any, axes: int, hashed: bool) -> Image:
    """An image from a tensor, a numpy array or a path; raises `InputError` where it cannot be read or has no batch-and-channel layout.

    A lone image stands for a batch of one, and an array without channels for one channel. With `hashed`, an image in memory is known
    again by its content.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_path(Path(image), axes)
    held = None
    if isinstance(image, np.ndarray):
        if image.dtype.hasobject or image.dtype.kind not in "fiub":
            raise InputError(f"the image holds {image.dtype}; an image is of whole or floating numbers, as uint8 or float32.")
        held = 0 if isinstance(image, np.memmap) else image.nbytes
        image = _as_tensor(image)
    if not isinstance(image, Tensor):
        raise InputError(f"the image is of type {type(image).__name__}; give a tensor, a numpy array, or the path of a .npy file.")
    if image.device.type != "cpu" or image.is_complex():
        raise InputError(f"the image is {image.dtype} on {image.device}; sash tiles real numbers on the CPU so far.")
    image = image.detach()
    digest = hashlib.sha256()
    if hashed:
        _digest(image, digest)
    bytes_held = image.numel() * image.element_size() if held is None else held
    return Image(image, _batched(tuple(image.shape), axes), bytes_held, {"image": [list(image.shape), digest.hexdigest()]})


def _as_tensor(array: np.ndarray) -> Tensor:
    """The array's own memory as a tensor, read-only or not: a tiled run writes nothing into its image."""
    if any(step < 0 for step in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    torch_type(array.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _digest(image: Tensor, digest: Any) -> None:
    """Its numbers in order, without a copy of all of them."""
    if image.is_contiguous() or image.dim() < 2:
        if image.numel():
            digest.update(image.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return
    for part in image:
        _digest(part, digest)


def _from_path(path: Path, axes: int) -> Image:
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))[:4] if path.parent.is_dir() else []
        raise InputError(f"there is no file {path}." + (f" The folder has {', '.join(near)}." if near else ""))
    state = path.stat()
    identity = {"image": [state.st_size, state.st_mtime_ns]}
    if path.suffix.lower() == ".npy":
        file = BoxFile.existing(path)
        return Image(file, _batched(file.shape, axes), 0, identity)
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path} is not a .npy file or a picture ({', '.join(PICTURES)}).")
    pixels = _picture(path)
    return Image(pixels, _batched(tuple(pixels.shape), axes), pixels.numel() * pixels.element_size(), identity)


def _picture(path: Path) -> Tensor:
    """A picture's pixels, (channels, rows, columns), as whole numbers from 0 to 255: the decoder needs it whole in memory."""
    try:
        from PIL import Image as Pictures
        from PIL import UnidentifiedImageError
    except ImportError:
        raise InputError(f"reading {path} needs pillow, which is not installed: pip install 'sash[demo]'.") from None
    try:
        with Pictures.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, Pictures.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}).") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _batched(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    if not axes <= len(shape) <= axes + 2 or 0 in shape:
        words = {1: "(channels, length)", 2: "(channels, height, width)", 3: "(channels, depth, height, width)"}[axes]
        raise InputError(f"the image has the shape {shape}; the model takes {words}, with or without a batch before it.")
    return (1,) * (axes + 2 - len(shape)) + shape


def _narrowed(array: Tensor, box: Box) -> Tensor:
    for dim, part in enumerate(box):
        array = array.narrow(dim, part.start, part.length)
    return array


def torch_type(dtype: np.dtype) -> torch.dtype:
    """The torch type of a numpy one; raises `InputError` where there is none."""
    found = getattr(torch, dtype.name, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"torch has no type {dtype}; save the image as uint8 or float32.")
    return found
