"""Short-time Fourier transforms beside scipy, librosa and torch; and ten hours of sound inside 256 MiB.

30 M samples of float32 in memory, Hann window, centred, two threads; all take turns; medians. sash and torch make new complex64 arrays,
scipy (`ShortTimeFFT`, one thread) complex128; librosa is left out, and the row says so, where it is not installed. Errors are the largest
of 32 frames spread over the signal, against a float64 transform, as a share of the largest magnitude there.

Hours: one hour and ten at 48 kHz, int16, from .wav to .zarr, magnitudes in float32, each in a process of its own, whose growth is
`_arrays_probe.py`'s. Some 3.5 GB are read, 6.9 GB written.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from _arrays_probe import ask
from _arrays_rounds import folder, in_turn, medians
from rich.console import Console
from rich.table import Table

SAMPLES, ROUNDS, THREADS = 30_000_000, 7, 2
FRAMES = ((1024, 256), (2048, 512))
AIMS = {"scipy": 10.0, "librosa": 2.0, "torch": 1.5}
SEEN = 32
RATE_HZ, BUDGET = 48_000, 256 << 20
HOURS, HOURS_FRAME = (1, 10), (2048, 1024)
GROWTH_AIM = 0.02


def stft_section(side: int | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """A row a frame; and the hours. `side`: seconds of sound in the place of an hour, and as many samples in memory."""
    second = side or 3600
    samples = SAMPLES if side is None else side * RATE_HZ
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(samples, np.float32) * np.float32(0.1)
    rows = [compared(sound, frame, hop, rounds) for frame, hop in FRAMES]
    return {"samples": samples, "aims": AIMS, "rows": rows, "hours": [hours(count, second) for count in HOURS], "growth_aim": GROWTH_AIM}


def compared(sound: np.ndarray, frame: int, hop: int, rounds: int) -> dict[str, Any]:
    """Seconds and errors by who."""
    import torch
    from scipy.signal import ShortTimeFFT, get_window

    from sash import arrays

    torch.set_num_threads(THREADS)
    taps = np.asarray(get_window("hann", frame))
    theirs = ShortTimeFFT(taps.astype(np.float32), hop, RATE_HZ, fft_mode="onesided")
    given, window = torch.from_numpy(sound), torch.from_numpy(taps.astype(np.float32))
    count = len(sound) // hop + 1
    calls: dict[str, Any] = {
        "sash": lambda: arrays.stft(sound, frame, hop, budget="8 GiB", workers=THREADS, progress=False),
        "torch": lambda: torch.stft(given, frame, hop, window=window, return_complex=True).numpy(),
        "scipy": lambda: theirs.stft(sound, p0=0, p1=count),
    }
    if importlib.util.find_spec("librosa") is not None:
        import librosa  # pyright: ignore[reportMissingImports]

        calls["librosa"] = lambda: librosa.stft(sound, n_fft=frame, hop_length=hop, pad_mode="reflect")
    seconds = medians(in_turn(calls, rounds))
    # Frames in the middle: at the ends, scipy's are of zeros beyond.
    seen = np.linspace(frame // hop + 1, count - frame // hop - 2, SEEN).astype(int)
    exact = np.stack([np.fft.rfft(sound[at * hop - frame // 2 :][:frame].astype(np.float64) * taps) for at in seen], axis=-1)
    errors = {name: _off(call()[:, seen], exact) for name, call in calls.items()}
    return {"frame": frame, "hop": hop, "seconds": seconds, "errors": errors, "librosa": "librosa" in calls}


def _off(found: np.ndarray, exact: np.ndarray) -> float:
    # scipy counts a frame's phase from its middle on, others from its first sample: magnitudes are compared.
    return float(np.abs(np.abs(found) - np.abs(exact)).max() / np.abs(exact).max())


def hours(count: int, second: int) -> dict[str, Any]:
    """One run from file to file."""
    frame, hop = HOURS_FRAME
    samples = count * second * RATE_HZ
    with folder(2 * samples + 2 * samples * (frame // 2 + 1) * 4 // hop // 2 + (1 << 28)) as place:
        source, tiny = noise(place / "sound.wav", samples), noise(place / "tiny.wav", 8 * frame)
        job = {"operation": "stft", "args": [frame, hop], "words": {"output": "magnitude", "overwrite": True}}
        warm = {**job, "source": str(tiny), "out": str(place / "tiny.zarr")}
        found = ask({**job, "source": str(source), "out": str(place / "out.zarr"), "budget": BUDGET, "warm": [warm]}, 4 * 3600)
    if "error_text" in found:
        raise SystemExit(found["error_text"])
    kept = ("peak_bytes", "growth_bytes", "tasks", "workers", "wall_s", "shape")
    return {
        "hours": count * second / 3600,
        "budget_bytes": BUDGET,
        **{key: found[key] for key in kept},
        "samples_per_s": samples / found["wall_s"],
    }


def noise(path: Path, samples: int) -> Path:
    """A minute of noise over and over."""
    import soundfile

    block = np.random.default_rng(0).integers(-8000, 8000, 60 * RATE_HZ, np.int16)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for first in range(0, samples, len(block)):
            file.write(block[: samples - first])
    return path


def show_stft(found: dict[str, Any]) -> None:
    """A line for each peer of a frame, and one for each length."""
    table = Table(title=f"stft of {found['samples'] / 1e6:.1f} M samples of float32, two threads", title_justify="left")
    for heading in ("frame, hop", "peer", "sash s", "peer s", "speed", "aim", "error", "peer's"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        seconds, errors = row["seconds"], row["errors"]
        for turn, (name, aim) in enumerate(found["aims"].items()):
            place = "" if turn else f"{row['frame']}, {row['hop']}"
            if name not in seconds:
                table.add_row(place, name, "", "not installed", "", f"{aim:g}", "", "")
                continue
            speed = seconds[name] / seconds["sash"]
            numbers = f"{seconds['sash']:.3f}", f"{seconds[name]:.3f}", f"{speed:.2f}", f"{aim:g}"
            table.add_row(place, name, *numbers, f"{errors['sash']:.1e}", f"{errors[name]:.1e}")
    Console(width=140).print(table)
    for row in found["hours"]:
        print(
            f"{row['hours']:.2f} h from .wav to .zarr in {row['budget_bytes'] >> 20} MiB: {row['wall_s']:.1f} s, "
            f"{row['samples_per_s'] / 1e6:.1f} M samples/s; grew by {row['growth_bytes'] / 2**20:.1f} MiB (forecast "
            f"{row['peak_bytes'] / 2**20:.1f})"
        )
    print(f"growth from the shorter to the longer: {longer(found):+.1%}")


def longer(found: dict[str, Any]) -> float:
    """By what share ten hours took more memory than one."""
    one, ten = found["hours"]
    return ten["growth_bytes"] / one["growth_bytes"] - 1


def missed_stft(found: dict[str, Any]) -> list[str]:
    """Speeds, budget, growth."""
    lines = []
    for row in found["rows"]:
        for name, aim in found["aims"].items():
            if name not in row["seconds"]:
                lines.append(f"frame {row['frame']}: {name} is not installed, and was not measured")
            elif row["seconds"][name] / row["seconds"]["sash"] < aim:
                lines.append(
                    f"frame {row['frame']}: {row['seconds'][name] / row['seconds']['sash']:.2f} times {name}'s speed; the aim is {aim:g}"
                )
    for row in found["hours"]:
        if row["growth_bytes"] > row["budget_bytes"]:
            lines.append(f"{row['hours']:g} h: grew by {row['growth_bytes']} bytes; the budget is {row['budget_bytes']}")
    if longer(found) > found["growth_aim"]:
        lines.append(f"ten hours took {longer(found):.1%} more memory than one; the aim is {found['growth_aim']:.0%}")
    return lines
