"""`sash.arrays.istft`: the signal again, from the spectra of its frames."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil, log2, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._arguments import as_given
from sash.arrays._device import check_device, device_of, new_tensor, open_on, seats_on, settle, staging
from sash.arrays._frames import block_bytes, mkl_bytes
from sash.arrays._overlap import told_window
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._resynthesis import Inverse, inverse_of, synthesize
from sash.arrays._room import Room, aligned
from sash.arrays._running import PROCESS_BYTES, THREAD_BYTES, Options, does_not_fit, fewer
from sash.arrays._spectra_device import STARTING_BYTES, signal_bytes, signal_on
from sash.arrays._store import Sink, open_sink, open_source
from sash.arrays._store_tensor import TensorSource
from sash.arrays._tasks import KEPT, KEPT_APART, MOST_TASK_BYTES, TURNS, Cut, Tasks, longest, run_job, threads_for
from sash.arrays._written import chunks_of, output_kind, write_bytes
from sash.window import Interval

if TYPE_CHECKING:
    import torch

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
    device: Any = None,
    workers: int | str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The signal, (samples,) or (channels, samples), whose `stft` with the same frame, hop, window, `centered` and `fft_size` is `source`.

    `source` is an array, a tensor, or a .npy or .zarr file of complex spectra, (bins, frames) or (channels, bins, frames);
    complex64 gives fp32, complex128 float64. Frames are weighted by the window once more, added up, and divided by the sum of the squared
    windows (Griffin and Lim, 1984): of spectra that were changed, the signal whose transform is nearest; of others the signal itself, to
    rounding: some 1e-6 of the loudest sample in fp32, 1e-14 in float64.

    `length` is the signal's; without it, samples after the middle of the last frame are left out, and without `centered` after its end.
    Raises `InputError` where the squared windows over any sample add up to less than 0.001 of the most, and names a hop or a length for
    which they do not: of signals whose length is no multiple of the hop, the last samples may lie under the end of one frame alone.

    `out` is an array, or names a .npy, .zarr or .wav file (of `rate_hz` samples a second); budget, device, workers, files and
    interruptions as for `stft`.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    place = device_of(device, source, options)
    with closing(open_source(source) if place is None else open_on(source, place)) as opened:
        inverse = inverse_of(opened, frame, hop, fft_size, window, centered, length)
        told = f"inverse stft of {inverse.count} frames, {told_window(window)} of {frame}"
        out = Path(out) if isinstance(out, (str, os.PathLike)) else out
        work = _Work(inverse, out, options, rate_hz, told, _cut(inverse, out, options, told, place), place)
        if plan_only:
            return work.plan
        result = work.run()
    return as_given(source, result) if out is None and place is None else result


@dataclass(frozen=True, eq=False)
class _Work:
    """An inverse, cut to its budget."""

    inverse: Inverse
    out: Any
    options: Options
    rate_hz: int | None
    told: str
    cut: Cut
    device: torch.device | None

    @property
    def count(self) -> int:
        """Tasks."""
        return self.inverse.lanes * ceil(self.inverse.length / self.cut.step)

    def part(self, number: int) -> tuple[int, Interval]:
        """Lane and samples of a task."""
        length, step = self.inverse.length, self.cut.step
        lane, place = divmod(number, ceil(length / step))
        return lane, Interval(place * step, min((place + 1) * step, length))

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
        reads = (inverse.box(lane, inverse.frames(part)) for lane, part in map(self.part, range(self.count)))
        # A rounding for each of the transform's steps, enlarged where the windows add up to little.
        enlarged = np.sqrt(inverse.sums[-1].max() / inverse.sums[-1].min())
        error = float(np.finfo(inverse.taps.dtype).eps * max(log2(size), 1) * enlarged)
        return ArrayPlan(
            operation=self.told + seats_on(self.device, self.options, inverse.source, self.out).told,
            method=method,
            shape=inverse.shape,
            dtype=inverse.taps.dtype.name,
            tasks=self.count,
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
            device=None if self.device is None else str(self.device),
        )

    def run(self) -> Any:
        """The signal."""
        with self.cut.blocks(self.inverse.source):
            threads, able = threads_for(self.device, self.options, self.inverse.source), partial(check_device, self.device)
            tasks, workers, written = self._tasks, self.cut.workers, self.written_bytes
            return run_job(self.told, self.out, self._facts, self._open, tasks, workers, written, self.options, threads, able)

    def _tasks(self, sink: Sink) -> Tasks:
        if self.device is not None:
            if isinstance(self.inverse.source, TensorSource):
                settle(self.device)
            work = partial(signal_on, self.device, self.inverse, sink, staging(self.device))
        else:
            work = partial(synthesize, self.inverse, sink, Room(aligned))
        return Tasks(self.count, lambda number: partial(work, *self.part(number)))

    def _open(self, again: bool) -> Sink:
        inverse = self.inverse
        if self.out is None and isinstance(inverse.source, TensorSource):
            return new_tensor(inverse.shape, inverse.taps.dtype, inverse.source.tensor.device)
        lead = tuple(1 for _ in inverse.shape[:-1])
        chunks = (*lead, self.cut.chunk) if output_kind(self.out, _WRITTEN) == ".zarr" else None
        return open_sink(
            self.out,
            inverse.shape,
            inverse.taps.dtype,
            overwrite=self.options.overwrite,
            resume=again,
            chunks=chunks,
            shards=chunks,
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
            **({} if self.device is None else {"device": self.device.type}),
        }


def _cut(inverse: Inverse, out: Any, options: Options, told: str, device: torch.device | None) -> Cut:
    """Tasks as long as pays, within the budget; raises `DoesNotFit` where even the shortest are too long."""
    kind = output_kind(out, _WRITTEN)
    seats = seats_on(device, options, inverse.source, out)
    budget, item = options.budget_bytes, inverse.taps.itemsize
    hop, size, block = inverse.window.stride, inverse.window.size, inverse.block
    held = inverse.source.held_bytes + 3 * inverse.taps.nbytes + 2 * inverse.sums.nbytes
    held *= seats.processes
    held += PROCESS_BYTES
    held += prod(inverse.shape) * item if kind == "" else 0
    held += 0 if device is None else STARTING_BYTES * seats.processes
    # What a task keeps while it lasts; then what it takes for a while: to transform a block, to read, to write.
    own = block * 2 * inverse.bins * item + THREAD_BYTES
    own += 0 if options.address is None or device is not None else (KEPT_APART - KEPT) * block_bytes(block, size, item)
    transform = block * size * item + mkl_bytes(size, item)

    def taken(length: int, chunk: int) -> int:
        # Frames over a task, and those beside them in the first and the last block.
        frames = min((min(length, inverse.length) + size) // hop + 2 * block, inverse.count)
        found, reading = own + (frames + -(-size // hop)) * hop * item, 0
        if inverse.source.array is None:
            # Where it lies on the most chunks.
            first = min(inverse.source.grain[-1] - 1, inverse.count - frames)
            box = inverse.box(0, Interval(first, first + frames))
            found, reading = found + inverse.bins * frames * 2 * item, inverse.source.row_scratch_bytes(box)
        if device is not None:
            found += inverse.bins * frames * 2 * item + signal_bytes(inverse, frames, device)
        return found + max(transform, reading, write_bytes(kind, chunk * item))

    chunks, shortest = chunks_of(kind, item, inverse.length), hop * block
    for workers in fewer(seats.threads):
        for chunk in chunks:
            wanted = min(MOST_TASK_BYTES // item, ceil(inverse.length * inverse.lanes / (TURNS * workers)))
            wanted = max(wanted, _CHUNKS_READ * inverse.source.grain[-1] * hop if inverse.source.grain[-1] > 1 else 0)
            unit = chunk if kind == ".zarr" else shortest
            found = longest(unit, wanted, lambda length, n=workers, c=chunk: held + n * taken(length, c) <= budget)
            if found is not None:
                plain = Cut(1, found, chunk, workers, held + workers * taken(found, chunk))
                return plain.keeping(block_bytes(block, size, item), budget, options.address is not None)
    least = min(taken(chunk if kind == ".zarr" else shortest, chunk) for chunk in chunks)
    raise does_not_fit(told, held + least, budget, kind == "")
