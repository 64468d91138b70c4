"""Network in Network: a small network of 1×1 convolutions behind every window, and no linear layer at all.

Source: M. Lin, Q. Chen, S. Yan, "Network In Network", 2013; layers and rounding as in the authors' CIFAR-10 model for Caffe.
"""

from __future__ import annotations

from torch import nn

from sash.errors import InputError
from sash.models._blocks import mlpconv
from sash.models._pictures import PictureNet, check_counts, start_for_relu


def nin(*, classes: int = 10, in_channels: int = 3, width: int = 192, dropout: float = 0.5) -> PictureNet:
    """A Network in Network: 966 986 parameters by default; (batch, in_channels, height, width) → (batch, classes), sides of at least 4.

    Three mlpconv layers; behind the first a max-pool and behind the second an average pool, 3×3 with stride 2, a last window clipped at the
    edge (Caffe's rule: 32, 16, 8), each followed by `dropout`. The last layer's maps are the classes, averaged over the picture;
    they have no ReLU, where the authors' have: a class below zero everywhere would get no gradient, and never be told again.
    `width` is a multiple of 6. Raises `InputError` for another, for counts below 1 and for dropout outside [0, 1).
    """
    check_counts("a Network in Network", classes=classes, in_channels=in_channels, width=width)
    if width % 6:
        raise InputError(f"width={width}; the first layer narrows to 5/6 and 1/2 of it, so give a multiple of 6, as {6 * -(-width // 6)}.")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout!r}; the share of what is dropped is at least 0 and below 1.")
    narrow = width // 2
    model = PictureNet(
        [
            mlpconv(in_channels, (width, width * 5 // 6, narrow), 5),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(dropout),
            mlpconv(narrow, (width, width, width), 5),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Dropout(dropout),
            mlpconv(width, (width, width), 3),
            nn.Conv2d(width, classes, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ],
        in_channels,
        least_side=4,
    )
    start_for_relu(model)
    return model
