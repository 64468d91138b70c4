"""Blur of 8192 x 8192 float32 in memory beside OpenCV and scipy.ndimage, two threads, every sigma with its error.

All take turns; medians. "given" writes to an array that is there (`out`, OpenCV's `dst`), "new" makes one. OpenCV's and sash's borders
are "reflect"; OpenCV cuts its kernel at 4 sigma, as scipy does by default. scipy, which has one thread, takes a 4096 x 4096 part, and its
time is multiplied by 4. Errors are the largest on crops at a corner and in the middle, as a share of the input's range, against
scipy.ndimage.gaussian_filter in float64 cut at 8 sigma. The picture is of blocks and noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _arrays_rounds import in_turn, medians
from rich.console import Console
from rich.table import Table

SIDE, PART, THREADS, ROUNDS, SCIPY_ROUNDS = 8192, 4096, 2, 7, 2
CROP, CUT = 192, 8
SIGMAS = (1, 2, 5, 20, 100)
AIMS = {1: (1.5, 15), 2: (1.5, 15), 5: (2, 15), 20: (5, 50), 100: (50, 150)}
"""By sigma: times OpenCV's speed, and scipy's, at a tolerance of 1e-3."""
TIGHT_AIM = 1.0
"""Times OpenCV's speed at 1e-6."""
TOLERANCES = (1e-3, 1e-6)


def blur_section(side: int = SIDE, rounds: int = ROUNDS) -> dict[str, Any]:
    """A row a sigma."""
    import cv2

    from sash import arrays

    cv2.setNumThreads(THREADS)
    picture = drawn(side)
    out = np.ones_like(picture)
    rows = []
    for sigma in SIGMAS:
        words: dict[str, Any] = {"workers": THREADS, "budget": "4 GiB", "progress": False}
        border = {"sigmaX": sigma, "borderType": cv2.BORDER_REFLECT}
        calls: dict[str, Any] = {}
        for tolerance in TOLERANCES:
            tight = {**words, "tolerance": tolerance}
            calls[f"sash {tolerance:g} given"] = lambda s=sigma, w=tight: arrays.blur(picture, s, out, **w)
            calls[f"sash {tolerance:g} new"] = lambda s=sigma, w=tight: arrays.blur(picture, s, **w)
        calls["opencv given"] = lambda b=border: cv2.GaussianBlur(picture, (0, 0), dst=out, **b)
        calls["opencv new"] = lambda b=border: cv2.GaussianBlur(picture, (0, 0), **b)
        seconds = medians(in_turn(calls, rounds))
        truth = oracle(picture, sigma)
        errors = {}
        for name in (*(f"sash {tolerance:g} given" for tolerance in TOLERANCES), "opencv given"):
            calls[name]()
            errors[name.removesuffix(" given")] = off(out, truth, picture)
        plans = {f"{t:g}": arrays.blur(picture, sigma, out, tolerance=t, plan_only=True, **words).method for t in TOLERANCES}
        theirs = scipy_seconds(picture[: min(PART, side), : min(PART, side)], sigma) * (side / min(PART, side)) ** 2
        rows.append({"sigma": sigma, "seconds": {**seconds, "scipy, scaled": theirs}, "errors": errors, "methods": plans})
    return {"side": side, "rounds": rounds, "scipy_side": min(PART, side), "aims": {str(key): AIMS[key] for key in SIGMAS}, "rows": rows}


def drawn(side: int) -> np.ndarray:
    """Blocks and noise."""
    place = np.arange(side) // 512
    made = np.random.default_rng(0).random((side, side), np.float32)
    made *= 0.5
    made += ((place[:, None] + place) % 2 * 0.5).astype(np.float32)
    return made


def scipy_seconds(part: np.ndarray, sigma: float) -> float:
    """The median of few."""
    from scipy import ndimage

    made = np.ones_like(part)
    taken = in_turn({"scipy": lambda: ndimage.gaussian_filter(part, sigma, output=made)}, SCIPY_ROUNDS if sigma < 50 else 1)
    return medians(taken)["scipy"]


def oracle(picture: np.ndarray, sigma: float) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Crops, and what is exact there."""
    from scipy import ndimage

    side, reach = len(picture), CUT * sigma + 1
    found = []
    for first in (0, (side - CROP) // 2):
        start, stop = max(first - reach, 0), min(first + CROP + reach, side)
        near = picture[start:stop, start:stop].astype(np.float64)
        down = ndimage.gaussian_filter1d(near, sigma, axis=0, truncate=CUT)[first - start :][:CROP]
        across = ndimage.gaussian_filter1d(down, sigma, axis=1, truncate=CUT)[:, first - start :][:, :CROP]
        found.append(((slice(first, first + CROP), slice(first, first + CROP)), across))
    return found


def off(made: np.ndarray, truth: list[tuple[tuple[slice, slice], np.ndarray]], picture: np.ndarray) -> float:
    """The largest error, as a share of the input's range."""
    return float(max(np.abs(made[place] - exact).max() for place, exact in truth) / np.ptp(picture))


def speeds(row: dict[str, Any]) -> dict[str, float]:
    """How many times the others' speed."""
    seconds = row["seconds"]
    return {
        "opencv given": seconds["opencv given"] / seconds["sash 0.001 given"],
        "opencv new": seconds["opencv new"] / seconds["sash 0.001 new"],
        "scipy": seconds["scipy, scaled"] / seconds["sash 0.001 given"],
        "tight given": seconds["opencv given"] / seconds["sash 1e-06 given"],
        "tight new": seconds["opencv new"] / seconds["sash 1e-06 new"],
    }


def show_blur(found: dict[str, Any]) -> None:
    """Two lines a sigma."""
    table = Table(title=f"Blur of {found['side']}² float32, two threads; scipy on {found['scipy_side']}², scaled", title_justify="left")
    headings = (
        "sigma",
        "tolerance",
        "method",
        "ms given",
        "new",
        "OpenCV ms",
        "new",
        "scipy ms",
        "× OpenCV",
        "new",
        "aim",
        "× scipy",
        "aim",
    )
    for heading in (*headings, "error", "OpenCV's"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        seconds, speed, aims = row["seconds"], speeds(row), found["aims"][str(row["sigma"])]
        for tolerance in TOLERANCES:
            loose = tolerance == TOLERANCES[0]
            ours = [seconds[f"sash {tolerance:g} {how}"] for how in ("given", "new")]
            theirs = [seconds[f"opencv {how}"] for how in ("given", "new")]
            table.add_row(
                str(row["sigma"]) if loose else "",
                f"{tolerance:g}",
                row["methods"][f"{tolerance:g}"],
                *(f"{one * 1e3:.0f}" for one in (*ours, *theirs)),
                f"{seconds['scipy, scaled'] * 1e3:.0f}" if loose else "",
                *(f"{theirs[place] / ours[place]:.2f}" for place in (0, 1)),
                f"{aims[0] if loose else TIGHT_AIM:g}",
                f"{speed['scipy']:.0f}" if loose else "",
                f"{aims[1]:g}" if loose else "",
                f"{row['errors'][f'sash {tolerance:g}']:.1e}",
                f"{row['errors']['opencv']:.1e}",
            )
    Console(width=170).print(table)


def missed_blur(found: dict[str, Any]) -> list[str]:
    """Speeds and errors."""
    lines = []
    for row in found["rows"]:
        speed, aims = speeds(row), found["aims"][str(row["sigma"])]
        wanted = {"opencv given": aims[0], "opencv new": aims[0], "scipy": aims[1], "tight given": TIGHT_AIM, "tight new": TIGHT_AIM}
        for name, aim in wanted.items():
            if speed[name] < aim:
                lines.append(f"sigma {row['sigma']}, {name}: {speed[name]:.2f} times the speed; the aim is {aim:g}")
        for tolerance in TOLERANCES:
            error = row["errors"][f"sash {tolerance:g}"]
            if error > tolerance:
                lines.append(f"sigma {row['sigma']}: error {error:.1e}; the tolerance is {tolerance:g}")
    return lines
