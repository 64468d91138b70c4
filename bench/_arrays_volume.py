"""Convolution of 256 x 256 x 256 float32 in memory in 512 MiB, beside scipy.signal.oaconvolve and fftconvolve, two threads.

Kernels of noise, and a Gaussian, which is an outer product of three. All take turns; medians. Errors are the largest difference from
scipy.signal.fftconvolve in float64, as a share of the largest sample times the sum of the kernel's absolute taps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _arrays_rounds import in_turn, medians
from rich.console import Console
from rich.table import Table

SIDE, BUDGET, ROUNDS, THREADS = 256, 512 << 20, 3, 2
NOISE = (15, 31)


def volume_section(side: int = SIDE, rounds: int = ROUNDS) -> dict[str, Any]:
    """A row a kernel."""
    from scipy.signal import fftconvolve, oaconvolve

    from sash import arrays

    rng = np.random.default_rng(0)
    volume = rng.random((side, side, side), dtype=np.float32)
    bell = np.exp(-0.5 * np.linspace(-2.5, 2.5, 15) ** 2)
    kernels = {f"noise {taps}³": rng.standard_normal((taps, taps, taps)) for taps in NOISE}
    kernels["Gaussian 15³"] = np.einsum("i,j,k->ijk", bell, bell, bell)
    rows = []
    for name, kernel in kernels.items():
        short = kernel.astype(np.float32)
        calls = {
            "sash": lambda kernel=kernel: arrays.convolve(volume, kernel, budget=BUDGET, workers=THREADS),
            "oaconvolve": lambda short=short: oaconvolve(volume, short, "same"),
            "fftconvolve": lambda short=short: fftconvolve(volume, short, "same"),
        }
        seconds = medians(in_turn(calls, rounds, most_s=120))
        exact = fftconvolve(volume.astype(float), kernel, "same")
        size = float(np.abs(kernel).sum())
        errors = {key: float(np.abs(calls[key]() - exact).max()) / size for key in ("sash", "oaconvolve")}
        plan = arrays.convolve(volume, kernel, budget=BUDGET, workers=THREADS, plan_only=True)
        rows.append({"kernel": name, "method": plan.method, "peak_bytes": plan.peak_bytes, "seconds": seconds, "errors": errors})
    return {"side": side, "budget_bytes": BUDGET, "rows": rows}


def show_volume(found: dict[str, Any]) -> None:
    """A row a kernel."""
    table = Table(title=f"Convolution of {found['side']}³ float32 in {found['budget_bytes'] >> 20} MiB")
    for title in ("kernel", "method", "sash s", "oaconvolve s", "fftconvolve s", "of oaconvolve", "error", "its error"):
        table.add_column(title)
    for row in found["rows"]:
        own = row["seconds"]
        times = [f"{own[key]:.2f}" for key in ("sash", "oaconvolve", "fftconvolve")]
        errors = [f"{row['errors'][key]:.1e}" for key in ("sash", "oaconvolve")]
        table.add_row(row["kernel"], row["method"], *times, f"{own['sash'] / own['oaconvolve']:.2f}", *errors)
    Console(width=140).print(table)
