"""Convolution of a block with all that lies around it, by Fourier transforms in all axes at once, in torch: the same on every device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import log2, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.fft import next_fast_len

from sash.arrays._block_filters import ASKED_S
from sash.arrays._device import moved, torch_type, workspace
from sash.window import Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_INDICATORS = 0.1
"""Error up to which counts of samples that are no numbers are made in the type of the sums."""


@dataclass(frozen=True, eq=False)
class Transformed:
    """A product of Fourier transforms: a block with what lies around it is one transform, in all axes at once."""

    sizes: tuple[int, ...]
    dtype: np.dtype
    before: tuple[int, ...]
    kernel: np.ndarray
    """For convolution."""
    tile: tuple[int, ...] = ()
    """Sides of the transform."""
    device: torch.device | None = None
    _held: dict[str, Any] = field(default_factory=dict)

    def fitted(self, sides: tuple[int, ...], device: torch.device) -> Transformed:
        tile = tuple(quick(side + taps - 1) for side, taps in zip(sides, self.kernel.shape, strict=True))
        return replace(self, tile=tile, device=device, _held={})

    def reads(self, parts: tuple[Interval, ...]) -> tuple[Interval, ...]:
        sides = zip(parts, self.before, self.kernel.shape, strict=True)
        return tuple(Interval(part.start - before, part.stop - before + taps - 1) for part, before, taps in sides)

    def prepare(self, device: torch.device) -> None:
        import torch

        self._held["spectrum"] = self._spectrum_of(self.kernel, torch.empty(0, dtype=torch_type(self.dtype), device=device))

    def run(self, near: Tensor, parts: tuple[Interval, ...]) -> Tensor:
        import torch

        low, high = torch.aminmax(near)
        if bool(torch.isfinite(low) & torch.isfinite(high)):
            return self._convolved(near, self._held["spectrum"], parts)
        made = self._convolved(near, self._held["spectrum"], parts, sound=False).clone()
        for lane in range(len(near)):
            self._mark(near[lane : lane + 1], made[lane : lane + 1], parts)
        return made

    def _convolved(self, near: Tensor, kernel: Tensor | np.ndarray, parts: tuple[Interval, ...], *, sound: bool = True) -> Tensor:
        """With a kernel's spectrum, or a kernel whose spectrum is not there yet; samples that are not `sound` count as zeros."""
        import torch

        tile = near.new_zeros((len(near), *self.tile))
        own = tile[(slice(None), *(slice(0, length) for length in near.shape[1:]))].copy_(near)
        if not sound:
            own.nan_to_num_(0.0, 0.0, 0.0)
        axes = tuple(range(1, len(self.tile) + 1))
        found = torch.fft.rfftn(tile, dim=axes)
        del tile, own
        found *= kernel if not isinstance(kernel, np.ndarray) else self._spectrum_of(kernel, near)
        made = torch.fft.irfftn(found, s=self.tile, dim=axes)
        sides = zip(self.kernel.shape, parts, strict=True)
        return made[(slice(None), *(slice(taps - 1, taps - 1 + part.length) for taps, part in sides))]

    def _spectrum_of(self, kernel: np.ndarray, like: Tensor) -> Tensor:
        import torch

        taps = np.dtype(np.float32 if like.element_size() == 4 else np.float64)
        return torch.fft.rfftn(moved(kernel.astype(taps), like.device), s=self.tile)

    def _mark(self, near: Tensor, made: Tensor, parts: tuple[Interval, ...]) -> None:
        """Outputs over samples that are not finite become what sums of products make of them."""
        import torch

        kernel = self.kernel
        more, less, counted = near == torch.inf, near == -torch.inf, torch_type(self._counted)

        def over(where: Tensor, taps: np.ndarray) -> Tensor:
            """Outputs whose taps of a kind lie over such samples."""
            if not (taps.any() and bool(where.any())):
                return torch.zeros_like(made, dtype=torch.bool)
            return self._convolved(where.to(counted), taps, parts) > 0.5

        above = over(more, kernel > 0) | over(less, kernel < 0)
        below = over(more, kernel < 0) | over(less, kernel > 0)
        none = over(near.isnan(), np.ones_like(kernel)) | over(more | less, kernel == 0) | (above & below)
        made.masked_fill_(above, torch.inf).masked_fill_(below, -torch.inf).masked_fill_(none, torch.nan)

    @property
    def _counted(self) -> np.dtype:
        """The type in which samples under a kernel are counted closely enough."""
        off = np.finfo(np.float32).eps * log2(prod(self.tile) + 1) * (prod(self.tile) * self.kernel.size) ** 0.5
        return np.dtype(np.float32 if self.dtype == np.float32 and off < _INDICATORS else np.float64)

    @property
    def _bins(self) -> int:
        return prod(self.tile[:-1]) * (self.tile[-1] // 2 + 1)

    def run_bytes(self, lanes: int, sides: tuple[int, ...]) -> int:
        item, counted = self.dtype.itemsize, self._counted.itemsize
        near = lanes * prod(side + taps - 1 for side, taps in zip(sides, self.kernel.shape, strict=True))
        # A tile, and two spectra: a transform back in several axes makes another one.
        plain = near * item + lanes * (prod(self.tile) + 4 * self._bins) * item
        # Where samples are not finite, lane by lane: masks, what is counted and its transforms, beside all outputs.
        masks = (near // max(lanes, 1)) * (3 + counted) + 6 * prod(sides)
        marks = (near + lanes * prod(sides)) * item + masks + (prod(self.tile) + 4 * self._bins) * counted
        # Back from a spectrum a GPU's transform takes a copy of it as well.
        spectrum = 2 * self._bins * max(lanes * item, counted)
        there = 0 if self.device is None else 2 * workspace(spectrum, True, self.device)
        return max(plain, marks) + there

    @property
    def held_bytes(self) -> int:
        return 2 * self._bins * self.dtype.itemsize

    def seconds(self, lanes: int, sides: tuple[int, ...]) -> float:
        numbers = lanes * prod(self.tile)
        # Within a cache three nanoseconds a number, and more beyond it.
        return numbers * max(3.0, 1.04 * log2(max(prod(self.tile), 2)) - 14) * 1e-9 * self.dtype.itemsize / 4 + 6 * ASKED_S


def quick(length: int) -> int:
    """The least length from there on that is quick to transform."""
    return int(next_fast_len(length, True) or length)
