"""Rules of windows that slide over the image: convolutions, transposed convolutions, pooling and padding.

A tile at the image's border keeps the layer's own padding there. At its inner borders it is given the neighbours' samples instead, so
that no padding is ever seen by an output.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sash.plans._reach_layout import Factor, Layout, Region, axes_in, marked, sizes
from sash.plans._reach_rule import RULES, Aligned, Call, Rule
from sash.window import Interval, Transposed, Window


class Sliding(Rule):
    """One window a dimension over the last dimensions."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], windows: tuple[Window | Transposed, ...], fill: float = 0.0) -> None:
        super().__init__(call, layouts)
        self.windows, self._fill = windows, fill
        layout = call.layouts[0]
        self._first = len(layout) - len(windows)
        self._lengths = sizes(layout)[self._first :]
        self._counts = sizes(layouts[0])[self._first :]
        self._axes = [axes_in(factors)[0] if axes_in(factors) else None for factors in layout[self._first :]]

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        rest = (None,) * (len(self.call.layouts) - 1)
        if axis not in self._axes or want is None:
            return (want, *rest)
        place = self._axes.index(axis)
        return (_reads(self.windows[place], want, self._lengths[place]), *rest)

    def spans(self, have: Region, want: Region) -> list[tuple[Interval, Interval]]:
        """For each window's dimension, the samples at hand and the outputs wanted."""
        found = []
        for axis, length, count in zip(self._axes, self._lengths, self._counts, strict=True):
            held, wanted = (have[axis], want[axis]) if axis is not None else (None, None)
            found.append((held or Interval(0, length), wanted or Interval(0, count)))
        return found

    @property
    def plain(self) -> list[Window]:
        """The windows, where none is transposed."""
        return [window for window in self.windows if isinstance(window, Window)]

    def margins(self, have: Region, want: Region) -> list[tuple[int, int]]:
        """Samples of padding before and after, by dimension; below 0 where samples at hand are not read."""
        found = []
        for window, (held, wanted) in zip(self.plain, self.spans(have, want), strict=True):
            needed = window.reads(*wanted)
            found.append((held.start - needed.start, needed.stop - held.stop))
        return found

    def padded(self, tensors: list[Tensor], margins: list[tuple[int, int]]) -> Tensor:
        """The input with its margins filled; the tensor itself where there are none. The list lets go of it."""
        taken = tensors[0]
        tensors[0] = taken.new_empty(0)
        if any(map(any, margins)):
            taken = F.pad(taken, [side for pair in reversed(margins) for side in pair], value=self._fill)
        return taken


class Convolution(Sliding):
    """A convolution: padding of zeros only where the image ends."""

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        margins = self.margins(have[0], want)
        pads = [0] * len(margins)
        if all(before == after >= 0 for before, after in margins):
            pads = [before for before, _ in margins]
        else:
            tensors[0] = self.padded(tensors, margins)
        if isinstance(self.call.get("padding"), str):
            func = getattr(self.call.func.overloadpacket, "default")  # noqa: B009 (an overload, not an attribute)
            return self.call.invoke(tensors, func, padding=pads)
        return self.call.invoke(tensors, padding=pads)

    def macs(self) -> int:
        weight = sizes(self.call.layout("weight"))
        return prod(self.call.shapes[0]) * prod(weight[1:])


class TransposedConvolution(Sliding):
    """A transposed convolution: outputs that samples outside the tile would add to are cut off."""

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        extras, crops = [], []
        for link, (held, wanted) in zip(self.windows, self.spans(have[0], want), strict=True):
            assert isinstance(link, Transposed)
            window = link.window
            first = held.start * window.stride - window.pad[0]
            made = (held.length - 1) * window.stride + window.span
            extras.append(max(wanted.stop - first - made, 0))
            crops.append((wanted.start - first, wanted.length))
        result = self.call.invoke(tensors, padding=[0] * len(extras), output_padding=extras)
        for place, (start, length) in enumerate(crops):
            result = result.narrow(self._first + place, start, length)
        return result

    def macs(self) -> int:
        weight = sizes(self.call.layout("weight"))
        return prod(sizes(self.call.layouts[0])) * prod(weight[1:])


class MaxPool(Sliding):
    """Max pooling: padding that no sample is below."""

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        if not tensors[0].is_floating_point():
            self._fill = torch.iinfo(tensors[0].dtype).min
        tensors[0] = self.padded(tensors, self.margins(have[0], want))
        return self.call.invoke(tensors, padding=[0] * len(self.windows), ceil_mode=False)


class AveragePool(Sliding):
    """Average pooling: at the image's border, sums divided by what each window counts there."""

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        margins, spans = self.margins(have[0], want), self.spans(have[0], want)
        counts = [self._counted(window, wanted, length) for window, (_, wanted), length in self._each(spans)]
        tensors[0] = self.padded(tensors, margins)
        whole = {"padding": [0] * len(self.plain), "ceil_mode": False}
        if self.call.get("divisor_override") or all(set(row) == {window.size} for row, window in zip(counts, self.plain, strict=True)):
            return self.call.invoke(tensors, **whole)
        made = self.call.invoke(tensors, **whole, count_include_pad=True)
        for place, (row, window) in enumerate(zip(counts, self.plain, strict=True)):
            factor = torch.tensor([window.size / count for count in row], dtype=made.dtype)
            made.mul_(factor.view(-1, *[1] * (len(counts) - 1 - place)))
        return made

    def _each(self, spans: list[tuple[Interval, Interval]]) -> Any:
        return zip(self.plain, spans, self._lengths, strict=True)

    def _counted(self, window: Window, wanted: Interval, length: int) -> list[int]:
        """What each output divides by along one dimension: torch counts padding where asked to, and never what ceil mode adds beyond it."""
        padding = self.call.get("count_include_pad", True)
        low, high = (-window.pad[0], length + window.pad[1]) if padding else (0, length)
        found = []
        for output in range(*wanted):
            needed = window.reads(output, output + 1)
            found.append(max(min(needed.stop, high) - max(needed.start, low), 1))
        return found


class Padded(Rule):
    """Padding by a constant, by reflection or by the edge's own sample; negative amounts cut off."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], pads: list[tuple[int, int]], mode: str, fill: float) -> None:
        super().__init__(call, layouts)
        self._mode, self._fill = mode, fill
        layout = call.layouts[0]
        self._pads = [(0, 0)] * (len(layout) - len(pads)) + pads
        self._places = {axes_in(factors)[0]: dim for dim, factors in enumerate(layout) if axes_in(factors)}
        self._lengths = sizes(layout)

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        if want is None or axis not in self._places:
            return (want,)
        dim = self._places[axis]
        length, before = self._lengths[dim], self._pads[dim][0]
        start, stop = want.start - before, want.stop - before
        if self._mode == "constant":
            return (_some(Interval(start, stop), length),)
        ends = [self._source(index, length) for index in (start, stop - 1)]
        if start < 0 < stop - 1:
            ends.append(0)
        if start < length - 1 < stop - 1:
            ends.append(length - 1)
        return (Interval(min(ends), max(ends) + 1),)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        x = tensors.pop()
        amounts = [(0, 0)] * x.dim()
        for dim, (before, after) in enumerate(self._pads):
            axis = next((axis for axis, place in self._places.items() if place == dim), None)
            if axis is None:
                amounts[dim] = (before, after)
                continue
            held, wanted = have[0][axis], want[axis]
            assert held is not None
            assert wanted is not None
            shifted = Interval(wanted.start - before, wanted.stop - before)
            if self._mode == "constant":
                amounts[dim] = (held.start - shifted.start, shifted.stop - held.stop)
            elif shifted.start < 0 or shifted.stop > self._lengths[dim]:
                index = [self._source(place, self._lengths[dim]) - held.start for place in range(*shifted)]
                x = x.index_select(dim, torch.tensor(index))
        if not any(map(any, amounts)):
            return x
        if self._mode == "constant":
            return F.pad(x, [side for pair in reversed(amounts) for side in pair], value=self._fill)
        return F.pad(x, [side for pair in reversed(amounts) for side in pair][: 2 * (x.dim() - 2)], mode=self._mode)

    def _source(self, index: int, length: int) -> int:
        """The sample that a padded place shows."""
        if self._mode == "replicate":
            return min(max(index, 0), length - 1)
        index = -index if index < 0 else index
        return 2 * (length - 1) - index if index >= length else index


def _reads(window: Window | Transposed, want: Interval, length: int) -> Interval:
    if isinstance(window, Transposed):
        # One more before: the first output may lie in the gap behind a sample that writes to none of the outputs wanted.
        needed = window.reads(*want)
        return _some(Interval(needed.start - 1, needed.stop), length)
    return _some(window.reads(*want), length)


def _some(needed: Interval, length: int) -> Interval:
    """The part on the signal; one sample, the nearest, where there is none."""
    part = needed.clip(length)
    if part.length:
        return part
    nearest = min(max(needed.start, 0), length - 1)
    return Interval(nearest, nearest + 1)


def each(value: Any, count: int) -> list[int]:
    """One number a dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def slid(call: Call, count: int) -> Layout:
    """The layout after windows over the last `count` dimensions; raises `SeesAll` where those or the channels are no plain axes."""
    layout, shape = call.layouts[0], call.shapes[0]
    first = len(layout) - count
    if any(len(factors) > 1 for factors in layout[first:]):
        raise call.refuse("slides over merged image axes.")
    if first >= 1 and axes_in(layout[first - 1]):
        raise call.refuse("has an image axis as its channels: it sums over the whole of it.")
    if any(marked(other) for other in call.layouts[1:]):
        raise call.refuse("has weights that differ from place to place.")
    moved = [
        (Factor(axes_in(factors)[0] if axes_in(factors) else None, shape[first + place]),) for place, factors in enumerate(layout[first:])
    ]
    kept = [factors if axes_in(factors) else (Factor(None, shape[dim]),) for dim, factors in enumerate(layout[:first])]
    return (*kept, *moved)


@RULES.add("conv1d", "conv2d", "conv3d")
def _conv(call: Call) -> Rule:
    count = int(call.name[4])
    kernel = sizes(call.layout("weight"))[2:]
    strides, dilations = each(call.get("stride", 1), count), each(call.get("dilation", 1), count)
    padding = call.get("padding", 0)
    windows = []
    for place in range(count):
        if padding == "same":
            windows.append(Window.same(kernel[place], strides[place], dilations[place]))
        else:
            pad = 0 if padding == "valid" else each(padding, count)[place]
            windows.append(Window(kernel[place], strides[place], dilations[place], (pad, pad)))
    return Convolution(call, (slid(call, count),), tuple(windows))


@RULES.add("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(call: Call) -> Rule:
    count = int(call.name[len("conv_transpose")])
    kernel = sizes(call.layout("weight"))[2:]
    numbers = [
        each(call.get(name, default), count) for name, default in (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0))
    ]
    windows = [
        Transposed(Window(size, stride, dilation, (pad, pad)), extra)
        for size, stride, dilation, pad, extra in zip(kernel, *numbers, strict=True)
    ]
    return TransposedConvolution(call, (slid(call, count),), tuple(windows))


def _pool_windows(call: Call, count: int) -> tuple[Window, ...]:
    kernel = each(call.get("kernel_size"), count)
    strides = each(call.get("stride") or kernel, count)
    pads, dilations = each(call.get("padding", 0), count), each(call.get("dilation", 1), count)
    ceil = bool(call.get("ceil_mode", False))
    return tuple(
        Window(size, stride, dilation, (pad, pad), ceil)
        for size, stride, dilation, pad in zip(kernel, strides, dilations, pads, strict=True)
    )


@RULES.add("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(call: Call) -> Rule:
    count = int(call.name[len("max_pool")])
    return MaxPool(call, (_pooled(call, count),), _pool_windows(call, count), fill=float("-inf"))


@RULES.add("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(call: Call) -> Rule:
    count = int(call.name[len("avg_pool")])
    return AveragePool(call, (_pooled(call, count),), _pool_windows(call, count))


def _pooled(call: Call, count: int) -> Layout:
    layout, shape = call.layouts[0], call.shapes[0]
    if any(len(factors) > 1 for factors in layout[len(layout) - count :]):
        raise call.refuse("slides over merged image axes.")
    return tuple(
        (Factor(axes_in(f)[0], shape[d]),) if axes_in(f) and len(f) == 1 else f if axes_in(f) else (Factor(None, shape[d]),)
        for d, f in enumerate(layout)
    )


@RULES.add("max_pool2d_with_indices", "max_pool1d_with_indices", "max_pool3d_with_indices")
def _indices(call: Call) -> Rule:
    raise call.refuse("returns positions counted from the image's first sample; max pooling without return_indices can be tiled.")


@RULES.add(
    "pad",
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
)
def _pad(call: Call) -> Rule:
    mode = (
        call.get("mode", "constant")
        if call.name == "pad"
        else call.name.partition("_")[0].replace("reflection", "reflect").replace("replication", "replicate")
    )
    given = call.get("padding") or call.get("pad")
    layout, shape = call.layouts[0], call.shapes[0]
    pairs = [(given[place], given[place + 1]) for place in range(0, len(given), 2)][::-1]
    pads = [(0, 0)] * (len(layout) - len(pairs)) + pairs
    touched = [dim for dim, pair in enumerate(pads) if any(pair)]
    if any(len(layout[dim]) > 1 for dim in touched):
        raise call.refuse("pads merged image axes.")
    on_axes = [dim for dim in touched if axes_in(layout[dim])]
    if mode == "circular" and on_axes:
        raise call.refuse("pads with the image's other end (circular): the first tile would need the last one, layer after layer.")
    if mode == "circular" or (mode != "constant" and set(touched) - set(on_axes)):
        if on_axes:
            raise call.refuse(f"pads an image axis and another one by {mode}.")
        return Aligned(call, (tuple(f if axes_in(f) else (Factor(None, shape[d]),) for d, f in enumerate(layout)),))
    made = tuple(
        (Factor(axes_in(f)[0], shape[d]),) if len(f) == 1 and axes_in(f) else f if axes_in(f) else (Factor(None, shape[d]),)
        for d, f in enumerate(layout)
    )
    fill = call.get("value") if call.get("value") is not None else 0.0
    return Padded(call, (made,), pads, mode, fill)
