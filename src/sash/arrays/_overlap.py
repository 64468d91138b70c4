"""Windows that frames are weighted by, and whether frames under them add up to the signal again."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from operator import index
from typing import Any

import numpy as np

from sash.errors import InputError

LEAST = 1e-3
"""Share of their highest sum below which the squares of the windows do not make an inverse: it would enlarge what rounding left by more
than 1 / sqrt(1e-3), 32 times."""
_COMMON = ("hann", "hamming", "blackman", "blackmanharris", "boxcar", "cosine", "bartlett", "flattop", "nuttall", "('kaiser', 8.6)")
_FLAT = 1e-9


@dataclass(frozen=True)
class OverlapAdd:
    """What the windows of frames add up to, away from the ends of the signal."""

    window: str
    frame: int
    hop: int
    least: float
    """Of the sums of squared windows, one a sample: the inverse divides by them."""
    most: float
    holds: bool
    """Whether frames, each under its window once more, add up to the signal again: `least` is at least 0.001 of `most`."""
    constant: bool
    """Whether the windows themselves, not squared, add up to one number (COLA): then frames add up without a second window."""
    nearest_hop: int
    """The hop itself where the inverse exists, otherwise the largest below it for which it does."""

    def __str__(self) -> str:
        told = f"{self.window} of {self.frame} samples, hop {self.hop}: the squared windows add up to "
        told += f"{self.least:.4g}" if np.isclose(self.least, self.most, rtol=_FLAT) else f"{self.least:.4g} to {self.most:.4g}"
        plain = "the windows themselves add up to a constant (COLA)" if self.constant else "the windows themselves add up to no constant"
        verdict = "the inverse is exact" if self.holds else f"there is no inverse; hop {self.nearest_hop} has one"
        return f"{told}: {verdict}. {plain[0].upper()}{plain[1:]}."


def overlap_add(window: Any, frame: int, hop: int) -> OverlapAdd:
    """Whether a transform with this window and hop has an exact inverse, and the numbers that say so.

    Source: Griffin and Lim, Signal estimation from modified short-time Fourier transform, 1984, equation 6, whose denominator is `least`
    to `most`; COLA is Allen and Rabiner's condition, 1977.
    """
    frame, hop = whole("frame", frame), whole("hop", hop)
    taps = window_taps(window, frame)
    squares, plain = sums(taps**2, hop), sums(taps, hop)
    least, most = float(squares.min()), float(squares.max())
    constant = bool(np.ptp(plain) <= _FLAT * np.abs(plain).max())
    holds = _enough(squares)
    return OverlapAdd(told_window(window), frame, hop, least, most, holds, constant, hop if holds else _nearest(taps, hop))


def window_taps(window: Any, frame: int) -> np.ndarray:
    """A window's weights in float64: `scipy.signal.get_window`'s periodic ones for a name or (name, parameter), or the array given.

    Raises `InputError` for a name that scipy does not have, and for weights that are not finite, not one a sample, or all zero.
    """
    from scipy.signal import get_window, windows

    if isinstance(window, (str, tuple)):
        try:
            taps = get_window(window, frame, fftbins=True)
        except (ValueError, TypeError) as error:
            name = str(window[0] if isinstance(window, tuple) and window else window)
            near = [one for one in get_close_matches(name, windows.__all__, 3) if one != name]
            also = f"nearest to it: {', '.join(near)}; " if near else ""
            raise InputError(f"window is {window!r} ({error}); {also}there are {', '.join(_COMMON)} and others of scipy.signal.") from error
    else:
        taps = np.asarray(window)
        if taps.dtype.kind not in "fiu" or taps.shape != (frame,):
            raise InputError(f"the window has the shape {taps.shape} of {taps.dtype}; a frame of {frame} takes ({frame},) real weights.")
    taps = np.array(taps, np.float64)
    if not np.isfinite(taps).all() or not taps.any():
        raise InputError(
            f"the window {told_window(window)} has weights that are {'all zero' if np.isfinite(taps).all() else 'not finite'}."
        )
    return taps


def transform_size(frame: int, fft_size: int | None) -> int:
    """Samples that are transformed; raises `InputError` where the frame is longer."""
    size = frame if fft_size is None else whole("fft_size", fft_size)
    if size < frame:
        raise InputError(f"fft_size is {size}, and the frame {frame}; fft_size={1 << (frame - 1).bit_length()} holds it.")
    return size


def spread_taps(window: Any, frame: int, size: int) -> np.ndarray:
    """A window's weights in the middle of a transform's samples, as torch and librosa lay them."""
    before = (size - frame) // 2
    return np.pad(window_taps(window, frame), (before, size - frame - before))


def told_window(window: Any) -> str:
    """A window in a message: its name and parameters."""
    if isinstance(window, tuple):
        return " ".join(map(str, window))
    return window if isinstance(window, str) else "the given window"


def whole(name: str, value: Any) -> int:
    """A number of samples from 1 on; raises `InputError` for any other value."""
    try:
        found = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of samples from 1 on.")
    return found


def sums(weights: np.ndarray, hop: int) -> np.ndarray:
    """What weights add up to at each sample of a hop, far from the ends."""
    return rows(weights, hop).sum(0)


def rows(weights: np.ndarray, hop: int) -> np.ndarray:
    """Weights in rows of a hop, zeros after the last."""
    return np.pad(weights, (0, -len(weights) % hop)).reshape(-1, hop)


def _enough(squares: np.ndarray) -> bool:
    return bool(squares.min() >= LEAST * squares.max())


def _nearest(taps: np.ndarray, hop: int) -> int:
    """The largest hop below one that fails, found by halving: with a usual window a shorter hop is never worse."""
    works, fails = 1, min(hop, len(taps) + 1)
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _enough(sums(taps**2, middle)) else (works, middle)
    return works
