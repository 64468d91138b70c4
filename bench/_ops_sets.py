"""Rows of pooling over sets, beside a Python loop over the sets and what torch has."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from _ops_row import Row
from torch import Tensor

from sash.ops import dropped_max, expected_max, set_attention, set_max, set_mean

SETS, LONGEST, CHANNELS = 10_000, 15, 16
KEEP = 0.7


def lengths_of(sets: int, longest: int) -> Tensor:
    return torch.randint(longest + 1, (sets,), generator=torch.Generator().manual_seed(1))


def flat(sets: int = SETS, longest: int = LONGEST, channels: int = CHANNELS) -> tuple[Tensor, ...]:
    """Sets of 0 to `longest` elements, one after the other."""
    lengths = lengths_of(sets, longest)
    return torch.randn(int(lengths.sum()), channels, generator=torch.Generator().manual_seed(0)).requires_grad_(), lengths


def padded(sets: int = SETS, longest: int = LONGEST, channels: int = CHANNELS) -> tuple[Tensor, ...]:
    """The same number of sets, padded to the longest."""
    values = torch.randn(sets, longest, channels, generator=torch.Generator().manual_seed(0))
    return values.requires_grad_(), lengths_of(sets, longest)


def biggest(one: Tensor) -> Tensor:
    return one.amax(0)


def average(one: Tensor) -> Tensor:
    return one.mean(0)


def attended(one: Tensor) -> Tensor:
    return one[:, 0].softmax(0) @ one


def looped(values: Tensor, lengths: Tensor, pool: Callable[[Tensor], Tensor] = biggest) -> Tensor:
    """Set by set. Splitting beforehand is kinder than slicing: the gradient of each slice is as long as all sets."""
    rows = values if values.dim() == 2 else values.unbind()
    sets = rows.split(lengths.tolist()) if isinstance(rows, Tensor) else [row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]
    return torch.stack([pool(one) if len(one) else values.new_zeros(values.shape[-1]) for one in sets])


def attention(values: Tensor, lengths: Tensor) -> Tensor:
    return set_attention(values, values[..., 0], lengths)


def segments(values: Tensor, lengths: Tensor, reduce: str = "max") -> Tensor:
    return torch.segment_reduce(values, reduce, lengths=lengths, axis=0, unsafe=True)


def scattered(values: Tensor, lengths: Tensor) -> Tensor:
    index = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    made = values.new_zeros(len(lengths), values.shape[1])
    return made.scatter_reduce(0, index[:, None].expand_as(values), values, "amax", include_self=False)


def masked(values: Tensor, lengths: Tensor) -> Tensor:
    outside = torch.arange(values.shape[1]) >= lengths[:, None]
    return values.masked_fill(outside[..., None], -torch.inf).amax(1)


def masked_after_dropout(values: Tensor, lengths: Tensor) -> Tensor:
    return masked(torch.nn.functional.dropout(values, 1 - KEEP), lengths)


def dropped(values: Tensor, lengths: Tensor) -> Tensor:
    return dropped_max(values, KEEP, lengths=lengths)


def expected(values: Tensor, lengths: Tensor) -> Tensor:
    return expected_max(values, KEEP, lengths=lengths)


def expected_one(one: Tensor) -> Tensor:
    return expected_max(one[None], KEEP)[0]


SIZES = f"{SETS} sets of 0..{LONGEST} x {CHANNELS}"
LARGE = functools.partial(flat, 10_000, 63, 64)

ROWS: tuple[Row, ...] = (
    Row(f"set_max flat, {SIZES}", flat, set_max, {"loop": looped, "segment_reduce": segments, "scatter_reduce": scattered}, aim=1 / 20),
    Row(
        f"set_mean flat, {SIZES}",
        flat,
        set_mean,
        {"loop": functools.partial(looped, pool=average), "segment_reduce": functools.partial(segments, reduce="mean")},
        aim=1 / 20,
    ),
    Row(f"set_attention flat, {SIZES}", flat, attention, {"loop": functools.partial(looped, pool=attended)}, aim=1 / 20),
    Row(f"set_max padded, {SIZES}", padded, set_max, {"masked amax": masked, "loop": looped}),
    Row(
        "set_max flat, 10000 sets of 0..63 x 64", LARGE, set_max, {"scatter_reduce": scattered, "segment_reduce": segments, "loop": looped}
    ),
    Row(f"dropped_max units, {SIZES}", padded, dropped, {"dropout, masked amax": masked_after_dropout}),
    Row(f"expected_max units, {SIZES}", padded, expected, {"loop": functools.partial(looped, pool=expected_one)}, aim=1 / 20),
)
