"""RoI pooling and non-maximum suppression beside torchvision's compiled CPU kernels."""

from __future__ import annotations

from collections.abc import Callable

import _torchvision_kernels as compiled
import torch
import torchvision  # noqa: F401 (gives the compiled kernels their gradients)
from _ops_row import Row
from torch import Tensor

import sash.ops

SIDE, STRIDE, CHANNELS, BOXES, BINS = 50, 16, 256, 2000, 7
PIXELS = SIDE * STRIDE


def features_and_rois() -> tuple[Tensor, Tensor]:
    """The map of an 800x800 image at stride 16, and boxes with corners anywhere in it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator).requires_grad_()
    corners = torch.rand(BOXES, 2, 2, generator=generator) * PIXELS
    return features, torch.cat([torch.zeros(BOXES, 1), corners.amin(1), corners.amax(1)], 1)


def boxes_and_scores(count: int, largest: float) -> Callable[[], tuple[Tensor, Tensor]]:
    """Boxes with sides up to `largest` pixels, their corners anywhere in an 800x800 image."""

    def made() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        corner = torch.rand(count, 2, generator=generator) * PIXELS
        size = torch.rand(count, 2, generator=generator) * largest
        return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)

    return made


def our_pool(features: Tensor, rois: Tensor) -> Tensor:
    return sash.ops.roi_pool(features, rois, BINS, 1 / STRIDE)


def their_pool(features: Tensor, rois: Tensor) -> Tensor:
    return compiled.roi_pool(features, rois, 1 / STRIDE, BINS, BINS)[0]


def our_align(features: Tensor, rois: Tensor) -> Tensor:
    return sash.ops.roi_align(features, rois, BINS, 1 / STRIDE, sampling_ratio=2)


def their_align(features: Tensor, rois: Tensor) -> Tensor:
    return compiled.roi_align(features, rois, 1 / STRIDE, BINS, BINS, 2, False)


def our_adaptive_align(features: Tensor, rois: Tensor) -> Tensor:
    return sash.ops.roi_align(features, rois, BINS, 1 / STRIDE, aligned=True)


def their_adaptive_align(features: Tensor, rois: Tensor) -> Tensor:
    return compiled.roi_align(features, rois, 1 / STRIDE, BINS, BINS, -1, True)


def our_nms(boxes: Tensor, scores: Tensor) -> Tensor:
    return sash.ops.nms(boxes, scores, 0.7)


def their_nms(boxes: Tensor, scores: Tensor) -> Tensor:
    return compiled.nms(boxes, scores, 0.7)


MAP = f"1x{CHANNELS}x{SIDE}x{SIDE}, {BOXES:,} boxes to {BINS}x{BINS}"
ROWS = (
    Row(f"roi_pool, {MAP}", features_and_rois, our_pool, {"torchvision": their_pool}, aim=1 / 1.5),
    Row(f"roi_align, {MAP}, 2 samples", features_and_rois, our_align, {"torchvision": their_align}, aim=1 / 1.5),
    Row(f"roi_align, {MAP}, adaptive, aligned", features_and_rois, our_adaptive_align, {"torchvision": their_adaptive_align}, aim=1 / 1.5),
    Row("nms, 12,000 boxes, 0.7, few go", boxes_and_scores(12_000, 200), our_nms, {"torchvision": their_nms}, backward=False, aim=1.0),
    Row("nms, 12,000 boxes, 0.7, most go", boxes_and_scores(12_000, 4000), our_nms, {"torchvision": their_nms}, backward=False, aim=1.0),
)
