"""Convolution of 16,384 x 16,384 float32 from file to file in 512 MiB, by kernels of noise, beside scipy.signal.oaconvolve.

sash: each kernel in a process of its own, after a tiny job; nanoseconds a pixel with reading and writing (.npy, fsync), the median of
three; and what the process grew by. The error is the largest on crops, against a convolution in float64, as a share of the largest exact
value there ("relative"), and as sash states it: of the largest sample times the sum of the kernel's absolute taps. scipy: oaconvolve in
memory, in a process of its own with two workers, on the largest of 16,384², 8192² and 4096² that it can hold in 0.8 of the memory that is
free; nothing is read or written.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _arrays_inputs import picture
from _arrays_probe import ask
from _arrays_rounds import folder
from rich.console import Console
from rich.table import Table

SIDE, BUDGET, ROUNDS, WORKERS = 16384, 512 << 20, 3, 2
KERNELS = (255, 1001)
AIM, ERROR_AIM = 3.0, 1e-6
CROP = 128
TRIED = (16384, 8192, 4096)
SHARE = 0.8
"""Of free memory."""


def convolve_section(side: int = SIDE, rounds: int = ROUNDS) -> dict[str, Any]:
    """A row a kernel."""
    rows = []
    with folder(3 * 4 * side**2) as place:
        source, tiny = picture(place / "in.npy", side), picture(place / "tiny.npy", 512)
        for taps in KERNELS:
            kernel = np.random.default_rng(taps).standard_normal((taps, taps))
            np.save(place / "kernel.npy", kernel)
            np.save(place / "small.npy", kernel[:65, :65])
            job = {"operation": "convolve", "source": str(source), "args": [str(place / "kernel.npy")], "out": str(place / "out.npy")}
            words = {"overwrite": True, "boundary": "constant"}
            warm = {**job, "source": str(tiny), "args": [str(place / "small.npy")], "words": {**words, "method": "fft"}}
            found = [ask({**job, "words": words, "budget": BUDGET, "warm": [warm]}) for _ in range(rounds)]
            if any("error_text" in one for one in found):
                raise SystemExit(f"{taps}: {found}")
            first = found[0]
            seconds = median(one["wall_s"] for one in found)
            theirs = oaconvolve(taps, place)
            rows.append(
                {
                    "taps": taps,
                    "method": first["method"],
                    "ns_per_pixel": seconds / side**2 * 1e9,
                    "rounds_s": [one["wall_s"] for one in found],
                    "growth_bytes": max(one["growth_bytes"] for one in found),
                    "forecast_bytes": first["peak_bytes"],
                    "read_per_input": first["read_by_file"]["in.npy"] / (4 * side**2),
                    **errors(source, place / "out.npy", kernel),
                    "oaconvolve": theirs,
                    "speed": theirs["ns_per_pixel"] / (seconds / side**2 * 1e9),
                }
            )
    return {"side": side, "budget_bytes": BUDGET, "aim": AIM, "rows": rows}


def errors(source: Path, out: Path, kernel: np.ndarray) -> dict[str, float]:
    """On a crop at a corner, and one in the middle."""
    from scipy.signal import fftconvolve

    given, made = np.load(source, mmap_mode="r"), np.load(out, mmap_mode="r")
    side, half = len(given), len(kernel) // 2
    worst, largest = 0.0, 0.0
    for first in (0, (side - CROP) // 2):
        near = np.zeros((CROP + 2 * half, CROP + 2 * half))
        start, stop = max(first - half, 0), min(first + CROP + half, side)
        near[start - first + half : stop - first + half, start - first + half : stop - first + half] = given[start:stop, start:stop]
        exact = fftconvolve(near, kernel, "valid")
        worst = max(worst, float(np.abs(made[first : first + CROP, first : first + CROP] - exact).max()))
        largest = max(largest, float(np.abs(exact).max()))
    return {"relative_error": worst / largest, "stated_error": worst / float(np.abs(kernel).sum())}


def oaconvolve(taps: int, place: Path) -> dict[str, Any]:
    """The largest side that it can hold, and its time."""
    for side in TRIED:
        command = [sys.executable, __file__, str(side), str(taps), str(place / "kernel.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
    raise SystemExit(f"oaconvolve holds none of {TRIED}")


def alone(side: int, kernel: np.ndarray) -> dict[str, Any]:
    """oaconvolve, in as much memory as it may have."""
    import resource

    from scipy import fft
    from scipy.signal import oaconvolve as convolved

    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (int(SHARE * free), int(SHARE * free)))
    given = np.random.default_rng(0).random((side, side), np.float32)
    taken = []
    with fft.set_workers(WORKERS):
        for _ in range(ROUNDS):
            began = time.perf_counter()
            made = convolved(given, kernel.astype(np.float32), "same")
            taken.append(time.perf_counter() - began)
            assert made.dtype == np.float32
            del made
    return {"side": side, "ns_per_pixel": median(taken) / side**2 * 1e9, "rounds_s": taken, "limit_bytes": int(SHARE * free)}


def show_convolve(found: dict[str, Any]) -> None:
    """A line a kernel."""
    budget = found["budget_bytes"] >> 20
    table = Table(title=f"Convolution of {found['side']}² float32 in {budget} MiB, file to file", title_justify="left")
    for heading in ("kernel", "method", "ns/px", "oaconvolve ns/px", "on", "speed", "aim", "error", "as stated", "grew MiB", "read/input"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        theirs = row["oaconvolve"]
        errors = f"{row['relative_error']:.1e}", f"{row['stated_error']:.1e}"
        numbers = (
            f"{row['ns_per_pixel']:.1f}",
            f"{theirs['ns_per_pixel']:.1f}",
            f"{theirs['side']}²",
            f"{row['speed']:.2f}",
            f"{found['aim']:g}",
        )
        table.add_row(
            f"{row['taps']}²", row["method"], *numbers, *errors, f"{row['growth_bytes'] / 2**20:.0f}", f"{row['read_per_input']:.2f}"
        )
    Console(width=160).print(table)


def missed_convolve(found: dict[str, Any]) -> list[str]:
    """Speed, error, budget."""
    lines = []
    for row in found["rows"]:
        if row["speed"] < found["aim"]:
            lines.append(f"{row['taps']}²: {row['speed']:.2f} times oaconvolve's speed; the aim is {found['aim']:g}")
        if row["relative_error"] > ERROR_AIM:
            lines.append(f"{row['taps']}²: relative error {row['relative_error']:.1e}; the aim is {ERROR_AIM:g}")
        if row["growth_bytes"] > found["budget_bytes"]:
            lines.append(f"{row['taps']}²: grew by {row['growth_bytes']} bytes; the budget is {found['budget_bytes']}")
    return lines


if __name__ == "__main__":
    try:
        print(json.dumps(alone(int(sys.argv[1]), np.load(sys.argv[3]))))
    except MemoryError:
        sys.exit(3)
