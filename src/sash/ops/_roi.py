"""RoI pooling: the part of a feature map under each box, brought to one size."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from typing import Literal, overload

import torch
from jaxtyping import Float, Int32, Real
from torch import Tensor, nn

from sash.errors import InputError
from sash.ops._box_checks import check_boxes, check_device, computed
from sash.ops._roi_operators import roi_max, roi_max_located, roi_mean, roi_weights
from sash.ops._roi_windows import FARTHEST, bins
from sash.ops._tensors import has_values, shown


@overload
def roi_pool(
    features: Float[Tensor, "image channel height width"],
    rois: Real[Tensor, "box 5"],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    *,
    return_positions: Literal[False] = False,
) -> Float[Tensor, "box channel high wide"]: ...
@overload
def roi_pool(
    features: Float[Tensor, "image channel height width"],
    rois: Real[Tensor, "box 5"],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    *,
    return_positions: Literal[True],
) -> tuple[Float[Tensor, "box channel high wide"], Int32[Tensor, "box channel high wide"]]: ...
def roi_pool(
    features: Float[Tensor, "image channel height width"],
    rois: Real[Tensor, "box 5"],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    *,
    return_positions: bool = False,
) -> Float[Tensor, "box channel high wide"] | tuple[Float[Tensor, "box channel high wide"], Int32[Tensor, "box channel high wide"]]:
    """The largest value in each bin of each box, `output_size` bins a box.

    `rois` are (image, x1, y1, x2, y2) in pixels, `scale` the cells of the map to a pixel (1/16 for a map at stride 16). As in Fast R-CNN,
    a box's ends are rounded to cells, halves away from zero, and both end cells belong to it; a box that ends before it begins is one cell.
    Of n cells, bin i of k has those from ⌊i·n/k⌋ to before ⌈(i+1)·n/k⌉, so that neighbours may share a cell, and what lies on the map of
    them counts. A bin without any is 0.

    With `return_positions` also where each value was found, row · width + column, or −1 in a bin without cells. The first of equals in that
    order gives the value and gets its gradient; NaN counts as larger than any number. Boxes get no gradient.

    The cells are computed in fp32, fp64 boxes in fp64. Maps are compared channels last: one that lies otherwise is copied for the time of
    the call. Memory beside that and the result: the positions, 4 bytes a value, which training keeps instead of the map; half precision is
    compared, and given its gradient, in an fp32 copy. On the CPU, results do not depend on the number of threads. With numba
    (`pip install sash[arrays]`) it is compiled, several times as fast.

    Raises `InputError` where shapes, types or devices do not go together, for boxes that are not finite and for images that are not there.

    Source: R. Girshick, "Fast R-CNN", 2015, and its roi_pooling_layer.cpp.
    """
    high, wide = _check(features, rois, output_size, scale)
    images, x1, y1, x2, y2 = _ends(rois, scale)
    height, width = features.shape[2:]
    operands = _laid_out(features), images, bins(y1, y2, high, height), bins(x1, x2, wide, width)
    if not return_positions and not (features.requires_grad and torch.is_grad_enabled()):
        return roi_max(*operands).to(features.dtype)
    values, positions = roi_max_located(*operands)
    values = values.to(features.dtype)
    return (values, positions) if return_positions else values


def roi_align(
    features: Float[Tensor, "image channel height width"],
    rois: Real[Tensor, "box 5"],
    output_size: int | tuple[int, int],
    scale: float = 1.0,
    sampling_ratio: int | None = None,
    aligned: bool = False,
) -> Float[Tensor, "box channel high wide"]:
    """The mean of samples in each bin of each box, `output_size` bins a box; nothing is rounded to cells.

    `rois` and `scale` as in `roi_pool`. Each bin has `sampling_ratio` samples a side, evenly spread, or by default as many as it has cells,
    rounded up. A sample is interpolated linearly between four cells; up to one cell beyond the border it is the border's value, farther out
    it counts as 0. `aligned` takes pixel centres to be at halves, as detectron2 does from 2019 on: the samples move by half a cell. Without
    it, as in the paper's code, boxes are at least one cell wide and high. With it, a box without extent is 0 under the default sampling,
    and one that ends before it begins is 0 as well; under a given `sampling_ratio` the latter is read from its end, mirrored.

    Samples are placed in fp32, with fp64 boxes in fp64, and summed in the features' type, half precision in fp32: first across rows, then
    across columns. Rounding moves a value by less than 2⁻²¹ of the largest under its samples in fp32, where samples are placed exactly.
    Memory beside the result: the map in channels-last order for the time of the call, and (high · height + wide · width) weights a box,
    which training keeps. On the CPU, results do not depend on the number of threads. With numba (`pip install sash[arrays]`) it is
    compiled, several times as fast. Boxes get no gradient.

    Raises `InputError` as `roi_pool` does, and for a `sampling_ratio` below 1.

    Source: K. He et al., "Mask R-CNN", 2017.
    """
    high, wide = _check(features, rois, output_size, scale)
    if sampling_ratio is not None and (not isinstance(sampling_ratio, int) or isinstance(sampling_ratio, bool) or sampling_ratio < 1):
        raise InputError(f"sampling_ratio is {sampling_ratio!r}; it is a number from 1 on, or None for as many samples as a bin has cells.")
    images, x1, y1, x2, y2 = _ends(rois, scale)
    operand = _laid_out(features)
    by_row, by_column = (
        roi_weights(low, high_end, count, length, sampling_ratio or 0, aligned).to(operand.dtype)
        for low, high_end, count, length in ((y1, y2, high, features.shape[2]), (x1, x2, wide, features.shape[3]))
    )
    return roi_mean(operand, images, by_row, by_column).to(features.dtype)


class RoIPool(nn.Module):
    """`roi_pool` as a layer: (features, rois) → values."""

    def __init__(self, output_size: int | tuple[int, int], scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.scale = output_size, scale

    def forward(
        self, features: Float[Tensor, "image channel height width"], rois: Real[Tensor, "box 5"]
    ) -> Float[Tensor, "box channel high wide"]:
        return roi_pool(features, rois, self.output_size, self.scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, scale={self.scale}"


class RoIAlign(nn.Module):
    """`roi_align` as a layer: (features, rois) → values."""

    def __init__(
        self, output_size: int | tuple[int, int], scale: float = 1.0, sampling_ratio: int | None = None, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size, self.scale, self.sampling_ratio, self.aligned = output_size, scale, sampling_ratio, aligned

    def forward(
        self, features: Float[Tensor, "image channel height width"], rois: Real[Tensor, "box 5"]
    ) -> Float[Tensor, "box channel high wide"]:
        return roi_align(features, rois, self.output_size, self.scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, scale={self.scale}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"


def _laid_out(features: Tensor) -> Tensor:
    return computed(features).contiguous(memory_format=torch.channels_last)


def _ends(rois: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The boxes' images, and their ends in cells of the map: x1, y1, x2, y2."""
    images, *ends = computed(rois.detach()).unbind(1)
    x1, y1, x2, y2 = ((end * scale).clamp(-FARTHEST, FARTHEST) for end in ends)
    return images.long(), x1, y1, x2, y2


def _check(features: Tensor, rois: Tensor, output_size: int | tuple[int, int], scale: float) -> tuple[int, int]:
    """The bins of a box, down and across. Raises `InputError` for what does not go together."""
    sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise InputError(f"output_size is {output_size!r}; it is a number of bins from 1 on, or two: (7, 7).")
    if not 0 < scale < math.inf:
        raise InputError(f"scale is {scale!r}; it is the cells of the map to a pixel, 1/16 for a map at stride 16.")
    if features.dim() != 4:
        raise InputError(f"the features are {shown(features)}; they have to be (images, channels, height, width).")
    if not features.is_floating_point():
        raise InputError(f"the features are of type {features.dtype}; they have to be floating: features.float() would be.")
    check_boxes("rois", rois, "image, x1, y1, x2, y2")
    check_device("features", features, "rois", rois)
    if has_values(rois) and len(rois):
        images = rois[:, 0]
        wrong = (images < 0) | (images >= len(features)) | (images != images.to(torch.int64))
        if wrong.any():
            first = int(wrong.nonzero()[0])
            there = f"there are {len(features)} images, 0 to {len(features) - 1}" if len(features) else "there is no image"
            raise InputError(f"rois[{first}] is on image {images[first].item():g}, and {there}.")
    return sides
