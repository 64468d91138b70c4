"""Residual blocks, basic and bottleneck, and the ResNet-50 of them.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015, figure 5 and table 1; strided on the
bottleneck's 3×3 convolution, which is the variant known as v1.5.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Inner width and blocks of each stage of ResNet-50."""


def basic_block(width: int, stride: int = 1, in_channels: int | None = None) -> ResidualBlock:
    """Two 3×3 convolutions at `width` channels: 18·width² weights where the input has `width` channels as well."""
    source = in_channels or width
    return ResidualBlock([_conv(source, width, 3, stride), _conv(width, width, 3)], _shortcut(source, width, stride))


def bottleneck(width: int, inner: int | None = None, stride: int = 1, in_channels: int | None = None) -> ResidualBlock:
    """A 1×1 convolution down to `inner` channels, a 3×3 there, a 1×1 up to `width`; `inner` is a quarter of `width` unless given.

    17/16·width² weights where the input has `width` channels as well and `inner` is a quarter.
    """
    source, inner = in_channels or width, inner or width // 4
    convolutions = [_conv(source, inner, 1), _conv(inner, inner, 3, stride), _conv(inner, width, 1)]
    return ResidualBlock(convolutions, _shortcut(source, width, stride))


def resnet50(classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """ResNet-50 (v1.5): 25 557 032 parameters for 1000 classes; takes (batch, in_channels, height, width), gives (batch, classes)."""
    stages: list[nn.Module] = []
    channels = 64
    for index, (inner, blocks) in enumerate(_STAGES):
        stage = []
        for block in range(blocks):
            stride = 2 if index > 0 and block == 0 else 1
            stage.append(bottleneck(4 * inner, inner, stride, channels))
            channels = 4 * inner
        stages.append(nn.Sequential(*stage))
    stem = nn.Sequential(_conv(in_channels, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


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
