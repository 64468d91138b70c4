"""Run a program tile by tile: only what each tile needs of every signal on the way is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sash.plans._reach import Node, Program, Value
from sash.plans._reach_layout import Layout, Region, crop, hull, marked, sizes, whole
from sash.plans._reach_whole import Whole
from sash.window import Interval

Tile = tuple[Interval, ...]
"""One interval an axis, in samples of the program's main output."""
Fetch = Callable[[Region], Tensor]
"""The part of the image that lies over a region."""


def tiles(program: Program, size: tuple[int, ...]) -> list[Tile]:
    """The main output cut into tiles of `size`, row after row; the last of a row may be smaller."""
    lengths = program.lengths(program.main)
    cuts = []
    for length, step in zip(lengths, size, strict=True):
        cuts.append([Interval(start, min(start + step, length)) for start in range(0, length, step)])
    return list(product(*cuts))


@dataclass(frozen=True)
class Ready:
    """What stays the same from tile to tile: nodes in order, and when each value is last read."""

    wanted: tuple[int, ...]
    used: tuple[Node, ...]
    last: dict[int, int]

    @classmethod
    def of(cls, program: Program, wanted: tuple[int, ...]) -> Ready:
        """For making `wanted`."""
        used = program.used(wanted)
        last = {value: step for step, node in enumerate(used) for value in node.inputs}
        for value in wanted:
            last[value] = len(used)
        return cls(wanted, tuple(used), last)


class Runner:
    """One run over one image: holds what every tile needs, and nothing of the image's own size."""

    def __init__(self, program: Program, statics: list[Tensor] | None, size: tuple[int, ...], fetch: Fetch) -> None:
        self.program, self._fetch = program, fetch
        self.size = size
        self.tiles = tiles(program, size)
        self._held: dict[int, Tensor] = {}
        for number, value in enumerate(program.values):
            if value.static is not None and statics is not None:
                self._held[number] = statics[value.static]
            elif value.literal is not None:
                self._held[number] = value.literal
        self._needed = program.needed(program.outputs, everything=True)
        self._done = -1
        self.ready = Ready.of(program, program.outputs)

    def prepare(self, tick: Callable[[], None] = lambda: None, only: list[Tile] | None = None) -> None:
        """Run the passes that come before the last: sums over the whole image."""
        for level in range(self.program.passes + 1):
            self._settle(level)
            wholes = [node for node in self.program.wholes if node.level == level]
            if not wholes or level == self.program.passes:
                continue
            rules = [node.rule for node in wholes if isinstance(node.rule, Whole)]
            sums = [rule.start() for rule in rules]
            ready = Ready.of(self.program, tuple({node.inputs[0]: None for node in wholes}))
            for tile in self.tiles if only is None else only:
                wants = {node.inputs[0]: self._share(node.inputs[0], tile) for node in wholes}
                parts = self._run(ready, wants)
                for node, rule, total in zip(wholes, rules, sums, strict=True):
                    region = wants[node.inputs[0]]
                    if all(part is None or part.length for part in region):
                        rule.add(total, parts[node.inputs[0]], region)
                del parts
                tick()
            for node, rule, total in zip(wholes, rules, sums, strict=True):
                for output, made in zip(node.outputs, rule.finish(total), strict=False):
                    self._held[output] = made
        self._done = self.program.passes

    def run(self, tile: Tile) -> list[tuple[Region, Tensor]]:
        """Each output's part over a tile of the main output, and where it lies; call `prepare` first."""
        wants = {output: self._share(output, tile) for output in self.program.outputs if marked(self.program.values[output].layout)}
        found = self._run(self.ready, wants) if wants else {}
        made = []
        for output in self.program.outputs:
            region = wants.get(output) or whole(self.program.values[output].layout, self.program.axes)
            made.append((region, found[output] if output in found else self._held[output]))
        return made

    def image_region(self, tile: Tile) -> Region:
        """The part of the image that a tile of the last pass reads."""
        wants = {output: self._share(output, tile) for output in self.program.outputs if marked(self.program.values[output].layout)}
        return self.program.regions(wants, list(self.ready.used))[self.program.image]

    def _share(self, value: int, tile: Tile) -> Region:
        """A tile's share of a value of another resolution: in proportion, so that the shares of all tiles are the whole."""
        main = self.program.lengths(self.program.main)
        region: list[Interval | None] = []
        for axis, full in enumerate(whole(self.program.values[value].layout, self.program.axes)):
            if full is None:
                region.append(None)
                continue
            region.append(Interval(tile[axis].start * full.length // main[axis], tile[axis].stop * full.length // main[axis]))
        return tuple(region)

    def _settle(self, level: int) -> None:
        """Run the operators that need no tile and whose inputs are known after `level` passes."""
        for node in self.program.nodes:
            if node.rule is None and node.level == level and set(node.outputs) & self._needed:
                tensors = [self._held[value] for value in node.inputs]
                if node.copies:
                    tensors[0] = tensors[0].clone()
                self._keep(self._held, node, node.call.invoke(tensors))

    def _run(self, ready: Ready, wants: dict[int, Region]) -> dict[int, Tensor]:
        program = self.program
        regions = program.regions(wants, list(ready.used))
        alive: dict[int, Tensor] = {}
        if program.image in ready.last:
            alive[program.image] = self._fetch(regions[program.image])
        for step, node in enumerate(ready.used):
            want = regions[node.outputs[0]]
            for output in node.outputs[1:]:
                want = _widest(want, regions[output])
            self._step(ready, step, node, alive, regions, want)
        return {value: self._taken(alive, value, regions[value], wants[value]) for value in wants}

    def _step(self, ready: Ready, step: int, node: Node, alive: dict[int, Tensor], regions: list[Region], want: Region) -> None:
        rule = node.rule
        assert rule is not None
        program = self.program
        reads = list(zip(*(rule.reads(axis, want[axis]) for axis in range(program.axes)), strict=True))
        tensors = [self._taken(alive, value, regions[value], part) for value, part in zip(node.inputs, reads, strict=True)]
        for value in node.inputs:
            if ready.last[value] == step:
                alive.pop(value, None)
        if node.copies:
            tensors[0] = tensors[0].clone()
        full = all(part == whole(program.values[value].layout, program.axes) for value, part in zip(node.inputs, reads, strict=True))
        if full and want == whole(program.values[node.outputs[0]].layout, program.axes):
            made = node.call.invoke(tensors)
        else:
            made = rule.run(tensors, list(reads), want)
        del tensors
        self._keep(alive, node, made)
        for output in node.outputs:
            if output not in ready.last:
                alive.pop(output, None)

    def _taken(self, alive: dict[int, Tensor], value: int, held: Region, want: Region) -> Tensor:
        known: Value = self.program.values[value]
        if value in alive:
            return crop(alive[value], known.layout, held, want)
        return crop(self._held[value], known.layout, whole(known.layout, self.program.axes), want)

    @staticmethod
    def _keep(into: dict[int, Tensor], node: Node, made: Any) -> None:
        parts = made if isinstance(made, (tuple, list)) else (made,)
        for output, part in zip(node.outputs, parts, strict=False):
            into[output] = part


def _widest(first: Region, second: Region) -> Region:
    return tuple(hull(one, other) for one, other in zip(first, second, strict=True))


def paste(into: Tensor, layout: Layout, region: Region, part: Tensor) -> None:
    """Write a tile's part to its place in the whole."""
    crop(into, layout, whole(layout, len(region)), region).copy_(part)


def buffers(program: Program) -> list[Tensor]:
    """The whole outputs, yet to be filled."""
    return [torch.empty(sizes(program.values[output].layout), dtype=program.values[output].dtype) for output in program.outputs]
