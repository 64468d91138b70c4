"""Where an image's axes lie in a tensor: which dimension holds the rows, which the columns, and what merging and splitting does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from sash.window import Interval

Region = tuple[Interval | None, ...]
"""One interval an image axis, in samples of the value it is about; None where the value does not have the axis."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A part of a dimension: its samples lie along an axis of the image, or along none."""

    axis: int | None
    length: int


Layout = tuple[tuple[Factor, ...], ...]
"""The factors of every dimension, outermost first. A flattened `(batch, height · width, channels)` has two in its second."""


def plain(shape: Sequence[int]) -> Layout:
    """The layout of a tensor in which no dimension is an image axis."""
    return tuple((Factor(None, length),) for length in shape)


def image_layout(shape: Sequence[int]) -> Layout:
    """The layout of a batch of images: every dimension from the third on is an axis."""
    return tuple((Factor(dim - 2 if dim >= 2 else None, length),) for dim, length in enumerate(shape))


def axes_in(factors: Sequence[Factor]) -> list[int]:
    """The image axes in a dimension."""
    return [factor.axis for factor in factors if factor.axis is not None]


def marked(layout: Layout) -> bool:
    """Some dimension is an image axis."""
    return any(axes_in(factors) for factors in layout)


def length_of(layout: Layout, axis: int) -> int | None:
    """Samples along an axis; None where the value does not have it."""
    return next((factor.length for factors in layout for factor in factors if factor.axis == axis), None)


def place_of(layout: Layout, axis: int) -> int | None:
    """The dimension that holds an axis; None where there is none."""
    return next((dim for dim, factors in enumerate(layout) if axis in axes_in(factors)), None)


def whole(layout: Layout, axes: int) -> Region:
    """The region that is the whole value."""
    lengths = [length_of(layout, axis) for axis in range(axes)]
    return tuple(None if length is None else Interval(0, length) for length in lengths)


def hull(first: Interval | None, second: Interval | None) -> Interval | None:
    """The least interval that holds both."""
    if first is None or second is None:
        return first if second is None else second
    return Interval(min(first.start, second.start), max(first.stop, second.stop))


def local(layout: Layout, region: Region) -> Layout:
    """The layout of the part of a value that lies in a region."""

    def cut(factor: Factor) -> Factor:
        found = region[factor.axis] if factor.axis is not None else None
        return factor if found is None else replace(factor, length=found.length)

    return tuple(tuple(map(cut, factors)) for factors in layout)


def sizes(layout: Layout) -> list[int]:
    """The shape."""
    return [prod(factor.length for factor in factors) for factors in layout]


def crop(tensor: Tensor, layout: Layout, have: Region, want: Region) -> Tensor:
    """The part of `tensor`, which lies over `have`, that lies over `want`: a view, except where axes are merged in one dimension."""
    for axis, (held, wanted) in enumerate(zip(have, want, strict=True)):
        dim = place_of(layout, axis)
        if dim is None or held is None or wanted is None or held == wanted:
            continue
        factors = local(layout, have)[dim]
        if len(factors) == 1:
            tensor = tensor.narrow(dim, wanted.start - held.start, wanted.length)
        else:
            inner = next(index for index, factor in enumerate(factors) if factor.axis == axis)
            parts = tensor.unflatten(dim, [factor.length for factor in factors])
            parts = parts.narrow(dim + inner, wanted.start - held.start, wanted.length)
            tensor = parts.flatten(dim, dim + len(factors) - 1)
        have = (*have[:axis], wanted, *have[axis + 1 :])
    return tensor


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a reshape; None where an axis would be torn apart.

    A dimension may be split with its axis as the outer part (`height` → `height/4, 4`, an axis four times shorter), and an axis may take
    up what lies inside it (`height, 4` → `4·height`).
    """
    rest = [factor for factors in layout for factor in factors if factor.length != 1 or factor.axis is not None]
    if prod(factor.length for factor in rest) != prod(shape) or prod(shape) == 0:
        return None
    found: list[tuple[Factor, ...]] = []
    for wanted in shape:
        taken: list[Factor] = []
        room = wanted
        while room > 1 and rest:
            first = rest.pop(0)
            if room % first.length == 0:
                taken.append(first)
                room //= first.length
            elif first.length % room == 0:
                taken.append(replace(first, length=room))
                rest.insert(0, Factor(None, first.length // room))
                room = 1
            else:
                return None
        if room != 1:
            return None
        while not taken and rest and rest[0].length == 1:
            taken.append(rest.pop(0))  # an axis of one sample keeps its mark
        found.append(_merged(taken) or (Factor(None, wanted),))
    if any(factor.length != 1 for factor in rest):
        return None
    return tuple(found)


def _merged(factors: list[Factor]) -> tuple[Factor, ...]:
    """Factors side by side as one: none with none, and what lies inside an axis into the axis."""
    found: list[Factor] = []
    for factor in factors:
        if found and factor.axis is None:
            found[-1] = replace(found[-1], length=found[-1].length * factor.length)
        elif factor.length == 1 and factor.axis is None:
            continue
        else:
            found.append(factor)
    return tuple(found)
