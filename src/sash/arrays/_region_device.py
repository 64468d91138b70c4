"""A region's convolution, its adjoint and Richardson–Lucy, in torch on a device: what `Region` does in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sash.arrays._device import moved
from sash.arrays._region import Region

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUMBERS = 10
"""Arrays of float64 as large as a transform that iterations hold on the device, at most: data, estimate, what is seen of it and its ratio,
what its borders weigh, a result, and spectra: the kernel's, and three inside an operator."""
_NOTHING = 1e-15
"""Of the largest: what is below is rounding, and no light."""


class Operator:
    """A region's operator on a device, its kernel's spectrum there."""

    def __init__(self, region: Region, device: torch.device) -> None:
        self._region, self._device = region, device
        self._grid = region.grid
        self._spectrum = moved(region.grid.spectrum, device)

    def apply(self, signal: Tensor) -> Tensor:
        """The convolution; near the region's cuts, the kernel's reach of it is not."""
        ahead = [side.taps // 2 for side in self._grid.sides]
        padded = self._padded(signal, ahead)
        for axis, (copies, copied) in enumerate(self._region.beyond):
            if len(copies):
                padded.index_copy_(axis, moved(copies, self._device), padded.index_select(axis, moved(copied, self._device)))
        return self._cut(self._filtered(padded, self._spectrum), [side.taps - 1 for side in self._grid.sides])

    def adjoint(self, signal: Tensor) -> Tensor:
        """The transposed convolution: what lies beyond ends is added to what it was a copy of."""
        made = self._filtered(self._padded(signal, [side.taps - 1 for side in self._grid.sides]), self._spectrum.conj())
        for axis, (copies, copied) in enumerate(self._region.beyond):
            if not len(copies):
                continue
            # One after the other, as they add up: a GPU's sum of several would have another order each time.
            for rank in range(int(np.unique(copied, return_counts=True)[1].max())):
                some = _of_rank(copied, rank)
                places, added = moved(copied[some], self._device), moved(copies[some], self._device)
                made.index_copy_(axis, places, made.index_select(axis, places) + made.index_select(axis, added))
        return self._cut(made, [side.taps // 2 for side in self._grid.sides])

    def _padded(self, signal: Tensor, first: list[int]) -> Tensor:
        padded = signal.new_zeros(self._grid.transform)
        self._cut(padded, first).copy_(signal)
        return padded

    def _cut(self, padded: Tensor, first: list[int]) -> Tensor:
        height, width = self._region.shape
        return padded[first[0] : first[0] + height, first[1] : first[1] + width]

    def _filtered(self, padded: Tensor, spectrum: Tensor) -> Tensor:
        import torch

        return torch.fft.irfft2(torch.fft.rfft2(padded).mul_(spectrum), s=self._grid.transform)


def _of_rank(copied: np.ndarray, rank: int) -> np.ndarray:
    """Of places that occur several times, each one's occurrence of that number."""
    order = np.argsort(copied, kind="stable")
    ordered = copied[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    place = np.arange(len(copied)) - np.maximum.accumulate(np.where(first, np.arange(len(copied)), 0))
    return np.sort(order[place == rank])


def adjoint_on(device: torch.device, region: Region, signal: np.ndarray) -> np.ndarray:
    """The adjoint of a signal."""
    return Operator(region, device).adjoint(moved(signal, device)).cpu().numpy()


def richardson_lucy_on(device: torch.device, region: Region, data: np.ndarray, found: np.ndarray, iterations: int) -> np.ndarray:
    """Some more iterations, as `richardson_lucy` does them.

    Source: W. H. Richardson 1972; L. B. Lucy 1974.
    """
    import torch

    operator, whole = Operator(region, device), float(region.grid.taps.sum())
    seen_of, estimate = moved(data, device), moved(found, device)
    sizes = operator.adjoint(torch.ones_like(seen_of)) if region.at_end else None
    for _ in range(iterations):
        seen = operator.apply(estimate)
        ratio = torch.where(seen > _NOTHING * seen.max(), seen_of / seen, 0.0)
        del seen
        change = operator.adjoint(ratio).clamp_(min=0)
        estimate = estimate * change
        if sizes is None:
            estimate /= whole
        else:
            estimate = torch.where(sizes > _NOTHING * whole, estimate / sizes, estimate)
    return estimate.cpu().numpy()
