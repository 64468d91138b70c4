"""What is made of a frame's spectrum: itself, its magnitude, its power, that in dB, or its power in mel bands."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, Literal, get_args

import numpy as np
from numba import njit

from sash.errors import InputError

Output = Literal["complex", "magnitude", "power", "db", "mel"]
FLOOR = 1e-10
"""The least power that is told in dB: -100."""


@dataclass(frozen=True, eq=False)
class Bands:
    """Weights of bins in bands, each over bins that lie together."""

    first: np.ndarray
    """The first bin of each band."""
    at: np.ndarray
    """Where each band's weights begin, and after the last one's where they end."""
    weights: np.ndarray

    @property
    def held_bytes(self) -> int:
        """Memory of the table."""
        return self.first.nbytes + self.at.nbytes + self.weights.nbytes


@dataclass(frozen=True, eq=False)
class Made:
    """One kind of output: so many rows, of one type."""

    output: Output
    rows: int
    dtype: np.dtype
    bands: Bands | None = None

    def make(self, spectra: np.ndarray, into: np.ndarray) -> None:
        """Fill `into`, (frame, row) of numbers that lie together, from spectra, (frame, bin)."""
        if self.output == "complex":
            into[...] = spectra
            return
        numbers = spectra.view(self.dtype)
        if self.output == "magnitude":
            _magnitude(numbers, into)
        elif self.bands is not None:
            _banded(numbers, self.bands.first, self.bands.at, self.bands.weights, into)
        else:
            _power(numbers, into, self.dtype.type(FLOOR if self.output == "db" else 0))
            if self.output == "db":
                decibels(into)


def made_of(
    output: str, bins: int, dtype: np.dtype, size: int, rate_hz: float | None, mels: int, low_hz: float, high_hz: float | None
) -> Made:
    """The kind of output by its name; `dtype` is the samples' type."""
    if output not in get_args(Output):
        raise InputError(f"output is {output!r}; there are {', '.join(get_args(Output))}.")
    kind: Any = output
    if output == "complex":
        return Made(kind, bins, np.result_type(dtype, np.complex64))
    if output != "mel":
        return Made(kind, bins, dtype)
    if rate_hz is None:
        raise InputError("mel bands are in Hz, and the source says no rate; give rate_hz, as rate_hz=44100.")
    bands = mel_bands(size, rate_hz, mels, low_hz, high_hz, dtype)
    return Made(kind, mels, dtype, bands)


def decibels(power: np.ndarray) -> None:
    """Power becomes 10·log10(power), in place. torch's logarithm works on many numbers at once, whatever the processor."""
    import torch

    torch.from_numpy(power).log10_().mul_(10)


def mel_bands(size: int, rate_hz: float, mels: int, low_hz: float, high_hz: float | None, dtype: np.dtype) -> Bands:
    """Triangles between frequencies that lie evenly in mel, each of area 1 in Hz: `librosa.filters.mel`'s defaults.

    Source: Slaney, Auditory Toolbox, 1998: up to 1000 Hz a mel is 200/3 Hz, from there on 27 mels are a factor of 6.4. Raises `InputError`
    where a band is so narrow that no bin lies in it.
    """
    high = rate_hz / 2 if high_hz is None else float(high_hz)
    if not 0 <= low_hz < high <= rate_hz / 2:
        raise InputError(f"mel bands are asked for from {low_hz:g} to {high:g} Hz; at {rate_hz:g} Hz they lie in 0 to {rate_hz / 2:g}.")
    if isinstance(mels, bool) or not isinstance(mels, (int, np.integer)) or mels < 1:
        raise InputError(f"mels is {mels!r}; give a whole number of bands from 1 on.")
    bins = np.arange(size // 2 + 1) * (rate_hz / size)
    found = _triangles(bins, int(mels), low_hz, high)
    empty = sum(not len(weights) for _, weights in found)
    if empty:
        fewer = next((count for count in range(int(mels) - 1, 0, -1) if all(len(w) for _, w in _triangles(bins, count, low_hz, high))), 0)
        near = f"mels={fewer} has none such, or take a longer frame" if fewer else "take a longer frame"
        raise InputError(f"{empty} of {mels} mel bands lie between two bins, which are {rate_hz / size:.4g} Hz apart; {near}.")
    at = np.cumsum([0, *(len(weights) for _, weights in found)])
    return Bands(np.array([first for first, _ in found]), at, np.concatenate([weights for _, weights in found]).astype(dtype))


def mel_of(hz: float) -> float:
    """Slaney's mel."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * log(hz / 1000) / log(6.4)


def _triangles(bins: np.ndarray, mels: int, low_hz: float, high_hz: float) -> list[tuple[int, np.ndarray]]:
    """The first bin of each band, and the weights above 0."""
    points = np.linspace(mel_of(low_hz), mel_of(high_hz), mels + 2)
    edges = np.where(points < 15, points * 200 / 3, 1000 * 6.4 ** ((points - 15) / 27))
    found = []
    for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
        first, stop = np.searchsorted(bins, left, "right"), np.searchsorted(bins, right, "left")
        inside = bins[first:stop]
        weights = np.minimum((inside - left) / (middle - left), (right - inside) / (right - middle)) * 2 / (right - left)
        found.append((int(first), weights))
    return found


@njit(nogil=True, cache=True)
def _power(numbers, out, least):
    """Powers, none below `least`; numbers are real and imaginary parts in turn."""
    for frame in range(out.shape[0]):
        for row in range(out.shape[1]):
            real, imaginary = numbers[frame, 2 * row], numbers[frame, 2 * row + 1]
            power = real * real + imaginary * imaginary
            out[frame, row] = least if power < least else power


@njit(nogil=True, cache=True)
def _magnitude(numbers, out):
    for frame in range(out.shape[0]):
        for row in range(out.shape[1]):
            # The square of a small number is none in fp32.
            real, imaginary = np.float64(numbers[frame, 2 * row]), np.float64(numbers[frame, 2 * row + 1])
            out[frame, row] = np.sqrt(real * real + imaginary * imaginary)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _banded(numbers, first, at, weights, out):
    """Powers under each band's weights, added up."""
    power = np.empty(numbers.shape[1] // 2, numbers.dtype)
    for frame in range(out.shape[0]):
        for row in range(power.size):
            real, imaginary = numbers[frame, 2 * row], numbers[frame, 2 * row + 1]
            power[row] = real * real + imaginary * imaginary
        for band in range(out.shape[1]):
            start, count = at[band], at[band + 1] - at[band]
            under, given = power[first[band] : first[band] + count], weights[start : start + count]
            total = numbers.dtype.type(0)
            for row in range(count):
                total += under[row] * given[row]
            out[frame, band] = total
