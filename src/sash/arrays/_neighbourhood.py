"""Samples around a part of an array, as a tensor on a device: what lies beyond the ends is there by a border's rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from sash.arrays._border import Boundary, places
from sash.arrays._device import moved
from sash.arrays._room import Room
from sash.arrays._store import Source
from sash.arrays._store_tensor import TensorSource
from sash.window import Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def neighbourhood(
    source: Source,
    reads: Sequence[Interval],
    order: Sequence[int],
    boundary: Boundary,
    fill: float,
    kind: torch.dtype,
    room: Room,
    device: torch.device,
) -> Tensor:
    """Samples of a box that may reach beyond the ends, in a type; its axes in an order. They may be the source's own memory."""
    import torch

    axes = [_Axis.of(part, length, boundary) for part, length in zip(reads, source.shape, strict=True)]
    if not all(axis.runs for axis in axes):
        return torch.full([reads[axis].length for axis in order], fill, dtype=kind, device=device)
    table = _samples(source, [axis.runs for axis in axes], room, device).permute(list(order))
    return _around(table, [axes[axis] for axis in order], kind, fill)


@dataclass(frozen=True, eq=False)
class _Axis:
    """A part of an axis that may reach beyond its ends."""

    inside: Interval
    """Samples at their own places."""
    before: np.ndarray
    """Which sample stands at each place before those; -1 for the fill value."""
    after: np.ndarray

    @classmethod
    def of(cls, part: Interval, length: int, boundary: Boundary) -> _Axis:
        """Places are looked up beyond the ends alone: an axis may be long."""
        inside = Interval(min(max(part.start, 0), length), max(min(part.stop, length), 0))
        if inside.stop <= inside.start:
            return cls(Interval(0, 0), places(part, length, boundary), np.zeros(0, np.int64))
        before, after = Interval(part.start, inside.start), Interval(inside.stop, part.stop)
        return cls(inside, places(before, length, boundary), places(after, length, boundary))

    @property
    def count(self) -> int:
        """Places."""
        return len(self.before) + self.inside.length + len(self.after)

    @cached_property
    def runs(self) -> list[Interval]:
        """Samples that are needed, rising, together where they lie together."""
        beside = np.unique(np.concatenate([self.before, self.after]))
        beside = beside[(beside >= 0) & ((beside < self.inside.start) | (beside >= self.inside.stop))]
        cuts = np.flatnonzero(np.diff(beside) != 1) + 1
        found = [Interval(int(run[0]), int(run[-1]) + 1) for run in np.split(beside, cuts) if len(run)]
        found = sorted([*found, self.inside] if self.inside.length else found)
        merged = found[:1]
        for run in found[1:]:
            if run.start == merged[-1].stop:
                merged[-1] = Interval(merged[-1].start, run.stop)
            else:
                merged.append(run)
        return merged

    def at(self, samples: np.ndarray) -> np.ndarray:
        """Where samples lie in a table of all that are needed."""
        starts = np.array([run.start for run in self.runs])
        offsets = np.cumsum([0, *(run.length for run in self.runs)])
        own = np.searchsorted(starts, samples, "right") - 1
        return offsets[own] + samples - starts[own]

    @property
    def core(self) -> tuple[int, int, int]:
        """Where the samples at their own places begin, in the part and in the table, and how many they are."""
        first = int(self.at(np.array([self.inside.start]))[0]) if self.inside.length else 0
        return len(self.before), first, self.inside.length

    def sides(self) -> Iterator[tuple[int, np.ndarray]]:
        """Where what lies beyond an end begins in the part, and which samples stand there; that of the fill value is any."""
        for first, own in ((0, self.before), (len(self.before) + self.inside.length, self.after)):
            if (own >= 0).any():
                yield first, self.at(np.where(own < 0, own[own >= 0][0], own))

    def all(self) -> np.ndarray:
        """Where each place lies in the table; those of the fill value anywhere."""
        samples = np.concatenate([self.before, np.arange(*self.inside), self.after])
        return self.at(np.where(samples < 0, self.runs[0].start, samples))

    def filled(self) -> Iterator[Interval]:
        """Places of the fill value."""
        for first, own in ((0, self.before), (len(self.before) + self.inside.length, self.after)):
            # Under the constant border all of a side is filled, or none.
            if len(own) and own[0] < 0:
                yield Interval(first, first + len(own))


def _samples(source: Source, runs: list[list[Interval]], room: Room, device: torch.device) -> Tensor:
    """Samples where runs of all axes cross, on the device."""
    import torch

    if isinstance(source, TensorSource):
        found = source.tensor
        for axis, own in enumerate(runs):
            pieces = [found.narrow(axis, run.start, run.length) for run in own]
            found = pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
        return found.to(device)
    ends = [np.cumsum([0, *(run.length for run in own)]).tolist() for own in runs]
    read = room.array("read", tuple(end[-1] for end in ends), source.dtype)
    for box in product(*(list(zip(own, pairwise(end), strict=True)) for own, end in zip(runs, ends, strict=True))):
        source.read(tuple(run for run, _ in box), read[tuple(slice(*place) for _, place in box)])
    return moved(read, device)


def _around(table: Tensor, axes: list[_Axis], kind: torch.dtype, fill: float) -> Tensor:
    """A neighbourhood from a table of its samples: most of it in one copy, and what repeats beside it axis by axis."""
    import torch

    if all(axis.inside.length == axis.count for axis in axes):
        return table.to(kind)
    near = torch.empty([axis.count for axis in axes], dtype=kind, device=table.device)

    def core(found: Tensor, inside: Tensor, first: int) -> tuple[Tensor, Tensor]:
        for place, axis in enumerate(axes[first:], first):
            start, lies, count = axis.core
            found, inside = found.narrow(place, start, count), inside.narrow(place, lies, count)
        return found, inside

    found, inside = core(near, table, 0)
    found.copy_(inside)
    for place, axis in enumerate(axes):
        for first, own in axis.sides():
            low = int(own.min())
            found, inside = core(near, table, place + 1)
            strip = inside.narrow(place, low, int(own.max()) + 1 - low).to(kind).index_select(place, moved(own - low, table.device))
            for before, other in enumerate(axes[:place]):
                if other.inside.length < other.count:
                    strip = strip.index_select(before, moved(other.all(), table.device))
            found.narrow(place, first, len(own)).copy_(strip)
    for place, axis in enumerate(axes):
        for run in axis.filled():
            near.narrow(place, run.start, run.length).fill_(fill)
    return near
