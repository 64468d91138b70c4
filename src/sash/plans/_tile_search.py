"""Which tile: the least work over again in the halos, among those whose forecast keeps the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from sash.cost import Workload, forecast, static_tensors
from sash.errors import DoesNotFit
from sash.plans._reach import Node, Program
from sash.plans._reach_layout import Region, length_of, sizes
from sash.plans._reach_whole import Whole
from sash.plans._tile_run import Ready, Runner, Tile
from sash.units import format_bytes
from sash.window import Interval

FORECASTS = 6
"""At most, for one choice; two or three are usual."""
_SIZES = 40
"""Tile lengths tried along each axis of a picture."""
_TOUCH = 64
"""Multiply–accumulates that take as long as writing one sample."""
_LEANEST = 3
"""Tiles whose forecast decides what the least budget is."""
_ENOUGH = 0.92
"""Share of the budget from which on no larger tile is looked for."""


@dataclass(frozen=True)
class TilePlan:
    """How an image is run in tiles."""

    tile: tuple[int, ...]
    """Samples of the output, along each axis."""
    halo: tuple[tuple[int, int], ...]
    """Image samples before and after a tile's own share that it reads too."""
    stride: tuple[int, ...]
    """Output samples that tile starts are multiples of: the deepest layers' step."""
    tiles: int
    passes: int
    """Over the image, before the one that makes the outputs."""
    peak_bytes: int
    """Forecast of the whole run: the model, one tile, and what is held of the image and the outputs."""
    extra: float
    """Work done over again, as a share of the whole-image run's."""

    def __str__(self) -> str:
        size = " x ".join(map(str, self.tile))
        halo = max((side for pair in self.halo for side in pair), default=0)
        more = f", {self.passes} passes before" if self.passes else ""
        return (
            f"{self.tiles} tiles of {size}, halo up to {halo} samples{more}; peak {format_bytes(self.peak_bytes)}, "
            f"{self.extra:.1%} more work than the whole image"
        )


class Kept:
    """Holds what neither travels with a model nor is copied with it."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict) -> Kept:
        return self

    def __reduce__(self) -> tuple:
        return (Kept, ())


class OneTile(nn.Module):
    """Reads, runs and returns the largest tiles of a run: what a forecast of it is made on."""

    def __init__(self, model: nn.Module, program: Program, size: tuple[int, ...], read: Callable[[Region], Tensor], every: bool) -> None:
        super().__init__()
        self.model = model
        self._kept = Kept((program, size, read, every))

    def forward(self) -> None:
        program, size, read, every = self._kept.value  # pyright: ignore[reportGeneralTypeIssues]
        runner = Runner(program, [tensor for _, _, _, tensor in static_tensors(self.model)], size, read)
        tiles = kinds(runner, every)
        runner.prepare(only=tiles)
        for tile in tiles:
            made = [part.contiguous() for _, part in runner.run(tile)]
            del made


def kinds(runner: Runner, every: bool) -> list[Tile]:
    """The tile that reads most of the image; or, with `every`, one of each place: corners, borders, inside."""
    per_axis: list[list[Interval]] = []
    for axis in range(runner.program.axes):
        along = sorted({tile[axis] for tile in runner.tiles})
        step = max(len(along) // 32, 1)
        tried = sorted({*along[:3], *along[-3:], *along[::step]})
        reads = {interval: _image_length(runner, axis, interval) for interval in tried}
        widest = max(tried, key=lambda interval: (reads[interval], interval.length))
        per_axis.append(sorted({widest, along[0], along[-1]}) if every else [widest])
    return list(product(*per_axis))


def _image_length(runner: Runner, axis: int, interval: Interval) -> int:
    tile = tuple(interval if other == axis else Interval(0, 1) for other in range(runner.program.axes))
    region = runner.image_region(tile)[axis]
    return region.length if region is not None else 0


def choose(
    program: Program, model: nn.Module, budget: int, held: int, read: Callable[[Region], Tensor], fixed: tuple[int, ...] | None = None
) -> TilePlan:
    """The tile for a budget, of which `held` bytes are taken already; `fixed` is a tile the user asks for.

    Raises `DoesNotFit` with the least bytes that would do.
    """
    candidates = Candidates(program, fixed)
    statics = sum(tensor.untyped_storage().nbytes() for _, _, _, tensor in static_tensors(model))

    def priced(index: int, every: bool = False) -> int:
        step = OneTile(model, program, candidates.sizes[index], read, every)
        return forecast(Workload(step, ())).peak_bytes + held

    ratio, best, seen = 1.1, None, {}
    for _ in range(FORECASTS - 1 if len(candidates.sizes) > 1 else 0):
        fitting = candidates.estimates * ratio + statics + held <= budget
        index = int(np.argmin(np.where(fitting, candidates.work, np.inf))) if fitting.any() else int(np.argmin(candidates.estimates))
        if index in seen:
            break
        peak = seen[index] = priced(index)
        ratio = max((peak - statics - held) / max(candidates.estimates[index], 1), 1e-3)
        if peak <= budget and (best is None or candidates.work[index] < candidates.work[best]):
            best = index
            if peak >= _ENOUGH * budget or candidates.work[index] <= candidates.work.min() * 1.01:
                break
        elif peak > budget:
            ratio *= 1.02
    tried = sorted((index for index, peak in seen.items() if peak <= budget), key=lambda index: candidates.work[index])
    for index in tried:
        # The last word is a forecast of every kind of tile: those at the border pad, and may peak higher.
        peak = priced(index, every=True)
        if peak <= budget:
            return _plan(program, model, candidates, index, peak)
    # The estimates are rough at the small end: the leanest few are asked in earnest.
    least = {int(index): priced(int(index), every=True) for index in np.argsort(candidates.estimates, kind="stable")[:_LEANEST]}
    index, peak = min(least.items(), key=lambda found: found[1])
    if peak <= budget:
        return _plan(program, model, candidates, index, peak)
    size = " x ".join(map(str, candidates.sizes[index]))
    what = f"of which {format_bytes(held)} are the image and the outputs in memory and {format_bytes(statics)} the model"
    raise DoesNotFit(
        f"{'a' if fixed else 'the leanest'} tile, {size}, peaks at {format_bytes(peak)}, {what}; the budget is {format_bytes(budget)}. "
        + ("From file to file only a tile is held." if held > peak // 2 else "A budget of that peak fits."),
        peak,
    )


def _plan(program: Program, model: nn.Module, candidates: Candidates, index: int, peak: int) -> TilePlan:
    size = candidates.sizes[index]
    runner = Runner(program, None, size, lambda region: torch.empty(0))
    extra = float(candidates.work[index] / candidates.whole - 1)
    return TilePlan(size, halo_of(runner), candidates.quanta, len(runner.tiles), program.passes, peak, extra)


def halo_of(runner: Runner) -> tuple[tuple[int, int], ...]:
    """Image samples before and after a tile's own share that it reads too: the most over its places."""
    program = runner.program
    main, image = program.lengths(program.main), program.lengths(program.image)
    found = []
    for axis in range(program.axes):
        before = after = 0
        along = sorted({tile[axis] for tile in runner.tiles})
        for interval in {*along[:3], *along[-3:], along[len(along) // 2]}:
            tile = tuple(interval if other == axis else Interval(0, 1) for other in range(program.axes))
            region = runner.image_region(tile)[axis]
            if region is not None:
                before = max(before, interval.start * image[axis] // main[axis] - region.start)
                after = max(after, region.stop + (-interval.stop * image[axis] // main[axis]))
        found.append((max(before, 0), max(after, 0)))
    return tuple(found)


class Candidates:
    """Tile sizes with their work and an estimate of the bytes alive, from the program alone."""

    def __init__(self, program: Program, fixed: tuple[int, ...] | None) -> None:
        self.program = program
        main = program.lengths(program.main)
        self.quanta = tuple(_quantum(program, axis) for axis in range(program.axes))
        if fixed is not None:
            lengths = [[min(size, length)] for size, length in zip(fixed, main, strict=True)]
        else:
            limit = _SIZES if program.axes <= 2 else 12
            lengths = [_lengths(length, quantum, limit) for length, quantum in zip(main, self.quanta, strict=True)]
        self.sizes = list(product(*lengths))
        stages = _stages(program)
        self.work = np.zeros(len(self.sizes))
        self.estimates = np.zeros(len(self.sizes))
        self.whole = 0.0
        for number, ready in enumerate(stages):
            sums, most = [], []
            for axis, tried in enumerate(lengths):
                pairs = [_along(program, axis, size, main[axis], ready) for size in tried]
                sums.append([total for total, _ in pairs])
                most.append([high for _, high in pairs])
            grid = list(product(*(range(len(tried)) for tried in lengths)))
            volumes = np.array([np.prod([sums[axis][place] for axis, place in enumerate(places)], axis=0) for places in grid])
            largest = np.array([np.prod([most[axis][place] for axis, place in enumerate(places)], axis=0) for places in grid])
            weights = _weights(program, ready.used)
            outs = [node.outputs[0] for node in ready.used]
            self.work += volumes[:, outs] @ weights if outs else 0.0
            if number == len(stages) - 1:
                fulls = np.array([prod(program.lengths(out)) for out in outs], dtype=float)
                self.whole = float(fulls @ weights) if outs else 1.0
            self.estimates = np.maximum(self.estimates, _alive(program, ready, largest))


def _stages(program: Program) -> list[Ready]:
    """The passes, the last one last."""
    levels: dict[int, dict[int, None]] = {}
    for node in program.wholes:
        levels.setdefault(node.level, {})[node.inputs[0]] = None
    return [*(Ready.of(program, tuple(levels[level])) for level in sorted(levels)), Ready.of(program, program.outputs)]


def _along(program: Program, axis: int, size: int, length: int, ready: Ready) -> tuple[np.ndarray, np.ndarray]:
    """For every value, the samples computed along one axis over all tiles, and the most that one tile computes."""
    count = math.ceil(length / size)
    places = range(count) if count <= 6 else (0, 1, count // 2, count // 2 + 1, count - 2, count - 1)
    total, most = np.zeros(len(program.values)), np.ones(len(program.values))
    inner = np.zeros(len(program.values))
    for place in places:
        tile = Interval(place * size, min((place + 1) * size, length))
        wants: dict[int, Interval | None] = {}
        for value in ready.wanted:
            full = length_of(program.values[value].layout, axis)
            wants[value] = None if full is None else Interval(tile.start * full // length, tile.stop * full // length)
        found = program.reads(axis, wants, list(ready.used))
        row = np.array([1.0 if interval is None else interval.length for interval in found])
        missing = np.array([length_of(value.layout, axis) is None for value in program.values])
        # A value without the axis is made once a tile.
        total += np.where(missing, 1.0, row)
        inner += row if 1 < place < count - 2 else 0
        most = np.maximum(most, row)
    if count > 6:
        total += inner / 2 * (count - 6)
    return total, most


def _weights(program: Program, used: Sequence[Node]) -> np.ndarray:
    """The cost of one output sample of every node."""
    found = []
    for node in used:
        elements = sum(prod(shape) for shape in node.call.shapes)
        rule = node.rule
        assert rule is not None
        found.append((rule.macs() + _TOUCH * elements) / prod(program.lengths(node.outputs[0])))
    return np.array(found)


def _alive(program: Program, ready: Ready, lengths: np.ndarray) -> np.ndarray:
    """An estimate of the bytes alive at the worst operator, for each candidate: values, and for kernels a copy of input and output."""
    unit = [value.bytes / prod(program.lengths(number)) for number, value in enumerate(program.values)]
    held = {value for value, known in enumerate(program.values) if known.fixed} | {
        output for node in program.nodes if node.rule is None or isinstance(node.rule, Whole) for output in node.outputs
    }
    level = unit[program.image] * lengths[:, program.image]
    peak = level.copy()
    for step, node in enumerate(ready.used):
        made = sum(unit[output] * lengths[:, output] for output in node.outputs if output in ready.last)
        taken = sum(unit[value] * lengths[:, value] for value in node.inputs[:1])
        views = node.call.func.is_view or node.call.func._schema.is_mutable
        inside = made + taken if node.rule is not None and node.rule.macs() else 0
        level = level + (0 if views else made)
        peak = np.maximum(peak, level + inside)
        for value in set(node.inputs):
            if ready.last.get(value) == step and value not in held and not views:
                level = level - unit[value] * lengths[:, value]
    return peak


def _quantum(program: Program, axis: int) -> int:
    """Output samples to one step of the coarsest signal that tiles run through."""
    main = program.lengths(program.main)[axis]
    used = {value for node in program.used(program.outputs) for value in node.outputs}
    found = 1
    for value in used:
        length = length_of(program.values[value].layout, axis)
        if length and length > 1:
            found = max(found, min(round(main / length), 256))
    return max(min(found, main), 1)


def _lengths(length: int, quantum: int, limit: int) -> list[int]:
    """Tile lengths worth trying: whole quanta, even shares of the axis, fewer where they are small."""
    found, parts = set(), 1
    while True:
        size = min(-(-math.ceil(length / parts) // quantum) * quantum, length)
        found.add(size)
        if size <= quantum or len(found) >= limit * 4:
            break
        parts = max(parts + 1, math.ceil(parts * 1.12))
    found.add(min(quantum, length))
    ordered = sorted(found, reverse=True)
    return ordered if len(ordered) <= limit else [ordered[round(place * (len(ordered) - 1) / (limit - 1))] for place in range(limit)]


def output_bytes(program: Program) -> int:
    """Of the whole outputs."""
    return sum(prod(sizes(program.values[output].layout)) * program.values[output].dtype.itemsize for output in program.outputs)
