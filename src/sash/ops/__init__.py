"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._gated import Gated, gated
from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses
from sash.ops._separable import SeparableConv, separable_conv
from sash.ops._separable_bands import Band, band_of

__all__ = ["Band", "Gated", "SeparableConv", "SoftmaxLoss", "band_of", "gated", "separable_conv", "softmax_loss", "softmax_losses"]
