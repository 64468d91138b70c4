"""VGG: 3×3 convolutions in stages, each halved by a max-pool, and a head of linear layers.

Source: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, table 1, columns A, B, D, E.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sash.errors import InputError
from sash.models._pictures import PictureNet, check_counts, start_for_relu

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage, by depth."""
_HEAD_SIDE = 7
"""Of the map that the linear head reads: 224 pixels halved five times."""


def vgg(
    depth: int = 16,
    *,
    classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    hidden: int | None = 4096,
    norm: bool = False,
    dropout: float = 0.5,
) -> PictureNet:
    """A VGG of 11, 13, 16 or 19 layers: (batch, in_channels, height, width) → (batch, classes), sides of at least 32.

    With 1000 classes 132 863 336, 133 047 848, 138 357 544 and 143 667 240 parameters; with `norm`, a batch normalisation after each
    convolution, 5 504, 5 888, 8 448 and 11 008 more. `width` is the channels of the first stage, doubled up to eight times as many. The
    head is three linear layers, `hidden` wide, over a map averaged to 7 × 7; with `hidden=None` one, over the map's average, as small
    pictures want it. Weights are named as torchvision has them. Raises `InputError` for another depth, counts below 1 and dropout outside
    [0, 1).
    """
    if depth not in _STAGES:
        raise InputError(f"depth={depth!r}; a VGG has {', '.join(map(str, _STAGES))} layers.")
    check_counts("a VGG", classes=classes, in_channels=in_channels, width=width, **({} if hidden is None else {"hidden": hidden}))
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout!r}; the share of what is dropped is at least 0 and below 1.")
    features: list[nn.Module] = []
    channels = in_channels
    for index, convolutions in enumerate(_STAGES[depth]):
        for _ in range(convolutions):
            before, channels = channels, width * min(2**index, 8)
            features.append(nn.Conv2d(before, channels, 3, padding=1))
            features += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        features.append(nn.MaxPool2d(2))
    side = 1 if hidden is None else _HEAD_SIDE
    read = channels * side**2
    head: list[nn.Module] = [nn.Linear(read, classes)]
    if hidden is not None:
        first, second = ([nn.Linear(wide, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)] for wide in (read, hidden))
        head = [*first, *second, nn.Linear(hidden, classes)]
    parts = {"features": nn.Sequential(*features), "avgpool": nn.AdaptiveAvgPool2d(side), "flatten": nn.Flatten()}
    model = PictureNet(OrderedDict(parts, classifier=nn.Sequential(*head)), in_channels, least_side=2 ** len(_STAGES[depth]))
    start_for_relu(model)
    return model
