"""How far one operator sees: what every rule answers, and the rules of operators that see no farther than their own position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sash.errors import InputError
from sash.plans._reach_layout import Factor, Layout, Region, axes_in, crop, length_of, local, place_of, sizes
from sash.window import Interval


class SeesAll(InputError):  # noqa: N818 (a finding, told as an error where it stops the run)
    """An operator needs more than a tile and its halo."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor among an operator's arguments."""

    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """One operator of a model's forward, as it ran over the whole image."""

    func: Any
    named: dict[str, Any]
    """Arguments by their names in the operator's schema; tensors are slots."""
    layouts: tuple[Layout, ...]
    """Of every slot's tensor."""
    shapes: tuple[tuple[int, ...], ...]
    """Of every output."""
    path: str
    """The module at work."""
    dtype: torch.dtype
    """Of the first slot's tensor."""
    out_dtype: torch.dtype
    """Of the first output."""

    @property
    def name(self) -> str:
        """The operator's own name, without its overload."""
        return self.func.overloadpacket.__name__

    @property
    def where(self) -> str:
        """The layer and the operator, as a sentence starts."""
        return f"{self.path or 'the model itself'} ({self.name})"

    def layout(self, name: str) -> Layout:
        """Of the tensor that is passed as `name`."""
        return self.layouts[self.slot(name)]

    def slot(self, name: str) -> int:
        """Number of the tensor that is passed as `name`."""
        return self.named[name].number

    def get(self, name: str, default: Any = None) -> Any:
        """A plain argument."""
        return self.named.get(name, default)

    def invoke(self, tensors: list[Tensor], func: Any = None, **changes: Any) -> Any:
        """What the operator makes of these tensors, with some arguments changed."""
        func = func or self.func
        named = {**self.named, **changes}
        positional, keyword = [], {}
        for argument in func._schema.arguments:
            if argument.name not in named:
                if not argument.kwarg_only:
                    # One in the middle may be left out, and those after it are not known by name to every overload.
                    positional.append(argument.default_value)
                continue
            value = pytree.tree_map(lambda leaf: tensors[leaf.number] if isinstance(leaf, Slot) else leaf, named[argument.name])
            if argument.kwarg_only:
                keyword[argument.name] = value
            else:
                positional.append(value)
        return func(*positional, **keyword)

    def refuse(self, why: str) -> SeesAll:
        """The refusal of this operator."""
        return SeesAll(f"{self.where} {why}")


class Rule(ABC):
    """What an operator reads for a stretch of its outputs, and how it runs on that alone."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...]) -> None:
        self.call = call
        self.layouts = layouts
        """Of the outputs; they all lie over the same region."""

    @abstractmethod
    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        """Samples of every slot's tensor that the outputs in `want` need, along one axis."""

    @abstractmethod
    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        """The outputs over `want`, from tensors that lie over `have`; what is no longer needed of `tensors` may be dropped from it."""

    def macs(self) -> int:
        """Multiply–accumulates over the whole image."""
        return 0


class Aligned(Rule):
    """Every output sample needs the same sample of the inputs; an input of one sample along an axis is shared by all outputs."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], cuts: bool = False) -> None:
        super().__init__(call, layouts)
        self._cuts = [self._fixed(layout) if cuts else [] for layout in call.layouts]
        """Of every slot: dimensions in which a tensor that has no image axes is as long as one, as position embeddings are."""

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        out = length_of(self.layouts[0], axis)
        found: list[Interval | None] = []
        for layout in self.call.layouts:
            length = length_of(layout, axis)
            if length is None:
                found.append(None)
            else:
                found.append(want if length == out and want is not None else Interval(0, length))
        return tuple(found)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        for number, cuts in enumerate(self._cuts):
            for dim, axis in cuts:
                part = want[axis]
                assert part is not None
                tensors[number] = tensors[number].narrow(dim, part.start, part.length)
        return self.call.invoke(tensors)

    def _fixed(self, layout: Layout) -> list[tuple[int, int]]:
        found = []
        out = self.layouts[0]
        for dim, factors in enumerate(layout):
            above = out[dim + len(out) - len(layout)]
            axes = axes_in(above)
            length = sizes(layout)[dim]
            if not axes or axes_in(factors) or length == 1:
                continue
            if len(above) > 1:
                raise self.call.refuse("joins a tensor of a fixed size to merged axes; unflatten them before.")
            found.append((dim, axes[0]))
        return found


class Sized(Aligned):
    """An aligned operator that is told its output's size: a tile's own takes its place."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], argument: str) -> None:
        super().__init__(call, layouts)
        self._argument = argument

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        return self.call.invoke(tensors, **{self._argument: sizes(local(self.layouts[0], want))})


class Reshaped(Rule):
    """A reshape that keeps every axis outermost in what it is merged with."""

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        before, after = length_of(self.call.layouts[0], axis), length_of(self.layouts[0], axis)
        if before is None:
            return (None,)
        if want is None or after is None:
            return (Interval(0, before),)
        if before % after == 0:
            return (Interval(want.start * (before // after), want.stop * (before // after)),)
        ratio = after // before
        return (Interval(want.start // ratio, -(-want.stop // ratio)),)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        covers = list(want)
        for axis, held in enumerate(have[0]):
            before, after = length_of(self.call.layouts[0], axis), length_of(self.layouts[0], axis)
            if held is not None and before is not None and after is not None:
                covers[axis] = Interval(held.start * after // before, held.stop * after // before)
        made = tensors[0].reshape(sizes(local(self.layouts[0], tuple(covers))))
        return crop(made, self.layouts[0], tuple(covers), want)


class Sliced(Rule):
    """Every `step`-th sample from `start` on, along one dimension."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], axis: int, start: int, step: int) -> None:
        super().__init__(call, layouts)
        self._axis, self._start, self._step = axis, start, step

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        if axis != self._axis or want is None:
            return (want,)
        first = self._start + want.start * self._step
        return (Interval(first, first + (want.length - 1) * self._step + 1),)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        return self.call.invoke(tensors, start=0, end=tensors[0].shape[self.call.get("dim", 0)], step=self._step)


class Joined(Rule):
    """Inputs one after the other along an image axis."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], axis: int, dim: int) -> None:
        super().__init__(call, layouts)
        self._axis, self._dim = axis, dim
        lengths = [length_of(layout, axis) or sizes(layout)[dim] for layout in call.layouts]
        self._starts = [sum(lengths[:number]) for number in range(len(lengths))]
        self._lengths = lengths

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        if axis != self._axis or want is None:
            return tuple(want if length_of(layout, axis) is not None else None for layout in self.call.layouts)
        found: list[Interval | None] = []
        for layout, start, length in zip(self.call.layouts, self._starts, self._lengths, strict=True):
            part = Interval(want.start - start, want.stop - start).clip(length)
            # One sample at least: an empty tensor would have no neighbour to be computed from.
            part = part if part.length else Interval(min(part.start, length - 1), min(part.start, length - 1) + 1)
            found.append(part if length_of(layout, axis) is not None else None)
        return tuple(found)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        wanted = want[self._axis]
        assert wanted is not None
        parts = []
        for tensor, start, length, held in zip(tensors, self._starts, self._lengths, have, strict=True):
            part = Interval(wanted.start - start, wanted.stop - start).clip(length)
            if part.length:
                known = held[self._axis] or Interval(0, length)
                parts.append(tensor.narrow(self._dim, part.start - known.start, part.length))
        return torch.cat(parts, self._dim)


def broadcast(call: Call) -> Layout:
    """The layout of a pointwise operator's output; raises `SeesAll` where its inputs' axes do not lie on each other."""
    shape = call.shapes[0]
    found: list[tuple[Factor, ...]] = []
    for dim in range(len(shape)):
        candidates = []
        for layout in call.layouts:
            place = dim - len(shape) + len(layout)
            if place >= 0 and axes_in(layout[place]):
                candidates.append(layout[place])
        longest = [factors for factors in candidates if sizes((factors,))[0] == shape[dim]] or candidates
        if not longest:
            found.append((Factor(None, shape[dim]),))
            continue
        if any(factors != longest[0] for factors in longest) or any(axes_in(factors) != axes_in(longest[0]) for factors in candidates):
            raise call.refuse("joins two tensors whose image axes lie crosswise: every position meets every other.")
        factors = longest[0]
        if sizes((factors,))[0] != shape[dim]:
            # An axis of one sample, stretched by a tensor that has none.
            factors = (Factor(axes_in(factors)[0], shape[dim]),)
        found.append(factors)
    made = tuple(found)
    for axis in {axis for layout in call.layouts for factors in layout for axis in axes_in(factors)}:
        places = {place - len(layout) for layout in call.layouts if (place := place_of(layout, axis)) is not None}
        if len(places) > 1:
            raise call.refuse("joins two tensors whose image axes lie crosswise: every position meets every other.")
    return made


@dataclass
class Registry:
    """Which rule an operator gets."""

    builders: dict[str, Callable[[Call], Rule]] = field(default_factory=dict)

    def add(self, *names: str) -> Callable[[Callable[[Call], Rule]], Callable[[Call], Rule]]:
        """Register a function that makes the rule of the operators of these names."""

        def register(builder: Callable[[Call], Rule]) -> Callable[[Call], Rule]:
            for name in names:
                self.builders[name] = builder
            return builder

        return register


RULES = Registry()


def dims_of(call: Call, name: str, count: int) -> list[int]:
    """Dimensions that an argument names, counted from the front; all where it names none."""
    given = call.get(name)
    if given is None or given == []:
        return list(range(count))
    return [dim % count for dim in ([given] if isinstance(given, int) else given)]


def is_marked(call: Call, name: str, dim: int) -> bool:
    """A dimension of the tensor passed as `name` is an image axis."""
    return bool(axes_in(call.layout(name)[dim]))
