"""Axes along which a convolution is a product: by the Fourier transform, or by cosines where borders and kernel mirror."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, starmap
from typing import Any, Literal

import numpy as np
from scipy import fft

from sash.errors import InputError
from sash.window import Interval

DIAGONAL = ("wrap", "reflect", "mirror")
"""Borders whose convolution is a product at each frequency; the last two for kernels that mirror."""
SYMMETRIC = 1e-13
"""Difference of mirrored taps, of the sum of all, up to which a kernel counts as symmetric: it is averaged, the rest is error."""
_SEPARABLE = 1e-15
"""Difference from an outer product, of the sum of absolute taps, up to which the kernel is one: what rounding of its taps makes."""
_AT_ONCE = 1 << 15
"""Numbers of a spectrum that are looked at together."""


@dataclass(frozen=True)
class Line:
    """One axis, and the transform under which the border's rule is no border at all."""

    size: int
    kind: Literal["wrap", "reflect", "mirror"]
    half: bool
    """Whether samples are real and half of the frequencies say all; for "wrap" only."""

    @classmethod
    def of(cls, size: int, boundary: str, half: bool) -> Line:
        """The axis of a border; one sample mirrors like any."""
        kind = "reflect" if boundary == "mirror" and size == 1 else boundary
        return cls(size, kind, half and kind == "wrap")  # pyright: ignore[reportArgumentType]

    @property
    def period(self) -> int:
        """Samples after which the signal and what lies beyond its ends begin again."""
        return {"wrap": self.size, "reflect": 2 * self.size, "mirror": 2 * self.size - 2}[self.kind]

    @property
    def bins(self) -> int:
        """Frequencies kept."""
        return self.size // 2 + 1 if self.half else self.size

    @property
    def real(self) -> bool:
        """Whether real signals have real transforms."""
        return self.kind != "wrap"

    @property
    def dtype(self) -> np.dtype:
        """Of the transform."""
        return np.dtype(np.float64 if self.real else np.complex128)

    def frequencies(self, place: np.ndarray) -> np.ndarray:
        """In cycles a sample, from 0 to 0.5, by number."""
        return np.minimum(place, self.period - place) / self.period

    def weights(self, place: np.ndarray) -> np.ndarray:
        """How many frequencies of the whole transform each stands for, by number."""
        return np.where((place == 0) | (2 * place == self.size), 1.0, 2.0) if self.half else np.ones(len(place))

    @property
    def power(self) -> float:
        """What the square of a transform is multiplied with, so that white noise has its variance at each frequency."""
        return {"wrap": 1 / self.size, "reflect": 1 / (2 * self.size), "mirror": 1 / max(self.period, 1)}[self.kind]

    def forward(self, signal: np.ndarray, axis: int) -> np.ndarray:
        """The transform along an axis; the signal is lost."""
        if self.kind == "wrap":
            return fft.rfft(signal, axis=axis) if self.half else fft.fft(signal, axis=axis, overwrite_x=True)  # pyright: ignore
        return fft.dct(signal, 2 if self.kind == "reflect" else 1, axis=axis, overwrite_x=True)  # pyright: ignore

    def backward(self, found: np.ndarray, axis: int) -> np.ndarray:
        """The signal of a transform, which is lost."""
        if self.kind == "wrap":
            inverse = fft.ifft(found, axis=axis, overwrite_x=True) if not self.half else fft.irfft(found, self.size, axis=axis)
            return inverse  # pyright: ignore
        return fft.idct(found, 2 if self.kind == "reflect" else 1, axis=axis, overwrite_x=True)  # pyright: ignore

    def scratch_bytes(self) -> int:
        """Inside a transform of some of these lines, whatever their number: measured, see the tests."""
        smooth = fft.next_fast_len(self.size, real=True) == self.size
        return self.size * (160 if smooth else 700)

    def basis(self, place: int, part: Interval) -> np.ndarray:
        """What the samples of a part are multiplied with, to be added up to the transform at one frequency, of the power of white noise."""
        at = np.arange(part.start, part.stop)
        if self.kind == "wrap":
            return np.exp(-2j * np.pi * (place * at % self.size / self.size)) * np.sqrt(self.power)
        shifted = (2 * at + 1) if self.kind == "reflect" else 2 * at
        found = 2 * np.cos(np.pi * (place * shifted % (2 * self.period)) / self.period) * np.sqrt(self.power)
        return np.where((at == 0) | (at == self.size - 1), found / 2, found) if self.kind == "mirror" else found

    def turned(self, taps: int, places: np.ndarray) -> np.ndarray:
        """What each tap of a kernel becomes at some frequencies, given by number."""
        turns = np.outer(np.arange(taps) - (taps - 1) // 2, places) % self.period
        angle = turns * (-2 * np.pi / self.period)
        return np.cos(angle) if self.real else np.exp(1j * angle)

    def of_taps(self, taps: np.ndarray) -> np.ndarray:
        """The transform of kernels that stand along the first axis, at all of the frequencies."""
        places = (np.arange(len(taps)) - (len(taps) - 1) // 2) % self.period
        folded = np.zeros((self.period, *taps.shape[1:]), taps.dtype)
        np.add.at(folded, places, taps)
        if self.real or (self.half and taps.dtype.kind == "f"):
            found: Any = fft.rfft(folded, axis=0)
            found = found[: self.bins]
            return np.ascontiguousarray(found.real) if self.real else found
        return fft.fft(folded, axis=0, overwrite_x=True)[: self.bins]  # pyright: ignore


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What a convolution multiplies each frequency with, a block of frequencies at a time."""

    taps: np.ndarray
    """Of two axes; one tap along an axis without a line."""
    lines: tuple[Line | None, Line | None]

    @property
    def shape(self) -> tuple[int, int]:
        """Frequencies along both axes."""
        down, along = (1 if line is None else line.bins for line in self.lines)
        return down, along

    @cached_property
    def outer(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The two kernels whose outer product the kernel is; None where it is none."""
        row, column = np.unravel_index(np.abs(self.taps).argmax(), self.taps.shape)
        down, along = self.taps[:, column], self.taps[row] / self.taps[row, column]
        off = np.abs(self.taps - np.outer(down, along)).sum()
        return None if off > _SEPARABLE * np.abs(self.taps).sum() else (down, along)

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Their spectra."""
        if self.outer is None:
            return None
        pair = [taps if line is None else line.of_taps(taps) for taps, line in zip(self.outer, self.lines, strict=True)]
        return pair[0], pair[1]

    def block(self, columns: Interval) -> np.ndarray:
        """All frequencies down at those of a part along."""
        if self.factors is not None:
            down, along = self.factors
            return np.outer(down, along[columns.start : columns.stop])
        down, along = self.lines
        assert down is not None
        assert along is not None
        found = np.empty((self.taps.shape[0], columns.length), along.dtype)
        for part in self.blocks(columns):
            # A product of matrices rounds by its place in one: each is of the same columns, however these are asked for.
            first = part.start // self.together * self.together
            whole = self.taps @ along.turned(self.taps.shape[1], np.arange(first, min(first + self.together, along.bins)))
            found[:, part.start - columns.start : part.stop - columns.start] = whole[:, part.start - first : part.stop - first]
        return down.of_taps(found)

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Frequencies where some rows and columns cross, given by number."""
        down, along = self.lines
        first = np.ones((1, len(rows))) if down is None else down.turned(self.taps.shape[0], rows)
        second = np.ones((1, len(columns))) if along is None else along.turned(self.taps.shape[1], columns)
        return first.T @ self.taps @ second

    def blocks(self, columns: Interval) -> Iterator[Interval]:
        """A part along, in pieces whose spectra are small: up to multiples of a number of frequencies."""
        step = self.together
        edges = [columns.start, *range((columns.start // step + 1) * step, columns.stop, step), columns.stop]
        return starmap(Interval, pairwise(edges)) if columns.length else iter(())

    @property
    def together(self) -> int:
        """Frequencies along that are looked at together."""
        return max(_AT_ONCE // self.shape[0], 1)

    def scratch_bytes(self) -> int:
        """While a block is made and used."""
        down = self.lines[0]
        period = 1 if down is None else down.period
        made = self.shape[0] * self.together * 16
        kernel = self.taps.shape[0] * self.together * 16 + self.taps.shape[1] * self.together * 32
        return 4 * made + (0 if self.outer is not None else 2 * 16 * period * self.together + kernel)

    @property
    def held_bytes(self) -> int:
        """Spectra that are kept."""
        return 16 * sum(self.shape) if self.outer is not None else 0

    def weights(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How many frequencies of the whole transform each stands for, where rows and columns cross."""
        own = [
            np.ones(len(place)) if line is None else line.weights(place) for line, place in zip(self.lines, (rows, columns), strict=True)
        ]
        return np.outer(own[0], own[1])

    def radii(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The square of each frequency's distance from 0, in cycles a sample."""
        own = [np.zeros(1) if line is None else line.frequencies(place) for line, place in zip(self.lines, (rows, columns), strict=True)]
        return own[0][:, None] ** 2 + own[1][None] ** 2


@dataclass(frozen=True)
class Condition:
    """How evenly a kernel passes frequencies."""

    most: float
    least: float
    place: tuple[int, int]
    """The frequency that it passes least."""
    amplified: float
    """The mean of 1/|H|² over all frequencies: how much an inverse makes of the power of white noise; infinite where one is lost."""

    @property
    def number(self) -> float:
        """The largest of the spectrum by its smallest."""
        return self.most / self.least if self.least else float("inf")


def condition(spectrum: Spectrum) -> Condition:
    """Of all frequencies; of two axes' own where the kernel is an outer product."""
    if spectrum.factors is not None:
        own = []
        for taps, line, found in zip(spectrum.taps.shape, spectrum.lines, spectrum.factors, strict=True):
            weights = np.ones(taps) if line is None else line.weights(np.arange(line.bins))
            own.append(_condition(np.abs(found)[None], weights[None]))
        down, along = own
        most, least = down.most * along.most, down.least * along.least
        return Condition(most, least, (down.place[1], along.place[1]), down.amplified * along.amplified)
    height, width = spectrum.shape
    parts, total = [], 0.0
    for columns in spectrum.blocks(Interval(0, width)):
        weights = spectrum.weights(np.arange(height), np.arange(*columns))
        found = _condition(np.abs(spectrum.block(columns)), weights)
        parts.append((found, columns.start))
        total += found.amplified * float(weights.sum())
    weakest, first = min(parts, key=lambda one: one[0].least)
    place = weakest.place[0], weakest.place[1] + first
    count = float(spectrum.weights(np.arange(1), np.arange(width)).sum()) * height
    return Condition(max(one.most for one, _ in parts), weakest.least, place, total / count)


def _condition(size: np.ndarray, weights: np.ndarray) -> Condition:
    place = np.unravel_index(size.argmin(), size.shape)
    with np.errstate(divide="ignore", over="ignore"):
        amplified = float((weights / np.square(size)).sum() / weights.sum())
    return Condition(float(size.max()), float(size.min()), (int(place[0]), int(place[1])), amplified)


def mirrored(taps: np.ndarray, boundary: str) -> tuple[np.ndarray, float]:
    """The kernel with its mirrored taps made the same, and by how much they differed, of the sum of all.

    Raises `InputError` where the border is not one under which a convolution is a product at each frequency.
    """
    size = float(np.abs(taps).sum())
    if boundary not in DIAGONAL:
        raise InputError(
            f"boundary is {boundary!r}, whose convolution has no spectrum to invert; "
            "boundary 'wrap', or 'reflect' and 'mirror' with a symmetric kernel have, and method='richardson-lucy' takes any."
        )
    if boundary == "wrap":
        return taps, 0.0
    found, most = taps, 0.0
    for axis in range(2):
        count = found.shape[axis]
        # The middle tap of an even number is the one before the half: there is one more after it.
        even = np.pad(found, [(1, 0) if own == axis and count % 2 == 0 else (0, 0) for own in range(2)])
        turned = np.flip(even, axis)
        off = float(np.abs(even - turned).sum()) / size
        if off > SYMMETRIC:
            raise InputError(
                f"boundary is {boundary!r}, and the kernel is not symmetric along its {('rows', 'columns')[axis]}: mirrored taps differ by "
                f"{off:.1e} of all. Under this border only symmetric kernels have a spectrum; boundary='wrap' takes any, and so does "
                "method='richardson-lucy'."
            )
        found, most = (even + turned) / 2, max(most, off)
    return found, most
