"""Stride against max-pooling: the All-CNN of base C in four kinds, trained on Fashion-MNIST, from several random starts.

    python bench/stride_pool.py            every kind and seed; goes on where it was interrupted; writes bench/results/stride_pool.json
    python bench/stride_pool.py --quick    1 000 pictures, one epoch, two kinds; prints only

The aim: strided within 0.5 points of pooled, and all-conv of its control convpool, which has as many parameters. The first 20 000 pictures
of the training split are trained with; accuracy is that on all 10 000 of the test split after the last epoch, by which nothing was chosen.
Runs on one thread: maps as narrow as these gain nothing from a second.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _data import fashion_mnist
from forecast import setting
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import sash
from sash.models import all_cnn, train

RESULT = Path(__file__).resolve().parent / "results" / "stride_pool.json"
PARTIAL = RESULT.with_suffix(".partial.json")
KINDS = ("pooled", "strided", "convpool", "all-conv")
SEEDS = (0, 1, 2)
PICTURES, EPOCHS, WIDTH, BATCH, RATE = 20_000, 8, 16, 100, 3e-3
AIM_POINTS = 0.5
PAIRS = (("strided", "pooled"), ("all-conv", "convpool"))
THREADS = 1


def run(kind: Any, seed: int, pictures: int, epochs: int) -> dict[str, float]:
    """One training: its accuracy and its CPU minutes."""
    steps, began = epochs * math.ceil(pictures / BATCH), time.process_time()
    torch.manual_seed(seed)
    model = all_cnn(kind, in_channels=1, width=WIDTH, dropout=(0.0, 0.2)).to(memory_format=torch.channels_last)
    train(
        model,
        fashion_mnist("train", pictures),
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE),
        schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps),
        epochs=epochs,
        batch=BATCH,
        seed=seed,
        progress=False,
    )
    found, labels = fashion_mnist("test")
    with torch.no_grad():
        told = torch.cat([model(part).argmax(1) for part in found.split(500)])
    return {"accuracy_percent": 100 * (told == labels).float().mean().item(), "cpu_minutes": (time.process_time() - began) / 60}


def costs(kind: Any) -> dict[str, int]:
    """Of a training step at the size that is trained, from a forecast."""
    model = all_cnn(kind, in_channels=1, width=WIDTH)
    found = sash.forecast(sash.Workload(model, f"{BATCH}x1x28x28", train=True, optimizer="adamw"))
    return {"params": found.params, "macs_per_picture": found.macs // BATCH, "peak_bytes": found.peak_bytes}


def show(title: str, kinds: dict[str, dict[str, Any]]) -> None:
    """One line a kind, and how far the pairs are apart."""
    table = Table(title=title, title_justify="left")
    for heading in ("kind", "parameters", "MACs a picture", "peak of a step", "accuracy %", "± runs", "CPU minutes"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, found in kinds.items():
        points = found["accuracy_percent"]
        spread = f"{statistics.stdev(points):.2f}" if len(points) > 1 else ""
        figures = (f"{found['params']:,}", f"{found['macs_per_picture']:,}", f"{found['peak_bytes'] / 1e6:.1f} MB")
        table.add_row(kind, *figures, f"{statistics.mean(points):.2f}", spread, f"{sum(found['cpu_minutes']):.1f}")
    console = Console(width=140)
    console.print(table)
    for one, other in PAIRS:
        if one in kinds and other in kinds:
            apart = statistics.mean(kinds[one]["accuracy_percent"]) - statistics.mean(kinds[other]["accuracy_percent"])
            console.print(f"{one} against {other}: {apart:+.2f} points (aim: at least {-AIM_POINTS})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 pictures, one epoch, two kinds; prints only")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    pictures, epochs, seeds, kinds = (1000, 1, SEEDS[:1], KINDS[:2]) if quick else (PICTURES, EPOCHS, SEEDS, KINDS)
    key = {"pictures": pictures, "epochs": epochs, "width": WIDTH, "batch": BATCH, "rate": RATE, "torch": torch.__version__}
    stored = json.loads(PARTIAL.read_text()) if PARTIAL.exists() and not quick else {}
    runs: dict[str, dict[str, float]] = stored.get("runs", {}) if stored.get("key") == key else {}
    for seed in seeds:
        for kind in kinds:
            name = f"{kind} {seed}"
            if name not in runs:
                print(name, file=sys.stderr, flush=True)
                runs[name] = run(kind, seed, pictures, epochs)
                if not quick:
                    PARTIAL.write_text(json.dumps({"key": key, "runs": runs}, indent=1) + "\n")
    found = {}
    for kind in kinds:
        own = [runs[f"{kind} {seed}"] for seed in seeds]
        found[kind] = {name: [one[name] for one in own] for name in own[0]} | costs(kind)
    data = f"Fashion-MNIST, {pictures:,} pictures to train with, 10,000 held out"
    show(f"{data}; {epochs} epochs, width {WIDTH}", found)
    if not quick:
        minutes = sum(one["cpu_minutes"] for one in runs.values())
        result = {**setting(), "threads": THREADS, "data": data, **key, "seeds": [*seeds], "cpu_minutes": minutes, "kinds": found}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PARTIAL.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
