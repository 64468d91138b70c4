"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses

__all__ = ["SoftmaxLoss", "softmax_loss", "softmax_losses"]
