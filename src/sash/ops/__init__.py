"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._gated import Gated, gated
from sash.ops._join import Join, join
from sash.ops._limited_sharing import LimitedSharingConv, limited_sharing_conv
from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses
from sash.ops._separable import SeparableConv, separable_conv
from sash.ops._separable_bands import Band, band_of

__all__ = [
    "Band",
    "Gated",
    "Join",
    "LimitedSharingConv",
    "SeparableConv",
    "SoftmaxLoss",
    "band_of",
    "gated",
    "join",
    "limited_sharing_conv",
    "separable_conv",
    "softmax_loss",
    "softmax_losses",
]
