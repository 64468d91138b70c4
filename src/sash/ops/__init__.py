"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._adjoint import conv_adjoint
from sash.ops._boxes import anchors, box_iou, decode_boxes, encode_boxes
from sash.ops._gated import Gated, gated
from sash.ops._join import Join, join
from sash.ops._limited_sharing import LimitedSharingConv, limited_sharing_conv
from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses
from sash.ops._matching import IGNORED, NEGATIVE, match, sample_balanced
from sash.ops._nms import batched_nms, nms
from sash.ops._pointwise import conv_to_linear, linear_to_conv
from sash.ops._roi import RoIAlign, RoIPool, roi_align, roi_pool
from sash.ops._separable import SeparableConv, separable_conv
from sash.ops._separable_bands import Band, band_of
from sash.ops._sets import SetAttention, SetPool, set_attention, set_max, set_mean, set_sum

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "Band",
    "Gated",
    "Join",
    "LimitedSharingConv",
    "RoIAlign",
    "RoIPool",
    "SeparableConv",
    "SetAttention",
    "SetPool",
    "SoftmaxLoss",
    "anchors",
    "band_of",
    "batched_nms",
    "box_iou",
    "conv_adjoint",
    "conv_to_linear",
    "decode_boxes",
    "encode_boxes",
    "gated",
    "join",
    "limited_sharing_conv",
    "linear_to_conv",
    "match",
    "nms",
    "roi_align",
    "roi_pool",
    "sample_balanced",
    "separable_conv",
    "set_attention",
    "set_max",
    "set_mean",
    "set_sum",
    "softmax_loss",
    "softmax_losses",
]
