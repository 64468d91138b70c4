"""Softmax cross-entropy: sash's, in chunks, beside torch's.

    OMP_WAIT_POLICY=PASSIVE python bench/loss.py            every case; writes bench/results/loss.json
    OMP_WAIT_POLICY=PASSIVE python bench/loss.py --quick    small cases; prints only

Time is forward and backward, the two in turn in one process, medians. The peak is the allocator's, measured in a fresh process: what the
step needs beside its logits and labels, and in all.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from forecast import setting
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.ops import softmax_loss

RESULT = Path(__file__).resolve().parent / "results" / "loss.json"
THREADS = 2
ROUNDS = 5
PEAK_AIM, TIME_AIM = 0.5, 1.2


@dataclass(frozen=True)
class Case:
    """One problem."""

    shape: tuple[int, ...]
    """Of the logits, with classes on axis 1."""
    dtype: str = "float32"
    last: bool = False
    """Channels-last."""

    @property
    def name(self) -> str:
        """The shape, and what is special."""
        words = ["x".join(map(str, self.shape)), self.dtype]
        return " ".join([*words, "channels-last"] if self.last else words)

    def make(self) -> tuple[Tensor, Tensor]:
        """Logits that take a gradient, and labels, a tenth of them ignored."""
        torch.manual_seed(0)
        logits = torch.randn(self.shape).to(getattr(torch, self.dtype))
        if self.last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(self.shape[1], (self.shape[0], *self.shape[2:]))
        labels[torch.rand(labels.shape) < 0.1] = -100
        return logits.requires_grad_(), labels


CASES = (
    Case((4, 150, 512, 512)),
    Case((2, 150, 512, 512), last=True),
    Case((2, 21, 512, 512)),
    Case((4096, 32000)),
    Case((4096, 32000), "bfloat16"),
    Case((8, 19, 256, 256)),
    Case((64, 1000)),
)
QUICK = (Case((1, 21, 128, 128)), Case((256, 1000)))


class Torchs(nn.Module):
    """`F.cross_entropy` as a model of logits and labels."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


class Ours(nn.Module):
    """`sash.ops.softmax_loss` as one."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return softmax_loss(logits, labels, ignore=-100)


LOSSES: dict[str, nn.Module] = {"torch": Torchs(), "sash": Ours()}


def seconds(case: Case) -> dict[str, float]:
    """Median seconds of forward and backward, by loss."""
    logits, labels = case.make()
    taken: dict[str, list[float]] = {name: [] for name in LOSSES}
    for turn in range(ROUNDS + 1):
        for name, loss in LOSSES.items():
            logits.grad = None
            gc.collect()
            started = time.perf_counter()
            loss(logits, labels).backward()
            if turn:  # the first of each pays for page faults and imports
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def peaks(case: Case) -> dict[str, dict[str, int]]:
    """By loss: the measured peak, what of it is not logits or labels, and the forecast."""
    logits, labels = case.make()
    given = sum(tensor.numel() * tensor.element_size() for tensor in (logits, labels))
    found = {}
    for name, loss in LOSSES.items():
        work = sash.Workload(loss, (logits, labels), train=True, loss=torch.sum)
        measured = sash.measure(work).peak_bytes
        found[name] = {"peak_bytes": measured, "beside_bytes": measured - given, "forecast_bytes": sash.forecast(work).peak_bytes}
    return found


def row(case: Case) -> dict[str, Any]:
    """All there is to say of a case."""
    taken, needed = seconds(case), peaks(case)
    logits, labels = case.make()
    values = {name: loss(logits, labels).item() for name, loss in LOSSES.items()}
    return {
        "seconds": taken,
        "peaks": needed,
        "values": values,
        "time_ratio": taken["sash"] / taken["torch"],
        "beside_ratio": needed["sash"]["beside_bytes"] / needed["torch"]["beside_bytes"],
        "peak_ratio": needed["sash"]["peak_bytes"] / needed["torch"]["peak_bytes"],
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """One line a case."""
    table = Table(title="Softmax cross-entropy, forward and backward: sash / torch", title_justify="left")
    table.add_column("logits")
    headings = ("torch ms", "sash ms", f"time (≤ {TIME_AIM})", "torch MB", "sash MB", f"beside logits (≤ {PEAK_AIM})", "in all", "forecast")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, found in rows.items():
        taken, needed = found["seconds"], found["peaks"]
        table.add_row(
            name,
            *(f"{taken[loss] * 1e3:.1f}" for loss in LOSSES),
            f"{found['time_ratio']:.2f}",
            *(f"{needed[loss]['beside_bytes'] / 1e6:.1f}" for loss in LOSSES),
            f"{found['beside_ratio']:.2f}",
            f"{found['peak_ratio']:.2f}",
            f"{needed['sash']['forecast_bytes'] / needed['sash']['peak_bytes'] - 1:+.3%}",
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases; prints only")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    rows = {}
    for case in QUICK if quick else CASES:
        print(case.name, file=sys.stderr, flush=True)
        rows[case.name] = row(case)
    show(rows)
    if not quick:
        RESULT.write_text(json.dumps({**setting(), "rounds": ROUNDS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
