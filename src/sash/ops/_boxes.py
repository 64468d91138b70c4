"""Boxes: how much two overlap, where anchors lie, and how one is written as a change of another.

A box is (x1, y1, x2, y2) and goes from x1 to x2 as on a ruler: x2 − x1 wide. Older code often counts pixels from the first to the last
instead, x2 − x1 + 1; such boxes are brought over by adding 1 to x2 and y2.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from sash.errors import InputError
from sash.ops._box_checks import check_boxes, check_device, computed
from sash.ops._tensors import has_values, shown

Weights = tuple[float, float, float, float]

LARGEST_CHANGE = math.log(1000 / 16)
"""Of a width or height's logarithm when decoded: an anchor 16 wide becomes at most 1,000 wide."""


def box_iou(boxes: Real[Tensor, "box 4"], others: Real[Tensor, "other 4"]) -> Float[Tensor, "box other"]:
    """The intersection of each box with each other one, as a share of their union: 0 to 1.

    A box without area, or that ends before it begins, has no intersection with any, not with itself either. Computed in fp32, fp64 in
    fp64, and in the larger type of both. Holds some four times its result. Raises `InputError` where shapes or devices do not go together
    and for numbers that are not finite.
    """
    check_boxes("boxes", boxes)
    check_boxes("others", others)
    check_device("boxes", boxes, "others", others)
    boxes, others = computed(boxes), computed(others)
    corner = torch.maximum(boxes[:, None, :2], others[:, :2])
    end = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    inner = (end - corner).clamp(min=0).prod(2)
    union = _areas(boxes)[:, None] + _areas(others) - inner
    return torch.where(inner > 0, inner / union, 0)


def anchors(
    rows: int,
    columns: int,
    stride: int = 16,
    scales: Sequence[float] = (8, 16, 32),
    ratios: Sequence[float] = (0.5, 1, 2),
    *,
    rounded: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "anchor 4"]:
    """The anchors of a map of rows · columns cells, in pixels: cell by cell, row after row.

    Those of a cell go ratio by ratio (height / width), in each scale by scale, and share the cell's centre, (column + ½, row + ½) · stride.
    A square of the stride's side is brought to each ratio at the same area, its sides `rounded` to whole pixels as in the source, and
    multiplied by each scale. The source counts pixels from the first to the last: its x2 and y2 are 1 less.

    Raises `InputError` for a count below 0 and for a stride, scale or ratio that is not positive.

    Source: S. Ren et al., "Faster R-CNN", 2015; generate_anchors.py of its Python code.
    """
    for name, count in (("rows", rows), ("columns", columns)):
        if count < 0:
            raise InputError(f"{name} is {count}; a map has 0 cells or more.")
    for name, values in (("stride", [stride]), ("scales", scales), ("ratios", ratios)):
        if not all(0 < value < math.inf for value in values):
            raise InputError(f"{name} is {values[0] if name == 'stride' else tuple(values)}; every one has to be positive.")
    sides = []
    for ratio in ratios:
        width = math.sqrt(stride * stride / ratio)
        # Python rounds halves to the even number, as NumPy does in the source.
        width, height = (round(width), round(round(width) * ratio)) if rounded else (width, width * ratio)
        sides += [(width * scale, height * scale) for scale in scales]
    # Made in fp64: a coordinate is rounded once.
    half = torch.tensor(sides, dtype=torch.float64, device=device).view(-1, 2) / 2
    y, x = ((torch.arange(count, dtype=torch.float64, device=device) + 0.5) * stride for count in (rows, columns))
    centre = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).view(-1, 1, 2)
    return torch.cat([centre - half, centre + half], -1).view(-1, 4).to(dtype or torch.get_default_dtype())


def encode_boxes(
    boxes: Real[Tensor, "*box 4"], anchors: Real[Tensor, "*anchor 4"], weights: Weights = (1, 1, 1, 1)
) -> Float[Tensor, "*both 4"]:
    """What takes each anchor to its box, as a network learns it: (dx, dy, dw, dh), times the weights.

    dx and dy are how far the centre moves, in the anchor's widths and heights; dw and dh the logarithms of how far the sides grow. Axes
    before the last are broadcast. Raises `InputError` where shapes or devices do not go together, and for a box or an anchor without width
    or height, which has no logarithm.

    Source: R. Girshick et al., "Rich feature hierarchies", 2014, appendix C.
    """
    _check_pair("boxes", boxes, anchors, weights)
    for name, tensor in (("boxes", boxes), ("anchors", anchors)):
        if has_values(tensor) and (flat := (tensor[..., 2:] <= tensor[..., :2]).any(-1)).any():
            first = flat.nonzero()[0].tolist()
            values = ", ".join(f"{value:g}" for value in tensor[tuple(first)].tolist())
            raise InputError(f"{name}[{', '.join(map(str, first))}] is ({values}); a box has to be wide and high to be encoded.")
    centre, size = _centre_and_size(computed(boxes))
    anchor_centre, anchor_size = _centre_and_size(computed(anchors))
    found = torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], -1)
    return found * found.new_tensor(weights)


def decode_boxes(
    changes: Real[Tensor, "*box 4"],
    anchors: Real[Tensor, "*anchor 4"],
    weights: Weights = (1, 1, 1, 1),
    largest_change: float = LARGEST_CHANGE,
) -> Float[Tensor, "*both 4"]:
    """The boxes that changes, as `encode_boxes` writes them, make of anchors.

    dw and dh, after division by the weights, count as `largest_change` at most (ln 62.5), so that an untrained network's do not overflow.
    Axes before the last are broadcast: with changes (box, class, 4), give anchors as anchors[:, None]. Boxes are not clipped to an image.
    Raises `InputError` where shapes or devices do not go together and for numbers that are not finite.
    """
    _check_pair("changes", changes, anchors, weights)
    changes = computed(changes)
    changes = changes / changes.new_tensor(weights)
    anchor_centre, anchor_size = _centre_and_size(computed(anchors))
    centre = anchor_centre + changes[..., :2] * anchor_size
    half = anchor_size * changes[..., 2:].clamp(max=largest_change).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def _areas(boxes: Float[Tensor, "box 4"]) -> Float[Tensor, " box"]:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def _check_pair(name: str, boxes: Tensor, anchors: Tensor, weights: Weights) -> None:
    check_boxes(name, boxes, "dx, dy, dw, dh" if name == "changes" else "x1, y1, x2, y2", flat=False)
    check_boxes("anchors", anchors, flat=False)
    check_device(name, boxes, "anchors", anchors)
    if len(weights) != 4 or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"weights are {tuple(weights)}; they have to be four positive numbers, for dx, dy, dw, dh.")
    try:
        torch.broadcast_shapes(boxes.shape, anchors.shape)
    except RuntimeError:
        raise InputError(f"{name} are {shown(boxes)} and anchors {shown(anchors)}: not one for one; axes are broadcast.") from None
