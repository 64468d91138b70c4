"""Blocks that networks are stacked of, beside the residual ones of `_resnet.py`: mlpconv, separable, inverted residual, gated."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.models._pictures import check_counts
from sash.ops import Join, gated

Way = Literal["project", "crop", "pool", "pad"]
Ways = Way | Sequence[Way]


def mlpconv(in_channels: int, widths: tuple[int, ...], size: int, stride: int = 1) -> nn.Sequential:
    """A convolution to `widths[0]` channels and 1×1 convolutions to the others, a ReLU after each.

    The 1×1 convolutions are one small network at every position: cross-channel parametric pooling. Keeps the size where `size` is odd and
    the stride 1.

    Source: M. Lin, Q. Chen, S. Yan, "Network In Network", 2013.
    """
    if not widths:
        raise InputError("widths=(): an mlpconv layer has at least 1.")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], size, stride, padding=size // 2), nn.ReLU(inplace=True)]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def separable_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution of each channel alone, then a 1×1 across channels, batch normalisation and ReLU after each.

    9·in + in·out weights, and 2·(in + out) of the normalisations.

    Source: A. G. Howard and others, "MobileNets", 2017, figure 3.
    """
    return nn.Sequential(
        *_normed(in_channels, in_channels, 3, stride, groups=in_channels), nn.ReLU(), *_normed(in_channels, out_channels, 1), nn.ReLU()
    )


def inverted_residual(in_channels: int, out_channels: int, stride: int = 1, expand: int = 6) -> InvertedResidual:
    """A 1×1 convolution up to `expand` times the channels, a 3×3 of each channel alone, and a 1×1 down without an activation.

    The input is added where it has the output's size and channels. With `expand=1` the first convolution is left out.

    Source: M. Sandler and others, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 1.
    """
    check_counts("an inverted residual", in_channels=in_channels, out_channels=out_channels, stride=stride, expand=expand)
    return InvertedResidual(in_channels, out_channels, stride, expand)


class InvertedResidual(nn.Module):
    """`inverted_residual` as a layer."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = in_channels * expand
        layers = [*_normed(in_channels, inner, 1), nn.ReLU6(inplace=True)] if expand > 1 else []
        layers += [*_normed(inner, inner, 3, stride, groups=inner), nn.ReLU6(inplace=True), *_normed(inner, out_channels, 1)]
        self.residual = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch out rows columns"]:
        y = self.residual(x)
        return x + y if self.adds else y


def gated_block(
    in_channels: int, out_channels: int, size: int, *, stride: int = 1, dilation: int = 1, causal: bool = False, way: Ways | None = None
) -> GatedBlock:
    """A 1-D convolution to twice `out_channels`, of which one half gates the other: σ(a) · tanh(b).

    Padded to length ÷ stride, rounded up; `causal`, before the signal alone, so that no output reads what comes after it. With a `way`
    (or several), the input is added, made alike as `sash.ops.join` does it; without, it is not.

    Source: A. van den Oord and others, "WaveNet: A Generative Model for Raw Audio", 2016, section 2.3.
    """
    counts = {"in_channels": in_channels, "out_channels": out_channels, "size": size, "stride": stride, "dilation": dilation}
    check_counts("a gated block", **counts)
    return GatedBlock(in_channels, out_channels, size, stride, dilation, causal, way)


class GatedBlock(nn.Module):
    """`gated_block` as a layer."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int, dilation: int, causal: bool, way: Ways | None) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, 2 * out_channels, size, stride, dilation=dilation)
        room = dilation * (size - 1)
        self.pad = (room, 0) if causal else (room // 2, room - room // 2)
        align = "end" if causal else "centre"
        self.join = None if way is None else Join(way, in_channels, out_channels, stride=stride, align=align)

    def forward(self, x: Float[Tensor, "batch channel length"]) -> Float[Tensor, "batch out steps"]:
        y = gated(self.convolution(F.pad(x, self.pad)))
        return y if self.join is None else self.join(x, y)


def _normed(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    # No bias: the batch normalisation after it subtracts it again.
    return [nn.Conv2d(before, after, size, stride, padding=size // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
