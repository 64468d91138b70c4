"""Filters of a block of numbers with all that lies around it, in torch: the same on every device.

A block has lanes before its filtered axes. Along one axis a filter is shifts of the whole block, each times a tap, added up: plain
operators, whose memory is known to the byte, where a convolution of torch's would take what its library likes, and on a GPU perhaps round
to ten bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sash.arrays._device import moved
from sash.arrays._gaussian import Direct, Multirate
from sash.arrays._stage import Coarse
from sash.window import Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOGETHER = 16
"""Taps that are added up before their sum is added to the others': so that rounding does not grow with all of them."""
SHIFT_S, STRIDED_S, ASKED_S = 1.2e-10, 8e-10, 4e-6
"""Of one thread: a number of fp32 shifted, multiplied and added; one that lies apart from its neighbours; a call of torch's. Measured on
one machine: what ways are weighed by, not a forecast of seconds."""


class Filter(Protocol):
    """Outputs of a block from the samples that they rest on."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Outputs along each filtered axis, in all."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the sums."""
        ...

    def fitted(self, sides: tuple[int, ...], device: torch.device) -> Filter:
        """The same for blocks of at most so many outputs an axis, on a device."""
        ...

    def reads(self, parts: tuple[Interval, ...]) -> tuple[Interval, ...]:
        """Samples that outputs rest on; may reach beyond the ends."""
        ...

    def run(self, near: Tensor, parts: tuple[Interval, ...]) -> Tensor:
        """The outputs, (lane, *parts), of samples (lane, *reads); these stay as they are."""
        ...

    def run_bytes(self, lanes: int, sides: tuple[int, ...]) -> int:
        """Bytes on the device while a block runs, samples and outputs among them."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes on the device that all blocks share."""
        ...

    def seconds(self, lanes: int, sides: tuple[int, ...]) -> float:
        """About what a block takes, to weigh ways by."""
        ...

    def prepare(self, device: torch.device) -> None:
        """Make on the device what all blocks share."""
        ...


@dataclass(frozen=True, eq=False)
class Rated:
    """A Gaussian's filter along each axis: taps at every sample, or splines down to a lower rate, taps there, and splines up."""

    axes: tuple[Coarse, ...]
    dtype: np.dtype
    held_bytes = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    def fitted(self, sides: tuple[int, ...], device: torch.device) -> Rated:
        return self

    def prepare(self, device: torch.device) -> None:
        """There is nothing."""

    def reads(self, parts: tuple[Interval, ...]) -> tuple[Interval, ...]:
        return tuple(axis.fine(axis.coarse(part)) for axis, part in zip(self.axes, parts, strict=True))

    def run(self, near: Tensor, parts: tuple[Interval, ...]) -> Tensor:
        found = near
        # Down along all axes first, and up last: what lies between is small.
        for place, (axis, part) in enumerate(zip(self.axes, parts, strict=True)):
            if axis.step > 1:
                found = _down(found, place + 1, axis, axis.coarse(part).length)
        for place, axis in enumerate(self.axes):
            if axis.taps.size > 1 or axis.taps[0] != 1:
                found = correlated(found, axis.taps, place + 1)
        for place, (axis, part) in reversed(list(enumerate(zip(self.axes, parts, strict=True)))):
            if axis.step > 1:
                found = _up(found, place + 1, axis, part)
        return found.clone() if found is near else found

    def _walk(self, lanes: int, sides: tuple[int, ...]) -> list[tuple[int, int, float]]:
        """Numbers before and after each operation, and its seconds."""
        now = [near.length for near in self.reads(tuple(Interval(0, side) for side in sides))]
        found = []

        def turned(place: int, after: int, each: float) -> None:
            before, now[place] = lanes * prod(now), after
            found.append((before, lanes * prod(now), lanes * prod(now) * each))

        for place, axis in enumerate(self.axes):
            if axis.step > 1:
                turned(place, axis.coarse(Interval(0, sides[place])).length + 1, len(axis.down) * STRIDED_S)
        for place, axis in enumerate(self.axes):
            turned(place, now[place] - len(axis.taps) + 1, len(axis.taps) * SHIFT_S + ASKED_S * len(axis.taps) / max(lanes * prod(now), 1))
        for place, axis in reversed(list(enumerate(self.axes))):
            if axis.step > 1:
                turned(place, (ceil(sides[place] / axis.step) + 1) * axis.step, 1.5 * axis.up.shape[1] * SHIFT_S)
        return found

    def run_bytes(self, lanes: int, sides: tuple[int, ...]) -> int:
        near = lanes * prod(one.length for one in self.reads(tuple(Interval(0, side) for side in sides)))
        # A sum of some taps beside the sum of all, and zeros that a spline's taps are filled up with.
        return (near + max((before + 2 * after for before, after, _ in self._walk(lanes, sides)), default=0)) * self.dtype.itemsize

    def seconds(self, lanes: int, sides: tuple[int, ...]) -> float:
        return sum(seconds for _, _, seconds in self._walk(lanes, sides)) * self.dtype.itemsize / 4


@dataclass(frozen=True, eq=False)
class Products:
    """A sum of outer products: each is taps along every axis, in the order that they meet samples in."""

    sizes: tuple[int, ...]
    dtype: np.dtype
    before: tuple[int, ...]
    """Samples of input before an output's own at which its first tap lies."""
    terms: tuple[tuple[np.ndarray, ...], ...]
    held_bytes = 0

    def fitted(self, sides: tuple[int, ...], device: torch.device) -> Products:
        return self

    def prepare(self, device: torch.device) -> None:
        """There is nothing."""

    def reads(self, parts: tuple[Interval, ...]) -> tuple[Interval, ...]:
        sides = zip(parts, self.before, self.terms[0], strict=True)
        return tuple(Interval(part.start - before, part.stop - before + len(taps) - 1) for part, before, taps in sides)

    def run(self, near: Tensor, parts: tuple[Interval, ...]) -> Tensor:
        total: Tensor | None = None
        for term in self.terms:
            found = near
            for place, taps in enumerate(term):
                found = correlated(found, taps, place + 1)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total

    def _walk(self, lanes: int, sides: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """Numbers before and after each axis of a term, and its taps."""
        taps = [len(one) for one in self.terms[0]]
        now, found = [side + count - 1 for side, count in zip(sides, taps, strict=True)], []
        for place, count in enumerate(taps):
            before, now[place] = lanes * prod(now), sides[place]
            found.append((before, lanes * prod(now), count))
        return found

    def run_bytes(self, lanes: int, sides: tuple[int, ...]) -> int:
        walk = self._walk(lanes, sides)
        near, made = walk[0][0], lanes * prod(sides)
        # The first axis's input is `near` itself.
        most = max((before if place else 0) + 2 * after for place, (before, after, _) in enumerate(walk))
        return (near + most + (len(self.terms) > 1) * made) * self.dtype.itemsize

    def seconds(self, lanes: int, sides: tuple[int, ...]) -> float:
        own = sum((after * SHIFT_S * self.dtype.itemsize / 4 + ASKED_S) * count for _, after, count in self._walk(lanes, sides))
        return len(self.terms) * own


@dataclass(frozen=True, eq=False)
class Taps:
    """Every tap of a kernel by itself; `kernel` is in the order that its taps meet samples in."""

    sizes: tuple[int, ...]
    dtype: np.dtype
    before: tuple[int, ...]
    kernel: np.ndarray
    held_bytes = 0

    def fitted(self, sides: tuple[int, ...], device: torch.device) -> Taps:
        return self

    def prepare(self, device: torch.device) -> None:
        """There is nothing."""

    def reads(self, parts: tuple[Interval, ...]) -> tuple[Interval, ...]:
        sides = zip(parts, self.before, self.kernel.shape, strict=True)
        return tuple(Interval(part.start - before, part.stop - before + taps - 1) for part, before, taps in sides)

    def run(self, near: Tensor, parts: tuple[Interval, ...]) -> Tensor:
        def shifted(place: tuple[int, ...]) -> Tensor:
            return near[(slice(None), *(slice(first, first + part.length) for first, part in zip(place, parts, strict=True)))]

        return summed(((shifted(place), float(self.kernel[place])) for place in product(*map(range, self.kernel.shape))), self.kernel.size)

    def run_bytes(self, lanes: int, sides: tuple[int, ...]) -> int:
        near = lanes * prod(side + taps - 1 for side, taps in zip(sides, self.kernel.shape, strict=True))
        return (near + 2 * lanes * prod(sides)) * self.dtype.itemsize

    def seconds(self, lanes: int, sides: tuple[int, ...]) -> float:
        return (1.2 * lanes * prod(sides) * SHIFT_S * self.dtype.itemsize / 4 + ASKED_S) * self.kernel.size


def torch_axis_seconds(found: Direct | Multirate) -> float:
    """About what one axis of a separable filter adds to a sample: to compare filters of one axis."""
    if isinstance(found, Direct):
        return len(found.weights) * SHIFT_S
    return (len(found.down) * STRIDED_S + len(found.coarse) * SHIFT_S) / found.step + 1.5 * found.up.shape[1] * SHIFT_S


def correlated(near: Tensor, taps: np.ndarray, axis: int) -> Tensor:
    """out[x] is the sum over k of taps[k]·near[x + k] along an axis."""
    count = near.shape[axis] - len(taps) + 1
    return summed(((near.narrow(axis, place, count), float(tap)) for place, tap in enumerate(taps)), len(taps))


def summed(products: Any, count: int) -> Tensor:
    """The sum of so many tensors, each times a number, some at a time."""
    import torch

    total: Tensor | None = None
    some: Tensor | None = None
    for place, (numbers, tap) in enumerate(products):
        if place % TOGETHER == 0:
            if some is not None and total is None:
                total, some = some, None
            elif some is not None and total is not None:
                total.add_(some)
            some = numbers * tap if some is None else torch.mul(numbers, tap, out=some)
        else:
            assert some is not None
            some.add_(numbers, alpha=tap)
    assert some is not None
    return some if total is None else total.add_(some)


def _down(near: Tensor, axis: int, rate: Coarse, count: int) -> Tensor:
    """Coarse samples: each the sum of the fine ones around it under a spline."""
    whole = (count - 1) * rate.step + 1
    shifts = ((near.narrow(axis, place, whole)[_every(axis, rate.step)], float(tap)) for place, tap in enumerate(rate.down))
    return summed(shifts, len(rate.down))


def _every(axis: int, step: int) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), slice(None, None, step))


def _up(coarse: Tensor, axis: int, rate: Coarse, part: Interval) -> Tensor:
    """Outputs from coarse samples: all phases of one at once."""
    import torch

    count = (part.stop - 1) // rate.step - part.start // rate.step + 1
    taps = moved(np.ascontiguousarray(rate.up.T.astype(np.float32 if coarse.element_size() == 4 else np.float64)), coarse.device)
    after = [1] * (coarse.ndim - axis - 1)
    made: Tensor | None = None
    for place in range(len(taps)):
        some, weights = coarse.narrow(axis, place, count).unsqueeze(axis + 1), taps[place].reshape(-1, *after)
        made = some * weights if made is None else torch.addcmul(made, some, weights, out=made)
    assert made is not None
    return made.flatten(axis, axis + 1).narrow(axis, part.start % rate.step, part.length)
