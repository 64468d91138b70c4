"""Pooling of maps with one to three spatial axes, by torch's kernels, with torch's and Caffe's rules of size."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._pooling_windows import Axis, Padding, Rule, Sizes, check_map, read_windows
from sash.ops._tensors import computed_type

Kind = Literal["max", "average"]
Map = Float[Tensor, "*batch_channel_space"]

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE: dict[str, dict[int, Any]] = {
    "max": {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
    "average": {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
}


def max_pool(
    features: Map,
    size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    *,
    rule: Rule = "torch",
    ceil: bool | None = None,
    axes: int | None = None,
) -> Map:
    """The largest value under each window; 0 where a window reads no sample.

    Sizes are one number for all spatial axes or one for each; `stride` is the size unless given, and `padding` may be (before, after) for
    each axis. `axes` is how many axes are spatial: as many as a tuple names, else all but batch and channel, so that a map without a batch
    wants a tuple, or `axes`.

    `ceil` keeps a last partial window: not so by torch's rule, so by Caffe's, unless it is given. Both drop a last window that would start
    behind the samples, Caffe's only where any axis is padded. Without padding, and with a stride above the size, Caffe's map may thus end
    in windows that read nothing, whose value there is −FLT_MAX; here it is 0, and so is its gradient. The same holds for taps of a
    dilated window that all fall into the padding, where torch gives −inf.

    Runs torch's kernel on the map as it is wherever torch has the same windows; else on a copy, padded or cropped.
    Raises `InputError` where sizes do not go together or a map has no sample.

    Source: Caffe, pooling_layer.cpp.
    """
    windows = read_windows(features, size, stride, padding, dilation, rule, ceil, axes)
    shape = [axis.outputs for axis in windows]
    sizes, strides, dilations = ([getattr(axis.window, part) for axis in windows] for part in ("size", "stride", "dilation"))
    pool = MAX[len(windows)]
    if all(axis.is_torchs for axis in windows):
        return pool(features, sizes, strides, [axis.window.pad[0] for axis in windows], dilations, windows[0].window.ceil)
    pooled = pool(F.pad(features, _margins(windows, shape), value=-torch.inf), sizes, strides, 0, dilations)
    for place, axis in enumerate(windows):
        empty = [not axis.reads(output) for output in range(shape[place])]
        if any(empty):
            pooled = pooled.masked_fill(_along(torch.tensor(empty, device=pooled.device), place, len(windows)), 0)
    return pooled


def avg_pool(
    features: Map,
    size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    *,
    rule: Rule = "torch",
    ceil: bool | None = None,
    count_padding: bool = True,
    axes: int | None = None,
) -> Map:
    """The mean of the values under each window; 0 where a window reads no sample.

    Padding counts as zeros, as far as it reaches: a last partial window is divided by the part of it that lies on the padded map. Without
    `count_padding` only samples count. Everything else: see `max_pool`; Caffe's 0/0 and its division by negative sizes are 0 here.

    Source: Caffe, pooling_layer.cpp.
    """
    windows = read_windows(features, size, stride, padding, 1, rule, ceil, axes)
    shape = [axis.outputs for axis in windows]
    sizes, strides = ([getattr(axis.window, part) for axis in windows] for part in ("size", "stride"))
    pool = AVERAGE[len(windows)]
    # The backward of torch's avg_pool3d refuses windows longer than the map.
    if all(axis.is_torchs and (len(windows) < 3 or axis.window.span <= axis.length) for axis in windows):
        return pool(features, sizes, strides, [axis.window.pad[0] for axis in windows], windows[0].window.ceil, count_padding)
    pooled = pool(F.pad(features.to(computed_type(features)), _margins(windows, shape)), sizes, strides)
    for place, axis in enumerate(windows):
        # The kernel divided by the whole size.
        counted = [axis.counted(output, count_padding) for output in range(shape[place])]
        if any(count != sizes[place] for count in counted):
            shares = [sizes[place] / count if count > 0 else 0.0 for count in counted]
            factors = torch.tensor(shares, dtype=pooled.dtype, device=pooled.device)
            pooled = pooled * _along(factors, place, len(windows))
    return pooled.to(features.dtype)


def adaptive_pool(features: Map, output_size: int | Sequence[int | None], kind: Kind = "max", *, axes: int | None = None) -> Map:
    """The largest value, or the average, of each of `output_size` windows that share the map, whatever its size.

    Of n samples and k windows, the i-th reads [floor(i·n/k), ceil((i+1)·n/k)). None for an axis keeps its length; one number stands for
    all axes. `axes`, what is raised: see `max_pool`.
    """
    _check_kind(kind)
    lengths = check_map(features, axes, output_size)
    sizes = output_size if isinstance(output_size, (tuple, list)) else [output_size] * len(lengths)
    wanted = [length if size is None else size for length, size in zip(lengths, sizes, strict=True)]
    if any(isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) or size < 1 for size in wanted):
        raise InputError(f"the output size is {output_size!r}; it is a number from 1 on, or one (or None) for each spatial axis.")
    return ADAPTIVE[kind][len(lengths)](features, wanted)


def global_pool(features: Map, kind: Kind = "max", *, axes: int | None = None) -> Map:
    """The largest value, or the average, of each channel over the whole map; the spatial axes stay, with length 1.

    What comes after is independent of the map's size: a convolution of size 1, or a linear layer after `flatten(1)`.
    `axes`, what is raised: see `max_pool`.

    Source: Caffe's `global_pooling`, whose window is the map.
    """
    return adaptive_pool(features, 1, kind, axes=axes)


def pyramid_pool(
    features: Map, levels: Sequence[int] = (4, 2, 1), kind: Kind = "max", *, axes: int | None = None
) -> Float[Tensor, "*batch numbers"]:
    """The map pooled into levelᵃˣᵉˢ windows for each level, in one row of channels · Σ levelᵃˣᵉˢ numbers, whatever the map's size.

    Level by level in the order given; in a level channel by channel, each channel's windows in the order of the map. The windows are those
    of `adaptive_pool`. Where a level divides another, its maxima are taken of the other's, which are as good: the map is read once. Which
    of several equal largest values gets the gradient may then differ from `adaptive_pool`. `axes`, what is raised: see `max_pool`.

    Source: K. He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", 2014.
    """
    _check_kind(kind)
    spatial = len(check_map(features, axes, 1))
    if (
        not isinstance(levels, Sequence)
        or not levels
        or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in levels)
    ):
        raise InputError(f"levels are {levels!r}; they are numbers from 1 on, at least one: (4, 2, 1), for instance.")
    pooled: dict[int, Tensor] = {}
    for level in sorted(set(levels), reverse=True):
        finer = min((one for one in pooled if one % level == 0), default=None) if kind == "max" else None
        if finer is None:
            pooled[level] = adaptive_pool(features, level, kind, axes=spatial)
        else:
            pooled[level] = MAX[spatial](pooled[finer], finer // level)
    return torch.cat([pooled[level].flatten(-spatial - 1) for level in levels], -1)


class Pool(nn.Module):
    """A function of pooling as a layer, with its settings: `Pool(max_pool, size=3, stride=2, rule="caffe")`."""

    def __init__(self, pool: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.pool, self.settings = pool, settings

    def forward(self, features: Map) -> Tensor:
        return self.pool(features, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([getattr(self.pool, "__name__", repr(self.pool)), *(f"{name}={value!r}" for name, value in self.settings.items())])


def _margins(windows: Sequence[Axis], shape: Sequence[int]) -> list[int]:
    """What `F.pad` is to add (or, below 0, to take) for every window to lie on the map: last axis first."""
    found: list[int] = []
    for axis, count in zip(reversed(windows), reversed(shape), strict=True):
        window = axis.window
        found += [window.pad[0], (count - 1) * window.stride + window.span - axis.length - window.pad[0]]
    return found


def _along(numbers: Tensor, place: int, axes: int) -> Tensor:
    """One number for each place on a spatial axis, to go with a map."""
    return numbers.view(-1, *[1] * (axes - 1 - place))


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}; it may be {' or '.join(map(repr, get_args(Kind)))}.")
