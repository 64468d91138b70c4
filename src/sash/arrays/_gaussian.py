"""The Gaussian along one axis: its taps, the filters that stand for it, and how far each is from it at worst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import BSpline
from scipy.signal import upfirdn

REACH = 9.5
"""Standard deviations beyond which nothing is left of a Gaussian in float64."""
LEAST_SIGMA = 1e-3
"""Below it the Gaussian on samples is the signal itself, to the last bit."""
DEGREES = (2, 3, 5, 7)
"""Of the splines between two rates: 3 to 8 taps for each sample."""
LEAST_COARSE = 1.6
"""Standard deviation, in coarse samples, under which no spline of `DEGREES` lets a Gaussian through."""
SOUGHT_SIGMA = 64.0
"""The largest standard deviation at which steps are tried out one by one."""
PHASES = 16
"""Places between two coarse samples at which an error is looked at."""
AT_ONCE = 1 << 13
"""Frequencies times taps whose response is taken at once."""


@dataclass(frozen=True, eq=False)
class Direct:
    """Taps at every sample: `weights[radius + k]` goes with the sample k before."""

    weights: np.ndarray
    error: float
    """Largest share of the input's range by which an output can be wrong."""

    @property
    def radius(self) -> int:
        """Samples to either side."""
        return len(self.weights) // 2


@dataclass(frozen=True, eq=False)
class Multirate:
    """A spline down to every `step`-th sample, taps there, and the same spline up again.

    A Gaussian leaves next to nothing of frequencies that the coarse samples cannot carry, and its taps there divide by what the spline
    takes from the rest. Source: M. Unser, A. Aldroubi, S. J. Lee, "Fast implementation of the continuous wavelet transform with integer
    scales", IEEE Trans. Signal Processing 42 (1994), for Gaussians by splines; the taps here are found by frequency, and their error by
    comparing every phase with the exact taps.
    """

    step: int
    degree: int
    down: np.ndarray
    """Taps before the coarse samples, odd in number, in the middle the sample itself."""
    coarse: np.ndarray
    up: np.ndarray
    """(phase, tap): output step·j + phase is the sum over taps of coarse sample j + `first_up` + tap."""
    first_up: int
    error: float

    @property
    def radius(self) -> int:
        """Coarse samples that the coarse taps reach to either side."""
        return len(self.coarse) // 2

    @property
    def margin(self) -> int:
        """Coarse samples wanted before the first and after the last one on the signal."""
        return self.radius + self.degree + 1


Filter = Direct | Multirate


def exact_taps(sigma: float, order: int = 0) -> np.ndarray:
    """The sampled Gaussian, or its derivative of an order, as `scipy.ndimage.gaussian_filter1d` has it, out to where nothing is left.

    The plain Gaussian sums to 1. Laid out for correlation with the samples around: entry radius + k goes with the sample k after.
    """
    if sigma < LEAST_SIGMA:
        return np.ones(1) if order == 0 else np.zeros(1)
    return sampled_taps(sigma, order, max(int(REACH * sigma + 1), order))


def sampled_taps(sigma: float, order: int, radius: int) -> np.ndarray:
    """The same with so many taps to either side; the plain Gaussian's sum is 1 again."""
    places = np.arange(-radius, radius + 1)
    bell = np.exp(-0.5 * (places / sigma) ** 2)
    bell /= bell.sum()
    # Derivatives by the polynomials q that q' - q·x/σ² makes from 1.
    factor = np.ones(1)
    for _ in range(order):
        rises = np.polynomial.polynomial.polyder(factor) if len(factor) > 1 else np.zeros(1)
        factor = np.polynomial.polynomial.polyadd(rises, np.polynomial.polynomial.polymul(factor, [0, -1 / sigma**2]))
    return (bell * np.polynomial.polynomial.polyval(places, factor))[::-1].copy() if order else bell


def filters(sigma: float, order: int, tolerance: float) -> Iterator[Filter]:
    """Every kind of filter that is within the tolerance of the Gaussian, the shortest of its kind: direct, then by degree.

    The tolerance is a share of the input's range, for derivatives times the sum of the absolute taps.
    """
    exact = exact_taps(sigma, order)
    yield _shortest(sigma, order, tolerance, exact)
    for degree in DEGREES:
        if (found := _coarsest(sigma, order, degree, tolerance)) is not None:
            yield found


def _shortest(sigma: float, order: int, tolerance: float, exact: np.ndarray) -> Direct:
    most = len(exact) // 2
    low, high = 0, most
    while low < high:
        radius = (low + high) // 2
        low, high = (low, radius) if _cut_error(sigma, order, radius, exact) <= tolerance else (radius + 1, high)
    if low == most:
        return Direct(exact, 0.0)
    return Direct(sampled_taps(sigma, order, low), _cut_error(sigma, order, low, exact))


def _cut_error(sigma: float, order: int, radius: int, exact: np.ndarray) -> float:
    if len(exact) // 2 <= radius:
        return 0.0
    room = len(exact) // 2 - radius
    return share_off(np.pad(sampled_taps(sigma, order, radius), room), exact)


def share_off(taps: np.ndarray, exact: np.ndarray) -> float:
    """The largest share of the input's range, times the exact taps' size, by which the one's result can differ from the other's.

    Where the differences sum to zero, half of them can meet the largest value and the other half the least.
    """
    off = taps - exact
    worst = max(off[off > 0].sum(), -off[off < 0].sum())
    return float(worst) / max(float(np.abs(exact).sum()), np.finfo(float).tiny)


@lru_cache(maxsize=16)
def _coarsest(sigma: float, order: int, degree: int, tolerance: float) -> Multirate | None:
    """The largest step whose error is within the tolerance; None where even 2 is not.

    Errors depend on the step by the ratio to sigma, for all but small steps: that of a large sigma is sought at a smaller one.
    """
    near = min(sigma, SOUGHT_SIGMA)
    low, high = 1, int(near / LEAST_COARSE)
    while low < high:
        step = (low + high + 1) // 2
        low, high = (step, high) if multirate(near, order, step, degree, tolerance).error <= tolerance else (low, step - 1)
    step = int(low * sigma / near)
    while step > 1:
        found = multirate(sigma, order, step, degree, tolerance)
        if found.error <= tolerance:
            return found
        step = min(step - 1, int(step * 0.97))
    return None


def multirate(sigma: float, order: int, step: int, degree: int, tolerance: float) -> Multirate:
    """The filter of a step and degree, with its error; what is cut off its coarse taps takes a tenth of the tolerance."""
    down = _spline(degree, np.arange(1 - _half(degree, step), _half(degree, step)) / step) / step
    coarse = _coarse_taps(sigma, order, step, degree, down, tolerance / 10)
    offsets = np.arange(-(degree + 1) // 2 - 1, (degree + 1) // 2 + 2)
    phases = np.arange(step) / step
    up = _spline(degree, phases[:, None] - offsets)
    used = np.flatnonzero(up.any(0))
    up, first = up[:, used[0] : used[-1] + 1], int(offsets[used[0]])
    found = Multirate(step, degree, down, coarse, up, first, 0.0)
    return Multirate(step, degree, down, coarse, up, first, _worst(found, exact_taps(sigma, order)))


def _half(degree: int, step: int) -> int:
    """The first sample to either side at which the spline is zero."""
    return ((degree + 1) * step + 1) // 2


def _spline(degree: int, places: np.ndarray) -> np.ndarray:
    """The B-spline of a degree around 0 (its knots one apart), at places."""
    half = (degree + 1) / 2
    bell = BSpline.basis_element(np.arange(degree + 2) - half, extrapolate=False)
    return np.nan_to_num(bell(np.asarray(places, float)))


def _coarse_taps(sigma: float, order: int, step: int, degree: int, down: np.ndarray, cut: float) -> np.ndarray:
    """The taps that make the whole filter's response the Gaussian's, without what is too small to matter."""
    exact = exact_taps(sigma, order)
    length = max(256, 1 << int(np.ceil(np.log2(8 * REACH * sigma / step + 64))))
    frequencies = 2 * np.pi * np.fft.fftfreq(length) / step
    taps = np.fft.fftshift(np.real(np.fft.fft(_response(exact, frequencies) / np.real(_response(down, frequencies)) ** 2))) / length
    middle, size = length // 2, np.abs(exact).sum()
    # What a radius leaves out, from the outermost taps inwards.
    sides = np.abs(taps[1:middle]) + np.abs(taps[:middle:-1])
    left_out = np.cumsum(sides)[::-1]
    enough = np.flatnonzero(left_out <= cut * size)
    radius = int(enough[0]) if len(enough) else middle - 1
    taps = taps[middle - radius : middle + radius + 1]
    return taps / taps.sum() if order == 0 else taps - taps.mean()


def _response(taps: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """What correlation with the taps multiplies a wave of each frequency by (radians a sample)."""
    places = np.arange(len(taps)) - len(taps) // 2
    found = np.zeros(len(frequencies), complex)
    step = max(AT_ONCE // len(frequencies), 1)
    for start in range(0, len(taps), step):  # the matrix of all would be larger than some budgets
        part = slice(start, start + step)
        found += np.exp(1j * np.outer(frequencies, places[part])) @ taps[part]
    return found


def _worst(found: Multirate, exact: np.ndarray) -> float:
    """The largest error over the places between two coarse samples."""
    phases = {index * found.step // PHASES for index in range(PHASES)}
    return max(share_off(*_aligned(*fine_taps(found, phase), exact)) for phase in phases)


def fine_taps(found: Multirate, phase: int) -> tuple[np.ndarray, int]:
    """What the filter does to the samples around an output of that phase: taps, and how far before the output the first one lies."""
    taps = upfirdn(found.down, np.convolve(found.up[phase], found.coarse), up=found.step)
    return taps, phase + len(found.down) // 2 + found.step * (found.radius - found.first_up)


def _aligned(taps: np.ndarray, before: int, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, on the same samples."""
    half = len(exact) // 2
    first, last = max(before, half), max(len(taps) - before, half + 1)
    return np.pad(taps, (first - before, last - (len(taps) - before))), np.pad(exact, (first - half, last - half - 1))
