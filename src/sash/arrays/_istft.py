"""`sash.arrays.istft`: the signal again, from the spectra of its frames."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil, log2, prod
from typing import Any

import numpy as np

from sash.arrays._frames import block_of, transform_bytes
from sash.arrays._overlap import LEAST, overlap_add, rows, told_window, whole
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._stft import TASK_BYTES, by_frames, chunks_of, output_kind, spread_taps, transform_size, write_bytes
from sash.arrays._store import Box, Sink, Source, open_sink, open_source
from sash.arrays._tasks import MOST_TASK_BYTES, TURNS, Cut, Options, does_not_fit, fewer, longest, run_job
from sash.errors import InputError
from sash.window import Interval, Window

_WRITTEN = (".zarr", ".npy", ".wav")
_CHUNKS_READ = 4
"""Chunks of frames that a task reads, where the budget allows: the frames before a task's first are read by two."""


def istft(
    source: Any,
    frame: int,
    hop: int | None = None,
    out: np.ndarray | str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    window: Any = "hann",
    rate_hz: int | None = None,
    centered: bool = True,
    fft_size: int | None = None,
    length: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The signal, (samples,) or (channels, samples), whose `stft` with the same frame, hop, window, `centered` and `fft_size` is `source`.

    `source` is an array, a tensor on the CPU, or a .npy or .zarr file of complex spectra, (bins, frames) or (channels, bins, frames);
    complex64 gives fp32, complex128 float64. Frames are weighted by the window once more, added up, and divided by the sum of the squared
    windows (Griffin and Lim, 1984): of spectra that were changed, the signal whose transform is nearest; of others the signal itself, to
    rounding: some 1e-6 of the loudest sample in fp32, 1e-14 in float64.

    `length` is the signal's; without it, samples after the middle of the last frame are left out, and without `centered` after its end.
    Raises `InputError` where the squared windows over any sample add up to less than 0.001 of the most, and names a hop or a length for
    which they do not: of signals whose length is no multiple of the hop, the last samples may lie under the end of one frame alone.

    `out` is an array, or names a .npy, .zarr or .wav file (of `rate_hz` samples a second); budget, files and interruptions as for
    `stft`.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    with closing(open_source(source)) as opened:
        inverse = _inverse(opened, frame, hop, fft_size, window, centered, length)
        told = f"inverse stft of {inverse.count} frames, {told_window(window)} of {frame}"
        work = _Work(inverse, out, options, rate_hz, told, _cut(inverse, out, options, told))
        if plan_only:
            return work.plan
        result = work.run()
    if out is None and hasattr(source, "detach"):
        import torch

        return torch.from_numpy(result)
    return result


@dataclass(frozen=True, eq=False)
class _Inverse:
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


def _inverse(
    source: Source, frame: int, hop: int | None, fft_size: int | None, window: Any, centered: bool, length: int | None
) -> _Inverse:
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
    found = _Inverse(source, frames, taps.astype(dtype), np.cumsum(rows(taps**2, hop), axis=0), wanted)
    if wanted < 1:
        raise InputError(f"one frame of {frame} has its middle on the first sample, and tells no length; say length=, {hop} or so.")
    _check_covered(found, own, told_window(window), added.most)
    return found


def _check_covered(inverse: _Inverse, own: int, window: str, most: float) -> None:
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
        told = f"over sample {sample} of {inverse.length} the squared windows ({window}, hop {hop}) add up to {least:.2g}, of {most:.3g} elsewhere"
        if inverse.window.pad[0] == 0 and sample < inverse.window.size:
            raise InputError(f"{told}, so the inverse would not be exact; centered=True, in stft and here, lies over the ends.")
        near = f"length={sample}" + (f" (without length: {own})" if own <= sample else "")
        raise InputError(f"{told}, so the inverse would not be exact; {near} is, or append {hop} samples before stft.")


@dataclass(frozen=True, eq=False)
class _Work:
    """An inverse, cut to its budget."""

    inverse: _Inverse
    out: Any
    options: Options
    rate_hz: int | None
    told: str
    cut: Cut

    @property
    def parts(self) -> list[tuple[int, Interval]]:
        """Lane and samples of each task."""
        length, step = self.inverse.length, self.cut.step
        return [(lane, Interval(at, min(at + step, length))) for lane in range(self.inverse.lanes) for at in range(0, length, step)]

    @property
    def written_bytes(self) -> int:
        """Of the signal."""
        return prod(self.inverse.shape) * self.inverse.taps.itemsize

    @property
    def plan(self) -> ArrayPlan:
        """What will be done."""
        inverse = self.inverse
        size = inverse.window.size
        method = f"inverse real FFT of {size}, {inverse.block} frames at a time, overlap-add"
        reads = (inverse.box(lane, inverse.frames(part)) for lane, part in self.parts)
        error = float(np.finfo(inverse.taps.dtype).eps * max(log2(size), 1))
        return ArrayPlan(
            operation=self.told,
            method=method,
            shape=inverse.shape,
            dtype=inverse.taps.dtype.name,
            tasks=len(self.parts),
            task_shape=(1, 1, min(self.cut.step, inverse.length)),
            workers=self.cut.workers,
            passes=1,
            budget_bytes=self.options.budget_bytes,
            peak_bytes=self.cut.peak_bytes,
            read_bytes=sum(inverse.source.read_bytes(box) for box in reads),
            written_bytes=self.written_bytes,
            wall_s=None,
            error=error,
            methods=(Method(method, self.cut.peak_bytes, None, error, "chosen"),),
        )

    def run(self) -> Any:
        """The signal."""
        return run_job(
            self.told,
            self.out,
            self._facts,
            self._open,
            lambda sink: [partial(_task, self.inverse, sink, lane, part) for lane, part in self.parts],
            self.cut.workers,
            self.written_bytes,
            self.options,
        )

    def _open(self, again: bool) -> Sink:
        inverse = self.inverse
        return open_sink(
            self.out,
            inverse.shape,
            inverse.taps.dtype,
            overwrite=self.options.overwrite,
            resume=again,
            like=inverse.source,
            rate_hz=self.rate_hz,
        )

    def _facts(self) -> dict[str, Any]:
        import torch

        inverse = self.inverse
        return {
            "operation": "istft",
            "frames": [inverse.window.size, inverse.window.stride, list(inverse.window.pad)],
            "window": sha256(inverse.taps.tobytes()).hexdigest(),
            "shape": list(inverse.shape),
            "dtype": inverse.taps.dtype.name,
            "rate_hz": self.rate_hz,
            "cut": [self.cut.step, self.cut.chunk],
            "source": inverse.source.identity,
            "torch": torch.__version__,
        }


def _task(inverse: _Inverse, sink: Sink, lane: int, part: Interval) -> None:
    """Some samples of the signal, from the spectra of the frames over them to the sink."""
    import torch

    hop, size, side = inverse.window.stride, inverse.window.size, inverse.window.pad[0]
    over, block, bins = inverse.frames(part), inverse.block, inverse.bins
    whole = _spectra(inverse, lane, over)
    taps = torch.from_numpy(inverse.taps)
    buffer = torch.empty((min(block, over.length), bins), dtype=torch.complex64 if taps.dtype == torch.float32 else torch.complex128)
    spectra = buffer.numpy()
    # Row q: the samples [q·hop, (q + 1)·hop) since the start of the first of these frames.
    added = np.zeros((over.length + -(-size // hop), hop), inverse.taps.dtype)
    for first in range(over.start, over.stop, block):
        count = min(block, over.stop - first)
        spectra[:count] = whole[first - over.start : first - over.start + count]
        frames = torch.fft.irfft(buffer[:count], n=size).mul_(taps).numpy()
        row = first - over.start
        for place, start in enumerate(range(0, size, hop)):
            piece = frames[:, start : start + hop]
            added[row + place : row + place + count, : piece.shape[1]] += piece
    _divide(inverse, added, over.start, Interval(part.start + side, part.stop + side))
    begin = part.start + side - over.start * hop
    lead = (Interval(lane, lane + 1),) if len(inverse.source.shape) == 3 else ()
    found = added.reshape(-1)[begin : begin + part.length]
    sink.write((*lead, part), found.reshape([*(1 for _ in lead), -1]))


def _spectra(inverse: _Inverse, lane: int, frames: Interval) -> np.ndarray:
    """Spectra, (frame, bin): where they lie in memory, else read."""
    array = inverse.source.array
    if array is not None:
        return (array if array.ndim == 2 else array[lane])[:, slice(*frames)].T
    found = np.empty((inverse.bins, frames.length), inverse.source.dtype)
    box = inverse.box(lane, frames)
    inverse.source.read(box, found.reshape([one.length for one in box]))
    return found.T


def _divide(inverse: _Inverse, added: np.ndarray, first: int, part: Interval) -> None:
    """Divide sums of frames by those of the squared windows; `part` in samples since the start of frame 0, `first` the first frame of row 0."""
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


def _cut(inverse: _Inverse, out: Any, options: Options, told: str) -> Cut:
    """Tasks as long as pays, within the budget; raises `DoesNotFit` where even the shortest are too long."""
    kind = output_kind(out, _WRITTEN)
    budget, item = options.budget_bytes, inverse.taps.itemsize
    hop, size, block = inverse.window.stride, inverse.window.size, inverse.block
    held = inverse.source.held_bytes + 3 * inverse.taps.nbytes + 2 * inverse.sums.nbytes
    held += prod(inverse.shape) * item if kind == "" else 0
    own = transform_bytes(block, size, item) + block * 2 * inverse.bins * item + TASK_BYTES

    def taken(length: int, chunk: int) -> int:
        # Frames over a task, and those beside them in the first and the last block.
        frames = min((min(length, inverse.length) + size) // hop + 2 * block, inverse.count)
        found = own + (frames + -(-size // hop)) * hop * item + 2 * (frames + size // hop) * 8
        if inverse.source.array is None:
            box = inverse.box(0, Interval(0, frames))
            found += inverse.bins * frames * 2 * item + inverse.source.scratch_bytes(box)
        return found + write_bytes(kind, chunk * item)

    for workers in fewer(options.most_workers):
        for chunk in chunks_of(kind, item, inverse.length):
            wanted = min(MOST_TASK_BYTES // item, ceil(inverse.length * inverse.lanes / (TURNS * workers)))
            wanted = max(wanted, _CHUNKS_READ * inverse.source.grain[-1] * hop if inverse.source.grain[-1] > 1 else 0)
            unit = chunk if kind == ".zarr" else hop * block
            found = longest(unit, wanted, lambda length, n=workers, c=chunk: held + n * taken(length, c) <= budget)
            if found is not None:
                return Cut(1, found, chunk, workers, held + workers * taken(found, chunk))
    least = held + taken(1 if kind == ".zarr" else hop * block, 1)
    raise does_not_fit(told, least, budget, kind == "")
