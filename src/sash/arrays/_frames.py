"""Frames of a signal: the samples that each reads, and their spectra, made a block of frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from sash.arrays._border import FILL, Boundary, places
from sash.arrays._overlap import spread_taps, transform_size, whole
from sash.arrays._room import Room
from sash.arrays._store import Box, Source
from sash.errors import InputError
from sash.window import Interval, Window

_BLOCK = 1 << 17
"""Samples that are transformed together: half a MiB of fp32, and as much of spectra, eight times over. More are no faster."""
_MOST_FRAMES = 4096
_SMOOTH = (2, 3, 5, 7, 11, 13)
"""Prime factors of the lengths that MKL transforms in place of longer ones."""


@dataclass(frozen=True, eq=False)
class Lanes:
    """Signals side by side: of one axis, or of two, `axis` being the one of time."""

    source: Source
    axis: int

    @classmethod
    def of(cls, source: Source, axis: Any) -> Lanes:
        """Checked: raises `InputError` for more axes than two, and for numbers that are no samples."""
        dims = len(source.shape)
        if dims > 2:
            raise InputError(
                f"the source has the shape {source.shape}; give (samples,) or (channels, samples), as array.reshape(-1, n) is."
            )
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)) or not -dims <= axis < dims:
            raise InputError(f"axis is {axis!r}, and the source {source.shape} has axes {', '.join(map(str, range(dims)))}.")
        if source.dtype.name not in ("float16", "float32", "float64", "int8", "int16", "int32"):
            near = "array.astype('float32')" if source.dtype.kind != "c" else "array.real and array.imag, one at a time"
            raise InputError(
                f"the source holds {source.dtype}; samples are real floats, or whole numbers with a sign up to int32: give {near}."
            )
        return cls(source, int(axis) % dims)

    @property
    def count(self) -> int:
        """Signals."""
        return prod(self.source.shape) // self.length

    @property
    def length(self) -> int:
        """Samples of each."""
        return self.source.shape[self.axis]

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes before those of a result: none of one signal, one of several."""
        return (self.count,) if len(self.source.shape) == 2 else ()

    @property
    def dtype(self) -> np.dtype:
        """What is worked in: float64 for float64, fp32 for others."""
        return np.dtype(np.float64 if self.source.dtype == np.float64 else np.float32)

    @property
    def scale(self) -> float:
        """What samples are multiplied by: whole numbers are shares of the most that their type holds."""
        return 1.0 if self.source.dtype.kind == "f" else 2.0 ** (1 - 8 * self.source.dtype.itemsize)

    @property
    def table(self) -> np.ndarray | None:
        """All samples where they lie in memory, (lane, sample), each lane's together; None where they do not."""
        array = self.source.array
        plain = array is not None and array.flags.c_contiguous and self.axis == array.ndim - 1
        return array.reshape(-1, self.length) if plain and array is not None else None

    def grain(self) -> tuple[int, int]:
        """Lanes and samples that are read without decoding more than was asked."""
        grain = self.source.grain
        return (1 if len(grain) == 1 else grain[1 - self.axis]), grain[self.axis]

    def box(self, lanes: Interval, part: Interval) -> Box:
        """Where samples lie in the source."""
        if len(self.source.shape) == 1:
            return (part,)
        return (lanes, part) if self.axis == 1 else (part, lanes)

    def read(self, lanes: Interval, part: Interval, into: np.ndarray) -> None:
        """Fill `into`, (lane, sample), from samples that exist."""
        self.source.read(self.box(lanes, part), into[0] if len(self.source.shape) == 1 else into if self.axis == 1 else into.T)

    def around(self, lanes: Interval, part: Interval, boundary: Boundary, room: Room) -> np.ndarray:
        """Samples of a part that may reach beyond the ends, (lane, sample)."""
        found = room.array("samples", (lanes.length, part.length), self.source.dtype)
        inside = part.clip(self.length)
        if inside.length:
            self.read(lanes, inside, found[:, inside.start - part.start : inside.stop - part.start])
        for beyond in (Interval(part.start, min(part.stop, 0)), Interval(max(part.start, self.length), part.stop)):
            if not beyond.length:
                continue
            here = found[:, beyond.start - part.start : beyond.stop - part.start]
            at = places(beyond, self.length, boundary)
            if at[0] == FILL:
                here[...] = 0
                continue
            run = Interval(int(at.min()), int(at.max()) + 1)
            near = np.empty((lanes.length, run.length), self.source.dtype)
            self.read(lanes, run, near)
            np.take(near, at - run.start, axis=1, out=here, mode="clip")
        return found

    def reading_bytes(self, lanes: int, samples: int, pad: int) -> int:
        """Beside what `around` fills, while it reads so many samples."""
        length = min(samples, self.length)
        # Where it lies on the most chunks.
        first = min(self.grain()[1] - 1, self.length - length)
        box = self.box(Interval(0, lanes), Interval(first, first + length))
        beyond = min(pad, samples)
        near = min(pad + 1, self.length) * lanes * self.source.dtype.itemsize
        straight = self.axis == len(self.source.shape) - 1
        scratch = self.source.row_scratch_bytes(box) if straight else self.source.scratch_bytes(box)
        return scratch + (near + 40 * beyond if beyond else 0)


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of signals of one length, each under the same window."""

    window: Window
    length: int
    """Samples of a signal."""
    taps: np.ndarray
    """Weights, one a sample of a frame, in the type that is worked in."""
    boundary: Boundary

    @property
    def size(self) -> int:
        """Samples transformed, the window's and zeros beside it."""
        return self.window.size

    @property
    def bins(self) -> int:
        """From 0 Hz to half the rate."""
        return self.size // 2 + 1

    @property
    def count(self) -> int:
        """Frames."""
        return self.window.outputs(self.length)

    @property
    def block(self) -> int:
        """Frames that are transformed together, a power of two. Blocks start at multiples of it, however the work is cut, since a
        transform's last bits may depend on its place among others."""
        return block_of(self.size, self.window.stride, self.count)

    def kept_bytes(self, converted: bool) -> int:
        """What `spectra` keeps from one block to the next: frames under the window, and samples in another type."""
        run = (self.block - 1) * self.window.stride + self.size
        return (self.block * self.size + (run if converted else 0)) * self.taps.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Of a block's spectra."""
        return block_bytes(self.block, self.size, self.taps.dtype.itemsize)

    def spectra(self, run: Callable[[Interval], np.ndarray], part: Interval, room: Room) -> Iterator[tuple[Interval, np.ndarray]]:
        """Blocks of frames and their spectra, (frame, bin), to be let go of before the next; `run` gives the samples of an interval.

        torch transforms through MKL: in blocks of this size a third faster than scipy's pocketfft and twice as fast as numpy's.
        """
        import torch

        dtype, (size, hop) = self.taps.dtype, (self.size, self.window.stride)
        taps = torch.from_numpy(self.taps)
        buffer = torch.from_numpy(room.array("weighted", (self.block, size), dtype))
        for first in range(part.start, part.stop, self.block):
            own = Interval(first, min(first + self.block, part.stop))
            samples = run(self.window.reads(*own))
            if self.copied(samples):
                copied = room.array("copied", samples.shape, dtype)
                copied[...] = samples
                samples = copied
            weighted = buffer[: own.length]
            torch.mul(torch.from_numpy(samples).as_strided((own.length, size), (hop, 1)), taps, out=weighted)
            yield own, torch.fft.rfft(weighted).numpy()

    def copied(self, samples: np.ndarray) -> bool:
        """Whether samples are taken over before they are weighted: those of another type, and those that torch does not take, as it would
        let anyone write to them."""
        return samples.dtype != self.taps.dtype or not samples.flags.writeable


def frames_of(lanes: Lanes, frame: int, hop: int | None, fft_size: int | None, window: Any, centered: bool, boundary: Boundary) -> Frames:
    """Checked: raises `InputError` for lengths that are none, and where no frame lies on the signal."""
    frame = whole("frame", frame)
    hop = max(frame // 4, 1) if hop is None else whole("hop", hop)
    size = transform_size(frame, fft_size)
    side = size // 2 if centered else 0
    frames = Window(size, hop, pad=(side, side))
    taps = spread_taps(window, frame, size)
    if not frames.outputs(lanes.length):
        raise InputError(
            f"the signal has {lanes.length} samples, and a frame {size}: no frame lies on it. "
            f"frame={lanes.length} has one, and so has centered=True."
        )
    return Frames(frames, lanes.length, (taps * lanes.scale).astype(lanes.dtype), boundary)


def block_of(size: int, hop: int, count: int) -> int:
    """Frames transformed together: a power of two, no more than there are, of at most half a MiB of fp32."""
    most = min(max(_BLOCK // max(size, hop), 1), _MOST_FRAMES)
    return min(1 << (most.bit_length() - 1), 1 << (count - 1).bit_length())


def mkl_bytes(size: int, item: int) -> int:
    """What MKL takes for one transform beside a block and what becomes of it: 2.2 times its length, measured, and more for large prime
    factors, which it goes round by a longer transform."""
    return (3 if is_smooth(size) else 32) * size * item + (1 << 16)


def block_bytes(block: int, size: int, item: int) -> int:
    """Of a block's spectra."""
    return block * 2 * (size // 2 + 1) * item


def transform_bytes(block: int, size: int, item: int, kept: int) -> int:
    """Frames, their spectra as torch allocates them, of `kept` blocks, and what transforms take beside."""
    return block * size * item + kept * block_bytes(block, size, item) + mkl_bytes(size, item)


def is_smooth(size: int) -> bool:
    """Whether a length has small prime factors only."""
    for factor in _SMOOTH:
        while size % factor == 0:
            size //= factor
    return size == 1
