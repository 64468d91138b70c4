"""RoI pooling in torch's own operators, for devices other than the CPU and where numba is not installed.

The same results as the compiled kernels, with the boxes in parts, so that what is gathered for a part stays small.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

PART = 1 << 22
"""Numbers gathered at a time: 16 MiB in fp32."""


def pool(
    features: Float[Tensor, "image channel height width"],
    images: Int64[Tensor, " box"],
    rows: Int32[Tensor, "box high 2"],
    columns: Int32[Tensor, "box wide 2"],
    values: Float[Tensor, "box channel bin"],
    positions: Int32[Tensor, "box channel bin"],
) -> None:
    """Writes the largest of each bin and, where `positions` has room, its place. Boxes of like size go together, cell by cell of a bin."""
    height, width = features.shape[2:]
    cells = _cells(features)
    spans = [(edges[..., 1] - edges[..., 0]).clamp(min=0) for edges in (rows, columns)]
    largest = spans[0].amax(1) * spans[1].amax(1)
    for part in _parts(largest.argsort(), values.shape[2] * features.shape[1]):
        high, wide = spans[0][part].unsqueeze(2), spans[1][part].unsqueeze(1)
        corner = rows[part, :, 0].long().unsqueeze(2) * width + columns[part, :, 0].long().unsqueeze(1)
        offset = (images[part] * height * width)[:, None, None]
        best = torch.full((*corner.shape, cells.shape[1]), -torch.inf, dtype=cells.dtype, device=cells.device)
        place = corner.unsqueeze(3).expand_as(best)
        for row in range(int(high.amax())):
            for column in range(int(wide.amax())):
                inside = (row < high) & (column < wide)
                here = torch.where(inside, corner + row * width + column, 0)
                value = cells[here + offset]
                # The first of equals stays; what is not a number takes over, as in torch's own pooling.
                better = inside.unsqueeze(3) & ((value > best) | value.isnan())
                best = torch.where(better, value, best)
                if positions.numel():
                    place = torch.where(better, here.unsqueeze(3), place)
        empty = ((high == 0) | (wide == 0)).unsqueeze(3)
        values[part] = best.masked_fill_(empty, 0).flatten(1, 2).transpose(1, 2)
        if positions.numel():
            positions[part] = torch.where(empty, -1, place).flatten(1, 2).transpose(1, 2).to(torch.int32)


def unpool(
    gradient: Float[Tensor, "box channel bin"],
    images: Int64[Tensor, " box"],
    positions: Int32[Tensor, "box channel bin"],
    result: Float[Tensor, "image channel cell"],
) -> None:
    """Adds each value's gradient at its place."""
    for part in _parts(torch.arange(len(images), device=images.device), gradient.shape[1] * gradient.shape[2]):
        place = positions[part].long()
        channel = torch.arange(result.shape[1], device=result.device).unsqueeze(1)
        flat = (images[part, None, None] * result.shape[1] + channel) * result.shape[2] + place.clamp(min=0)
        result.view(-1).index_add_(0, flat.flatten(), gradient[part].masked_fill(place < 0, 0).flatten())


def align(
    features: Float[Tensor, "image channel height width"],
    images: Int64[Tensor, " box"],
    by_row: Float[Tensor, "box high height"],
    by_column: Float[Tensor, "box wide width"],
    values: Float[Tensor, "box channel bin"],
) -> None:
    """Writes each bin's weighted sum."""
    cells = _cells(features)
    for part, place, weight in _taps(images, by_row, by_column, features.shape[1]):
        found = F.embedding_bag(place, cells, mode="sum", per_sample_weights=weight)
        # A bin that reads nothing has weights of 0 at some cell, and that cell may hold what is not a number.
        found.masked_fill_((weight == 0).all(1, keepdim=True), 0)
        values[part] = found.view(len(part), -1, cells.shape[1]).transpose(1, 2)


def unalign(
    gradient: Float[Tensor, "box channel bin"],
    images: Int64[Tensor, " box"],
    by_row: Float[Tensor, "box high height"],
    by_column: Float[Tensor, "box wide width"],
    result: Float[Tensor, "image channel height width"],
) -> None:
    """Adds to each cell what it gave: `align` backwards."""
    cells = _cells(torch.zeros_like(result))
    for part, place, weight in _taps(images, by_row, by_column, result.shape[1]):
        mine = gradient[part].transpose(1, 2).flatten(0, 1)
        for tap in range(place.shape[1]):
            cells.index_add_(0, place[:, tap], torch.where(weight[:, tap, None] != 0, weight[:, tap, None] * mine, 0))
    result.copy_(cells.view(len(result), *result.shape[2:], -1).permute(0, 3, 1, 2))


def _cells(features: Tensor) -> Tensor:
    """One line of channels a cell, image by image."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _taps(images: Tensor, by_row: Tensor, by_column: Tensor, channels: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For parts of the boxes: their numbers; the cells that each bin reads; the cells' weights. All bins of a part read equally many."""
    height, width = by_row.shape[2], by_column.shape[2]
    bins = by_row.shape[1] * by_column.shape[1]
    counts = [(weights != 0).sum(2).amax(1) for weights in (by_row, by_column)]
    for part in _parts((counts[0] * counts[1]).argsort(), bins * channels):
        row, row_weight = _read(by_row[part], counts[0][part])
        column, column_weight = _read(by_column[part], counts[1][part])
        place = row[:, :, None, :, None] * width + column[:, None, :, None, :]
        place = place + (images[part] * height * width).view(-1, 1, 1, 1, 1)
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        yield part, place.reshape(len(part) * bins, -1), weight.reshape(len(part) * bins, -1)


def _read(weights: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where the weights of each bin are, the first of them again in place of those that it has not, and what they are."""
    order = (weights == 0).to(torch.int8).argsort(dim=2, stable=True)[..., : max(int(counts.max()), 1)]
    found = weights.gather(2, order)
    return torch.where(found != 0, order, order[..., :1]), found


def _parts(boxes: Tensor, numbers: int) -> Iterator[Tensor]:
    """The boxes in parts, each of which has so many numbers to gather for a box."""
    return iter(boxes.split(max(PART // max(numbers, 1), 1))) if len(boxes) else iter(())
