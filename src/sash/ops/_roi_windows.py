"""What each bin of a box reads of a map, one axis at a time: the cells that RoI pooling compares, the weights that RoIAlign sums with."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import torch
from jaxtyping import Float, Int32
from torch import Tensor

FARTHEST = 2.0**22
"""Cells; boxes end here at most. Beyond every map, and float32 still counts bins in whole cells."""


def bins(low: Float[Tensor, " box"], high: Float[Tensor, " box"], count: int, length: int) -> Int32[Tensor, "box bin 2"]:
    """First cell of each bin, and the one after its last; equal or crossed where the bin is empty.

    From the box's ends, in cells of a map of `length`. In the type of the ends, step by step as in the source: in float32 the product of a
    bin's number and its size can round to just above a whole cell, and the bin then has one cell more.

    Source: R. Girshick, Fast R-CNN, roi_pooling_layer.cpp.
    """
    start = _rounded(low)
    cells = (_rounded(high) - start + 1).clamp(min=1)
    # Not by a Python number: on CUDA that would multiply by its inverse.
    size = (cells / cells.new_full((), count)).unsqueeze(1)
    number = torch.arange(count, dtype=low.dtype, device=low.device)
    edges = torch.stack([(number * size).floor(), ((number + 1) * size).ceil()], -1)
    return (edges + start[:, None, None]).clamp(0, length).to(torch.int32)


def sample_weights(
    low: Float[Tensor, " box"], high: Float[Tensor, " box"], count: int, length: int, ratio: int | None, aligned: bool
) -> Float[Tensor, "box bin cell"]:
    """What each cell counts in each bin: the mean of linear interpolations at samples evenly spread over the bin.

    From the box's ends, in cells of a map of `length`; `ratio` samples a bin, or as many as the bin has cells, rounded up.

    Source: K. He et al., "Mask R-CNN", 2017, and detectron2's ROIAlign for `aligned` and for samples beyond the border.
    """
    weights = low.new_zeros(len(low), count, length)
    if weights.numel() == 0:
        return weights
    # Samples read cells' values at whole numbers: aligned takes a cell's centre to be at its half.
    start, extent = (low - 0.5, high - low) if aligned else (low, (high - low).clamp(min=1))
    size = extent / extent.new_full((), count)
    samples = size.ceil() if ratio is None else torch.full_like(size, ratio)
    divisor = samples.clamp(min=1)[:, None, None]
    size = size[:, None, None]
    begin = start[:, None, None] + torch.arange(count, dtype=low.dtype, device=low.device)[:, None] * size
    most = max(int(samples.max()), 0)
    number = torch.arange(most, dtype=low.dtype, device=low.device)
    if ratio is None and most > 2 * length + 4:
        # Samples are at least half a cell apart: of a huge box's bin no more than these are on the map.
        most = 2 * length + 4
        first = ((-1 - begin) * divisor / size - 1).floor().clamp(min=0)
        number = torch.where(samples[:, None, None] > most, first, 0) + number[:most]
    place = begin + (number + 0.5) * size / divisor
    counted = (number < samples[:, None, None]) & (place >= -1) & (place <= length)
    share = counted / divisor
    # What is not counted has the share 0, wherever it is taken to be.
    place = place.clamp(0, length - 1)
    cell = place.floor()
    upper = place - cell
    weights.scatter_add_(2, cell.long(), share * (1 - upper))
    return weights.scatter_add_(2, (cell.long() + 1).clamp(max=length - 1), share * upper)


def _rounded(values: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero; `torch.round` takes halves to the even one."""
    whole = values.trunc()
    # The difference is exact, where adding a half first would round 0.49999997 up.
    return whole + ((values - whole).abs() >= 0.5) * values.sign()
