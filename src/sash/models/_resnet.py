"""Residual blocks, basic and bottleneck, and the ResNets of them.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015, figure 5 and table 1. Where a bottleneck
halves the map, the paper's v1 strides its first 1×1 convolution, and v1.5, as libraries have it, its 3×3.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from sash.errors import InputError
from sash.models._pictures import PictureNet, check_counts

Version = Literal["v1", "v1.5"]

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage, by depth."""
_DEEPEST_BASIC = 34
"""Deeper ones are of bottlenecks."""


def basic_block(width: int, stride: int = 1, in_channels: int | None = None) -> ResidualBlock:
    """Two 3×3 convolutions at `width` channels: 18·width² weights where the input has `width` channels as well."""
    source = in_channels or width
    return ResidualBlock([_conv(source, width, 3, stride), _conv(width, width, 3)], _shortcut(source, width, stride))


def bottleneck(
    width: int, inner: int | None = None, stride: int = 1, in_channels: int | None = None, version: Version = "v1.5"
) -> ResidualBlock:
    """A 1×1 convolution down to `inner` channels, a 3×3 there, a 1×1 up to `width`; `inner` is a quarter of `width` unless given.

    17/16·width² weights where the input has `width` channels as well and `inner` is a quarter. The stride is the 3×3 convolution's, and in
    version `"v1"` the first 1×1's.
    """
    _check_version(version)
    source, inner = in_channels or width, inner or width // 4
    first, second = (stride, 1) if version == "v1" else (1, stride)
    convolutions = [_conv(source, inner, 1, first), _conv(inner, inner, 3, second), _conv(inner, width, 1)]
    return ResidualBlock(convolutions, _shortcut(source, width, stride))


def resnet(depth: int = 50, *, classes: int = 1000, in_channels: int = 3, width: int = 64, version: Version = "v1.5") -> PictureNet:
    """A ResNet of 18, 34, 50, 101 or 152 layers: (batch, in_channels, height, width) → (batch, classes), pictures of any size.

    With 1000 classes 11 689 512, 21 797 672, 25 557 032, 44 549 160 and 60 192 808 parameters, whatever the version. `width` is the
    channels of the first stage inside its blocks, doubled at each of the next three. Parameters come in the order in which torchvision has
    them. Raises `InputError` for another depth or version, and for a count below 1.
    """
    if depth not in _STAGES:
        raise InputError(f"depth={depth!r}; a ResNet has {', '.join(map(str, _STAGES))} layers.")
    check_counts("a ResNet", classes=classes, in_channels=in_channels, width=width)
    _check_version(version)
    stem = nn.Sequential(_conv(in_channels, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
    layers: list[nn.Module] = [stem]
    channels = width
    for index, blocks in enumerate(_STAGES[depth]):
        stage: list[nn.Module] = []
        for block in range(blocks):
            inner, stride = width * 2**index, 2 if index > 0 and block == 0 else 1
            if depth <= _DEEPEST_BASIC:
                stage.append(basic_block(inner, stride, channels))
                channels = inner
            else:
                stage.append(bottleneck(4 * inner, inner, stride, channels, version))
                channels = 4 * inner
        layers.append(nn.Sequential(*stage))
    return PictureNet([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)], in_channels)


def resnet50(classes: int = 1000, in_channels: int = 3) -> PictureNet:
    """ResNet-50 (v1.5), as `resnet(50)` makes it: 25 557 032 parameters for 1000 classes."""
    return resnet(50, classes=classes, in_channels=in_channels)


class ResidualBlock(nn.Module):
    """Convolutions with batch normalisation and ReLU, and the input added to them before the last ReLU."""

    def __init__(self, convolutions: list[nn.Conv2d], shortcut: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for convolution in convolutions:
            layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch out rows columns"]:
        return self.relu(self.residual(x) + self.shortcut(x))


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    # No bias: the batch normalisation after it subtracts it again.
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def _check_version(version: str) -> None:
    if version not in get_args(Version):
        raise InputError(f"version={version!r}; a bottleneck is of version {' or '.join(map(repr, get_args(Version)))}.")
