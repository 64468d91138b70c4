"""Which device an array job's arithmetic runs on by torch, and what moves numbers there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._cluster import Seats
from sash.arrays._room import Room, aligned
from sash.arrays._running import Options
from sash.arrays._store import Source, open_source
from sash.arrays._store_tensor import TensorSink, TensorSource
from sash.errors import InputError
from sash.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_WORKS = "device=None runs compiled code on the processor, and device='cpu' on it what would run on a device"
_IN_FLIGHT = 2
"""Tasks side by side on a GPU, unless said: one is computed while the other's numbers are on their way."""
_own = local()


def workspace(transformed_bytes: int, smooth: bool, device: torch.device) -> int:
    """What a Fourier transform of so many bytes works in beside, on a GPU: as much again, and eight times that for lengths of large primes.

    Source: NVIDIA, cuFFT documentation, "Plan creation": work areas. Not measured on a GPU. On a processor transforms count it themselves.
    """
    return 0 if device.type != "cuda" else transformed_bytes * (1 if smooth else 8)


def device_of(device: Any, source: Any, options: Options) -> torch.device | None:
    """The device that was asked for, or that a tensor is on; None for compiled code on the processor.

    Raises `InputError` for a device that torch does not have, and for a tensor on another one. Where tasks run on a cluster, its workers
    have the device, each its own, and are asked for it before tasks begin.
    """
    on = str(source.device) if is_tensor(source) else "cpu"
    if device is None and not on.startswith("cuda"):
        return None
    if options.address is not None and device is not None:
        return _named(device)
    found = _checked(on if device is None else device)
    if on.startswith("cuda") and _checked(on) != found:
        raise InputError(f"the tensor is on {on}, and device is {str(device)!r}; leave device out, or give tensor.to({str(device)!r}).")
    return found


def check_device(device: torch.device | None) -> None:
    """Raise `InputError` for a device that torch does not have in this process; None, compiled code, is everywhere."""
    if device is not None:
        _checked(device)


def _named(device: Any) -> torch.device:
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {device!r}; there are 'cpu', 'cuda', and one of several as 'cuda:0'. {_WORKS}.") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(device)!r}; array jobs run on 'cpu' and 'cuda'. {_WORKS}.")
    return torch.device("cpu") if found.type == "cpu" else found


def _checked(device: Any) -> torch.device:
    import torch

    found = _named(device)
    if found.type == "cpu":
        return found
    if not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, and torch {torch.__version__} finds no such device here; {_WORKS}.")
    place = torch.cuda.current_device() if found.index is None else found.index
    if place >= torch.cuda.device_count():
        raise InputError(f"device is {str(device)!r}, and there are {torch.cuda.device_count()}, from 'cuda:0' on.")
    return torch.device("cuda", place)


def processor() -> torch.device:
    """The processor, as torch names it."""
    import torch

    return torch.device("cpu")


def is_tensor(source: Any) -> bool:
    """Whether it is a tensor of torch."""
    return all(hasattr(source, name) for name in ("numpy", "detach", "device"))


def open_on(source: Any, device: torch.device) -> Source:
    """The numbers of a source; a tensor's where they lie."""
    return TensorSource.of(source) if is_tensor(source) else open_source(source)


def seats_on(device: torch.device | None, options: Options, source: Source, out: Any) -> Seats:
    """Where tasks run: on a GPU few side by side, unless said; raises `InputError` where a cluster cannot read and write these."""
    if device is not None and device.type == "cuda" and options.workers is None:
        return Seats(_IN_FLIGHT)
    return options.seats(source, out)


def staging(device: torch.device) -> Room:
    """Where numbers wait on this side of a device: for another one in pinned memory, from which they move while others are computed."""
    return Room(_pinned if device.type == "cuda" else aligned)


@contextmanager
def stream_of(device: torch.device) -> Iterator[None]:
    """What a thread asks for runs in a stream of its own, and has ended when this does; on the processor there is none."""
    if device.type != "cuda":
        yield
        return
    import torch

    streams = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.stream(streams[device]):
        yield
        streams[device].synchronize()


def settle(device: torch.device) -> None:
    """Wait for what was asked of the device before, in whatever stream."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def torch_type(dtype: np.dtype) -> torch.dtype:
    """The same type of numbers in torch."""
    import torch

    return torch.from_numpy(np.empty(0, dtype)).dtype


def moved(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of this side on the device: the same memory where that is the processor."""
    import torch

    return torch.from_numpy(numbers).to(device, non_blocking=True)


def new_tensor(shape: tuple[int, ...], dtype: np.dtype, device: torch.device) -> TensorSink:
    """Where a result stays on the device; raises `InputError` where that has no room for it."""
    import torch

    try:
        return TensorSink(torch.empty(shape, dtype=torch_type(dtype), device=device), dtype)
    except RuntimeError as error:
        needed = format_bytes(prod(shape) * dtype.itemsize)
        raise InputError(f"the output of {shape} takes {needed}, which {device} does not give ({error}); name a file.") from error


def moved_back(made: Tensor, into: np.ndarray) -> None:
    """Numbers of a device into an array of this side; they are there when the stream has ended."""
    import torch

    torch.from_numpy(into).copy_(made, non_blocking=into.flags.c_contiguous)


def in_type(made: Tensor, dtype: np.dtype) -> Tensor:
    """Numbers in another type, as `converted` makes them: rounded to whole ones, halves to even, within the type's range; NaN becomes 0.

    Whole numbers are made in place of what is given.
    """
    if dtype.kind not in "iu":
        return made.to(torch_type(dtype))
    limits, kind = np.iinfo(dtype), np.dtype(np.float32 if made.element_size() == 4 else np.float64).type
    low, high = kind(limits.min), kind(limits.max)
    high = high if int(high) <= limits.max else np.nextafter(high, low)
    made.nan_to_num_(nan=0.0, posinf=float(high), neginf=float(low)).round_().clamp_(float(low), float(high))
    return made.to(torch_type(dtype))


def _pinned(nbytes: int) -> np.ndarray:
    import torch

    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
