"""TIFF and BigTIFF: uncompressed pages are read as they lie in the file, others a tile or strip at a time."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_raw import RawSink, RawSource, new_raw
from sash.arrays._store_sink import Target
from sash.arrays._store_source import Box, Seen, Source, checked_dtype, checked_shape, needs, touched
from sash.errors import InputError
from sash.window import Interval

_CLASSIC = (1 << 32) - (1 << 25)
"""Bytes up to which a file is no BigTIFF: offsets have 32 bits, and there are tags beside the numbers."""
_JPEG = (6, 7, 34892, 33007)
_SEGMENT_HELD = 16
"""Bytes in memory for the place and the size of one tile or strip."""
_UNWRITTEN = {"bool": "uint8", "complex128": "complex64"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a page is cut: axes are (separate sample, depth, row, column, interleaved sample)."""

    shaped: tuple[int, ...]
    kept: tuple[int, ...]
    """Those of the five that the page's shape has."""
    segment: tuple[int, ...]
    decode: Callable[..., Any]
    fill: float
    """What a segment that is not in the file stands for."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Segments along each axis."""
        return tuple(-(-length // cell) for length, cell in zip(self.shaped, self.segment, strict=True))


class SegmentSource(Source):
    """Pages of tiles or strips that have to be decoded; the first axes count pages."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, layout: _Layout, places: np.ndarray, tables: list[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._pages = len(shape) - len(layout.kept)
        self.grain = (1,) * self._pages + tuple(layout.segment[axis] for axis in layout.kept)
        self.held_bytes = places.size // 2 * _SEGMENT_HELD
        self._layout, self._tables = layout, tables
        self._places = places
        """Offset and bytes of each segment: (pages, segments, 2)."""
        self._seen = Seen.now(path)
        self._file = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        if int(places.sum(axis=-1).max()) > self._seen.size:
            self.close()
            raise InputError(
                f"{path} was cut off: its tags name bytes up to {int(places.sum(axis=-1).max())}, and it has {self._seen.size}."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._seen,)

    def _identified(self) -> dict[str, Any]:
        return self._seen.identity

    def read_bytes(self, box: Box) -> int:
        """Bytes of all segments that the box lies on, decoded."""
        cells = prod(part.length for part in touched(box, self.grain))
        return cells * prod(self.grain) * self.dtype.itemsize

    def scratch_bytes(self, box: Box) -> int:
        """One segment: encoded, decompressed in blocks and put together, and in the machine's byte order."""
        return int(self._places[..., 1].max()) + 4 * prod(self._layout.segment) * self.dtype.itemsize

    def close(self) -> None:
        """Let go of the file."""
        self._close()
        self._file = -1

    def check(self) -> None:
        """Raise `InputError` if its segments cannot be decoded here."""
        offset, count = (int(number) for number in self._places[0, 0])
        self._decoded(0, 0, os.pread(self._file, count, offset) if count else None)

    def _fill(self, box: Box, into: np.ndarray) -> None:
        pages, inner = box[: self._pages], dict(zip(self._layout.kept, box[self._pages :], strict=True))
        full = tuple(inner.get(axis, Interval(0, 1)) for axis in range(5))
        dropped = tuple(axis for axis in range(5) if axis not in self._layout.kept)
        strides = [prod(self.shape[axis + 1 : self._pages]) for axis in range(self._pages)]
        for place in product(*(range(*page) for page in pages)):
            part = into[tuple(index - page.start for index, page in zip(place, pages, strict=True))]
            page = sum(index * stride for index, stride in zip(place, strides, strict=True))
            self._fill_page(page, full, np.expand_dims(part, dropped))
        self._seen.check(self._file)

    def _fill_page(self, page: int, box: Box, into: np.ndarray) -> None:
        layout = self._layout
        for cell in product(*(range(*part) for part in touched(box, layout.segment))):
            edges = tuple(
                Interval(index * size, min((index + 1) * size, length))
                for index, size, length in zip(cell, layout.segment, layout.shaped, strict=True)
            )
            common = tuple(Interval(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(edges, box, strict=True))
            # The decoder leaves the first axis out.
            self._fill_common(
                page, int(np.ravel_multi_index(cell, layout.counts)), _within(common, edges)[1:], into[_within(common, box)][0]
            )

    def _fill_common(self, page: int, number: int, place: tuple[slice, ...], into: np.ndarray) -> None:
        # A function of its own, so that a segment is gone before the next is read.
        offset, count = (int(value) for value in self._places[page, number])
        if not count:
            into[...] = self._layout.fill
            return
        found = os.pread(self._file, count, offset)
        if len(found) < count:
            self._seen.check(self._file)
        into[...] = self._decoded(page, number, found)[place]

    def _decoded(self, page: int, number: int, data: bytes | None) -> np.ndarray:
        try:
            found, _, _ = self._layout.decode(data, number, **self._tables[page if len(self._tables) > 1 else 0])
        except MemoryError:
            raise
        except Exception as error:
            if "imagecodecs" in str(error):
                raise InputError(f"{self._seen.path} is compressed: {error}: pip install imagecodecs, or save it uncompressed.") from error
            raise InputError(
                f"{self._seen.path} cannot be decoded at page {page}, tile or strip {number} ({error}); it is damaged."
            ) from error
        return found


def open_tiff(path: Path) -> Source:
    """The first image of a file, or the stack of its equal pages; of a pyramid the largest level.

    Raises `InputError` for a file that is cut off, damaged, or compressed in a way that cannot be undone here.
    """
    tifffile = _tifffile(f"reading {path}")
    with _complaints() as told:
        try:
            with tifffile.TiffFile(path) as file:
                source = _source(path, file)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            # A damaged tag ends in any error of Python's: a division by zero, a name that is a number.
            raise InputError(f"{path} cannot be read as TIFF ({error}).") from error
    if told:
        source.close()
        raise InputError(f"{path} was cut off, or is damaged: {told[0]}.")
    if isinstance(source, SegmentSource):
        try:
            source.check()
        except InputError:
            source.close()
            raise
    return source


def new_tiff(target: Target, shape: tuple[int, ...], dtype: np.dtype, resume: bool) -> RawSink:
    """A file to be written: uncompressed, in one piece; BigTIFF where it has to be."""
    tifffile = _tifffile(f"writing {target.out}")
    if dtype.name in _UNWRITTEN:
        raise InputError(f"{target.out}: TIFF does not hold {dtype} as it is; write {_UNWRITTEN[dtype.name]}, or to a .npy or .zarr file.")

    def begin(path: Path) -> int:
        samples = len(shape) == 3 and shape[-1] in (2, 3, 4) and shape[0] > 1 and shape[1] > 1
        kind = (
            {"photometric": "rgb" if shape[-1] > 2 else "minisblack", "planarconfig": "contig"}
            if samples
            else {"photometric": "minisblack"}
        )
        big = prod(shape) * dtype.itemsize > _CLASSIC
        made = tifffile.imwrite(path, shape=shape, dtype=dtype, bigtiff=big, returnoffset=True, align=64, **kind)
        assert made is not None
        return made[0]

    return new_raw(target, shape, dtype, begin, open_tiff if resume else None)


def _source(path: Path, file: Any) -> Source:
    if not file.series:
        raise InputError(f"{path} holds no image.")
    series, *others = file.series
    larger = [other.shape for other in others if prod(other.shape) > prod(series.shape)]
    if larger or series.is_multifile:
        what = f"several images, of {series.shape} and {larger[0]}" if larger else "a part of an image in several files"
        raise InputError(f"{path} holds {what}; save the one that is meant as a file of its own.")
    key = series.keyframe
    checked_dtype(series.dtype if series.dtype is not None else object, str(path))
    shape = checked_shape(tuple(series.shape), str(path))
    # In the file's own byte order, which `series.dtype` does not tell.
    stored = np.dtype(series.dtype).newbyteorder(file.byteorder)
    if series.dataoffset is not None and key.is_final:
        return RawSource(path, shape, stored, (series.dataoffset,))
    inner = tuple(key.shape)
    pages = list(series.pages)
    if None in pages or shape[len(shape) - len(inner) :] != inner or prod(shape[: len(shape) - len(inner)]) != len(pages):
        raise InputError(
            f"{path} has {sum(page is not None for page in pages)} pages of {inner}, which do not make up {shape}; it was cut off."
        )
    places = np.array([np.stack([page.dataoffsets, page.databytecounts], -1) for page in pages], np.int64)
    ends = places.sum(axis=-1)
    if key.is_final and key.compression == 1 and not key.is_tiled and np.array_equal(places[:, 1:, 0], ends[:, :-1]):
        return RawSource(path, shape, stored, places[:, 0, 0].copy(), len(shape) - len(inner))
    tables: list[Any] = [{}]
    if key.compression in _JPEG:
        tables = [{"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} for page in pages]
    return SegmentSource(path, shape, stored.newbyteorder("="), _layout(key), places, tables)


def _layout(key: Any) -> _Layout:
    shaped = tuple(key.shaped)
    rows = (1, key.tilelength, key.tilewidth) if key.is_tiled else (1, min(key.rowsperstrip, shaped[2]), shaped[3])
    depth = key.tiledepth if key.is_tiled else 1
    kept = tuple(axis for axis, length in enumerate(shaped) if length > 1 or axis in (2, 3))
    if tuple(shaped[axis] for axis in kept) != tuple(key.shape):
        raise InputError(f"pages of {tuple(key.shape)} are stored as {shaped}, which sash does not read; save it as plain TIFF.")
    return _Layout(shaped, kept, (1, depth, *rows[1:], shaped[4]), key.decode, key.nodata)


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    """A part of a box, counted from where the box begins."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))


def _opened_again(seen: Seen) -> Source:
    seen.check(seen.path)
    return open_tiff(seen.path)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs as errors meanwhile: it goes on with fewer pages where a file was cut off."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener, logger = Listener(logging.ERROR), logging.getLogger("tifffile")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield told
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


def _tifffile(doing: str) -> Any:
    try:
        import tifffile
    except ImportError:
        raise needs("tifffile", doing) from None
    return tifffile
