"""Rules of operators that see the whole image and can be computed all the same, in a pass of their own: their sums grow tile by tile.

Global and adaptive pooling, sums and means over the image, group and instance normalisation. Sums are kept in float64.
"""

from __future__ import annotations

from abc import abstractmethod
from math import prod
from typing import Any

import torch
from torch import Tensor

from sash.plans._reach_layout import Factor, Region, axes_in, length_of, plain, sizes
from sash.plans._reach_points import reduction_over_channels
from sash.plans._reach_rule import RULES, Aligned, Call, Rule, dims_of
from sash.plans._reach_windows import AveragePool
from sash.window import Adaptive, Interval, Window


class Whole(Rule):
    """A result that is made of every tile: `start`, then `add` for each tile of the input, then `finish`."""

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        return tuple(None if (length := length_of(layout, axis)) is None else Interval(0, length) for layout in self.call.layouts)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        raise AssertionError("made in a pass of its own")

    @abstractmethod
    def start(self) -> list[Tensor]:
        """Sums over nothing."""

    @abstractmethod
    def add(self, sums: list[Tensor], x: Tensor, have: Region) -> None:
        """Put a tile's part in; tiles do not overlap."""

    @abstractmethod
    def finish(self, sums: list[Tensor]) -> tuple[Tensor, ...]:
        """The operator's outputs."""


class Reduction(Whole):
    """A sum, mean, maximum, minimum or variance over dimensions, image axes among them."""

    def __init__(self, call: Call, dims: list[int]) -> None:
        layout = call.layouts[0]
        self._dims = dims
        self._kept = [1 if dim in dims else length for dim, length in enumerate(sizes(layout))]
        keep = tuple((Factor(None, 1),) if dim in dims else factors for dim, factors in enumerate(layout))
        made = keep if len(call.shapes[0]) == len(layout) and call.get("keepdim") else tuple(f for d, f in enumerate(keep) if d not in dims)
        super().__init__(call, (made,) * len(call.shapes))

    def start(self) -> list[Tensor]:
        if self.call.name in ("amax", "amin"):
            return [torch.full(self._kept, float("-inf") if self.call.name == "amax" else float("inf"), dtype=self.call.dtype)]
        names = 3 if self.call.name in ("var", "std", "var_mean", "std_mean") else 1
        return [torch.zeros(self._kept, dtype=torch.float64) for _ in range(names)]

    def add(self, sums: list[Tensor], x: Tensor, have: Region) -> None:
        sums = [self._part(total, have) for total in sums]
        if self.call.name in ("amax", "amin"):
            better = torch.maximum if self.call.name == "amax" else torch.minimum
            sums[0].copy_(better(sums[0], getattr(torch, self.call.name)(x, self._dims, keepdim=True)))
        elif len(sums) == 1:
            if self.call.name == "linalg_vector_norm":
                x = x.square()
            sums[0].add_(x.sum(self._dims, keepdim=True))
        else:
            merge(sums, x, self._dims)

    def finish(self, sums: list[Tensor]) -> tuple[Tensor, ...]:
        dims, count = self._dims, prod(sizes(self.call.layouts[0])[dim] for dim in self._dims)
        name = self.call.name
        if name == "mean":
            found = [sums[0] / count]
        elif name == "linalg_vector_norm":
            found = [sums[0].sqrt()]
        elif len(sums) == 1:
            found = [sums[0]]
        else:
            correction = self.call.get("correction", 1 if self.call.get("unbiased", True) else 0)
            spread = sums[2] / (count - (1 if correction is None else correction))
            found = [spread.sqrt() if name.startswith("std") else spread, *([sums[1]] if name.endswith("_mean") else [])]
        if not self.call.get("keepdim"):
            found = [value.squeeze(dims) for value in found]
        return tuple(value.to(self.call.out_dtype) for value in found)

    def _part(self, total: Tensor, have: Region) -> Tensor:
        """Where a tile's part goes: along an axis that is not summed over, its own stretch."""
        for dim, factors in enumerate(self.call.layouts[0]):
            axes = axes_in(factors)
            if dim not in self._dims and axes:
                held = have[axes[0]]
                assert held is not None
                total = total.narrow(dim, held.start, held.length)
        return total


def merge(sums: list[Tensor], x: Tensor, dims: list[int]) -> None:
    """Count, mean and sum of squared deviations of two sets as one's.

    Source: T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    count, mean, squares = sums
    more = prod(x.shape[dim] for dim in dims)
    variance, centre = torch.var_mean(x, dims, correction=0, keepdim=True)
    away = centre.double() - mean
    total = count + more
    squares.add_(variance.double() * more).add_(away.square() * count * more / total)
    mean.add_(away * more / total)
    count.copy_(total)


class Statistics(Whole):
    """Mean and reciprocal deviation of every group of channels: what group and instance normalisation need of the whole image."""

    def __init__(self, call: Call, groups: int, eps: float) -> None:
        self._batch, self._channels = sizes(call.layouts[0])[:2]
        self.groups, self._eps = groups, eps
        super().__init__(call, (plain((2, self._batch, groups)),))

    def start(self) -> list[Tensor]:
        return [torch.zeros(self._batch, self.groups, dtype=torch.float64) for _ in range(3)]

    def add(self, sums: list[Tensor], x: Tensor, have: Region) -> None:
        parts = x.unflatten(1, (self.groups, self._channels // self.groups))
        dims = list(range(2, parts.dim()))
        merge([total.view(self._batch, self.groups, *[1] * len(dims)) for total in sums], parts, dims)

    def finish(self, sums: list[Tensor]) -> tuple[Tensor, ...]:
        count, mean, squares = sums
        return (torch.stack([mean, (squares / count + self._eps).rsqrt()]),)


class Normalised(Aligned):
    """Group or instance normalisation by statistics that are known: its last slot."""

    def __init__(self, call: Call, groups: int) -> None:
        super().__init__(call, (call.layouts[0],))
        self._groups = groups

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        x, (mean, scale) = tensors[0], tensors[-1]
        tensors[0] = x.new_empty(0)
        each = x.shape[1] // self._groups
        mean, scale = mean.repeat_interleave(each, 1), scale.repeat_interleave(each, 1)
        if self.call.named.get("weight") is not None:
            scale = scale * tensors[self.call.slot("weight")]
        shift = -mean * scale
        if self.call.named.get("bias") is not None:
            shift = shift + tensors[self.call.slot("bias")]
        shape = (*scale.shape, *[1] * (x.dim() - 2))
        # Below float64 the sum is made in float32 at least, as torch's own kernels do.
        return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


class Bins(Whole):
    """Adaptive pooling: every output the mean or maximum of its own share of the whole image."""

    def __init__(self, call: Call) -> None:
        layout, shape = call.layouts[0], call.shapes[0]
        self._spatial = int(call.name[-2])
        self._first = len(layout) - self._spatial
        self._links = [Adaptive(length) for length in shape[self._first :]]
        self._max = "max" in call.name
        super().__init__(call, (plain(shape),) * len(call.shapes))

    def start(self) -> list[Tensor]:
        fill, dtype = (float("-inf"), self.call.dtype) if self._max else (0.0, torch.float64)
        return [torch.full(self.call.shapes[0], fill, dtype=dtype)]

    def add(self, sums: list[Tensor], x: Tensor, have: Region) -> None:
        self._add(sums[0], x, have, 0)

    def _add(self, total: Tensor, x: Tensor, have: Region, place: int) -> None:
        if place == self._spatial:
            total.copy_(torch.maximum(total, x)) if self._max else total.add_(x)
            return
        dim, link, length = self._first + place, self._links[place], sizes(self.call.layouts[0])[self._first + place]
        axes = axes_in(self.call.layouts[0][dim])
        held = (have[axes[0]] if axes else None) or Interval(0, length)
        for output in range(*link.writes(held.start, held.stop, length)):
            bounds = link.reads(output, output + 1, length)
            start, stop = max(bounds.start, held.start), min(bounds.stop, held.stop)
            if start < stop:
                part = x.narrow(dim, start - held.start, stop - start)
                part = part.amax(dim, keepdim=True) if self._max else part.sum(dim, keepdim=True)
                self._add(total.narrow(dim, output, 1), part, have, place + 1)

    def finish(self, sums: list[Tensor]) -> tuple[Tensor, ...]:
        total = sums[0]
        for place, link in enumerate(self._links if not self._max else ()):
            length = sizes(self.call.layouts[0])[self._first + place]
            shares = [link.reads(output, output + 1, length).length for output in range(link.count)]
            total = total / torch.tensor(shares, dtype=torch.float64).view(-1, *[1] * (self._spatial - 1 - place))
        return (total.to(self.call.out_dtype),)


def statistics(call: Call) -> tuple[int, float]:
    """Groups and epsilon of a group or instance normalisation; raises `SeesAll` where the batch or the channels are image axes."""
    layout = call.layouts[0]
    if any(axes_in(factors) for factors in layout[:2]):
        raise call.refuse("normalises over an image axis that lies in its batch or channels.")
    groups = sizes(layout)[1] if call.name == "instance_norm" else call.get("num_groups")
    return groups, call.get("eps", 1e-5)


@RULES.add("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm")
def _reduce(call: Call) -> Rule:
    layout = call.layouts[0]
    dims = dims_of(call, "dim", len(layout))
    if not any(axes_in(layout[dim]) for dim in dims):
        return reduction_over_channels(call, dims)
    if call.name == "linalg_vector_norm" and call.get("ord", 2) != 2:
        raise call.refuse(f"takes a norm of order {call.get('ord')} over the whole image.")
    return Reduction(call, dims)


@RULES.add(*(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), *(f"_adaptive_avg_pool{n}d" for n in (2, 3)))
def _adaptive(call: Call) -> Rule:
    layout, shape = call.layouts[0], call.shapes[0]
    count = int(call.name[-2])
    lengths = sizes(layout)[-count:]
    if any(len(factors) > 1 for factors in layout) or any(axes_in(factors) for factors in layout[:-count]):
        raise call.refuse("pools a tensor whose last dimensions are not the image's axes.")
    parts = [length // out for length, out in zip(lengths, shape[-count:], strict=True)]
    even = all(length == out * part for length, out, part in zip(lengths, shape[-count:], parts, strict=True))
    if even and "avg" in call.name and max(parts) <= _LOCAL and min(shape[-count:]) > 1:
        # Even shares are windows that slide.
        made = tuple((Factor(axes_in(f)[0] if axes_in(f) else None, shape[d]),) for d, f in enumerate(layout))
        return _EvenPool(call, (made,), tuple(Window(part, part) for part in parts))
    return Bins(call)


_LOCAL = 16
"""Adaptive pooling that shrinks evenly and by no more than this is followed as windows; else it takes a pass of its own."""


class _EvenPool(AveragePool):
    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        counts = [wanted.length for _, wanted in self.spans(have[0], want)]
        return self.call.invoke(tensors, output_size=counts)
