"""`sash.arrays.stft`: spectra of a signal's frames, of hours of sound inside a budget."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil, isfinite, log2, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._arguments import as_given
from sash.arrays._border import Boundary, checked_boundary
from sash.arrays._device import check_device, device_of, new_tensor, open_on, seats_on, settle, staging
from sash.arrays._frames import Frames, Lanes, frames_of, mkl_bytes
from sash.arrays._overlap import told_window
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._room import Room, aligned
from sash.arrays._running import PROCESS_BYTES, THREAD_BYTES, Options, does_not_fit, fewer
from sash.arrays._spectra import Made, Output, made_of
from sash.arrays._spectra_device import STARTING_BYTES, spectra_bytes, spectra_on
from sash.arrays._spectrogram import Picture
from sash.arrays._store import Sink, open_sink, open_source
from sash.arrays._store_tensor import TensorSink, TensorSource
from sash.arrays._tasks import KEPT, KEPT_APART, MOST_TASK_BYTES, TURNS, Cut, Tasks, longest, run_job, run_tasks, threads_for
from sash.arrays._written import by_frames, chunks_of, output_kind, write_bytes
from sash.errors import InputError
from sash.window import Interval

if TYPE_CHECKING:
    import torch


def stft(
    source: Any,
    frame: int,
    hop: int | None = None,
    out: np.ndarray | str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    window: Any = "hann",
    rate_hz: float | None = None,
    centered: bool = True,
    boundary: Boundary = "mirror",
    fft_size: int | None = None,
    output: Output = "complex",
    mels: int = 128,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    axis: int = -1,
    device: Any = None,
    workers: int | str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """Spectra of frames, (bins, frames) or (channels, bins, frames): the same numbers as `torch.stft` and `librosa.stft`.

    `source` is an array, a tensor, or a file (WAV, FLAC, .npy, .zarr): (samples,) or (channels, samples), `axis` being the one
    of samples. float64 gives complex128, other types complex64; whole numbers are shares of what their type holds, so int16 is divided by
    32768. `frame` samples lie under the window, and `hop` (a quarter of it) from one frame to the next. With `fft_size` the window lies in
    the middle of a longer frame, and there are fft_size // 2 + 1 bins. Frames are those of `Window(fft_size, hop, pad=...)`.

    `centered` puts the middle of frame k on sample k·hop: the signal goes on by fft_size // 2 samples before and after, in the way of
    `boundary`, in `scipy.ndimage`'s words. What torch, librosa and numpy.pad call "reflect" is "mirror", the default as in torch; their
    "symmetric" is "reflect", "edge" or "replicate" is "nearest", "circular" is "wrap", and "constant" (librosa's default) is zeros. Without
    it frames begin at sample 0, and samples after the last whole frame are left out.

    `window` is a name of `scipy.signal.get_window`, a (name, parameter), or `frame` weights; names are periodic windows. `output` is
    "complex"; "magnitude"; "power", its square; "db", 10·log10 of the power, at least 1e-10, relative to 1; or "mel", the power in `mels`
    bands from `low_hz` to `high_hz` (half the rate), weighted as `librosa.filters.mel` does, which needs the rate in Hz.

    `out` is an array of the result's shape and type, or names a .zarr or .npy file, or for spectrograms a .png: decibels from the loudest
    down by 80, low frequencies at the bottom, channels one above the other, 4000 pixels wide and high at most. A file appears under its
    name when it is whole; a .zarr or .npy that was interrupted is gone on with by the same call, to the same bits. Without `out` an array
    (a tensor for a tensor) is returned whose frames lie one after the other in memory, as torch's do.

    `workers` is a number of threads, or the address of a Dask scheduler, as "tcp://127.0.0.1:8786": its workers then read and write the
    files, which they see under the same names.

    `device` is None for compiled code on the processor; with 'cpu', 'cuda', 'cuda:1' or a torch.device torch computes there. A tensor on a
    GPU means that GPU, and without `out` the result is a tensor where the source is one. Numbers are within the same accuracy; their last
    bits may depend on device, budget and workers. On a cluster each worker computes on its own such device. The budget then counts in one
    sum what is held on the device (samples, frames, spectra, and a result that stays there) and what is on its way on this side, in pinned
    memory for a GPU; not what a GPU's libraries load, nor what torch's allocator keeps back. Not measured on a GPU.

    The budget bounds what is held at once, by all workers together: samples, frames, spectra and, without `out`, the result. NaN makes
    NaN of the frames that hold it.

    Raises `DoesNotFit` with the least budget that would do, and `InputError` for what cannot be read, written or meant.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    place = device_of(device, source, options)
    with closing(open_source(source) if place is None else open_on(source, place)) as opened:
        lanes = Lanes.of(opened, axis)
        rate = _rate(rate_hz if rate_hz is not None else opened.rate_hz)
        frames = frames_of(lanes, frame, hop, fft_size, window, centered, checked_boundary(boundary))
        made = made_of(output, frames.bins, lanes.dtype, frames.size, rate, mels, low_hz, high_hz)
        work = _Work.of(lanes, frames, made, out, options, f"stft of {lanes.length} samples, {told_window(window)} of {frame}", place)
        if plan_only:
            return work.plan
        result = work.run()
    return as_given(source, result) if out is None and place is None else result


@dataclass(frozen=True, eq=False)
class _Work:
    """A transform, cut to its budget."""

    lanes: Lanes
    frames: Frames
    made: Made
    out: Any
    options: Options
    told: str
    cut: Cut
    picture: Picture | None
    device: torch.device | None

    @classmethod
    def of(
        cls, lanes: Lanes, frames: Frames, made: Made, out: Any, options: Options, told: str, device: torch.device | None = None
    ) -> _Work:
        kind = output_kind(out, (".zarr", ".npy", ".png"))
        out = Path(out) if isinstance(out, (str, os.PathLike)) else out
        picture = None
        if kind == ".png":
            if made.output == "complex":
                raise InputError(f"{out} is a picture, and complex numbers have no grey; say output='db' or output='mel'.")
            picture = Picture(made.rows, frames.count, lanes.count)
            # All are drawn in decibels of the power.
            made = made if made.output == "mel" else Made("power", made.rows, made.dtype)
        cut = _cut(lanes, frames, made, out, kind, options, picture, told, device)
        return cls(lanes, frames, made, out, options, told, cut, picture, device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output."""
        return self.picture.shape if self.picture is not None else (*self.lanes.lead, self.made.rows, self.frames.count)

    @property
    def dtype(self) -> np.dtype:
        """Of the output."""
        return np.dtype(np.uint8) if self.picture is not None else self.made.dtype

    @property
    def count(self) -> int:
        """Tasks."""
        return ceil(self.lanes.count / self.cut.lanes) * ceil(self.frames.count / self.cut.step)

    def part(self, number: int) -> tuple[Interval, Interval]:
        """Lanes and frames of a task."""
        cut, count = self.cut, self.frames.count
        group, place = divmod(number, ceil(count / cut.step))
        lane, first = group * cut.lanes, place * cut.step
        return Interval(lane, min(lane + cut.lanes, self.lanes.count)), Interval(first, min(first + cut.step, count))

    @property
    def written_bytes(self) -> int:
        """Of the output."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def plan(self) -> ArrayPlan:
        """What will be done."""
        source, frames = self.lanes.source, self.frames
        parts = map(self.part, range(self.count))
        reads = (self.lanes.box(lanes, frames.window.reads(*part, frames.length)) for lanes, part in parts)
        method = f"real FFT of {frames.size}, {frames.block} frames at a time"
        # Of spectra: as a share of the largest that samples of this range can have, a rounding for each of the transform's steps.
        error = float(np.finfo(frames.taps.dtype).eps * max(log2(frames.size), 1) * np.abs(frames.taps).sum() / self.lanes.scale)
        return ArrayPlan(
            operation=self.told + seats_on(self.device, self.options, source, self.out).told,
            method=method,
            shape=self.shape,
            dtype=self.dtype.name,
            tasks=self.count,
            task_shape=(self.cut.lanes, self.made.rows, min(self.cut.step, frames.count)),
            workers=self.cut.workers,
            passes=1,
            budget_bytes=self.options.budget_bytes,
            peak_bytes=self.cut.peak_bytes,
            read_bytes=sum(source.read_bytes(box) for box in reads),
            written_bytes=self.written_bytes,
            wall_s=None,
            error=error,
            methods=(Method(method, self.cut.peak_bytes, None, error, "chosen"),),
            device=None if self.device is None else str(self.device),
        )

    def run(self) -> Any:
        """The output."""
        with self.cut.blocks(self.lanes.source):
            if self.picture is not None:
                return self._draw(self.picture)
            threads, able = threads_for(self.device, self.options, self.lanes.source), partial(check_device, self.device)
            tasks, workers, written = self._tasks, self.cut.workers, self.written_bytes
            return run_job(self.told, self.out, self._facts, self._open, tasks, workers, written, self.options, threads, able)

    def _tasks(self, sink: Sink | Picture) -> Tasks:
        if self.device is not None:
            if isinstance(self.lanes.source, TensorSource):
                settle(self.device)
            work = partial(spectra_on, self.device, self.lanes, self.frames, self.made, sink, staging(self.device))
        else:
            work = partial(_task, self, sink, Room(aligned))
        return Tasks(self.count, lambda number: partial(work, *self.part(number)))

    def _open(self, again: bool) -> Sink:
        if self.out is None:
            # Frames one after the other, as they are made.
            swapped = (*self.lanes.lead, self.frames.count, self.made.rows)
            if isinstance(self.lanes.source, TensorSource):
                return TensorSink(new_tensor(swapped, self.dtype, self.lanes.source.tensor.device).tensor.mT, self.dtype)
            new = open_sink(None, swapped, self.dtype).finish()
            return open_sink(new.swapaxes(-1, -2), self.shape, self.dtype)
        chunks = (*(1 for _ in self.lanes.lead), self.made.rows, self.cut.chunk)
        chunks = chunks if output_kind(self.out, (".zarr", ".npy")) == ".zarr" else None
        source, overwrite = self.lanes.source, self.options.overwrite
        return open_sink(self.out, self.shape, self.dtype, overwrite=overwrite, resume=again, chunks=chunks, shards=chunks, like=source)

    def _draw(self, picture: Picture) -> Any:
        # What cannot be written is said before anything is made.
        sink = open_sink(self.out, self.shape, self.dtype, overwrite=self.options.overwrite)
        try:
            run_tasks(self.told, self._tasks(picture), self.cut.workers, self.written_bytes, self.options.progress)
            sink.write((Interval(0, self.shape[0]), Interval(0, self.shape[1])), picture.drawn())
        except BaseException:
            sink.abandon()
            raise
        return sink.finish()

    def _facts(self) -> dict[str, Any]:
        import torch

        window, bands = self.frames.window, self.made.bands
        return {
            "operation": "stft",
            "frames": [window.size, window.stride, list(window.pad)],
            "window": sha256(self.frames.taps.tobytes()).hexdigest(),
            "boundary": self.frames.boundary,
            "output": self.made.output,
            "bands": bands and sha256(bands.first.tobytes() + bands.at.tobytes() + bands.weights.tobytes()).hexdigest(),
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "axis": self.lanes.axis,
            "cut": [self.cut.lanes, self.cut.step, self.cut.chunk],
            "source": self.lanes.source.identity,
            "torch": torch.__version__,
            **({} if self.device is None else {"device": self.device.type}),
        }


def _task(work: _Work, sink: Sink | Picture, room: Room, lanes: Interval, part: Interval) -> None:
    """The spectra of some frames, from samples to the sink."""
    frames, made, signal = work.frames, work.made, work.lanes
    reads, table = frames.window.reads(*part), signal.table
    around = signal.around(lanes, reads, frames.boundary, room) if table is None else None

    def run(place: int, own: Interval) -> np.ndarray:
        if around is not None:
            return around[place, own.start - reads.start : own.stop - reads.start]
        lane = lanes.start + place
        if table is not None and own.start >= 0 and own.stop <= frames.length:
            return table[lane, own.start : own.stop]
        return signal.around(Interval(lane, lane + 1), own, frames.boundary, room)[0]

    given = None if isinstance(sink, Picture) else by_frames(sink.array, made.dtype)
    written = room.array("written", (made.rows, part.length), made.dtype) if given is None and isinstance(sink, Sink) else None
    for place, lane in enumerate(range(*lanes)):
        for own, spectra in frames.spectra(partial(run, place), part, room):
            if given is not None:
                made.make(spectra, given[lane, own.start : own.stop])
            else:
                found = spectra
                if made.output != "complex":
                    found = room.array("block", (own.length, made.rows), made.dtype)
                    made.make(spectra, found)
                if written is not None:
                    written[:, own.start - part.start : own.stop - part.start] = found.T
                elif isinstance(sink, Picture):
                    sink.add(lane, own, found)
                del found
            del spectra
        if written is not None and isinstance(sink, Sink):
            lead = (Interval(lane, lane + 1),) if signal.lead else ()
            sink.write((*lead, Interval(0, made.rows), part), written.reshape([*(1 for _ in lead), *written.shape]))


def _rate(rate_hz: Any) -> float | None:
    if rate_hz is not None and not (isinstance(rate_hz, (int, float, np.number)) and isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate_hz is {rate_hz!r}; give samples a second, as 44100.")
    return None if rate_hz is None else float(rate_hz)


def _cut(
    lanes: Lanes,
    frames: Frames,
    made: Made,
    out: Any,
    kind: str,
    options: Options,
    picture: Picture | None,
    told: str,
    device: torch.device | None,
) -> Cut:
    """Tasks as long as pays, within the budget; raises `DoesNotFit` where even the shortest are too long."""
    seats = seats_on(device, options, lanes.source, out)
    budget = options.budget_bytes
    item, window, count = made.dtype.itemsize, frames.window, frames.count
    direct = kind == "" or (kind == "array" and by_frames(out, made.dtype) is not None)
    held = lanes.source.held_bytes + 3 * frames.taps.nbytes + (made.bands.held_bytes if made.bands else 0)
    held *= seats.processes
    held += PROCESS_BYTES
    held += lanes.count * made.rows * count * item if kind == "" else 0
    held += picture.held_bytes + 5 * prod(picture.shape) if picture is not None else 0
    in_memory = lanes.table is not None and device is None
    stays = isinstance(lanes.source, TensorSource) and kind == ""
    direct = (direct and device is None) or stays
    copied = lanes.source.dtype != lanes.dtype or (lanes.table is not None and frames.copied(lanes.table))
    # What a task keeps while it lasts; then what it takes for a while: to transform a block, to read, to write.
    own = frames.kept_bytes(copied) + (0 if options.address is None else (KEPT_APART - KEPT) * frames.block_bytes)
    own += 0 if (direct or made.output == "complex") and picture is None else frames.block * made.rows * item
    transform = frames.block_bytes + mkl_bytes(frames.size, frames.taps.itemsize)
    transform += 2 * frames.block * made.rows * item if picture is not None else 0
    if device is not None:
        own, transform, held = 0, 0, held + STARTING_BYTES * seats.processes

    def taken(together: int, length: int, chunk: int) -> int:
        length = min(length, count)
        samples = (min(frames.block if in_memory else length, count) - 1) * window.stride + window.size
        at_once = 1 if in_memory else together
        reading, gathered = lanes.reading_bytes(at_once, samples, window.pad[0]), at_once * samples * lanes.source.dtype.itemsize
        if device is not None:
            gathered += spectra_bytes(frames, made, together, samples, lanes.source.dtype.itemsize, device)
        written = 0 if direct or picture is not None else made.rows * length * item
        writing = 0 if picture is not None else write_bytes(kind, made.rows * chunk * item)
        return THREAD_BYTES + own + gathered + written + max(transform, reading, writing)

    lane_grain, sample_grain = (1, 1) if in_memory else lanes.grain()
    groups = sorted({min(lane_grain, lanes.count), 1}, reverse=True)
    chunks = chunks_of(kind, made.rows * item, count)
    for workers in fewer(seats.threads):
        for together in groups:
            for chunk in chunks:
                wanted = min(MOST_TASK_BYTES // (made.rows * item), ceil(count * lanes.count / (together * TURNS * workers)))
                # Where samples are decoded by large chunks, several of these at once.
                wanted = max(wanted, 4 * sample_grain // window.stride if sample_grain > window.size else 0)
                fits = lambda length, n=workers, g=together, c=chunk: held + n * taken(g, length, c) <= budget  # noqa: E731
                found = longest(max(frames.block, chunk), wanted, fits)
                if found is not None:
                    plain = Cut(together, found, chunk, workers, held + workers * taken(together, found, chunk))
                    return plain.keeping(frames.block_bytes, budget, options.address is not None)
    least = min(taken(together, max(frames.block, chunk), chunk) for together in groups for chunk in chunks)
    raise does_not_fit(told, held + least, budget, kind == "")
