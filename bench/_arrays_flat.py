"""Blur by sigma 100 beside sigma 5, from file to file, of a picture larger than the budget: the cost does not grow with sigma.

16,384 x 16,384 float32 (1 GiB) in 256 MiB, .npy to .npy, two threads. Both take turns; medians. Writing ends with fsync, so the disk is
part of it; the input is in the page cache.
"""

from __future__ import annotations

from typing import Any

from _arrays_inputs import picture
from _arrays_rounds import folder, in_turn, medians

SIDE, BUDGET, ROUNDS, THREADS = 16384, 256 << 20, 5, 2
SIGMAS = (5, 100)
AIM = 1.15


def flat_section(side: int = SIDE, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians by sigma, and their ratio."""
    from sash import arrays

    budget = BUDGET * side**2 // SIDE**2
    words: dict[str, Any] = {"budget": budget, "workers": THREADS, "overwrite": True, "progress": False}
    with folder(3 * 4 * side**2) as place:
        source, out = picture(place / "in.npy", side), place / "out.npy"
        calls = {str(sigma): lambda s=sigma: arrays.blur(source, s, out, **words) for sigma in SIGMAS}
        taken = in_turn(calls, rounds, most_s=300)
        plans = {str(sigma): arrays.blur(source, sigma, out, plan_only=True, **words) for sigma in SIGMAS}
    seconds = medians(taken)
    return {
        "side": side,
        "budget_bytes": budget,
        "rounds": taken,
        "seconds": seconds,
        "methods": {key: plan.method for key, plan in plans.items()},
        "peak_bytes": {key: plan.peak_bytes for key, plan in plans.items()},
        "ratio": seconds["100"] / seconds["5"],
        "aim": AIM,
    }


def show_flat(found: dict[str, Any]) -> None:
    """A line."""
    told = ", ".join(f"sigma {key} {value:.2f} s ({found['methods'][key]})" for key, value in found["seconds"].items())
    print(f"Blur of {found['side']}² float32 in {found['budget_bytes'] >> 20} MiB, file to file: {told}; ratio {found['ratio']:.3f}")


def missed_flat(found: dict[str, Any]) -> list[str]:
    """The ratio."""
    return [f"ratio {found['ratio']:.3f}; the aim is {found['aim']}"] if found["ratio"] > found["aim"] else []
