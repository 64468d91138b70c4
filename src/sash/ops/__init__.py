"""Operators on tensors: functions, with thin modules beside them."""

from sash.ops._accumulated import AccumulatedBatchNorm, batch_norm_over
from sash.ops._adjoint import conv_adjoint
from sash.ops._boxes import anchors, box_iou, decode_boxes, encode_boxes
from sash.ops._gated import Gated, gated
from sash.ops._heads import convolutional_classifier, convolutional_head
from sash.ops._inverse import Inverse, InverseConv, invert_conv
from sash.ops._join import Join, join
from sash.ops._limited_sharing import LimitedSharingConv, limited_sharing_conv
from sash.ops._loss import SoftmaxLoss, softmax_loss, softmax_losses
from sash.ops._matching import IGNORED, NEGATIVE, match, sample_balanced
from sash.ops._nms import batched_nms, nms
from sash.ops._norm_activation import BatchNormAct, GroupNormAct, batch_norm_act, group_norm_act
from sash.ops._norm_swap import swap_norms, to_accumulated, to_batch, to_frozen, to_ghost, to_group, to_instance, to_layer
from sash.ops._norms import FrozenBatchNorm, GhostBatchNorm, frozen_norm, ghost_norm
from sash.ops._pointwise import conv_to_linear, linear_to_conv
from sash.ops._pooling import Pool, adaptive_pool, avg_pool, global_pool, max_pool, pyramid_pool
from sash.ops._roi import RoIAlign, RoIPool, roi_align, roi_pool
from sash.ops._separable import SeparableConv, separable_conv
from sash.ops._separable_bands import Band, band_of
from sash.ops._set_dropout import DroppedMax, dropped_max, expected_max
from sash.ops._sets import SetAttention, SetPool, set_attention, set_max, set_mean, set_sum
from sash.ops._sweeps import accumulate_batch_norm

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "AccumulatedBatchNorm",
    "Band",
    "BatchNormAct",
    "DroppedMax",
    "FrozenBatchNorm",
    "Gated",
    "GhostBatchNorm",
    "GroupNormAct",
    "Inverse",
    "InverseConv",
    "Join",
    "LimitedSharingConv",
    "Pool",
    "RoIAlign",
    "RoIPool",
    "SeparableConv",
    "SetAttention",
    "SetPool",
    "SoftmaxLoss",
    "accumulate_batch_norm",
    "adaptive_pool",
    "anchors",
    "avg_pool",
    "band_of",
    "batch_norm_act",
    "batch_norm_over",
    "batched_nms",
    "box_iou",
    "conv_adjoint",
    "conv_to_linear",
    "convolutional_classifier",
    "convolutional_head",
    "decode_boxes",
    "dropped_max",
    "encode_boxes",
    "expected_max",
    "frozen_norm",
    "gated",
    "ghost_norm",
    "global_pool",
    "group_norm_act",
    "invert_conv",
    "join",
    "limited_sharing_conv",
    "linear_to_conv",
    "match",
    "max_pool",
    "nms",
    "pyramid_pool",
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
    "swap_norms",
    "to_accumulated",
    "to_batch",
    "to_frozen",
    "to_ghost",
    "to_group",
    "to_instance",
    "to_layer",
]
