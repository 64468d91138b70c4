"""Blocks and architectures, one family a file."""

from collections.abc import Callable
from functools import partial

from torch import nn

from sash.models._resnet import ResidualBlock, basic_block, bottleneck, resnet50
from sash.models._unet import SeparableConv, UNet, plain_conv, unet

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "unet-separable": partial(unet, kind="separable"),
    "resnet50": resnet50,
}
"""Models by the name that the command line knows them by: functions of this folder, and partials of them by keyword."""

__all__ = ["FAMILIES", "ResidualBlock", "SeparableConv", "UNet", "basic_block", "bottleneck", "plain_conv", "resnet50", "unet"]
