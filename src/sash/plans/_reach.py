"""A model's forward over a whole image as a program: its operators in order, and for any part of the outputs what each of them needs.

`follow` (in `_reach_record`) writes one from stand-ins without memory; `_tile_run` computes just what a program says.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from sash.plans._reach_layout import Layout, Region, hull, length_of, sizes
from sash.plans._reach_rule import Call, Rule
from sash.plans._reach_whole import Whole
from sash.window import Interval


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the forward, over the whole image."""

    layout: Layout
    dtype: torch.dtype
    level: int
    """Passes over the image before it can be computed."""
    fixed: bool = False
    """Made without the image: from parameters and numbers alone."""
    static: int | None = None
    """Its number among the model's own tensors."""
    literal: Any = None
    """A tensor that the forward holds itself."""

    @property
    def bytes(self) -> int:
        """Of the whole."""
        return prod(sizes(self.layout)) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Node:
    """One operator."""

    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rule: Rule | None
    """None where no image axis is left in what it reads: it runs once, on whole tensors."""
    level: int
    """Passes that come before it."""
    copies: bool = False
    """It writes in place on what others read too: on a copy, then."""


@dataclass(frozen=True, eq=False)
class Program:
    """The forward over one size of image."""

    shape: tuple[int, ...]
    axes: int
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    spec: Any
    """How the outputs are packed: a tensor, a tuple, a dict."""
    image: int = 0

    @property
    def passes(self) -> int:
        """Passes over the image before the last, which makes the outputs."""
        return max((self.values[output].level for output in self.outputs), default=0)

    @property
    def wholes(self) -> tuple[Node, ...]:
        """Operators that see the whole image, and are needed."""
        needed = self.needed(self.outputs, everything=True)
        return tuple(node for node in self.nodes if isinstance(node.rule, Whole) and set(node.outputs) & needed)

    @property
    def main(self) -> int:
        """The output that is cut into tiles: the largest."""
        return max(self.outputs, key=lambda output: prod(sizes(self.values[output].layout)))

    def lengths(self, value: int) -> tuple[int, ...]:
        """Samples of a value along each axis; 1 along those that it does not have."""
        return tuple(length_of(self.values[value].layout, axis) or 1 for axis in range(self.axes))

    def needed(self, wanted: tuple[int, ...], everything: bool = False) -> set[int]:
        """Values that these are made of; a pass's own results are taken as they are, unless `everything` is asked for."""
        found, makers = set(wanted), {output: node for node in self.nodes for output in node.outputs}
        waiting = list(wanted)
        while waiting:
            node = makers.get(waiting.pop())
            if node is None or (not everything and (isinstance(node.rule, Whole) or node.rule is None)):
                continue
            for value in node.inputs:
                if value not in found:
                    found.add(value)
                    waiting.append(value)
        return found

    def reads(self, axis: int, wants: dict[int, Interval | None], used: list[Node]) -> list[Interval | None]:
        """The interval of every value along one axis that is needed for the wanted intervals of some."""
        found: list[Interval | None] = [None] * len(self.values)
        for value, want in wants.items():
            found[value] = want
        for node in reversed(used):
            assert node.rule is not None
            want = None
            for output in node.outputs:
                want = hull(want, found[output])
            for value, interval in zip(node.inputs, node.rule.reads(axis, want), strict=True):
                found[value] = hull(found[value], interval)
        return found

    def regions(self, wants: dict[int, Region], used: list[Node]) -> list[Region]:
        """The region of every value that is needed for the wanted regions of some."""
        along = [self.reads(axis, {value: region[axis] for value, region in wants.items()}, used) for axis in range(self.axes)]
        return [tuple(intervals) for intervals in zip(*along, strict=True)]

    def used(self, wanted: tuple[int, ...]) -> list[Node]:
        """The operators that run on every tile to make these values, in order."""
        needed = self.needed(wanted)
        return [node for node in self.nodes if node.rule is not None and not isinstance(node.rule, Whole) and set(node.outputs) & needed]
