"""Non-maximum suppression: of boxes that overlap, the best."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, Integer, Real
from torch import Tensor

from sash.errors import InputError
from sash.ops._box_checks import check_boxes, check_device, check_share, computed
from sash.ops._boxes import box_iou
from sash.ops._compiled import compiled
from sash.ops._tensors import has_values, shown

BLOCK = 512
"""Boxes compared with all after them at a time, where the compiled kernel does not run."""


def nms(boxes: Real[Tensor, "box 4"], scores: Real[Tensor, " box"], threshold: float) -> Int64[Tensor, " kept"]:
    """The numbers of the boxes that stay, best score first: by score, a box goes if one that stays overlaps it by more than `threshold`.

    Of equal scores the lower number goes first. Overlap is `box_iou`: a box without area overlaps none, and stays. Compared in fp32, fp64
    boxes in fp64. Time grows with boxes times boxes that stay. Memory: some ten numbers a box, and 512 overlaps a box where no compiled
    kernel runs (with numba on the CPU one does: `pip install sash[arrays]`).

    Raises `InputError` where shapes or devices do not go together, for a threshold that is no share and for numbers that are not finite.
    """
    _check(boxes, scores, threshold)
    order = scores.argsort(descending=True, stable=True)
    ends = torch.full_like(order, len(order))
    return order[nms_kept(_lines(boxes, order), ends, threshold)]


def batched_nms(
    boxes: Real[Tensor, "box 4"], scores: Real[Tensor, " box"], groups: Integer[Tensor, " box"], threshold: float
) -> Int64[Tensor, " kept"]:
    """`nms` in each group of boxes (a class, an image, a level) by itself: the numbers of the boxes that stay, best score first.

    Groups are any whole numbers. Boxes of different groups are not moved apart, which would cost them precision, but never compared. Time
    grows with boxes times boxes that stay of a group. Raises `InputError` as `nms` does.
    """
    _check(boxes, scores, threshold)
    if groups.shape != scores.shape or groups.is_floating_point() or groups.is_complex() or groups.dtype is torch.bool:
        raise InputError(f"groups are {shown(groups)} of type {groups.dtype}; they have to be {len(boxes)} whole numbers, one a box.")
    check_device("boxes", boxes, "groups", groups)
    order = scores.argsort(descending=True, stable=True)
    grouped, together = groups[order].sort(stable=True)
    ends = torch.searchsorted(grouped, grouped, right=True)
    kept = nms_kept(_lines(boxes, order[together]), ends, threshold)
    return order[torch.empty_like(kept).scatter_(0, together, kept)]


@torch.library.custom_op("sash::nms_kept", mutates_args=())
def nms_kept(lines: Tensor, ends: Tensor, threshold: float) -> Tensor:
    """Whether each box stays. They come as four lines, x1 to y2, group by group and within it best first; `ends` is, for each box, the
    first beyond its group."""
    kept = torch.zeros(lines.shape[1], dtype=torch.bool, device=lines.device)
    # To the type of the overlaps, downwards: an overlap is above the one exactly if it is above the other.
    number = np.float64 if lines.dtype is torch.float64 else np.float32
    limit = number(threshold)
    if float(limit) > threshold:
        limit = np.nextafter(limit, number(-1))
    if compiled(lines):
        from sash.ops import _nms_kernels

        _nms_kernels.keep(lines.contiguous().numpy(), ends.numpy(), limit, kept.numpy())
    else:
        _keep(lines.t(), ends, float(limit), kept)
    return kept


@nms_kept.register_fake
def _(lines: Tensor, ends: Tensor, threshold: float) -> Tensor:
    return lines.new_empty(lines.shape[1], dtype=torch.bool)


def _lines(boxes: Tensor, order: Tensor) -> Tensor:
    return computed(boxes.detach()).t()[:, order].contiguous()


def _keep(boxes: Tensor, ends: Tensor, limit: float, kept: Tensor) -> None:
    """The same in torch's own operators, a block of boxes at a time."""
    stays = torch.ones_like(kept)
    number = torch.arange(len(boxes), device=boxes.device)
    for start in range(0, len(boxes), BLOCK):
        block = slice(start, min(start + BLOCK, len(boxes)))
        last = int(ends[block].max())
        after = (number[start:last] > number[block, None]) & (number[start:last] < ends[block, None])
        over = (box_iou(boxes[block], boxes[start:last]) > limit) & after
        within = over[:, : block.stop - start]
        # A box is settled once all before it are: each round settles at least one more, and most at once.
        settled, before = stays[block], None
        while before is None or not torch.equal(settled, before):
            before = settled
            settled = stays[block] & ~(within & before[:, None]).any(0)
        kept[block] = settled
        stays[start:last] &= ~(over & settled[:, None]).any(0)


def _check(boxes: Tensor, scores: Tensor, threshold: float) -> None:
    check_boxes("boxes", boxes)
    if scores.shape != boxes.shape[:1] or scores.is_complex():
        raise InputError(f"scores are {shown(scores)} of type {scores.dtype}; they have to be {len(boxes)} numbers, one a box.")
    check_device("boxes", boxes, "scores", scores)
    check_share("threshold", threshold)
    if scores.is_floating_point() and has_values(scores) and scores.isnan().any():
        first = int(scores.isnan().nonzero()[0])
        raise InputError(f"scores[{first}] is nan; every score has to be a number.")
