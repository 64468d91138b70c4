"""The U-Net, of plain or of depthwise-separable convolutions.

Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015; here with padding that
keeps the size, batch normalisation and bilinear upsampling, as implementations in use have it.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash import ops
from sash.errors import InputError

Kind = Literal["plain", "separable", "fused"]


def unet(kind: Kind = "plain", *, in_channels: int = 3, classes: int = 1, width: int = 64, depth: int = 4) -> UNet:
    """A U-Net: 17 267 393 parameters by default, 1 983 583 of the separable kind, and of the fused one.

    The fused kind is the separable one, with the same names and values, but never holds the map between its two convolutions whole.
    `width` is the channels of the first block, doubled at each of `depth` halvings but the last, where upsampling without weights wants
    as many channels below as the skip above brings. Raises `InputError` for another kind, and for a count below 1.
    """
    blocks: dict[str, Callable[[int, int], nn.Module]] = {"plain": plain_conv, "separable": SeparableConv, "fused": fused_conv}
    if kind not in blocks:
        raise InputError(f"{kind!r} is not a kind of U-Net; there are {', '.join(map(repr, blocks))}.")
    for name, count in (("in_channels", in_channels), ("classes", classes), ("width", width), ("depth", depth)):
        if count < 1:
            raise InputError(f"{name}={count}: a U-Net has at least 1.")
    return UNet(blocks[kind], in_channels, classes, width, depth)


class UNet(nn.Module):
    """Halves the picture `depth` times, doubles it back, and joins each level's map to what comes up from below."""

    def __init__(self, convolution: Callable[[int, int], nn.Module], in_channels: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        widths.append(widths[-1])
        self.enter = DoubleConv(convolution, in_channels, width, width)
        self.down = nn.ModuleList(Down(convolution, above, below) for above, below in pairwise(widths))
        self.up = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(depth)):
            out = widths[max(level - 1, 0)]
            self.up.append(Up(convolution, below, widths[level], out))
            below = out
        self.head = nn.Conv2d(below, classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class height width"]:
        """Scores of each class at each pixel; sides of any length of at least 2 ** depth."""
        levels = [self.enter(image)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(x, levels.pop())
        return self.head(x)


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with batch normalisation and ReLU; keeps the size."""

    def __init__(self, convolution: Callable[[int, int], nn.Module], in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__(
            convolution(in_channels, middle),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            convolution(middle, out_channels),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Down(nn.Sequential):
    """Halves the map, rounding down, then convolves twice."""

    def __init__(self, convolution: Callable[[int, int], nn.Module], in_channels: int, out_channels: int) -> None:
        super().__init__(nn.MaxPool2d(2), DoubleConv(convolution, in_channels, out_channels, out_channels))


class Up(nn.Module):
    """Brings a map up to the size of the skip from the encoder, joins them, then convolves twice."""

    def __init__(self, convolution: Callable[[int, int], nn.Module], below: int, skip: int, out_channels: int) -> None:
        super().__init__()
        joined = below + skip
        self.convolve = DoubleConv(convolution, joined, joined // 2, out_channels)

    def forward(
        self, x: Float[Tensor, "batch below rows columns"], skip: Float[Tensor, "batch skip height width"]
    ) -> Float[Tensor, "batch out height width"]:
        # To the skip's own size rather than by 2: an odd side was rounded down on its way down.
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.convolve(torch.cat([skip, x], dim=1))


def plain_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size: 9·in·out + out parameters."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def fused_conv(in_channels: int, out_channels: int) -> ops.SeparableConv:
    """`SeparableConv` computed in bands, by `sash.ops.separable_conv`."""
    return ops.SeparableConv(in_channels, out_channels, 3, padding=1)


class SeparableConv(nn.Module):
    """A 3×3 convolution of each channel alone, then a 1×1 convolution across channels: 10·in + in·out + out parameters.

    Between the two stands one more map, as large as the input, which training saves for the second one's backward.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch out height width"]:
        return self.pointwise(self.depthwise(x))
