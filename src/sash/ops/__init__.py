"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses
from sash.ops._separable import SeparableConv, separable_conv
from sash.ops._separable_bands import Band, band_of

__all__ = ["Band", "SeparableConv", "SoftmaxLoss", "band_of", "separable_conv", "softmax_loss", "softmax_losses"]
