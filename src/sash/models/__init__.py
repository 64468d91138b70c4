"""Blocks and architectures, one family a file."""

from collections.abc import Callable
from functools import partial

from torch import nn

from sash.models._all_cnn import all_cnn
from sash.models._blocks import GatedBlock, InvertedResidual, gated_block, inverted_residual, mlpconv, separable_block
from sash.models._front_end import FrontEnd, front_end
from sash.models._history import Epoch, History
from sash.models._nin import nin
from sash.models._pictures import PictureNet
from sash.models._resnet import ResidualBlock, basic_block, bottleneck, resnet, resnet50
from sash.models._set_encoder import ContextGating, SetEncoder, set_encoder
from sash.models._speech import SpeechCNN, speech_cnn
from sash.models._train import train
from sash.models._unet import SeparableConv, UNet, plain_conv, unet
from sash.models._vgg import vgg

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "unet-separable": partial(unet, kind="separable"),
    "unet-fused": partial(unet, kind="fused"),
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (18, 34)},
    "resnet50": resnet50,
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (101, 152)},
    "all-cnn-a": partial(all_cnn, base="A"),
    "all-cnn-b": partial(all_cnn, base="B"),
    "all-cnn-c": partial(all_cnn, base="C"),
    "pooled-cnn-c": partial(all_cnn, kind="pooled"),
    "strided-cnn-c": partial(all_cnn, kind="strided"),
    "convpool-cnn-c": partial(all_cnn, kind="convpool"),
    "nin": nin,
    **{f"vgg{depth}": partial(vgg, depth=depth) for depth in (11, 13, 16, 19)},
    "speech-cnn": speech_cnn,
    "speech-cnn-limited": partial(speech_cnn, sharing="limited"),
    "set-encoder": set_encoder,
    "front-end": front_end,
}
"""Models by the name that the command line knows them by: functions of this folder, and partials of them by keyword."""

__all__ = [
    "FAMILIES",
    "ContextGating",
    "Epoch",
    "FrontEnd",
    "GatedBlock",
    "History",
    "InvertedResidual",
    "PictureNet",
    "ResidualBlock",
    "SeparableConv",
    "SetEncoder",
    "SpeechCNN",
    "UNet",
    "all_cnn",
    "basic_block",
    "bottleneck",
    "front_end",
    "gated_block",
    "inverted_residual",
    "mlpconv",
    "nin",
    "plain_conv",
    "resnet",
    "resnet50",
    "separable_block",
    "set_encoder",
    "speech_cnn",
    "train",
    "unet",
    "vgg",
]
