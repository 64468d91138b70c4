"""One huge image through a U-Net inside a budget, from file to file; and tiles against the whole image where that fits.

    python bench/tiled.py                    writes bench/results/tiled.json
    python bench/tiled.py --side 4096        a smaller picture; prints only
    python bench/tiled.py --only equality    prints only

Each part runs in a process of its own. Of the huge run: the forecast peak, what the process grew by at most over its size with the model
and libraries loaded (VmHWM), and the allocator's peak, taken by the profiler on a smaller picture cut into tiles of the same size, so that
every kind of tile is among them. Beside it, naive tiling: each tile through the model as a picture of its own, without a halo.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "tiled.json"
SIDE, WIDTH, THREADS = 16384, 8, 2
LIMIT = 2 * 2**30
"""What the process may grow by."""
BUDGET = LIMIT - 128 * 2**20
"""What its allocator may hold: code pages and the search for the tile come beside it."""
EQUAL_SIDES = (1024, 1000, 2048)
NAIVE_TILE = 256


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A plain U-Net, with running statistics as training leaves them."""
    from sash.models import unet

    torch.manual_seed(0)
    made = unet(width=WIDTH).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.to(dtype)


def picture(path: Path, height: int, width: int) -> None:
    """Three channels of blobs and noise, written band by band."""
    made = np.lib.format.open_memmap(path, "w+", np.uint8, (3, height, width))
    rng = np.random.default_rng(0)
    columns = np.arange(width)
    for start in range(0, height, 512):
        rows = np.arange(start, min(start + 512, height))[:, None]
        waves = 96 + 48 * np.sin(rows / 37) * np.cos(columns / 53) + 24 * np.sin((rows + columns) / 301)
        for channel in range(3):
            made[channel, start : start + len(rows)] = waves + rng.integers(0, 64, waves.shape)
    made.flush()


def status_bytes(name: str) -> int:
    """A line of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def huge(side: int, budget: int, folder: Path) -> dict[str, Any]:
    """One run from file to file."""
    from sash.plans import tiled

    model = network()
    gc.collect()
    source, out = folder / "image.npy", folder / "scores.npy"
    # Planning is part of the run: its memory counts.
    before = status_bytes("VmRSS")
    started = time.perf_counter()
    plan = tiled(model, source, budget, out, plan_only=True)
    planned = time.perf_counter()
    made = tiled(model, source, budget, out, tile=plan.tile)
    ended = time.perf_counter()
    growth = status_bytes("VmHWM") - before
    return {
        "side": side,
        "budget_bytes": budget,
        "width": WIDTH,
        "tile": plan.tile,
        "halo": plan.halo,
        "tiles": plan.tiles,
        "extra_work": plan.extra,
        "forecast_peak_bytes": plan.peak_bytes,
        "process_growth_bytes": growth,
        "process_limit_bytes": LIMIT,
        "plan_s": planned - started,
        "wall_s": ended - planned,
        "output_shape": made.shape,
        "samples_per_s": side * side / (ended - planned),
    }


def allocator(tile: tuple[int, int], folder: Path) -> dict[str, Any]:
    """The allocator's peak of a run with the same tiles, three along each axis, the last ones cut off."""
    from torch.autograd.profiler import profile

    from sash.cost import static_tensors
    from sash.plans import tiled

    model = network()
    small = folder / "small.npy"
    picture(small, tile[0] * 2 + 16, tile[1] * 2 + 16)
    tiled(model, small, 2**40, folder / "warm.npy", tile=tile)
    level = peak = sum(tensor.untyped_storage().nbytes() for _, _, _, tensor in static_tensors(model))
    with profile(profile_memory=True, use_kineto=True) as record:
        tiled(model, small, 2**40, folder / "small-out.npy", tile=tile)
    events = [(event.start_ns(), event.nbytes()) for event in record.kineto_results.events() if event.name() == "[memory]"]
    for _, size in sorted(events, key=lambda event: event[0]):
        level += size
        peak = max(peak, level)
    return {"allocator_peak_bytes": peak}


def naive(model: torch.nn.Module, image: torch.Tensor, tile: int) -> torch.Tensor:
    """Every tile as a picture of its own."""
    found = torch.empty(1, 1, *image.shape[2:], dtype=image.dtype)
    for top in range(0, image.shape[2], tile):
        for left in range(0, image.shape[3], tile):
            part = (..., slice(top, top + tile), slice(left, left + tile))
            found[part] = model(image[part])
    return found


def equality(folder: Path) -> list[dict[str, Any]]:
    """Tiles against the whole, and naive tiles against the whole."""
    from sash.plans._lever import shared_copy
    from sash.plans._tile import Tile

    rows = []
    for side in EQUAL_SIDES:
        path = folder / f"{side}.npy"
        picture(path, side, side)
        row: dict[str, Any] = {"side": side, "tile": NAIVE_TILE}
        for dtype in (torch.float32, torch.float64) if side < 2048 else (torch.float32,):
            model, name = network(dtype), str(dtype).removeprefix("torch.")
            image = torch.from_numpy(np.load(path, allow_pickle=False))[None].to(dtype) * (1 / 255)
            made = Tile((NAIVE_TILE, NAIVE_TILE)).on_model(shared_copy(model))
            with torch.inference_mode():
                made(image)  # follows the model once
            runs = {
                "whole": lambda model=model, image=image: model(image),
                "tiled": lambda made=made, image=image: made(image),
                "naive": lambda model=model, image=image: naive(model, image, NAIVE_TILE),
            }
            times: dict[str, list[float]] = {key: [] for key in runs}
            found = {}
            with torch.inference_mode():
                for _ in range(3):
                    for key, run in runs.items():
                        gc.collect()
                        started = time.perf_counter()
                        found[key] = run()
                        times[key].append(time.perf_counter() - started)
            scale = found["whole"].abs().max().item()
            row[name] = {
                "largest_output": scale,
                "tiled_difference": (found["tiled"] - found["whole"]).abs().max().item(),
                "naive_difference": (found["naive"] - found["whole"]).abs().max().item(),
                **{f"{key}_s": median(values) for key, values in times.items()},
            }
        rows.append(row)
    return rows


def ask(part: str, *words: str) -> Any:
    """A part's answer, from a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--part", part, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run the parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--only", choices=("huge", "equality"))
    parser.add_argument("--part", choices=("huge", "allocator", "equality"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tile", help=argparse.SUPPRESS)
    words = parser.parse_args()
    torch.set_num_threads(THREADS)
    if words.part:
        answers = {
            "huge": lambda: huge(words.side, BUDGET, words.folder),
            "allocator": lambda: allocator(tuple(map(int, words.tile.split(","))), words.folder),
            "equality": lambda: equality(words.folder),
        }
        print(json.dumps(answers[words.part]()))
        return
    found: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "sash")},
        "python": platform.python_version(),
        "threads": THREADS,
        "cores": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if words.only != "huge":
            found["equality"] = ask("equality", "--folder", name)
            for row in found["equality"]:
                for kind in ("float32", "float64"):
                    if kind in row:
                        told = row[kind]
                        print(
                            f"{row['side']:>6}² {kind}: off by, tiled {told['tiled_difference']:.1e}, naive {told['naive_difference']:.1e} "
                            f"(largest output {told['largest_output']:.2f}); time over the whole image: "
                            f"tiled {told['tiled_s'] / told['whole_s']:.2f}, naive {told['naive_s'] / told['whole_s']:.2f}"
                        )
        if words.only != "equality":
            picture(folder / "image.npy", words.side, words.side)
            row = ask("huge", "--side", str(words.side), "--folder", name)
            for file in ("image.npy", "scores.npy"):
                (folder / file).unlink()
            row |= ask("allocator", "--tile", ",".join(map(str, row["tile"])), "--folder", name)
            row["forecast_over_allocator"] = row["forecast_peak_bytes"] / row["allocator_peak_bytes"]
            found["huge"] = row
            print(json.dumps(row, indent=1))
    if not words.only and words.side == SIDE:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {RESULT.relative_to(BENCH.parent)}")


if __name__ == "__main__":
    main()
