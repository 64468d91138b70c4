"""RoI pooling as operators that torch knows: their shapes without values, their gradients, and which code runs them.

All take features as (image, channel, height, width), best channels last, in fp32 or fp64, and the box's image as a number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sash.ops import _roi_gather, _roi_windows
from sash.ops._compiled import compiled, in_threads

CHANNELS = 32
"""Channels whose gradients are added up together."""


@torch.library.custom_op("sash::roi_max", mutates_args=())
def roi_max(features: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The largest of each bin."""
    return _pooled(features, images, rows, columns, located=False)[0]


@torch.library.custom_op("sash::roi_max_located", mutates_args=())
def roi_max_located(features: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each bin, and its place in the map: row · width + column, −1 where the bin is empty."""
    return _pooled(features, images, rows, columns, located=True)


@torch.library.custom_op("sash::roi_max_backward", mutates_args=())
def roi_max_backward(gradient: Tensor, images: Tensor, positions: Tensor, height: int, width: int, count: int) -> Tensor:
    """The gradient of `count` images: each value's, at its place."""
    boxes, channels = gradient.shape[:2]
    result = gradient.new_zeros(count, channels, height, width)
    if result.numel() == 0 or gradient.numel() == 0:
        return result
    operands = gradient.reshape(boxes, channels, -1), images, positions.reshape(boxes, channels, -1)
    planes = result.view(count, channels, -1)
    if compiled(gradient):
        arrays, out = _arrays(operands), planes.numpy()
        in_threads(lambda first, last: _kernels().unpool(*arrays, first, last, out), channels, gradient.numel(), CHANNELS // 2)
    else:
        _roi_gather.unpool(*operands, planes)
    return result


@torch.library.custom_op("sash::roi_weights", mutates_args=())
def roi_weights(low: Tensor, high: Tensor, count: int, length: int, ratio: int, aligned: bool) -> Tensor:
    """What each cell of an axis counts in each bin, (box, bin, cell); the ratio 0 is the adaptive one."""
    return _roi_windows.sample_weights(low, high, count, length, ratio or None, aligned)


@torch.library.custom_op("sash::roi_mean", mutates_args=())
def roi_mean(features: Tensor, images: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """The weighted sum of each bin."""
    boxes, channels, high, wide = len(images), features.shape[1], by_row.shape[1], by_column.shape[1]
    if not features.numel():
        return features.new_zeros(boxes, channels, high, wide)
    values = features.new_empty(boxes, channels, high * wide)
    if values.numel():
        if compiled(features):
            arrays, out = _arrays((_last(features), images, by_row, by_column)), values.numpy()
            in_threads(lambda first, last: _kernels().align(*arrays, first, last, out), boxes, values.numel())
        else:
            _roi_gather.align(features, images, by_row, by_column, values)
    return values.view(boxes, channels, high, wide)


@torch.library.custom_op("sash::roi_mean_backward", mutates_args=())
def roi_mean_backward(gradient: Tensor, images: Tensor, by_row: Tensor, by_column: Tensor, count: int) -> Tensor:
    """The gradient of `count` images: what each cell gave."""
    boxes, channels = gradient.shape[:2]
    result = gradient.new_zeros(count, channels, by_row.shape[2], by_column.shape[2])
    if result.numel() == 0 or gradient.numel() == 0:
        return result
    operands = gradient.reshape(boxes, channels, -1), images, by_row, by_column
    if compiled(gradient):
        arrays, out, blocks = _arrays(operands), result.numpy(), math.ceil(channels / CHANNELS)

        def work(first: int, last: int) -> None:
            for turn in range(first, last):
                image, block = divmod(turn, blocks)
                _kernels().unalign(*arrays, image, block * CHANNELS, min((block + 1) * CHANNELS, channels), out)

        in_threads(work, count * blocks, gradient.numel(), 1)
    else:
        _roi_gather.unalign(*operands, result)
    return result


@roi_max.register_fake
def _(features: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return features.new_empty(rows.shape[0], features.shape[1], rows.shape[1], columns.shape[1])


@roi_max_located.register_fake
def _(features: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    values = features.new_empty(rows.shape[0], features.shape[1], rows.shape[1], columns.shape[1])
    return values, torch.empty_like(values, dtype=torch.int32)


@roi_max_backward.register_fake
def _(gradient: Tensor, images: Tensor, positions: Tensor, height: int, width: int, count: int) -> Tensor:
    return gradient.new_empty(count, gradient.shape[1], height, width)


@roi_weights.register_fake
def _(low: Tensor, high: Tensor, count: int, length: int, ratio: int, aligned: bool) -> Tensor:
    return low.new_empty(low.shape[0], count, length)


@roi_mean.register_fake
def _(features: Tensor, images: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    return features.new_empty(by_row.shape[0], features.shape[1], by_row.shape[1], by_column.shape[1])


@roi_mean_backward.register_fake
def _(gradient: Tensor, images: Tensor, by_row: Tensor, by_column: Tensor, count: int) -> Tensor:
    return gradient.new_empty(count, gradient.shape[1], by_row.shape[2], by_column.shape[2])


def _keep_positions(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, images, _, _ = inputs
    ctx.save_for_backward(images, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.shape = features.shape


def _to_positions(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    images, positions = ctx.saved_tensors
    count, _, height, width = ctx.shape
    # Made contiguous here, where a forecast sees it.
    return roi_max_backward(gradient.contiguous(), images, positions, height, width, count), None, None, None


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _from_positions(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    images, positions = ctx.saved_tensors
    places = positions.flatten(2).long()
    # By whole maps, a copy for each box: a second derivative is rarely asked for.
    found = gradient.flatten(2)[images].gather(2, places.clamp(min=0)) if gradient.numel() else gradient.new_zeros(places.shape)
    return found.masked_fill(places < 0, 0).view(positions.shape), None, None, None, None, None


def _keep_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.count = inputs[0].shape[0]


def _to_cells(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return roi_mean_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.count), None, None, None


def _from_cells(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return roi_mean(gradient.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors), None, None, None, None


roi_max_located.register_autograd(_to_positions, setup_context=_keep_positions)
roi_max_backward.register_autograd(_from_positions, setup_context=_keep_places)
roi_mean.register_autograd(_to_cells, setup_context=_keep_weights)
roi_mean_backward.register_autograd(_from_cells, setup_context=_keep_weights)


def _pooled(features: Tensor, images: Tensor, rows: Tensor, columns: Tensor, located: bool) -> tuple[Tensor, Tensor]:
    boxes, channels, high, wide = len(images), features.shape[1], rows.shape[1], columns.shape[1]
    values = features.new_empty(boxes, channels, high * wide)
    positions = torch.empty_like(values, dtype=torch.int32) if located else images.new_empty((0, 0, 0), dtype=torch.int32)
    if not features.numel():
        values.zero_()
        positions.fill_(-1)
    elif values.numel():
        if compiled(features):
            arrays, out = _arrays((_last(features), images, rows, columns)), (values.numpy(), positions.numpy())
            in_threads(lambda first, last: _kernels().pool(*arrays, first, last, *out), boxes, values.numel())
        else:
            _roi_gather.pool(features, images, rows, columns, values, positions)
    shape = boxes, channels, high, wide
    return values.view(shape), positions.view(shape) if located else positions


def _kernels() -> Any:
    from sash.ops import _roi_kernels

    return _roi_kernels


def _last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


def _arrays(tensors: tuple[Tensor, ...]) -> Any:
    return [one.contiguous().numpy() for one in tensors]
