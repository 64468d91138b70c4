"""A signal put together again from the spectra of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from sash.arrays._frames import block_of
from sash.arrays._overlap import LEAST, overlap_add, rows, spread_taps, told_window, transform_size, whole
from sash.arrays._room import Room
from sash.arrays._store import Box, Sink, Source
from sash.errors import InputError
from sash.window import Interval, Window


@dataclass(frozen=True, eq=False)
class Inverse:
    """Spectra, and the signal that they make."""

    source: Source
    window: Window
    taps: np.ndarray
    """In the type of the signal."""
    sums: np.ndarray
    """Sums of squared windows in rows of a hop: row q of those over sample q·hop + r since the first frame's start, where no frame ends."""
    length: int
    """Samples of the signal."""

    @property
    def lanes(self) -> int:
        """Signals."""
        return self.source.shape[0] if len(self.source.shape) == 3 else 1

    @property
    def bins(self) -> int:
        """From 0 Hz to half the rate."""
        return self.source.shape[-2]

    @property
    def count(self) -> int:
        """Frames."""
        return self.source.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the signal."""
        return (*self.source.shape[:-2], self.length)

    @property
    def block(self) -> int:
        """Frames that are transformed together, from multiples of it on."""
        return block_of(self.window.size, self.window.stride, self.count)

    def frames(self, part: Interval) -> Interval:
        """Frames over samples, in whole blocks: a transform's last bits may depend on its place in one."""
        over = self.window.writes(*part).clip(self.count)
        return Interval(over.start - over.start % self.block, min(ceil(over.stop / self.block) * self.block, self.count))

    def covered(self, row: int) -> np.ndarray:
        """Sums of the squared windows over the samples [row·hop, (row + 1)·hop), counted from the first frame's start."""
        last = len(self.sums) - 1
        # Frames row - last to row lie over them, of those that there are.
        found = self.sums[min(row, last)]
        gone = row - self.count
        return found if gone < 0 else found - self.sums[min(gone, last)]

    def box(self, lane: int, frames: Interval) -> Box:
        """Where the spectra of frames lie in the source."""
        lead = (Interval(lane, lane + 1),) if len(self.source.shape) == 3 else ()
        return (*lead, Interval(0, self.bins), frames)


def inverse_of(
    source: Source, frame: int, hop: int | None, fft_size: int | None, window: Any, centered: bool, length: int | None
) -> Inverse:
    """Checked: raises `InputError` for spectra of other frames, and where samples lie under too little to be told.

    `length` is the signal's, if it is known.
    """
    frame = whole("frame", frame)
    hop = max(frame // 4, 1) if hop is None else whole("hop", hop)
    size = transform_size(frame, fft_size)
    if source.dtype.kind != "c":
        raise InputError(f"the source holds {source.dtype}; the inverse takes complex spectra, as stft(output='complex') makes them.")
    if len(source.shape) not in (2, 3) or source.shape[-2] != size // 2 + 1:
        near = (
            f"; a frame of {2 * (source.shape[-2] - 1)} would have made them"
            if len(source.shape) in (2, 3) and source.shape[-2] > 1
            else ""
        )
        raise InputError(f"the source has the shape {source.shape}; frames of {size} have spectra of (…, {size // 2 + 1}, frames){near}.")
    added = overlap_add(window, frame, hop)
    if not added.holds:
        raise InputError(str(added))
    side = size // 2 if centered else 0
    taps = spread_taps(window, frame, size)
    frames = Window(size, hop, pad=(side, side))
    count = source.shape[-1]
    own = (count - 1) * hop + size - 2 * side
    wanted = own if length is None else whole("length", length)
    dtype = np.dtype(np.float32 if source.dtype == np.complex64 else np.float64)
    found = Inverse(source, frames, taps.astype(dtype), np.cumsum(rows(taps**2, hop), axis=0), wanted)
    if wanted < 1:
        raise InputError(f"one frame of {frame} has its middle on the first sample, and tells no length; say length=, {hop} or so.")
    _check_covered(found, own, told_window(window), added.most)
    return found


def _check_covered(inverse: Inverse, own: int, window: str, most: float) -> None:
    """Raise `InputError` for the first sample that too little lies over."""
    hop, side = inverse.window.stride, inverse.window.pad[0]
    first, last = side // hop, (side + inverse.length - 1) // hop
    ends = len(inverse.sums)
    # Between the ends all rows are alike.
    for row in sorted(
        {*range(first, min(first + ends, last) + 1), *range(max(inverse.count - 1, first), min(inverse.count + ends, last) + 1), last}
    ):
        at = np.arange(row * hop, (row + 1) * hop) - side
        low = (inverse.covered(row) < LEAST * most) & (at >= 0) & (at < inverse.length)
        if not low.any():
            continue
        place = int(np.argmax(low))
        sample, least = int(at[place]), max(float(inverse.covered(row)[place]), 0.0)
        told = f"over sample {sample} of {inverse.length} the squared windows ({window}, hop {hop}) add up to {least:.2g}"
        told += f", of {most:.3g} elsewhere, so the inverse would not be exact"
        if inverse.window.pad[0] == 0 and sample < inverse.window.size:
            raise InputError(f"{told}; centered=True, in stft and here, lies over the ends.")
        near = f"length={sample}" + (f" (without length: {own})" if own <= sample else "")
        raise InputError(f"{told}; {near} is, or append {hop} samples before stft.")


def synthesize(inverse: Inverse, sink: Sink, room: Room, lane: int, part: Interval) -> None:
    """Some samples of the signal, from the spectra of the frames over them to the sink."""
    import torch

    hop, size, side = inverse.window.stride, inverse.window.size, inverse.window.pad[0]
    over, block, bins = inverse.frames(part), inverse.block, inverse.bins
    whole = _spectra(inverse, lane, over, room)
    taps = torch.from_numpy(inverse.taps)
    spectra = room.array("spectra", (block, bins), inverse.source.dtype)
    buffer = torch.from_numpy(spectra)
    # Row q: the samples [q·hop, (q + 1)·hop) since the start of the first of these frames.
    added = room.array("added", (over.length + -(-size // hop), hop), inverse.taps.dtype)
    added.fill(0)
    for first in range(over.start, over.stop, block):
        count = min(block, over.stop - first)
        spectra[:count] = whole[first - over.start : first - over.start + count]
        frames = torch.fft.irfft(buffer[:count], n=size).mul_(taps).numpy()
        row = first - over.start
        for place, start in enumerate(range(0, size, hop)):
            piece = frames[:, start : start + hop]
            added[row + place : row + place + count, : piece.shape[1]] += piece
            del piece
        del frames
    _divide(inverse, added, over.start, Interval(part.start + side, part.stop + side))
    begin = part.start + side - over.start * hop
    lead = (Interval(lane, lane + 1),) if len(inverse.source.shape) == 3 else ()
    found = added.reshape(-1)[begin : begin + part.length]
    sink.write((*lead, part), found.reshape([*(1 for _ in lead), -1]))


def _spectra(inverse: Inverse, lane: int, frames: Interval, room: Room) -> np.ndarray:
    """Spectra, (frame, bin): where they lie in memory, else read."""
    array = inverse.source.array
    if array is not None:
        return (array if array.ndim == 2 else array[lane])[:, slice(*frames)].T
    found = room.array("read", (inverse.bins, frames.length), inverse.source.dtype)
    box = inverse.box(lane, frames)
    inverse.source.read(box, found.reshape([one.length for one in box]))
    return found.T


def _divide(inverse: Inverse, added: np.ndarray, first: int, part: Interval) -> None:
    """Divide sums of frames by those of the squared windows; `part` is in samples since the start of frame 0, row 0 begins with `first`."""
    hop = inverse.window.stride
    rows = Interval(part.start // hop, (part.stop - 1) // hop + 1)
    ends = len(inverse.sums)
    alike = Interval(max(rows.start, ends - 1), min(rows.stop, inverse.count))
    dtype = added.dtype
    if alike.length:
        added[alike.start - first : alike.stop - first] /= inverse.sums[-1].astype(dtype)
    # Before and after, the ends of the signal lie under fewer frames. What is no sample of it may lie under none.
    with np.errstate(divide="ignore", invalid="ignore"):
        for row in range(*rows):
            if not alike.start <= row < alike.stop:
                added[row - first] /= inverse.covered(row).astype(dtype)
