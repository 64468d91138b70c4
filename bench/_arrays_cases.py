"""Random array jobs with a fixed seed: operation, shape, type, kernel, border, formats and budget."""

from __future__ import annotations

from math import exp, log, prod
from pathlib import Path
from typing import Any

import numpy as np
from _arrays_inputs import numbers, write

SEED = 20_261_122
BORDERS = ("reflect", "mirror", "nearest", "wrap", "constant")
SHARES = {"blur": 0.4, "convolve": 0.25, "stft": 0.2, "istft": 0.15, "deconvolve": 0.15}
WAYS = {"blur": ("direct", "multirate"), "convolve": ("separable", "fft"), "deconvolve": ("inverse", "wiener")}
"""Methods that are all run on a tiny array, whichever is taken then."""
LEAST_BUDGET = 1 << 20
TINY = 96
"""Samples along an axis of the arrays that jobs are warmed up with."""

Job = dict[str, Any]


def drawn(index: int) -> Job:
    """A case without files: what is asked, in words and numbers."""
    import sash.arrays

    rng = np.random.default_rng([SEED, index])
    able = [name for name in SHARES if hasattr(sash.arrays, name)]
    shares = np.array([SHARES[name] for name in able])
    operation = able[rng.choice(len(able), p=shares / shares.sum())]
    found = {"blur": _blur, "convolve": _convolve, "stft": _stft, "istft": _istft, "deconvolve": _deconvolve}[operation](rng)
    size = prod(found["shape"]) * np.dtype(found["dtype"]).itemsize
    budget = int(_log_uniform(rng, LEAST_BUDGET, max(3 * size, 16 << 20)))
    return {"operation": operation, "index": index, **found, "budget": budget}


def placed(case: Job, folder: Path) -> Job:
    """The case as `_arrays_probe.py` takes it, its input written, with warm jobs of the same kind on tiny arrays."""
    rng = np.random.default_rng([SEED, case["index"], 1])
    job = _with_files(case, tuple(case["shape"]), folder, "input", rng)
    tiny = tuple(min(length, most) for length, most in zip(case["shape"], case["tiny"], strict=True))
    warm = _with_files(case, tiny, folder, "tiny", rng)
    ways = [{"method": name} for name in WAYS.get(case["operation"], ())] or [{}]
    if case["operation"] == "deconvolve":
        # Richardson-Lucy's words are no other method's; and of little data noise may not be told, where it is not stated. A warm job that
        # is refused loads nothing, and then libraries would count as growth.
        ways = [{}] if "iterations" in warm["words"] else [*ways, {"method": "wiener", "noise": warm["words"].get("noise", 1.0)}]
    job["warm"] = [{**warm, "words": {**warm["words"], **way}} for way in ways]
    return job


def _with_files(case: Job, shape: tuple[int, ...], folder: Path, name: str, rng: np.random.Generator) -> Job:
    layout = case["layout"]
    if isinstance(layout, (list, tuple)):
        layout = tuple(min(chunk, length) for chunk, length in zip(layout, shape, strict=True))
    kind = case["read"]
    source = write(folder / f"{name}{'.npy' if kind == 'array' else kind}", numbers(rng, shape, case["dtype"]), layout)
    args = list(case["args"])
    if "taps" in case:
        np.save(folder / "kernel.npy", taps(case["taps"]))
        args = [str(folder / "kernel.npy"), *args]
    out = case["written"]
    out = None if out == "array" else str(folder / f"{name}-out{out}")
    return {
        "operation": case["operation"], "source": str(source), "in_memory": kind == "array", "args": args, "words": case["words"],
        "out": out, "budget": case["budget"],
    }  # fmt: skip


def taps(told: list[Any]) -> np.ndarray:
    """A kernel from words: an outer product of Gaussians, or noise."""
    kind, *sides = told
    rng = np.random.default_rng(7)
    if kind == "noise":
        return rng.standard_normal(sides)
    lines = [np.exp(-0.5 * ((np.arange(side) - side // 2) / max(side / 6, 0.4)) ** 2) for side in sides]
    found = lines[0] if len(lines) == 1 else np.outer(*lines)
    return found / found.sum()


def _blur(rng: np.random.Generator) -> Job:
    shape, dtype, kind, layout = _array(rng)
    tolerance = float(rng.choice([1e-2, 1e-3, 1e-3, 1e-6]))
    words: Job = {"boundary": str(rng.choice(BORDERS)), "tolerance": tolerance}
    if rng.random() < 0.15:
        words["order"] = 1
    colour = len(shape) == 3 and shape[-1] <= 4
    if colour:
        words["axes"] = [0, 1]
    written = _written(rng, shape, "float32" if "order" in words and np.dtype(dtype).kind in "iu" else dtype)
    sigma = round(float(_log_uniform(rng, 0.6, 40)), 2)
    return _job(shape, dtype, kind, layout, [sigma], words, written)


def _convolve(rng: np.random.Generator) -> Job:
    shape, dtype, kind, layout = _array(rng)
    colour = len(shape) == 3 and shape[-1] <= 4
    axes = [0, 1] if colour else [axis for axis in range(len(shape))][-2:]
    sides = [min(int(_log_uniform(rng, 3, 220)), shape[axis] // 2) for axis in axes]
    words: Job = {
        "boundary": str(rng.choice(BORDERS)),
        "mode": str(rng.choice(["same", "same", "valid", "full"])),
        "tolerance": float(rng.choice([1e-4, 1e-6, 1e-6])),
        "axes": axes,
    }
    written = _written(rng, shape, "float32")
    found = _job(shape, dtype, kind, layout, [], words, written)
    tiny = [length for length in found["tiny"]]
    for axis, side in zip(axes, sides, strict=True):
        tiny[axis] = TINY + side
    return {**found, "taps": [str(rng.choice(["noise", "gauss"])), *sides], "tiny": tiny}


def _stft(rng: np.random.Generator) -> Job:
    kind = str(rng.choice(["array", ".npy", ".zarr", ".wav", ".flac"]))
    dtype = "int16" if kind == ".flac" else str(rng.choice(["float32", "int16"] if kind == ".wav" else ["float32", "int16", "float64"]))
    length = int(_log_uniform(rng, 4e5, 6e6))
    shape = (length,) if rng.random() < 0.6 else (2, length // 2)
    frame = int(rng.choice([256, 400, 512, 1024, 2048, 4096]))
    hop = max(frame // int(rng.choice([1, 2, 4, 4])), 1)
    output = str(rng.choice(["complex", "complex", "magnitude", "power", "db", "mel"]))
    words: Job = {"boundary": str(rng.choice(BORDERS)), "output": output, "centered": bool(rng.random() < 0.8), "rate_hz": 48_000}
    # Short frames have no bins for more.
    words["mels"] = 32
    layout = [1] * (len(shape) - 1) + [int(_log_uniform(rng, 5e3, 5e5))] if kind == ".zarr" else None
    found = _job(shape, dtype, kind, layout, [frame, hop], words, str(rng.choice(["array", ".npy", ".zarr"])))
    return {**found, "tiny": [2] * (len(shape) - 1) + [8 * frame]}


def _istft(rng: np.random.Generator) -> Job:
    frame = int(rng.choice([256, 512, 1024, 2048]))
    hop = frame // int(rng.choice([2, 4]))
    count = int(_log_uniform(rng, 4e5, 5e6)) // (frame // 2 + 1)
    shape = (frame // 2 + 1, count) if rng.random() < 0.6 else (2, frame // 2 + 1, count // 2)
    kind = str(rng.choice(["array", ".npy", ".zarr"]))
    dtype = str(rng.choice(["complex64", "complex64", "complex128"]))
    layout = [*(1 for _ in shape[:-2]), shape[-2], int(_log_uniform(rng, 16, 1024))] if kind == ".zarr" else None
    written = str(rng.choice(["array", ".npy", ".zarr", *([".wav"] if dtype == "complex64" else [])]))
    words = {"rate_hz": 48_000} if written == ".wav" else {}
    found = _job(shape, dtype, kind, layout, [frame, hop], words, written)
    return {**found, "tiny": [*(2 for _ in shape[:-2]), shape[-2], 64]}


def _deconvolve(rng: np.random.Generator) -> Job:
    shape, dtype, kind, layout = _array(rng, plain=True)
    words: Job = {"boundary": str(rng.choice(["wrap", "reflect", "mirror"])), "method": str(rng.choice(["auto", "auto", "wiener"]))}
    if rng.random() < 0.5:
        words["noise"] = 0.01 if np.dtype(dtype).kind == "f" else 1.0
    if rng.random() < 0.25:
        words |= {"method": "richardson-lucy", "boundary": str(rng.choice(BORDERS)), "iterations": 3}
        words.pop("noise", None)
        dtype = "uint16" if np.dtype(dtype).kind == "i" else dtype
    sides = [min(2 * int(_log_uniform(rng, 1, 20)) + 1, length) for length in shape[-2:]]
    found = _job(shape, dtype, kind, layout, [], words, _written(rng, shape, "float32"))
    return {**found, "taps": ["gauss", *sides]}


def _array(rng: np.random.Generator, plain: bool = False) -> tuple[tuple[int, ...], str, str, Any]:
    """Shape, type, where it is read from, and how it lies there."""
    kind = str(rng.choice(["array", ".npy", ".npy", ".zarr", ".zarr", ".tif", *([] if plain else [".png", ".wav"])]))
    count, aspect = _log_uniform(rng, 4e5, 1.2e7), _log_uniform(rng, 0.25, 4)
    high, wide = int((count * aspect) ** 0.5), int((count / aspect) ** 0.5)
    lie = rng.random()
    dtype = str(rng.choice(["float32", "float32", "uint8", "uint16", "float64", "int16"]))
    if kind == ".wav":
        return (int(count) // 8,), str(rng.choice(["float32", "int16"])), kind, None
    if kind == ".png":
        return ((high // 2, wide // 2, 3) if lie < 0.4 else (high, wide)), "uint8", kind, None
    if kind == ".tif":
        dtype = str(rng.choice(["float32", "uint8", "uint16"]))
        shape = (high // 2, wide // 2, 3) if lie < 0.3 and dtype == "uint8" and not plain else (high, wide)
        return shape, dtype, kind, str(rng.choice(["tiled", "strips"]))
    shape = (high, wide)
    if lie < 0.25:
        planes = int(rng.integers(3, 20))
        shape = (planes, max(high // int(planes**0.5), 64), max(wide // int(planes**0.5), 64))
    elif lie < 0.35 and not plain:
        shape = (high // 2, wide // 2, 3)
    layout = None
    if kind == ".zarr":
        cells = [int(_log_uniform(rng, 64, 1024)) for _ in shape]
        layout = [1, *cells[1:]] if len(shape) == 3 and shape[-1] > 4 else [*cells[:2], *([3] if len(shape) == 3 else [])]
    return shape, dtype, kind, layout


def _written(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> str:
    kinds = ["array", ".npy", ".npy", ".zarr", ".zarr"]
    if len(shape) > 1 and dtype in ("float32", "uint8", "uint16"):
        kinds.append(".tif")
    return str(rng.choice(kinds))


def _job(shape: tuple[int, ...], dtype: str, kind: str, layout: Any, args: list[Any], words: Job, written: str) -> Job:
    tiny = [TINY if length > 4 else length for length in shape]
    return {
        "shape": list(shape), "dtype": dtype, "read": kind, "layout": layout,
        "args": args, "words": words, "written": written, "tiny": tiny,
    }  # fmt: skip


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return exp(rng.uniform(log(low), log(high)))
