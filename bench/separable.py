"""The separable convolution in bands, beside depthwise then pointwise and beside the plain convolution.

    OMP_WAIT_POLICY=PASSIVE python bench/separable.py                   everything; writes bench/results/separable.json
    OMP_WAIT_POLICY=PASSIVE python bench/separable.py --part operator   one part (operator, peaks, times); the rest of the file stays

Time is the median of rounds in which all methods take turns in one process. Peaks are the allocator's, weights and inputs included: of an
operator from the profiler's record of allocations in this process, of a U-Net's step by `sash.measure` in a fresh one.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from forecast import setting
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.models import unet
from sash.ops import separable_conv
from sash.plans._layout import Layout
from sash.plans._lever import Lever, pull, shared_copy
from sash.plans._separable import propose

RESULT = Path(__file__).resolve().parent / "results" / "separable.json"
THREADS = 2
ROUNDS = {"forward": 7, "step": 3, "unet": 3}
SHAPES = ("1x3x256x256", "2x3x256x256")
LARGE_SIDE, PAIR_AIM, PLAIN_AIM = 128, 0.75, 0.5
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """One problem: `images` x `channels` x sides, to `out` channels, windows of 3 that keep the size."""

    images: int
    channels: int
    out: int
    sides: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in `4, 32 → 64, 256²`."""
        shown = f"{self.sides[0]}{'²³'[len(self.sides) - 2]}" if len(self.sides) > 1 else str(self.sides[0])
        return f"{self.images}, {self.channels} → {self.out}, {shown}"


CASES = (
    Case(1, 64, 128, (256, 256)),
    Case(4, 32, 64, (256, 256)),
    Case(1, 128, 128, (512, 512)),
    Case(8, 128, 64, (128, 128)),
    Case(1, 256, 256, (128, 128)),
    Case(1, 64, 64, (128, 128)),
    Case(32, 64, 64, (56, 56)),
    Case(1, 256, 256, (64, 64)),
    Case(8, 64, 64, (16384,)),
    Case(1, 64, 64, (1024,)),
    Case(1, 16, 32, (96, 96, 96)),
)


def methods(case: Case) -> dict[str, tuple[list[Tensor], Callable[..., Tensor]]]:
    """Tensors and a function of them for each method."""
    torch.manual_seed(0)
    axes = len(case.sides)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    x = torch.randn(case.images, case.channels, *case.sides)
    depthwise = torch.randn(case.channels, 1, *(3,) * axes)
    pointwise = torch.randn(case.out, case.channels, *(1,) * axes)
    weight = torch.randn(case.out, case.channels, *(3,) * axes)

    def pair(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        return convolve(convolve(x, depthwise, padding=1, groups=case.channels), pointwise)

    def fused(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        return separable_conv(x, depthwise, pointwise, padding=1)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return convolve(x, weight, padding=1)

    found = {"plain": ([x, weight], plain), "pair": ([x, depthwise, pointwise], pair), "fused": ([x, depthwise, pointwise], fused)}
    if axes > 1:
        last = {key: ([one.to(memory_format=LAST[axes + 2]) for one in tensors], call) for key, (tensors, call) in found.items()}
        found |= {f"{key}, channels-last": value for key, value in last.items()}
    return found


def operator_row(case: Case) -> dict[str, Any]:
    """Times and peaks of a case, forward alone and forward with backward."""
    row: dict[str, Any] = {"case": case.name, "large": min(case.sides) >= LARGE_SIDE and len(case.sides) == 2}
    for part in ("forward", "step"):
        made = methods(case)
        calls = {key: runner(call, tensors, part == "step") for key, (tensors, call) in made.items()}
        held = {key: sum(one.nbytes for one in tensors) for key, (tensors, _) in made.items()}
        row[part] = {"ms": medians(calls, ROUNDS[part]), "peak_bytes": {key: held[key] + peak(call) for key, call in calls.items()}}
    return row


def runner(call: Callable[..., Tensor], tensors: list[Tensor], train: bool) -> Callable[[], None]:
    """One run; of a step, with gradients of everything."""
    if not train:

        def forward() -> None:
            with torch.no_grad():
                call(*tensors)

        return forward
    leaves = [one.detach().requires_grad_() for one in tensors]
    with torch.no_grad():
        towards = torch.randn_like(call(*tensors))

    def step() -> None:
        torch.autograd.grad(call(*leaves), leaves, towards)

    return step


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, all in turn."""
    for call in calls.values():
        call()
    gc.collect()
    spent: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            spent[key].append(time.perf_counter() - start)
    return {key: round(1000 * statistics.median(values), 3) for key, values in spent.items()}


def peak(call: Callable[[], None]) -> int:
    """The most that a run holds of its own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler and profiler.profiler.kineto_results
    level, most = 0, 0
    for event in sorted((one for one in results.events() if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most


def unet_works(shape: str) -> tuple[dict[str, sash.Workload], dict[str, int]]:
    """Training steps of the plain U-Net, the separable one, and the separable one with the lever; and the parameters of the two."""
    works, parameters = {}, {}
    for kind in ("plain", "separable"):
        model = unet(kind)
        work = sash.Workload(model, shape, train=True, optimizer="AdamW")
        works[kind], parameters[kind] = work, sum(one.numel() for one in model.parameters())
        levers: dict[str, list[Lever]] = {f"{kind}, channels-last": [Layout()]}
        lever = propose(work, model)
        if lever is not None:
            lean = replace(lever, lean=True)
            levers |= {"fused": [lever], "fused, lean": [lean], "fused, channels-last": [Layout(), lever]}
            levers |= {"fused, lean, channels-last": [Layout(), lean]}
        works |= {key: pull(work, chosen) for key, chosen in levers.items()}
    return works, parameters


def unet_peaks(shape: str) -> dict[str, Any]:
    """Peaks, forecast and measured."""
    works, parameters = unet_works(shape)
    forecasts = {key: sash.forecast(work).peak_bytes for key, work in works.items()}
    return {
        "shape": shape,
        "parameters": parameters,
        "forecast_bytes": forecasts,
        "peak_bytes": {key: sash.measure(work).peak_bytes for key, work in works.items()},
    }


def unet_times(shape: str) -> dict[str, float]:
    """Milliseconds of a step."""
    works, _ = unet_works(shape)
    return medians({key: trainer(work) for key, work in works.items()}, ROUNDS["unet"])


def trainer(work: sash.Workload) -> Callable[[], None]:
    """One training step, as a loop has it."""
    original: Any = work.model
    model: nn.Module = shared_copy(original)
    if work.rewrite is not None:
        model = work.rewrite(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    (spec,) = work.arguments()[0]
    x = torch.rand(spec.shape)

    def step() -> None:
        model(x).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def misses(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[str]:
    """What does not reach its aim."""
    found = []
    for row in (row for row in rows if row["large"]):
        ms, peaks = row["forward"]["ms"], row["forward"]["peak_bytes"]
        for rival, aim in (("pair", PAIR_AIM), ("plain", PLAIN_AIM)):
            if ms["fused"] > aim * ms[rival]:
                found.append(f"{row['case']}: forward takes {ms['fused'] / ms[rival]:.2f}x the time of the {rival}, the aim is {aim}x")
            if peaks["fused"] >= peaks[rival]:
                found.append(f"{row['case']}: forward peaks at {peaks['fused'] / peaks[rival]:.2f}x the {rival}, the aim is below it")
    for step in steps:
        for what, unit in (("peak_bytes", 1e-6), ("ms", 1)):
            one, other = step[what].get("fused", 0), step[what].get("plain", 1)
            if one >= other:
                name = f"U-Net {step['shape']}: {what.removesuffix('_bytes')} of the fused one"
                found.append(f"{name} {one * unit:.0f}, of the plain one {other * unit:.0f}; the aim is below it")
    return found


def show(found: dict[str, Any]) -> None:
    """The tables, and what misses its aim."""
    console = Console(width=None if Console().is_terminal else 150)
    for part, title in (("forward", "Forward"), ("step", "Forward and backward")):
        table = Table(title=f"{title}: ms, and ratio of the fused one; peak in MB", title_justify="left")
        for heading in ("N, C → K, side", "plain 3", "pair", "fused", "/ plain", "/ pair", "pair last", "fused last", "/ pair last"):
            table.add_column(heading, justify="right")
        for heading in ("peak plain", "pair", "fused", "pair last", "fused last"):
            table.add_column(heading, justify="right")
        for row in found["operator"]:
            ms, peaks = row[part]["ms"], row[part]["peak_bytes"]
            last = [f"{key}, channels-last" for key in ("pair", "fused")]
            times = [*(f"{ms[key]:.1f}" for key in ("plain", "pair", "fused"))]
            ratios = [f"{ms['fused'] / ms[key]:.2f}" for key in ("plain", "pair")]
            others = [*(f"{ms[key]:.1f}" for key in last), f"{ms[last[1]] / ms[last[0]]:.2f}"] if last[0] in ms else ["", "", ""]
            sizes = [f"{peaks[key] / 1e6:.1f}" if key in peaks else "" for key in ("plain", "pair", "fused", *last)]
            table.add_row(row["case"], *times, *ratios, *others, *sizes)
        console.print(table)
    for step in found["unet"]:
        table = Table(title=f"U-Net, {step['shape']}, one AdamW step; parameters: {step['parameters']}", title_justify="left")
        for heading in ("kind", "ms", "/ plain", "/ separable", "peak MB", "forecast MB"):
            table.add_column(heading, justify="right")
        for key in step["peak_bytes"]:
            ms = step["ms"].get(key)
            ratios = ["", "", ""] if ms is None else [f"{ms:.0f}", *(f"{ms / step['ms'][rival]:.2f}" for rival in ("plain", "separable"))]
            table.add_row(key, *ratios, *(f"{step[what][key] / 1e6:.1f}" for what in ("peak_bytes", "forecast_bytes")))
        console.print(table)
    for line in found["misses"] or ["Every aim is reached."]:
        console.print(line, markup=False, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("operator", "peaks", "times"), help="the operator's rows, the U-Nets' peaks, the U-Nets' times")
    chosen = parser.parse_args().part
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() and chosen else {"operator": [], "unet": []}
    if chosen in (None, "operator"):
        found["operator"] = [operator_row(case) for case in CASES]
    if chosen in (None, "peaks"):
        found["unet"] = [{"ms": {}} | unet_peaks(shape) for shape in SHAPES]
    if chosen in (None, "times"):
        for row in found["unet"]:
            row["ms"] = unet_times(row["shape"])
    found |= {**setting(), "misses": misses(found["operator"], found["unet"])}
    RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    show(found)


if __name__ == "__main__":
    sys.exit(main())
