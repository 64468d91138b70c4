"""A signal and the noise in what a kernel made of it: a model of both, and the errors that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from sash.arrays._diagonal import Condition, Spectrum
from sash.arrays._look import Data
from sash.errors import InputError

_APART = 3.5
"""Times that what lies at the frequencies passed least is more than signal could be, for it to be noise."""
_ABOVE = (9, 30, 100, 300)
"""Times, in power, that frequencies are passed better than those, whose signal says how much there could be."""
_ALL = 0.2
"""Share of the data's variance that differences of neighbours may claim for noise."""
_SAMPLED = 384
"""Frequencies an axis over which sums are taken; beyond, every so many stand for those between."""
_AT_ONCE = 1 << 13
"""Of those, how many are looked at together."""
MODEL_BYTES = 512 << 10
"""What `model` and `errors` hold, whatever the data: eight arrays of so many frequencies."""
STORED = {"float32": 0.2 * 2.0**-23, "float64": 0.2 * 2.0**-52}
"""Of rounding to a type, in root mean square: of the numbers' own."""


@dataclass(frozen=True)
class Model:
    """A signal of power `scale`·(f² + corner²)^(-slope/2) at f cycles a sample, and white noise: what a Wiener filter supposes."""

    noise: float
    """Variance of what was added to the data."""
    scale: float
    slope: float
    corner: float
    constant: float
    """The square of the signal's mean."""
    told: str
    """Where the noise is from, in words."""
    unseen: float
    """Variance of noise that would not have been told from signal; 0 where noise was stated or found."""
    least: float
    """Variance of noise that there is in any case: all of it, or but rounding where the rest may be signal."""

    def signal(self, radii: np.ndarray) -> np.ndarray:
        """Its power where the square of the distance from frequency 0 is `radii`."""
        return self.scale * (radii + self.corner**2) ** (-self.slope / 2)


def model(data: Data, spectrum: Spectrum, found: Condition, dtype: np.dtype, noise: float | None, wanted: bool, work: float) -> Model:
    """Signal and noise: noise as stated, else what lies at frequencies that the kernel passes least.

    Where that cannot be told from signal, it is rounding to the data's type; or, where noise is `wanted`, what neighbours' differences
    have. `work` is the rounding of the transforms, of the data's root mean square, which is noise as well.
    """
    assert data.power is not None
    passed = np.square(np.abs(spectrum.at(data.rows, data.columns)))
    radii = spectrum.radii(data.rows, data.columns)
    some = radii > 0
    passed, radii, power = passed[some], radii[some], data.power[some]
    square = data.variance + data.mean**2
    stored = square * STORED[dtype.name] ** 2 if dtype.kind == "f" else 1 / 12
    freedom = data.averaged * (0.5 if any(line is not None and line.real for line in spectrum.lines) else 1.0)
    unseen, least = 0.0, None
    if noise is not None:
        variance, told = noise**2 + (stored if dtype.kind == "f" else 0.0), f"noise of {noise:.3g} as stated"
    else:
        most, apart = _noise(power, passed, radii, freedom)
        variance, unseen = min(stored, most), most
        told = f"rounding to {dtype.name}" if dtype.kind == "f" else "rounding to whole numbers"
        if apart:
            variance, told, unseen = most, f"noise of {np.sqrt(most):.3g} found where the kernel passes least", 0.0
        elif wanted:
            variance, unseen, least = max(min(data.detail**2, most), variance), 0.0, variance
            told = f"noise of {np.sqrt(variance):.3g} by neighbours' differences"
            if variance > _ALL * data.variance > 0:
                raise InputError(
                    f"the kernel's condition is {found.number:.1e}, and neighbours' differences are like noise of {np.sqrt(variance):.3g} "
                    f"where the data's standard deviation is {np.sqrt(data.variance):.3g}: noise and signal cannot be told apart. "
                    "State noise=, its standard deviation."
                )
    least = (variance if least is None else least) + square * work**2
    variance += square * work**2
    slope, scale = _fitted(data, spectrum, variance, (power, passed, radii), freedom)
    whole = float(np.abs(spectrum.at(np.zeros(1, int), np.zeros(1, int)))[0, 0])
    constant = (data.mean / whole) ** 2 if whole > 1e-12 * found.most else 0.0
    return Model(_short(variance), _short(scale), _short(slope), _short(_corner(spectrum)), _short(constant), told, unseen, _short(least))


def _corner(spectrum: Spectrum) -> float:
    """A turn over the whole plane: the signal's power grows no further below."""
    return 1 / max(max(line.period for line in spectrum.lines if line is not None), 2)


def _short(value: float) -> float:
    """Six digits: an estimate's last bits would otherwise decide the output's."""
    return float(f"{value:.5e}")


def _noise(power: np.ndarray, passed: np.ndarray, radii: np.ndarray, freedom: float) -> tuple[float, bool]:
    """The variance of all that lies at the frequencies passed least, and whether it is more than signal could be.

    `freedom` is how many complex numbers' squares are in the mean of each power.
    """
    middle = (1 - 1 / (9 * freedom)) ** 3
    """Of the median by the mean (Wilson & Hilferty 1931)."""
    few = max(ceil(24 / freedom), 6)
    least = np.argsort(passed)[: max(len(passed) // 100, min(few, len(passed)))]
    if not len(least):
        return np.inf, False
    most = float(np.median(power[least])) / middle
    edge = float(np.quantile(passed[least], 0.9))
    bound = np.inf
    for above in _ABOVE:
        # Signals fall with frequency: none is expected that is larger here than at lower ones.
        near = np.flatnonzero((passed > 0) & (passed >= above * edge) & (passed <= 1e6 * edge) & (radii <= 1.5 * np.median(radii[least])))
        if len(near) >= few:
            near = near[np.argsort(passed[near])[: max(len(near) // 8, few)]]
            bound = min(bound, float(np.median(power[near] / passed[near])) / middle * edge)
    return most, most > _APART * bound


def _fitted(
    data: Data, spectrum: Spectrum, noise: float, followed: tuple[np.ndarray, np.ndarray, np.ndarray], freedom: float
) -> tuple[float, float]:
    """How fast the signal's power falls with frequency, and its scale.

    The scale is that of the data's variance; the fall is that from which the logarithms of the power followed are least far, in the mean
    of absolute values, which single lines in a spectrum do not draw aside.
    """
    corner = _corner(spectrum) ** 2
    signal = max(data.variance - noise, data.variance * 1e-6)
    power, seen, places = followed
    middle = (1 - 1 / (9 * freedom)) ** 3
    logs = np.log(places + corner), np.log(np.maximum(power / middle, 1e-300))

    def scales(slopes: list[float]) -> list[float]:
        sums, whole = np.zeros(len(slopes)), 0.0
        for passed, radii, weights in _grid(spectrum):
            near = np.log(radii + corner)
            passed *= weights
            sums += [float((passed * np.exp(-slope / 2 * near)).sum()) for slope in slopes]
            whole += float(weights.sum())
        return [signal * whole / one if one else 0.0 for one in sums.tolist()]

    def distance(slope: float, scale: float) -> float:
        expected = scale * seen * np.exp(-slope / 2 * logs[0]) + noise
        return float(np.abs(logs[1] - np.log(np.maximum(expected, 1e-300))).mean()) if len(power) else 0.0

    def nearest(slopes: list[float]) -> tuple[float, float]:
        return min(zip(slopes, scales(slopes), strict=True), key=lambda one: distance(*one))

    coarse, _ = nearest(np.arange(0, 4.1, 0.5).tolist())
    return nearest(np.clip(coarse + np.arange(-0.4, 0.41, 0.1), 0, 4).tolist())


def _grid(spectrum: Spectrum) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """|H|², the square of the distance from frequency 0, and weights, where sums over all frequencies are taken; some rows at a time."""
    (down, tall), (along, wide) = (_spread(bins) for bins in spectrum.shape)
    step = max(_AT_ONCE // len(along), 1)
    for first in range(0, len(down), step):
        rows = down[first : first + step]
        weights = spectrum.weights(rows, along) * np.outer(tall[first : first + step], wide)
        yield np.square(np.abs(spectrum.at(rows, along))), spectrum.radii(rows, along), weights


def _spread(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of frequencies, all of the lowest among them, and for how many each stands."""
    if bins <= _SAMPLED:
        return np.arange(bins), np.ones(bins)
    low = _SAMPLED // 4
    place = np.unique(np.concatenate([np.arange(low), np.round(np.geomspace(low, bins - 1, _SAMPLED - low)).astype(int)]))
    edges = np.concatenate([[-0.5], (place[1:] + place[:-1]) / 2, [bins - 0.5]])
    return place, np.diff(edges)


@dataclass(frozen=True)
class Errors:
    """Expected root mean square errors, of the signal's own."""

    inverse: float
    wiener: float
    unseen: float
    """Of an inverse, were there as much noise as would not be told from signal; 0 where noise was stated or found."""
    wiener_unseen: float = 0.0
    """The same of a Wiener filter that supposes less."""
    wiener_least: float = 0.0
    """Of a Wiener filter, were there no noise but rounding where it supposes more."""


def errors(spectrum: Spectrum, found: Condition, supposed: Model, dtype: np.dtype, work: float) -> Errors:
    """Of what an inverse and a Wiener filter give: noise amplified, signal lost, and rounding.

    `work` is the rounding of the transforms, of the data's root mean square; `dtype` is that of the output.
    """
    sums = np.zeros(2)
    for _, radii, weights in _grid(spectrum):
        sums += float((supposed.signal(radii) * weights).sum()), float(weights.sum())
    whole = float(sums[0] / sums[1]) + supposed.constant
    if not whole > 0:
        return Errors(0.0, 0.0, 0.0)
    # The sums that made the data have terms that may be larger than they.
    noise = supposed.noise + 0.1 * whole * (float(np.abs(spectrum.taps).sum()) * work) ** 2
    stored = (STORED[dtype.name] ** 2 if dtype.kind == "f" else 1 / 12 / whole) + (4 * work) ** 2
    lost = 0.0
    for passed, radii, weights in _grid(spectrum) if noise else ():
        signal = supposed.signal(radii)
        with np.errstate(divide="ignore", invalid="ignore"):
            lost += float((np.where(signal > 0, signal * noise / (passed * signal + noise), 0.0) * weights).sum())
    wiener = lost / float(sums[1]) / whole
    inverse, unseen = ((one * found.amplified / whole + stored) ** 0.5 for one in (noise, supposed.unseen))

    def filtered(actual: float, loses: bool) -> float:
        """Of the Wiener filter for noise that it does not suppose: what it lets through of it, and the signal that it loses."""
        total = 0.0
        for passed, radii, weights in _grid(spectrum):
            signal = supposed.signal(radii)
            with np.errstate(divide="ignore", invalid="ignore"):
                own = np.where(signal > 0, passed * signal + noise, np.inf)
                through = passed * (signal / own) ** 2 * actual + (signal * (noise / own) ** 2 if loses else 0)
            total += float((np.nan_to_num(through, posinf=0.0) * weights).sum())
        return (total / float(sums[1]) / whole + stored) ** 0.5

    expected = (wiener + stored) ** 0.5
    most = filtered(supposed.unseen, loses=True) if supposed.unseen else 0.0
    # How much signal a filter loses that supposes too much noise rests on a model of what is below that noise, which nobody has seen.
    least = filtered(supposed.least, loses=False) if supposed.least < supposed.noise else expected
    return Errors(_short(inverse), _short(expected), _short(unseen) if supposed.unseen else 0.0, _short(most), _short(least))
