"""Transforms of lines, and filters of their frequencies, in torch on a device: what `Line` and `Spectrum` do in numpy."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._device import moved
from sash.arrays._diagonal import Line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUMBERS = 7
"""Arrays of float64 as large as the signal that a transform and its filter hold on the device, at most: a cosine transform has a complex
one, that with its phases, what it came from and what it becomes."""


def forward(line: Line, signal: Tensor, axis: int) -> Tensor:
    """The transform of real (or, for the Fourier transform of whole lines, complex) signals along an axis."""
    import torch

    if line.kind == "wrap":
        return torch.fft.rfft(signal, dim=axis) if line.half else torch.fft.fft(signal, dim=axis)
    return _cosine_one(signal, axis) if line.kind == "mirror" else _cosine_two(signal, axis)


def backward(line: Line, found: Tensor, axis: int) -> Tensor:
    """The signal of a transform."""
    import torch

    if line.kind == "wrap":
        return torch.fft.irfft(found, n=line.size, dim=axis) if line.half else torch.fft.ifft(found, dim=axis)
    if line.kind == "mirror":
        return _cosine_one(found, axis).div_(line.period)
    return _inverse_cosine_two(found, axis)


def _cosine_one(signal: Tensor, axis: int) -> Tensor:
    """The cosine transform of type I, by the Fourier transform of the signal and its mirror."""
    import torch

    size = signal.shape[axis]
    both = torch.cat([signal, signal.narrow(axis, 1, size - 2).flip(axis)], axis)
    return torch.fft.rfft(both, dim=axis).real.contiguous()


def _cosine_two(signal: Tensor, axis: int) -> Tensor:
    """The cosine transform of type II.

    Source: J. Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28 (1980).
    """
    import torch

    halves = signal.index_select(axis, _even_then_odd(signal.shape[axis], signal.device))
    return torch.fft.fft(halves, dim=axis).mul_(_phases(signal, axis, -1)).real.mul(2)


def _inverse_cosine_two(found: Tensor, axis: int) -> Tensor:
    import torch

    size = found.shape[axis]
    mirrored = torch.cat([torch.zeros_like(found.narrow(axis, 0, 1)), found.narrow(axis, 1, size - 1).flip(axis)], axis)
    halves = torch.fft.ifft(torch.complex(found, mirrored.neg_()).mul_(_phases(found, axis, 1)), dim=axis).real.div(2)
    order = _even_then_odd(size, found.device)
    return halves.index_select(axis, torch.argsort(order))


def _even_then_odd(size: int, device: torch.device) -> Tensor:
    """Even places, then odd ones backwards."""
    return moved(np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)[::-1]]), device)


def _phases(like: Tensor, axis: int, sign: int) -> Tensor:
    size = like.shape[axis]
    turns = np.exp(sign * 1j * pi * np.arange(size) / (2 * size))
    return moved(turns, like.device).reshape([size if own == axis else 1 for own in range(like.ndim)])


def on_this_side(found: Any) -> np.ndarray:
    """Numbers of a device in an array of this side; those of numpy as they are."""
    return found if isinstance(found, np.ndarray) else found.cpu().numpy()
