"""PNG and JPEG: their coders take a picture whole, so it is in memory for as long as it is open."""

from __future__ import annotations

import struct
import threading
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_sink import Sink, Target, sync
from sash.arrays._store_source import Box, Seen, Source, checked_shape, needs, slices
from sash.errors import InputError

JPEG = (".jpg", ".jpeg")
_BAND = 1 << 20
"""Bytes that are taken out of the decoder's own pixels at a time."""
_DECODER_BYTES = 256 << 10
"""Of what the decoder has read and not yet decoded, and of its own tables."""
_MODES = {"1": (1, "bool"), "L": (1, "uint8"), "LA": (2, "uint8"), "RGB": (3, "uint8"), "RGBA": (4, "uint8"), "CMYK": (4, "uint8")}
_MODES |= {mode: (1, "uint16") for mode in ("I;16", "I;16B", "I;16L")}
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, IndexError)


class PictureSource(Source):
    """A picture, decoded when it is first read: (rows, columns), or (rows, columns, channels). A palette becomes its colours."""

    def __init__(self, path: Path) -> None:
        self._seen = Seen.now(path)
        with _opened(path) as picture:
            self._mode = ("RGBA" if "transparency" in picture.info else "RGB") if picture.mode in ("P", "PA") else picture.mode
            columns, rows = picture.size
        if self._mode not in _MODES:
            raise InputError(f"{path} has pixels of {self._mode}; save it as a TIFF.")
        channels, name = _MODES[self._mode]
        self.shape = checked_shape((rows, columns) if channels == 1 else (rows, columns, channels), str(path))
        self.dtype = np.dtype(name)
        self.grain = self.shape
        self.held_bytes = prod(self.shape) * self.dtype.itemsize
        self._pixels: np.ndarray | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._seen,)

    def _identified(self) -> dict[str, Any]:
        return self._seen.identity

    def scratch_bytes(self, box: Box) -> int:
        """Before the first read, the decoder's own pixels, of four bytes where there are several channels; later nothing."""
        pixel = self.dtype.itemsize if len(self.shape) == 2 else 5
        return 0 if self._pixels is not None else pixel * self.shape[0] * self.shape[1] + 3 * min(_BAND, self.held_bytes) + _DECODER_BYTES

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = None

    def _fill(self, box: Box, into: np.ndarray) -> None:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decoded()
            pixels = self._pixels
        into[...] = pixels[slices(box)]

    def _decoded(self) -> np.ndarray:
        path = self._seen.path
        self._seen.check(path)
        pixels = np.empty(self.shape, self.dtype)
        step = max(1, _BAND // (pixels.nbytes // self.shape[0]))
        try:
            with _opened(path) as picture:
                picture.load()
                shown = picture if picture.mode == self._mode else picture.convert(self._mode)
                for first in range(0, self.shape[0], step):
                    stop = min(first + step, self.shape[0])
                    pixels[first:stop] = np.asarray(shown.crop((0, first, self.shape[1], stop)))
        except _DAMAGED as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be decoded ({error}); it is damaged or was cut off.") from error
        return pixels


class PictureSink(Sink):
    """A picture that is kept in memory, and encoded at the end."""

    def __init__(self, target: Target, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self.grain = shape, dtype, (1,) * len(shape)
        self._target = target
        self._pixels = np.zeros(shape, dtype)
        self.held_bytes = self._pixels.nbytes + 4 * shape[0] * shape[1]

    def finish(self) -> Path:
        """The path; the picture is encoded, and appears under its name."""
        pictures = _pillow(f"writing {self._target.out}")
        jpeg = self._target.final.suffix.lower() in JPEG
        # Without subsampled colours, and at the highest quality that JPEG's own tables are meant for.
        options: dict[str, Any] = {"quality": 95, "subsampling": 0} if jpeg else {}
        pixels = self._pixels[..., 0] if self.shape[2:] == (1,) else self._pixels
        try:
            with self._target.room(self._pixels.nbytes):
                pictures.fromarray(pixels).save(self._target.partial, "JPEG" if jpeg else "PNG", **options)
                sync(self._target.partial)
        except BaseException:
            self._target.discard()
            raise
        self.close()
        return self._target.publish()

    def abandon(self) -> None:
        """Forget it."""
        self.close()
        self._target.discard()

    def close(self) -> None:
        """Forget it: there is nothing on the disk yet."""
        self._pixels = np.empty(0, self.dtype)

    def _put(self, box: Box, part: np.ndarray) -> None:
        self._pixels[slices(box)] = part


def new_picture(target: Target, shape: tuple[int, ...], dtype: np.dtype, resume: bool) -> PictureSink:
    """A picture to be written; raises `InputError` for what its format does not hold."""
    _pillow(f"writing {target.out}")
    if resume:
        target.unfinished()
        raise InputError(f"{target.out} is written in one go, so there is nothing to go on with; write to a .tif file to resume.")
    jpeg = target.final.suffix.lower() in JPEG
    channels = shape[2:] or (1,)
    kinds = ("uint8",) if jpeg or channels != (1,) else ("uint8", "uint16")
    counts = (1, 3) if jpeg else (1, 2, 3, 4)
    name = "JPEG" if jpeg else "PNG"
    if len(shape) not in (2, 3) or channels[0] not in counts:
        told = ", ".join(map(str, counts[:-1]))
        raise InputError(
            f"{target.out}: {name} holds (rows, columns) with {told} or {counts[-1]} channels, not {shape}; write a .tif or .npy file."
        )
    if dtype.name not in kinds:
        lone = " of one channel" if "uint16" in kinds or (dtype.name == "uint16" and not jpeg) else ""
        also = f" and uint16{lone}" if not jpeg else ""
        raise InputError(f"{target.out}: {name} holds uint8{also}, not {dtype} of {shape}; write a .tif or .npy file, or convert it.")
    if max(shape[:2]) > (most := 65500 if jpeg else (1 << 31) - 1):
        raise InputError(f"{target.out}: {name} holds at most {most} rows and columns, not {shape[:2]}; write a .tif file.")
    return PictureSink(target, shape, dtype)


def _opened(path: Path) -> Any:
    """The picture before it is decoded; raises `InputError` for what is none, or loses bits in the decoder."""
    _pillow(f"reading {path}")
    from PIL import JpegImagePlugin, PngImagePlugin

    jpeg = path.suffix.lower() in JPEG
    # Not `Image.open`, which warns of more than 89 million pixels: the bytes are counted, so a large picture is not a surprise here.
    kind: Any = JpegImagePlugin.JpegImageFile if jpeg else PngImagePlugin.PngImageFile
    try:
        if not jpeg:
            head = path.open("rb")
            with head:
                start = head.read(26)
            if len(start) == 26 and start[24] == 16 and start[25] != 0:
                raise InputError(f"{path} has colours of 16 bits, of which pillow keeps 8; save it as a TIFF.")
        return kind(path)
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as {'JPEG' if jpeg else 'PNG'} ({error}).") from error


def _opened_again(seen: Seen) -> PictureSource:
    seen.check(seen.path)
    return PictureSource(seen.path)


def _pillow(doing: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise needs("pillow", doing) from None
    return Image
