"""One pass over data: whether it is sound, its mean and variance, and its power along lines of frequencies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from scipy import fft

from sash.arrays._diagonal import Line, Spectrum
from sash.arrays._planes import Part, Planes
from sash.arrays._store import Source
from sash.errors import InputError
from sash.window import Interval

_AT_ONCE = 1 << 16
"""Numbers of the data that are looked at together."""
_LINES = 6
"""Frequencies along the first axis whose lines are followed, beside the one that the kernel passes least."""
_DETAILS = 1 << 15
"""Differences between neighbours that are kept, of the finest scale."""
_MOST = 1e140
"""Size of numbers from which on sums of squares would leave float64; below its inverse they would be lost."""
_NORMAL = 0.6745
"""Median of the absolute value of a normal variable of variance 1."""


@dataclass(frozen=True)
class Data:
    """What was seen of data."""

    mean: float
    variance: float
    detail: float
    """Standard deviation of noise as differences of neighbours have it, signal among them."""
    power: np.ndarray | None
    """Where lines of frequencies were followed: the data's power, by row and frequency along."""
    rows: np.ndarray
    columns: np.ndarray
    """Which frequencies those are."""
    averaged: int
    """Signals in the mean of each."""


@dataclass
class _Sums:
    """Of what was seen so far, about a number near the mean: little would be left of a small variance otherwise."""

    count: int = 0
    about: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    most: float = 0.0

    def add(self, block: np.ndarray) -> None:
        """Take a piece into account; it is lost. Raises `InputError` for numbers whose squares are none."""
        if not self.count:
            self.about = float(block.mean())
        block -= self.about
        self.most = max(self.most, float(block.max()), -float(block.min()), abs(self.about) * 1e-16)
        if self.most > _MOST or 0 < self.most < 1 / _MOST:
            raise InputError(f"the source holds numbers around {self.most:.1e}, whose squares float64 does not; scale it first.")
        self.count += block.size
        self.total += float(block.sum())
        self.squares += float(np.square(block, out=block).sum())


class Look:
    """A pass over the data, a piece at a time, which refuses what is not finite."""

    def __init__(
        self, source: Source, planes: Planes, spectrum: Spectrum | None, place: tuple[int, int], *, positive: bool = False
    ) -> None:
        self._source, self._planes, self._spectrum, self._positive = source, planes, spectrum, positive
        self._height, self._width = planes.size
        self._down, self._along = spectrum.lines if spectrum is not None else (None, None)
        self._rows = _followed(self._down, place[0]) if self._down is not None and self._along is not None else np.zeros(1, int)

    def run(self) -> Data:
        """What was seen; raises `InputError` for data with NaN or infinities, naming the first, and for negative ones where asked."""
        sums, details, power, signals = _Sums(), list[np.ndarray](), None, 0
        every = max(ceil(self._pieces * 256 / _DETAILS), 1)
        for lead in self._planes.leads((1,) * self._planes.lead):
            line = self._line(self._planes.lanes(lead))
            for number, part in enumerate(self._parts(lead)):
                # Its arrays are gone before the next piece is read.
                self._piece_of(part, sums, line, details if number % every == 0 else None)
            if line is not None:
                found = self._transformed(line)
                power, signals = found if power is None else power + found, signals + 1
        mean = sums.total / sums.count
        spread = np.abs(np.concatenate([found.reshape(-1) for found in details])) if details else np.zeros(1)
        detail = float(np.median(spread)) / _NORMAL if spread.size else 0.0
        columns = np.arange(power.shape[1]) if power is not None else np.zeros(0, int)
        if power is not None and self._along is None:
            power, columns = power.T, np.zeros(1, int)
        rows = np.arange(len(power)) if power is not None and self._along is None else self._rows
        whole = None if power is None else power / signals
        variance = max(sums.squares / sums.count - mean**2, 0.0)
        return Data(mean + sums.about, variance, detail, whole, rows, columns, max(signals * self._averaged, 1))

    def _piece_of(self, part: Part, sums: _Sums, line: np.ndarray | None, details: list[np.ndarray] | None) -> None:
        raw = np.empty((self._planes.lanes(part.lead), part.rows.length, part.columns.length), self._source.dtype)
        self._planes.read(self._source, part, raw)
        block = raw.astype(np.float64)
        self._check(block, raw, part)
        del raw
        if details is not None:
            details.append(self._details(block).copy())
        if line is not None:
            self._follow(block, part, line)
        sums.add(block)

    @property
    def kept_bytes(self) -> int:
        """What BLAS keeps of the products along lines: a piece as it packs it, and parts of it in its threads."""
        rows, columns = self._piece
        return 20 * rows * columns if self._down is not None and self._along is not None else 0

    @property
    def peak_bytes(self) -> int:
        """Bytes held while it runs, beside those."""
        lanes = self._planes.lanes(tuple(Interval(0, 1) for _ in range(self._planes.lead)))
        rows, columns = self._piece
        block = lanes * rows * columns
        part = Part(tuple(Interval(0, 1) for _ in range(self._planes.lead)), Interval(0, rows), Interval(0, columns))
        line = 3 * self._line_shape(lanes) * 16 if self._spectrum is not None else 0
        item = self._source.dtype.itemsize
        followed = block * 8 + len(self._rows) * (rows + columns) * 32
        piece = max(block * item + self._planes.reading_bytes(self._source, part), block * (item + 10), followed)
        return max(piece, 3 * 8 * _DETAILS) + 8 * _DETAILS + line

    @property
    def _piece(self) -> tuple[int, int]:
        """Rows and columns that are looked at together: whole grains of the source."""
        _, grain, wide = self._planes.grain(self._source.grain)
        wide = max(wide, self._planes.step)
        lanes = self._planes.channels
        columns = min(max(_AT_ONCE // lanes // wide * wide, wide), self._width)
        rows = max(_AT_ONCE // (columns * lanes) // grain * grain, grain)
        return min(rows, self._height), columns

    @property
    def _pieces(self) -> int:
        rows, columns = self._piece
        return ceil(self._height / rows) * ceil(self._width / columns) * max(prod(self._planes.shape[: self._planes.lead]), 1)

    def _parts(self, lead: tuple[Interval, ...]) -> Iterator[Part]:
        high, wide = self._piece
        for top in range(0, self._height, high):
            for left in range(0, self._width, wide):
                yield Part(lead, Interval(top, min(top + high, self._height)), Interval(left, min(left + wide, self._width)))

    def _check(self, block: np.ndarray, raw: np.ndarray, part: Part) -> None:
        sound = np.isfinite(block)
        if self._positive:
            sound &= block >= 0
        if sound.all():
            return
        first = np.argwhere(~self._planes.as_boxed(sound, part))[0]
        place = tuple(int(own + one.start) for own, one in zip(first, self._planes.box(part), strict=True))
        value = self._planes.as_boxed(raw, part)[tuple(first)]
        if np.isfinite(value):
            raise InputError(
                f"the source holds {value:g} at {place}, and Richardson–Lucy takes counts, 0 or more: add an offset, or use 'wiener'."
            )
        raise InputError(f"the source holds {value} at {place}, which an inverse would spread to every output; replace it first.")

    def _details(self, block: np.ndarray) -> np.ndarray:
        """Of neighbours, along the axes that the kernel goes along, with the variance of white noise; every so many columns."""
        step = max(block.shape[2] * block.shape[0] // 256, 1)
        both = self._spectrum is None or (self._down is not None and self._along is not None)
        if (both or self._along is None) and block.shape[1] > 1:
            edge = (block[:, 0] - block[:, 1]) / np.sqrt(2)
            return ((edge[:, :-1] - edge[:, 1:]) / np.sqrt(2))[:, ::step] if both and block.shape[2] > 1 else edge[:, ::step]
        return ((block[:, 0, :-1] - block[:, 0, 1:]) / np.sqrt(2))[:, ::step]

    def _line_shape(self, lanes: int) -> int:
        if self._along is None:
            return self._height * self._sampled(self._width)
        return self._width * (lanes * len(self._rows) if self._down is not None else self._sampled(self._height) * lanes)

    def _sampled(self, count: int) -> int:
        """Signals of one axis that are followed, of so many."""
        return min(count, max((1 << 18) // max(self._height if self._along is None else self._width, 1), 1), 64)

    @property
    def _averaged(self) -> int:
        """Signals of a place of the leading axes in the mean of what was followed."""
        if self._down is not None and self._along is not None:
            return self._planes.channels
        return self._sampled(self._width) if self._along is None else self._sampled(self._height) * self._planes.channels

    def _chosen(self, count: int) -> np.ndarray:
        return np.arange(self._sampled(count)) * count // self._sampled(count)

    def _line(self, lanes: int) -> np.ndarray | None:
        """Where what is followed adds up: (lane, line, column), or (column, row) for kernels that go down alone."""
        if self._spectrum is None:
            return None
        if self._down is not None and self._along is not None:
            return np.zeros((lanes, len(self._rows), self._width), self._down.dtype)
        if self._along is None:
            return np.zeros((self._sampled(self._width), self._height))
        return np.zeros((lanes, self._sampled(self._height), self._width))

    def _follow(self, block: np.ndarray, part: Part, line: Any) -> None:
        columns = slice(part.columns.start, part.columns.stop)
        if self._down is not None and self._along is not None:
            basis: Any = np.stack([self._down.basis(int(row), part.rows) for row in self._rows])
            for lane, own in enumerate(block):
                # Not at once where the line is complex: the numbers would be made so as well.
                followed: Any = line[lane, :, columns]
                np.add(followed.real, basis.real @ own, out=followed.real)
                if line.dtype.kind == "c":
                    np.add(followed.imag, basis.imag @ own, out=followed.imag)
        elif self._along is None:
            chosen = self._chosen(self._width)
            own = (chosen >= part.columns.start) & (chosen < part.columns.stop)
            line[own, part.rows.start : part.rows.stop] = block[0][:, chosen[own] - part.columns.start].T
        else:
            chosen = self._chosen(self._height)
            own = (chosen >= part.rows.start) & (chosen < part.rows.stop)
            line[:, own, columns] = block[:, chosen[own] - part.rows.start]

    def _transformed(self, line: np.ndarray) -> np.ndarray:
        """The power of what was followed: (line, frequency), or of one axis the mean of its signals."""
        along = self._along if self._along is not None else self._down
        assert along is not None
        if line.dtype.kind == "c":
            found: Any = fft.fft(line, axis=-1)
            found = found[..., : along.bins]
        else:
            found = along.forward(line, line.ndim - 1)
        power = np.square(np.abs(found)) * along.power
        return power.mean(0) if self._down is not None and self._along is not None else power.reshape(-1, power.shape[-1]).mean(0)[None]


def _followed(line: Line, least: int) -> np.ndarray:
    """Frequencies from near 0 to the highest, and the one that is passed least."""
    top = line.size // 2 if line.kind == "wrap" else line.size - 1
    spread = np.round(np.geomspace(1, max(top, 1), _LINES)).astype(int)
    return np.unique(np.clip([*spread, least], 0, line.size - 1))
