"""Rows of pooling beside torch's own, and the pyramid beside its levels pooled one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from _ops_row import Row
from torch import Tensor
from torch.nn import functional as F

from sash.ops import adaptive_pool, avg_pool, global_pool, max_pool, pyramid_pool

LEVELS = (4, 2, 1)


def made(*shape: int) -> tuple[Tensor, ...]:
    """Normal numbers, the same at every call."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(),)


def level_by_level(features: Tensor, pool: Callable[..., Tensor] = F.adaptive_max_pool2d) -> Tensor:
    return torch.cat([pool(features, level).flatten(1) for level in LEVELS], 1)


LARGE, MIDDLE, LATE = (functools.partial(made, *shape) for shape in ((8, 64, 112, 112), (8, 256, 56, 56), (8, 512, 13, 13)))

ROWS: tuple[Row, ...] = (
    Row(
        "max_pool 8x64x112x112, 3/2 p1",
        LARGE,
        functools.partial(max_pool, size=3, stride=2, padding=1),
        {"torch": functools.partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)},
    ),
    Row(
        "max_pool 8x64x112x112, 3/2 Caffe",
        LARGE,
        functools.partial(max_pool, size=3, stride=2, rule="caffe"),
        {"torch, ceil": functools.partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)},
    ),
    Row(
        "max_pool 8x64x12544, 3/2 p1",
        functools.partial(made, 8, 64, 12544),
        functools.partial(max_pool, size=3, stride=2, padding=1),
        {"torch": functools.partial(F.max_pool1d, kernel_size=3, stride=2, padding=1)},
    ),
    Row(
        "avg_pool 8x64x112x112, 3/2 p1",
        LARGE,
        functools.partial(avg_pool, size=3, stride=2, padding=1),
        {"torch": functools.partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1)},
    ),
    Row(
        "adaptive_pool 8x256x56x56 to 7, max",
        MIDDLE,
        functools.partial(adaptive_pool, output_size=7),
        {"torch": functools.partial(F.adaptive_max_pool2d, output_size=7)},
    ),
    Row(
        "global_pool 8x256x56x56, average",
        MIDDLE,
        functools.partial(global_pool, kind="average"),
        {"torch": functools.partial(F.adaptive_avg_pool2d, output_size=1)},
    ),
    Row("pyramid_pool 8x512x13x13, (4, 2, 1) max", LATE, pyramid_pool, {"torch, level by level": level_by_level}),
    Row(
        "pyramid_pool 8x512x13x13, (4, 2, 1) average",
        LATE,
        functools.partial(pyramid_pool, kind="average"),
        {"torch, level by level": functools.partial(level_by_level, pool=F.adaptive_avg_pool2d)},
    ),
)
