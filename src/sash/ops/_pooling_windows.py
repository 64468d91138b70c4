"""The windows of a pooling layer: how many there are by torch's and by Caffe's rule, and what each of them reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from sash.errors import InputError
from sash.ops._tensors import shown
from sash.window import Window

Rule = Literal["torch", "caffe"]
Sizes = int | tuple[int, ...]
Padding = int | tuple[int | tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a map, and the window along it."""

    window: Window
    length: int
    """Samples of the map."""
    clipped: bool
    """Whether a last window that would start behind the samples is dropped; Caffe keeps it on maps without padding."""

    @property
    def outputs(self) -> int:
        """Windows along the axis."""
        if not self.window.ceil or self.clipped:
            return self.window.outputs(self.length)
        room = self.length - self.window.span
        return max(-(-room // self.window.stride) + 1, 0)

    @property
    def is_torchs(self) -> bool:
        """Whether torch's kernels know this window, and each one reads a sample."""
        window = self.window
        before, after = window.pad
        # At most half of the window, which for max_pool1d and max_pool3d is its taps without the gaps.
        if before != after or before + after > window.size:
            return False
        if window.ceil and not self.clipped and window.stride > window.span:
            return False
        # Where all taps fall into the padding, the backward of torch's max_pool2d and max_pool3d writes outside of its memory.
        return window.dilation == 1 or not before or all(self.reads(output) for output in range(self.outputs))

    def reads(self, output: int) -> bool:
        """Whether any tap of the window is on a sample."""
        window = self.window
        first = output * window.stride - window.pad[0]
        return any(0 <= tap < self.length for tap in range(first, first + window.span, window.dilation))

    def counted(self, output: int, padding: bool) -> int:
        """Places of the window on the map, or on the padded map."""
        before, after = self.window.pad if padding else (0, 0)
        first = output * self.window.stride - self.window.pad[0]
        return min(first + self.window.span, self.length + after) - max(first, -before)


def read_windows(
    features: Tensor,
    size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    rule: Rule,
    ceil: bool | None,
    axes: int | None,
) -> list[Axis]:
    """The windows on each spatial axis. Raises `InputError` for what does not go together."""
    if rule not in get_args(Rule):
        raise InputError(f"rule is {rule!r}; it may be {' or '.join(map(repr, get_args(Rule)))}.")
    stride = size if stride is None else stride
    lengths = check_map(features, axes, size, stride, padding, dilation)
    spread = (_each(name, given, len(lengths)) for name, given in zip(NAMES, (size, stride, padding, dilation), strict=True))
    ceil = rule == "caffe" if ceil is None else ceil
    pads = []
    windows = []
    for one, step, pad, gap in zip(*spread, strict=True):
        pads.append(pad if isinstance(pad, (tuple, list)) else (pad, pad))
        windows.append(Window(one, step, gap, pads[-1], ceil))
    clipped = rule == "torch" or any(map(any, pads))
    found = [Axis(window, length, clipped) for window, length in zip(windows, lengths, strict=True)]
    for place, axis in enumerate(found):
        _check_axis(features, place, axis)
    return found


def check_map(features: Tensor, axes: int | None, *settings: Any) -> tuple[int, ...]:
    """The lengths of the spatial axes. Raises `InputError` for a map that is none, and for settings of another number of axes."""
    if not features.is_floating_point():
        raise InputError(f"the map is of type {features.dtype}; it has to be floating: map.float() would be.")
    named = {len(given) for given in settings if isinstance(given, (tuple, list))}
    if axes is not None:
        named.add(axes)
    if len(named) > 1:
        raise InputError(
            f"sizes, strides and so on were given for {' and for '.join(map(str, sorted(named)))} axes; give one number, or as many."
        )
    spatial = named.pop() if named else features.dim() - 2
    if spatial not in (1, 2, 3) or features.dim() - spatial not in (1, 2):
        wanted = (
            "give axes=, how many are spatial" if not 1 <= spatial <= 3 else f"{spatial} spatial axes want {spatial + 2}, or {spatial + 1}"
        )
        raise InputError(f"the map is {shown(features)}; it has a batch (or none), channels and 1 to 3 spatial axes: {wanted}.")
    if 0 in features.shape[-spatial - 1 :]:
        raise InputError(f"the map is {shown(features)}: only its batch may be empty.")
    return tuple(features.shape[-spatial:])


NAMES = ("size", "stride", "padding", "dilation")


def _each(name: str, given: Any, axes: int) -> Sequence[Any]:
    if isinstance(given, (tuple, list)):
        return given
    if isinstance(given, bool) or not isinstance(given, int):
        raise InputError(f"{name} is {given!r}; it is a whole number, or a tuple of one for each spatial axis.")
    return [given] * axes


def _check_axis(features: Tensor, place: int, axis: Axis) -> None:
    window = axis.window
    if max(window.pad) >= window.span:
        raise InputError(
            f"spatial axis {place} is padded by {max(window.pad)}, and its windows span {window.span}: one would lie in the padding alone; "
            f"{window.span - 1} is the most."
        )
    if axis.outputs < 1:
        padded = f" and {sum(window.pad)} of padding" if any(window.pad) else ""
        raise InputError(
            f"the map {shown(features)} is too small: spatial axis {place} has {axis.length} samples{padded}, "
            f"and the window spans {window.span}; a span of {axis.length + sum(window.pad)} fits."
        )
