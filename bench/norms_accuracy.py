"""Batch norm and its rivals at batches of 2, 4, 10 and 64: a small network trained on Fashion-MNIST from several random starts.

    python bench/norms_accuracy.py            all; goes on where it was interrupted; writes bench/results/norms_accuracy.json
    python bench/norms_accuracy.py --quick    640 pictures, one epoch, two kinds, batches 4 and 64; prints only

All see the same pictures as often; the rate grows with the root of the batch and is not tuned to any kind. Batch norm accumulated over
parts is not trained: up to rounding it is batch norm at the batch that the parts add up to (tests/ops/test_norms.py). CPU minutes count
both cores. The first 6 000 pictures of the training split are trained with; accuracy is that on all 10 000 of the test split after the
last epoch, which nothing was chosen by.
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
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.models import train
from sash.ops import swap_norms, to_frozen, to_ghost, to_group, to_instance, to_layer

RESULT = Path(__file__).resolve().parent / "results" / "norms_accuracy.json"
PARTIAL = RESULT.with_suffix(".partial.json")
KINDS = ("batch", "group", "layer", "instance", "frozen", "ghost", "none")
BATCHES, SEEDS = (2, 4, 10, 64), (0, 1, 2)
PICTURES, EPOCHS, RATE, WIDTHS = 6_000, 2, 3e-3, (16, 32, 64)
GHOST_BATCH = max(BATCHES)
"""What ghost norm takes its virtual batches of: with it, only the statistics are of small batches."""
THREADS = 2


def network() -> nn.Module:
    """Three convolutions with batch norm, of which the second and third halve the sides."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *WIDTHS), WIDTHS, strict=False):
        convolution = nn.Conv2d(before, after, 3, 1 if before == 1 else 2, padding=1)
        # As deep as this, torch's own start hardly learns without a norm.
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


def with_norm(model: nn.Module, kind: str, batch: int, pictures: Tensor) -> nn.Module:
    """The network with another norm; a frozen one has the statistics that the untrained network has on the pictures."""
    if kind == "frozen":
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        with torch.no_grad():
            model(pictures)
    swaps = {"group": to_group(8), "layer": to_layer, "instance": to_instance, "frozen": to_frozen, "ghost": to_ghost(batch)}
    if kind == "none":
        return swap_norms(model, lambda norm, path: nn.Identity())
    return model if kind == "batch" else swap_norms(model, swaps[kind])


def run(kind: str, batch: int, seed: int, pictures: int, epochs: int) -> dict[str, float]:
    """One training: its accuracy and its CPU minutes."""
    began, taken = time.process_time(), GHOST_BATCH if kind == "ghost" else batch
    steps, rate = epochs * math.ceil(pictures / taken), RATE * math.sqrt(taken / 64)
    data = fashion_mnist("train", pictures)
    torch.manual_seed(seed)
    model = with_norm(network(), kind, batch, data[0][:1000])
    train(
        model,
        data,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps),
        epochs=epochs,
        batch=taken,
        seed=seed,
        progress=False,
    )
    return {"accuracy_percent": accuracy(model, *fashion_mnist("test")), "cpu_minutes": (time.process_time() - began) / 60}


def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Per cent of the pictures that are told right, in evaluation; in batches of one size, whatever the training's."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in pictures.split(500)])
    return 100 * float((found == labels).float().mean())


def peak_bytes(kind: str, batch: int) -> int:
    """Of a training step, from a forecast."""
    model = with_norm(network(), kind, batch, fashion_mnist("train", 64)[0])
    taken = GHOST_BATCH if kind == "ghost" else batch
    return sash.forecast(sash.Workload(model, f"{taken}x1x28x28", train=True, optimizer="adamw")).peak_bytes


def show(kinds: dict[str, dict[str, Any]], batches: tuple[int, ...]) -> None:
    """One line a kind."""
    table = Table(title="Accuracy on Fashion-MNIST (%), ± between runs, and the peak of a step", title_justify="left")
    table.add_column("norm")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
        table.add_column("MB", justify="right")
    for kind, found in kinds.items():
        cells = []
        for batch in batches:
            points = found["accuracy_percent"][str(batch)]
            spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
            cells += [f"{statistics.mean(points):.1f}{spread}", f"{found['peak_bytes'][str(batch)] / 1e6:.2f}"]
        table.add_row(kind, *cells)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="640 pictures, one epoch, two kinds, batches 4 and 64; prints only")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    pictures, epochs = (640, 1) if quick else (PICTURES, EPOCHS)
    kinds, batches, seeds = (KINDS[:2], (4, 64), SEEDS[:1]) if quick else (KINDS, BATCHES, SEEDS)
    key = {"pictures": pictures, "epochs": epochs, "widths": [*WIDTHS], "rate": RATE, "torch": torch.__version__}
    stored = json.loads(PARTIAL.read_text()) if PARTIAL.exists() and not quick else {}
    runs: dict[str, dict[str, float]] = stored.get("runs", {}) if stored.get("key") == key else {}
    for name, (kind, batch, seed) in {f"{k} {b} {s}": (k, b, s) for s in seeds for b in batches for k in kinds}.items():
        if name not in runs:
            print(name, file=sys.stderr, flush=True)
            runs[name] = run(kind, batch, seed, pictures, epochs)
            if not quick:
                PARTIAL.write_text(json.dumps({"key": key, "runs": runs}, indent=1) + "\n")
    found = {}
    for kind in kinds:
        points = {str(batch): [runs[f"{kind} {batch} {seed}"]["accuracy_percent"] for seed in seeds] for batch in batches}
        found[kind] = {"accuracy_percent": points, "peak_bytes": {str(batch): peak_bytes(kind, batch) for batch in batches}}
    show(found, batches)
    if not quick:
        data = f"Fashion-MNIST, {pictures:,} pictures to train with, 10,000 held out"
        minutes = sum(one["cpu_minutes"] for one in runs.values())
        result = {**setting(), "data": data, **key, "batches": [*batches], "seeds": [*seeds], "cpu_minutes": minutes, "kinds": found}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PARTIAL.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
