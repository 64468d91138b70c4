"""Which anchors train on which object, and which of them are drawn for a step."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import torch
from jaxtyping import Int64, Integer, Real
from torch import Tensor

from sash.errors import InputError
from sash.ops._box_checks import check_share
from sash.ops._boxes import box_iou
from sash.ops._tensors import shown

NEGATIVE, IGNORED = -1, -2
"""What `match` says of a box that belongs to no object: it trains as background, or not at all."""


def match(
    boxes: Real[Tensor, "box 4"], truths: Real[Tensor, "truth 4"], high: float = 0.7, low: float = 0.3, *, best: bool = True
) -> Int64[Tensor, " box"]:
    """For each box (an anchor, a proposal) the number of the object that it belongs to, or `NEGATIVE` (−1), or `IGNORED` (−2).

    A box belongs to the object that it overlaps most, the first of equals, if their IoU is at least `high`; below `low` it is negative,
    between the two ignored. With `best`, so that every object has a box, those boxes that overlap an object most, all of equals, are
    positive as well: each belongs to the object that it overlaps most itself. An object that no box overlaps has none. Without objects all
    boxes are negative. Holds some four overlaps for each box and object.

    The defaults are a region proposal network's; Fast R-CNN's head has match(proposals, truths, 0.5, 0.5, best=False).
    Raises `InputError` where shapes or devices do not go together and unless 0 ≤ low ≤ high ≤ 1.

    Source: S. Ren et al., "Faster R-CNN", 2015, section 3.1.2.
    """
    if not 0 <= low <= high <= 1:
        raise InputError(f"low is {low!r} and high {high!r}; they have to be shares, 0 <= low <= high <= 1.")
    overlaps = box_iou(boxes, truths)
    if not overlaps.shape[1]:
        return torch.full(overlaps.shape[:1], NEGATIVE, dtype=torch.int64, device=overlaps.device)
    most, found = overlaps.amax(1), overlaps.argmax(1)
    positive = most >= high
    if best and len(overlaps):
        for_truth = overlaps.amax(0)
        positive |= ((overlaps == for_truth) & (for_truth > 0)).any(1)
    return torch.where(positive, found, torch.where(most < low, NEGATIVE, IGNORED))


def sample_balanced(
    matches: Integer[Tensor, " box"], count: int = 256, positive: float = 0.5, *, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, " chosen"], Int64[Tensor, " others"]]:
    """Numbers of positive boxes and numbers of negative boxes, both ascending, drawn from what `match` says of all boxes of an image.

    At most a share `positive` of `count` are positive, each box with the same chance; negatives fill up to `count`, as far as there are
    any. Ignored boxes are not drawn. `generator` (on the matches' device) makes the draw repeatable. Raises `InputError` for matches that
    are not one whole number a box, a negative count and a share that is none.

    Source: S. Ren et al., "Faster R-CNN", 2015, section 3.1.3.
    """
    if matches.dim() != 1 or matches.is_floating_point() or matches.is_complex() or matches.dtype is torch.bool:
        raise InputError(f"matches are {shown(matches)} of type {matches.dtype}; they have to be what match gives, a whole number a box.")
    if count < 0:
        raise InputError(f"count is {count}; it is a number of boxes, from 0 on.")
    check_share("positive", positive)
    chosen = _draw((matches >= 0).nonzero()[:, 0], int(count * positive), generator)
    return chosen, _draw((matches == NEGATIVE).nonzero()[:, 0], count - len(chosen), generator)


def _draw(numbers: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """So many of the numbers, ascending; all where there are no more."""
    return numbers[torch.randperm(len(numbers), generator=generator, device=numbers.device)[:most]].sort().values
