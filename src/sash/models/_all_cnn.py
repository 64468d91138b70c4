"""The all-convolutional networks, and the networks that they are compared with.

Source: J. T. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for Simplicity: The All Convolutional Net", 2014, tables 1
and 2. The convolutions and pools of the two stages are padded such that 32 × 32 pixels become 16 × 16 and 8 × 8; the 3×3 convolution after
them is not, so that the 6 × 6 of the paper are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from torch import nn

from sash.errors import InputError
from sash.models._pictures import PictureNet, check_counts, start_for_relu

Kind = Literal["all-conv", "pooled", "strided", "convpool"]
Base = Literal["A", "B", "C"]

_SIZES: dict[Base, tuple[int, ...]] = {"A": (5,), "B": (5, 1), "C": (3, 3)}
"""Windows of a stage's convolutions."""
_LEAST_SIDE = 9
"""Halved twice, rounded up, it is 3: what the unpadded 3×3 convolution reads."""


def all_cnn(
    kind: Kind = "all-conv",
    base: Base = "C",
    *,
    classes: int = 10,
    in_channels: int = 3,
    width: int = 96,
    dropout: tuple[float, float] = (0.2, 0.5),
) -> PictureNet:
    """A network of convolutions: (batch, in_channels, height, width) → (batch, classes), sides of at least 9.

    Two stages of `width` and twice as many channels, each of which halves the map in the way of its `kind`:

    * `"pooled"`: the base model; a 3×3 max-pool of stride 2 after the stage's convolutions;
    * `"strided"`: the last convolution has the stride, and no pool;
    * `"convpool"`: one more 3×3 convolution before the pool, the control with as many parameters as the next;
    * `"all-conv"`: one more 3×3 convolution, of stride 2, in the pool's place.

    Parameters for 10 classes:

    ====  =================  ====================
    base  pooled, strided    convpool, all-conv
    ====  =================  ====================
    A       839 242          1 254 250
    B       885 610          1 300 618
    C       954 730          1 369 738
    ====  =================  ====================

    `dropout` is that of the picture and that after each halving. The class scores have no ReLU, where the paper's have: a class below zero
    everywhere would get no gradient, and never be told again. Raises `InputError` for another kind or base, for counts below 1
    and for dropout outside [0, 1).
    """
    for name, found, known in (("kind", kind, get_args(Kind)), ("base", base, get_args(Base))):
        if found not in known:
            raise InputError(f"{name}={found!r} is not a {name} of All-CNN; there are {', '.join(map(repr, known))}.")
    check_counts("an All-CNN", classes=classes, in_channels=in_channels, width=width)
    if not all(0 <= rate < 1 for rate in dropout):
        raise InputError(f"dropout={dropout!r}; shares of what is dropped are at least 0 and below 1.")
    layers: list[nn.Module] = [nn.Dropout(dropout[0])]
    for before, after in ((in_channels, width), (width, 2 * width)):
        layers += [*_stage(kind, _SIZES[base], before, after), nn.Dropout(dropout[1])]
    for size in (3, 1):
        layers += [nn.Conv2d(2 * width, 2 * width, size), nn.ReLU(inplace=True)]
    scores = nn.Conv2d(2 * width, classes, 1)
    model = PictureNet([*layers, scores, nn.AdaptiveAvgPool2d(1), nn.Flatten()], in_channels, _LEAST_SIDE)
    start_for_relu(model)
    return model


def _stage(kind: Kind, sizes: tuple[int, ...], before: int, after: int) -> Iterator[nn.Module]:
    windows = [*sizes, 3] if kind in ("convpool", "all-conv") else sizes
    pooled = kind in ("pooled", "convpool")
    for index, size in enumerate(windows):
        stride = 1 if pooled or index < len(windows) - 1 else 2
        yield nn.Conv2d(before if index == 0 else after, after, size, stride, padding=size // 2)
        yield nn.ReLU(inplace=True)
    if pooled:
        yield nn.MaxPool2d(3, 2, padding=1)
