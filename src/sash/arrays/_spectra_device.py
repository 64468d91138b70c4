"""Spectra of frames, and signals from them, in torch on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sash.arrays._border import Boundary
from sash.arrays._device import moved, moved_back, stream_of, torch_type, workspace
from sash.arrays._frames import Frames, Lanes, is_smooth, transform_bytes
from sash.arrays._neighbourhood import neighbourhood
from sash.arrays._resynthesis import Inverse
from sash.arrays._room import Room
from sash.arrays._spectra import FLOOR, Made
from sash.arrays._spectrogram import Picture
from sash.arrays._store import Sink
from sash.arrays._store_tensor import TensorSink, TensorSource
from sash.window import Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TOGETHER = 1 << 22
"""Samples that are transformed together on a GPU, about: fewer would leave it waiting for the next."""
STARTING_BYTES = 4 << 20
"""What the first transforms of a process load, measured on a processor."""
_KEPT = 3
"""Arrays of spectra that are there at once: a transform's, and two of what is made of it."""


def together(frames: Frames | Inverse, device: torch.device) -> int:
    """Frames that are transformed together: whole blocks of them."""
    if device.type != "cuda":
        return frames.block
    return min(
        max(_TOGETHER // max(frames.window.size, 1) // frames.block, 1) * frames.block, -(-frames.count // frames.block) * frames.block
    )


def spectra_bytes(frames: Frames, made: Made, lanes: int, samples: int, source_item: int, device: torch.device) -> int:
    """Bytes on the device while frames of so many samples are transformed."""
    item, block = frames.taps.itemsize, together(frames, device)
    gathered = lanes * samples * (3 * item // 2 + (source_item if device.type == "cuda" else 0))
    there = workspace(2 * block * frames.size * item, is_smooth(frames.size), device)
    return gathered + transform_bytes(block, frames.size, item, _KEPT) + block * made.rows * made.dtype.itemsize + there


def spectra_on(
    device: torch.device,
    signal: Lanes,
    frames: Frames,
    made: Made,
    sink: Sink | Picture,
    room: Room,
    lanes: Interval,
    part: Interval,
) -> None:
    """The spectra of some frames, from samples to the sink."""
    item = torch_type(frames.taps.dtype)
    reads = frames.window.reads(*part)
    with stream_of(device):
        near = _samples(signal, lanes, reads, frames.boundary, item, room, device)
        taps, bands = moved(frames.taps, device), _bands(made, device)
        for place, lane in enumerate(range(*lanes)):
            host = None
            if not isinstance(sink, (TensorSink, Picture)):
                host = room.array("written", (made.rows, part.length), made.dtype)
            for first in range(part.start, part.stop, together(frames, device)):
                own = Interval(first, min(first + together(frames, device), part.stop))
                inside = frames.window.reads(*own)
                samples = near[place, inside.start - reads.start : inside.stop - reads.start]
                found = _made(_spectra(samples, frames, taps, own.length), made, bands)
                if isinstance(sink, TensorSink):
                    sink.tensor.reshape(-1, *sink.tensor.shape[-2:])[lane, :, own.start : own.stop] = found.T
                elif isinstance(sink, Picture):
                    sink.add(lane, own, found.cpu().numpy())
                elif host is not None:
                    moved_back(found.T, host[:, own.start - part.start : own.stop - part.start])
            if host is not None and not isinstance(sink, (TensorSink, Picture)):
                _settled(device)
                lead = (Interval(lane, lane + 1),) if signal.lead else ()
                sink.write((*lead, Interval(0, made.rows), part), host.reshape([*(1 for _ in lead), *host.shape]))


def _settled(device: torch.device) -> None:
    """Wait until this thread's stream has moved what it was asked to."""
    if device.type == "cuda":
        import torch

        torch.cuda.current_stream(device).synchronize()


def _samples(
    signal: Lanes, lanes: Interval, reads: Interval, boundary: Boundary, kind: torch.dtype, room: Room, device: torch.device
) -> Tensor:
    """(lane, sample), in the type that is worked in."""
    box, order = (lanes, reads), [0, 1]
    if len(signal.source.shape) == 1:
        return neighbourhood(signal.source, [reads], [0], boundary, 0.0, kind, room, device)[None]
    if signal.axis == 0:
        box, order = (reads, lanes), [1, 0]
    return neighbourhood(signal.source, box, order, boundary, 0.0, kind, room, device)


def _spectra(samples: Tensor, frames: Frames, taps: Tensor, count: int) -> Tensor:
    import torch

    weighted = samples.unfold(0, frames.size, frames.window.stride)[:count] * taps
    return torch.fft.rfft(weighted)


def _bands(made: Made, device: torch.device) -> list[tuple[int, Tensor]]:
    """The first bin of each band, and its weights."""
    if made.bands is None:
        return []
    at = made.bands.at.tolist()
    weights = moved(made.bands.weights, device)
    return [(int(first), weights[start:stop]) for first, start, stop in zip(made.bands.first, at, at[1:], strict=False)]


def _made(spectra: Tensor, made: Made, bands: list[tuple[int, Tensor]]) -> Tensor:
    """(frame, row), of one kind of output."""
    import torch

    if made.output == "complex":
        return spectra
    if made.output == "magnitude":
        return spectra.abs()
    power = torch.view_as_real(spectra).square().sum(-1)
    if bands:
        # Band by band: a product of matrices might round to ten bits on a GPU.
        return torch.stack([(power[:, first : first + len(own)] * own).sum(1) for first, own in bands], 1)
    return power.clamp_(min=FLOOR).log10_().mul_(10) if made.output == "db" else power


def signal_bytes(inverse: Inverse, frames: int, device: torch.device) -> int:
    """Bytes on the device while a signal is put together from so many frames."""
    item, size, hop = inverse.taps.itemsize, inverse.window.size, inverse.window.stride
    spectra = frames * 2 * inverse.bins * item * (2 if device.type == "cuda" else 1)
    there = workspace(2 * together(inverse, device) * size * item, is_smooth(size), device)
    return spectra + transform_bytes(together(inverse, device), size, item, 2) + (frames + -(-size // hop)) * hop * item + there


def signal_on(device: torch.device, inverse: Inverse, sink: Sink, room: Room, lane: int, part: Interval) -> None:
    """Some samples of the signal, from the spectra of the frames over them to the sink."""
    import torch

    hop, size, side = inverse.window.stride, inverse.window.size, inverse.window.pad[0]
    over = inverse.frames(part)
    lead = (Interval(lane, lane + 1),) if len(inverse.source.shape) == 3 else ()
    with stream_of(device):
        spectra = _read(inverse, lane, over, room, device)
        taps = moved(inverse.taps, device)
        # Row q: the samples [q·hop, (q + 1)·hop) since the start of the first of these frames.
        added = torch.zeros(over.length + -(-size // hop), hop, dtype=taps.dtype, device=device)
        for first in range(0, over.length, together(inverse, device)):
            count = min(together(inverse, device), over.length - first)
            frames = torch.fft.irfft(spectra[first : first + count], n=size).mul_(taps)
            for place, start in enumerate(range(0, size, hop)):
                piece = frames[:, start : start + hop]
                added[first + place : first + place + count, : piece.shape[1]] += piece
        _divide(inverse, added, over.start, Interval(part.start + side, part.stop + side))
        begin = part.start + side - over.start * hop
        found = added.reshape(-1)[begin : begin + part.length]
        if isinstance(sink, TensorSink):
            sink.tensor.reshape(-1, sink.tensor.shape[-1])[lane, part.start : part.stop] = found
            return
        host = room.array("written", (part.length,), inverse.taps.dtype)
        moved_back(found, host)
    sink.write((*lead, part), host.reshape([*(1 for _ in lead), -1]))


def _read(inverse: Inverse, lane: int, frames: Interval, room: Room, device: torch.device) -> Tensor:
    """Spectra, (frame, bin)."""
    if isinstance(inverse.source, TensorSource):
        tensor = inverse.source.tensor
        return (tensor if tensor.ndim == 2 else tensor[lane])[:, frames.start : frames.stop].T.to(device)
    found = room.array("read", (inverse.bins, frames.length), inverse.source.dtype)
    box = inverse.box(lane, frames)
    inverse.source.read(box, found.reshape([one.length for one in box]))
    return moved(found, device).T


def _divide(inverse: Inverse, added: Tensor, first: int, part: Interval) -> None:
    """Divide sums of frames by those of the squared windows; `part` is in samples since the start of frame 0, row 0 begins with `first`."""
    hop, dtype, ends = inverse.window.stride, inverse.taps.dtype, len(inverse.sums)
    rows = Interval(part.start // hop, (part.stop - 1) // hop + 1)
    alike = Interval(max(rows.start, ends - 1), min(rows.stop, inverse.count))
    if alike.length:
        added[alike.start - first : alike.stop - first] /= moved(inverse.sums[-1].astype(dtype), added.device)
    # Before and after, the ends of the signal lie under fewer frames. What is no sample of it may lie under none.
    others = np.array([row for row in range(*rows) if not alike.start <= row < alike.stop], np.int64)
    if len(others):
        sums = moved(np.stack([inverse.covered(row) for row in others]).astype(dtype), added.device)
        at = moved(others - first, added.device)
        added[at] = added[at] / sums
