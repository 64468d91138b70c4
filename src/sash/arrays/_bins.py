"""What the bins of a transform are in Hz, its frames in milliseconds, and how near two tones may lie."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from sash.arrays._overlap import told_window, whole, window_taps
from sash.errors import InputError

_FINE = 64
"""Places looked at in a bin's width."""
_SEEN = 32
"""Bins beside the main lobe in which its highest neighbour is looked for; those of usual windows only get lower from there."""
_NOTHING = 1e-10
"""Share of the main lobe's height that float64 does not tell from zero in a transform of many samples."""
_SHOWN = 8


@dataclass(frozen=True)
class BinTable:
    """A transform's bins, frames and resolution; printable."""

    frame: int
    """Samples."""
    hop: int
    rate_hz: float
    window: str
    bins: int
    """From 0 Hz to half the rate, both included where the frame is even."""
    bin_hz: float
    """From one bin to the next."""
    frame_ms: float
    hop_ms: float
    frames_per_second: float
    main_lobe_bins: float
    """Width of the window's main lobe, from the first minimum on one side to that on the other: tones that far apart do not meet."""
    main_lobe_hz: float
    half_power_bins: float
    """Width of the main lobe at half its power, 3 dB below its top: tones of one strength are told apart from about there on."""
    half_power_hz: float
    side_lobe_db: float
    """The highest side lobe beside the main lobe; -inf where the window has none."""
    noise_bins: float
    """Width of the rectangle that lets as much white noise through as one bin does."""

    def hz(self, bin: float) -> float:
        """Frequency of a bin's middle."""
        return bin * self.bin_hz

    def bin(self, hz: float) -> int:
        """The bin whose middle is nearest; raises `InputError` for frequencies that the rate does not have."""
        if not 0 <= hz <= self.rate_hz / 2:
            raise InputError(f"{hz:g} Hz has no bin; at {self.rate_hz:g} samples a second they reach from 0 to {self.rate_hz / 2:g} Hz.")
        return min(round(hz / self.bin_hz), self.bins - 1)

    def ms(self, frames: float) -> float:
        """Time from the first frame to a later one."""
        return frames * self.hop_ms

    def rows(self, count: int = _SHOWN) -> list[tuple[int, float, float]]:
        """Number, middle in Hz and period in milliseconds (inf for 0 Hz) of the first bins."""
        return [(number, self.hz(number), 1000 / self.hz(number) if number else inf) for number in range(min(count, self.bins))]

    def __str__(self) -> str:
        first = [(number, hz, f"{ms:.3g} ms" if isfinite(ms) else "-") for number, hz, ms in self.rows()]
        last = self.bins - 1
        shown = [*first, (last, self.hz(last), f"{1000 / self.hz(last):.3g} ms")] if last > first[-1][0] else first
        apart = f"{self.main_lobe_bins:.3g} bins, {self.main_lobe_hz:.4g} Hz"
        half = f"{self.half_power_bins:.3g} bins, {self.half_power_hz:.4g} Hz"
        return "\n".join(
            [
                f"frame     {self.frame} samples, {self.frame_ms:.4g} ms at {self.rate_hz:g} Hz",
                f"hop       {self.hop} samples, {self.hop_ms:.4g} ms, {self.frames_per_second:.4g} frames a second",
                f"bins      {self.bins}, {self.bin_hz:.4g} Hz apart, 0 to {self.hz(last):.6g} Hz",
                f"window    {self.window}: main lobe {apart}; half its power {half}; highest side lobe {self.side_lobe_db:.1f} dB",
                "",
                f"{'bin':>6} {'Hz':>10} {'period':>10}",
                *(f"{number:>6} {hz:>10.1f} {period:>10}" for number, hz, period in shown),
            ]
        )


def explain_bins(frame: int, rate_hz: float, hop: int | None = None, window: Any = "hann") -> BinTable:
    """What `stft(source, frame, hop, window=window)` of sound at this rate resolves; `hop` is a quarter of the frame where not given.

    Source of the window's figures: Harris, On the use of windows for harmonic analysis with the discrete Fourier transform, 1978, table 1;
    computed here from the window itself.
    """
    frame = whole("frame", frame)
    hop = max(frame // 4, 1) if hop is None else whole("hop", hop)
    if not (isinstance(rate_hz, (int, float, np.number)) and isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate_hz is {rate_hz!r}; give samples a second, as 44100.")
    taps = window_taps(window, frame)
    lobe, half, side = _lobes(taps)
    rate = float(rate_hz)
    bin_hz = rate / frame
    total = float(taps.sum())
    return BinTable(
        frame=frame,
        hop=hop,
        rate_hz=rate,
        window=told_window(window),
        bins=frame // 2 + 1,
        bin_hz=bin_hz,
        frame_ms=1000 * frame / rate,
        hop_ms=1000 * hop / rate,
        frames_per_second=rate / hop,
        main_lobe_bins=lobe,
        main_lobe_hz=lobe * bin_hz,
        half_power_bins=half,
        half_power_hz=half * bin_hz,
        side_lobe_db=side,
        noise_bins=frame * float((taps**2).sum()) / total**2 if total else inf,
    )


def _lobes(taps: np.ndarray) -> tuple[float, float, float]:
    """Width of the main lobe, width at half its power, both in bins, and the highest side lobe in dB."""
    from scipy.signal import zoom_fft

    seen, bins = _SEEN, len(taps) / 2
    while True:
        reach = min(seen, bins)
        count = round(reach * _FINE) + 1
        found = np.abs(zoom_fft(taps, [0, reach], count, fs=len(taps), endpoint=True))
        level = found / found[0] if found[0] else found
        # Not before it has fallen to half its power: a flat top has ripples.
        under = np.flatnonzero(level <= np.sqrt(0.5))
        fallen = np.arange(1, count) > (under[0] if len(under) else count)
        rises = np.flatnonzero((np.diff(level) > 0) & (level[1:] > _NOTHING) & fallen)
        if len(rises) or reach == bins:
            break
        seen *= 4
    step = reach / (count - 1)
    half = 2 * bins
    if len(under):
        at = int(under[0])
        half = 2 * step * (at - (np.sqrt(0.5) - level[at]) / (level[at - 1] - level[at])) if at else 0.0
    if not len(rises):
        return 2 * bins, float(half), -inf
    edge = int(rises[0])
    return 2 * step * edge, float(half), float(20 * np.log10(level[edge:].max()))
