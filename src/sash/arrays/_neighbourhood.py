"""Samples around a part of an array, as a tensor on a device: what lies beyond the ends is there by a border's rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

    at = [places(part, length, boundary) for part, length in zip(reads, source.shape, strict=True)]
    wanted = [np.unique(own[own >= 0]) for own in at]
    if not all(len(own) for own in wanted):
        return torch.full([reads[axis].length for axis in order], fill, dtype=kind, device=device)
    table = _samples(source, [_runs(own) for own in wanted], room, device).permute(list(order))
    return _around(table, [_Axis.of(at[axis], wanted[axis]) for axis in order], kind, fill)


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


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where along an axis of a table each place of a neighbourhood lies, and the longest run of places that lie there in order."""

    at: np.ndarray
    """-1 for the fill value."""
    run: Interval

    @classmethod
    def of(cls, at: np.ndarray, wanted: np.ndarray) -> _Axis:
        """`wanted` are the samples of the table, `at` those of the neighbourhood."""
        found = np.where(at < 0, -1, np.searchsorted(wanted, at))
        # A fill value is followed by no sample, not even by the first.
        cuts = [0, *(np.flatnonzero(np.diff(np.where(at < 0, -3, found)) != 1) + 1).tolist(), len(found)]
        runs = [Interval(first, stop) for first, stop in pairwise(cuts) if found[first] >= 0]
        return cls(found, max(runs, key=lambda run: run.length))

    def sides(self) -> Iterator[tuple[Interval, np.ndarray]]:
        """Places before and after the run, and where they lie in the table; those of the fill value anywhere."""
        for side in (Interval(0, self.run.start), Interval(self.run.stop, len(self.at))):
            own = self.at[side.start : side.stop]
            if (own >= 0).any():
                yield side, np.where(own < 0, own[own >= 0][0], own)


def _around(table: Tensor, axes: list[_Axis], kind: torch.dtype, fill: float) -> Tensor:
    """A neighbourhood from a table of its samples: most of it in one copy, and what repeats beside it axis by axis."""
    import torch

    if all(axis.run.length == len(axis.at) for axis in axes):
        return table.to(kind)
    near = torch.empty([len(axis.at) for axis in axes], dtype=kind, device=table.device)
    cores = [(place, axis.run, int(axis.at[axis.run.start])) for place, axis in enumerate(axes)]

    def core(found: Tensor, inside: Tensor, places: Sequence[tuple[int, Interval, int]]) -> tuple[Tensor, Tensor]:
        for place, run, first in places:
            found, inside = found.narrow(place, run.start, run.length), inside.narrow(place, first, run.length)
        return found, inside

    found, inside = core(near, table, cores)
    found.copy_(inside)
    for place, axis in enumerate(axes):
        for side, own in axis.sides():
            low = int(own.min())
            found, inside = core(near, table, cores[place + 1 :])
            strip = inside.narrow(place, low, int(own.max()) + 1 - low).to(kind).index_select(place, moved(own - low, table.device))
            for before, other in enumerate(axes[:place]):
                if other.run.length < len(other.at):
                    strip = strip.index_select(before, moved(other.at.clip(0), table.device))
            found.narrow(place, side.start, side.length).copy_(strip)
    for place, axis in enumerate(axes):
        for run in _runs(np.flatnonzero(axis.at < 0)) if (axis.at < 0).any() else []:
            near.narrow(place, run.start, run.length).fill_(fill)
    return near


def _runs(wanted: np.ndarray) -> list[Interval]:
    """Places one after the other, as intervals."""
    cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
    return [Interval(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, cuts)]
