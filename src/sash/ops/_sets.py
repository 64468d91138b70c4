"""Pooling over sets of different sizes: padded to one size, or flat, one set after the other."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from sash.errors import InputError
from sash.ops._tensors import computed_type, has_values, shown
from sash.units import format_shape

Values = Float[Tensor, "batch set channel"] | Float[Tensor, "total channel"]
Pool = Callable[..., Tensor]


def set_max(
    values: Values, lengths: Integer[Tensor, " sets"] | None = None, *, offsets: Integer[Tensor, " sets_and_one"] | None = None
) -> Float[Tensor, "sets channel"]:
    """The largest value of each channel in each set; 0 for a set without elements.

    A set's elements are either the first `lengths` rows of a batch padded to one size (batch, set, channel), all of them without
    `lengths`; or they stand one set after the other (total, channel), and `lengths` adds up to the total. There `offsets` may be given in
    place of lengths: where each set starts, and after the last one the total. Where a mask tells which elements count, `values[mask]` with
    the lengths `mask.sum(1)` is the flat form.

    What lies in the padding is never read into a result or a gradient, be it NaN. Equal largest values share the gradient evenly, so that
    the order of the elements makes no difference; a NaN in a set is its maximum. Only the values and the maxima are saved. Memory beside
    them: forward, padded a copy of the values, flat a number an element; backward one more than the gradient, and a byte a value.

    Raises `InputError` for values that are not floating, and for lengths or offsets that do not go with them (their numbers are not looked
    at where tensors have no values).
    """
    lengths = read_lengths(values, lengths, offsets)
    if values.dim() == 2:
        assert lengths is not None
        return _FlatMax.apply(values, lengths)  # pyright: ignore[reportReturnType]
    return masked_max(values, None if lengths is None else members(values, lengths), lengths)


def set_sum(
    values: Values, lengths: Integer[Tensor, " sets"] | None = None, *, offsets: Integer[Tensor, " sets_and_one"] | None = None
) -> Float[Tensor, "sets channel"]:
    """The sum of each channel in each set; 0 for a set without elements.

    Layouts, padding and what is raised: see `set_max`. Half precision is added up in fp32 and rounded once.
    """
    return _sum(values, read_lengths(values, lengths, offsets)).to(values.dtype)


def set_mean(
    values: Values, lengths: Integer[Tensor, " sets"] | None = None, *, offsets: Integer[Tensor, " sets_and_one"] | None = None
) -> Float[Tensor, "sets channel"]:
    """The mean of each channel in each set; 0 for a set without elements.

    Layouts, padding and what is raised: see `set_max`. Half precision is added up in fp32 and rounded once.
    """
    lengths = read_lengths(values, lengths, offsets)
    total = _sum(values, lengths)
    count = max(values.shape[1], 1) if lengths is None else lengths.clamp(min=1).unsqueeze(-1)
    return (total / count).to(values.dtype)


def set_attention(
    values: Values,
    scores: Float[Tensor, "*elements heads"] | Float[Tensor, "*elements"],
    lengths: Integer[Tensor, " sets"] | None = None,
    *,
    offsets: Integer[Tensor, " sets_and_one"] | None = None,
) -> Float[Tensor, "sets channel"]:
    """The mean of each set's elements, weighted by the softmax of their scores over the set; 0 for a set without elements.

    The scores have the values' axes without the channels, or with a last axis of heads, each of which weights its own equal share of the
    channels, in order. Layouts, padding (of values and scores) and what is raised: see `set_max`. The softmax is computed in fp32 at least.

    Source: M. Ilse, J. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", 2018, equation 7.
    """
    lengths = read_lengths(values, lengths, offsets)
    return _attended(values, _heads(values, scores), lengths)


class SetPool(nn.Module):
    """`set_max`, `set_mean` or `set_sum` as a layer: (values, lengths) → one row a set."""

    def __init__(self, pool: Pool = set_max) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self,
        values: Values,
        lengths: Integer[Tensor, " sets"] | None = None,
        *,
        offsets: Integer[Tensor, " sets_and_one"] | None = None,
    ) -> Float[Tensor, "sets channel"]:
        return self.pool(values, lengths, offsets=offsets)

    def extra_repr(self) -> str:
        return getattr(self.pool, "__name__", repr(self.pool))


class SetAttention(nn.Module):
    """`set_attention` with scores that it learns: a linear function of each element, or of `hidden` tanh units between.

    channels · heads + heads parameters, or with hidden units channels · hidden + hidden + hidden · heads + heads.
    """

    def __init__(self, channels: int, heads: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InputError(f"{heads} heads were asked for, and {channels} channels do not divide among them; 1 always works.")
        layers = [nn.Linear(channels, heads)] if hidden is None else [nn.Linear(channels, hidden), nn.Tanh(), nn.Linear(hidden, heads)]
        self.score = nn.Sequential(*layers)

    def forward(
        self,
        values: Values,
        lengths: Integer[Tensor, " sets"] | None = None,
        *,
        offsets: Integer[Tensor, " sets_and_one"] | None = None,
    ) -> Float[Tensor, "sets channel"]:
        lengths = read_lengths(values, lengths, offsets)
        # Before the scores are made: a NaN in the padding times no gradient is a NaN in the weight's.
        values = cleared(values, lengths)
        return _attended(values, self.score(values), lengths)


def members(values: Float[Tensor, "batch set channel"], lengths: Integer[Tensor, " batch"]) -> Bool[Tensor, "batch set"]:
    """Which rows of the padded values are elements."""
    return torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(-1)


def masked_max(
    values: Float[Tensor, "batch set channel"], inside: Bool[Tensor, "batch set"] | None, lengths: Integer[Tensor, " batch"] | None
) -> Float[Tensor, "batch channel"]:
    """The largest value of each channel among the rows that are inside: of each set that is not empty, one at least."""
    return _PaddedMax.apply(values, inside, lengths) if values.shape[1] else values.sum(1)  # pyright: ignore[reportReturnType]


def cleared(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The values with zeros for padding, which a product with 0 would not make of NaN."""
    if lengths is None or values.dim() == 2:
        return values
    return values.masked_fill(~members(values, lengths).unsqueeze(-1), 0)


class _PaddedMax(torch.autograd.Function):
    """Keeps the values as they are where torch's amax keeps a masked copy, and goes over them less often."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, inside: Tensor | None, lengths: Tensor | None) -> Tensor:
        made = (values if inside is None else values.masked_fill(~inside.unsqueeze(-1), -math.inf)).amax(1)
        if lengths is not None:
            made.masked_fill_((lengths == 0).unsqueeze(-1), 0)
        ctx.save_for_backward(values, inside, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, inside, made = ctx.saved_tensors
        # So that a NaN, which is no number's equal, has a gradient too.
        misses = values < made.unsqueeze(1)
        if inside is not None:
            misses |= ~inside.unsqueeze(-1)
        sharing = values.shape[1] - misses.sum(1, dtype=computed_type(values))
        shares = (gradient / sharing.clamp_(min=1)).to(values.dtype)
        return shares.unsqueeze(1).expand_as(values).masked_fill(misses, 0), None, None


class _FlatMax(torch.autograd.Function):
    """Backward in a few passes over the values; that of torch's scatter_reduce takes several times as long and holds several copies."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Tensor) -> Tensor:
        index = _index(values, lengths)
        made = values.new_zeros(lengths.shape[0], values.shape[1])
        made.scatter_reduce_(0, index.unsqueeze(-1).expand_as(values), values, "amax", include_self=False)
        ctx.save_for_backward(values, lengths, index, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, lengths, index, made = ctx.saved_tensors
        misses, missing = _misses(values.detach(), index, made.detach())
        shares = (gradient / (lengths.unsqueeze(-1) - missing).clamp_(min=1)).to(values.dtype)
        return shares.index_select(0, index).masked_fill_(misses, 0), None


def _misses(values: Tensor, index: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Which values are below their set's maximum, and how many of each set. A NaN is below nothing, so that it has a gradient too."""
    largest = made.index_select(0, index)
    misses = values < largest
    # The memory of the maxima, once more.
    return misses, _flat_sum(largest.copy_(misses).to(computed_type(values)), index, made.shape[0])


def _attended(values: Tensor, scores: Tensor, lengths: Tensor | None) -> Tensor:
    """The weighted means; the scores have an axis of heads."""
    heads = scores.shape[-1]
    with torch.autocast("cpu" if values.is_meta else values.device.type, enabled=False):
        scores = scores.to(computed_type(scores))
        if values.dim() == 3:
            weights = _padded_softmax(scores, lengths)
            shares = cleared(values, lengths).unflatten(-1, (heads, -1))
            weighted = torch.einsum("bsh,bshc->bhc", weights.to(computed_type(values)), shares.to(computed_type(values)))
        else:
            assert lengths is not None
            index = _index(values, lengths)
            weights = _flat_softmax(scores, lengths, index)
            weighted = _flat_sum(values.unflatten(-1, (heads, -1)) * weights.unsqueeze(-1), index, lengths.shape[0])
    return weighted.flatten(1).to(values.dtype)


def _sum(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The sums in the type computed in."""
    if values.dim() == 3:
        return cleared(values, lengths).sum(1, dtype=computed_type(values))
    assert lengths is not None
    return _flat_sum(values.to(computed_type(values)), _index(values, lengths), lengths.shape[0])


def _flat_sum(values: Tensor, index: Tensor, sets: int) -> Tensor:
    return values.new_zeros(sets, *values.shape[1:]).index_add(0, index, values)


def _padded_softmax(scores: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return scores.softmax(1)
    outside = ~members(scores, lengths).unsqueeze(-1)
    # Not −inf: the softmax of nothing else is NaN, and so is its gradient.
    return scores.masked_fill(outside, torch.finfo(scores.dtype).min).softmax(1).masked_fill(outside, 0)


def _flat_softmax(scores: Tensor, lengths: Tensor, index: Tensor) -> Tensor:
    largest: Any = _FlatMax.apply(scores.detach(), lengths)
    found = (scores - largest.index_select(0, index)).exp()
    return found / _flat_sum(found, index, lengths.shape[0]).index_select(0, index)


def _index(values: Tensor, lengths: Tensor) -> Tensor:
    """The set of each row."""
    return torch.repeat_interleave(lengths, output_size=values.shape[0])


def _heads(values: Tensor, scores: Tensor) -> Tensor:
    """The scores with an axis of heads. Raises `InputError` where they do not go with the values."""
    elements, channels = values.shape[:-1], values.shape[-1]
    if not scores.is_floating_point() or scores.shape[: len(elements)] != elements or scores.dim() > values.dim():
        wanted = format_shape(elements)
        raise InputError(
            f"the scores are {shown(scores)} of type {scores.dtype}, and the values {shown(values)}; "
            f"give floating scores {wanted}, or {wanted} and heads."
        )
    if scores.device != values.device:
        raise InputError(f"the values are on {values.device} and the scores on {scores.device}; move one to the other's.")
    if scores.dim() < values.dim():
        return scores.unsqueeze(-1)
    if not scores.shape[-1] or channels % scores.shape[-1]:
        raise InputError(f"the scores have {scores.shape[-1]} heads, and {channels} channels do not divide among them; 1 always works.")
    return scores


def read_lengths(values: Tensor, lengths: Tensor | None, offsets: Tensor | None = None) -> Tensor | None:
    """The length of each set; None: padded sets without padding. Raises `InputError` for what does not go together."""
    if not values.is_floating_point():
        raise InputError(f"the values are of type {values.dtype}; they have to be floating: values.float() would be.")
    if values.dim() not in (2, 3):
        raise InputError(f"the values are {shown(values)}; they have to be batch x set x channel, or total x channel.")
    given = [(name, one) for name, one in (("lengths", lengths), ("offsets", offsets)) if one is not None]
    if len(given) == 2:
        raise InputError("lengths and offsets were given; give one of them.")
    if not given:
        if values.dim() == 3:
            return None
        raise InputError(f"the values are flat ({shown(values)}), without lengths or offsets; give the number of rows of each set.")
    ((name, numbers),) = given
    if values.dim() == 3 and name == "offsets":
        raise InputError(f"offsets were given, and the values are padded ({shown(values)}); give lengths, one a set.")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype is torch.bool or numbers.dim() != 1:
        raise InputError(f"{name} are {shown(numbers)} of type {numbers.dtype}; they have to be whole numbers on one axis.")
    if numbers.device != values.device:
        raise InputError(f"the values are on {values.device} and the {name} on {numbers.device}; move one to the other's.")
    if values.dim() == 3 and numbers.shape[0] != values.shape[0]:
        raise InputError(f"there are {numbers.shape[0]} lengths, and the values are {shown(values)}: {values.shape[0]} sets.")
    if name == "offsets" and not numbers.shape[0]:
        raise InputError("offsets are empty; they are the start of each set and, last, the total: of no sets, a single 0.")
    if has_values(numbers):
        _check_numbers(values, numbers, name)
    return (numbers.diff() if name == "offsets" else numbers).long()


def _check_numbers(values: Tensor, numbers: Tensor, name: str) -> None:
    if name == "offsets":
        if int(numbers[0]) or int(numbers[-1]) != values.shape[0]:
            found = f"from {int(numbers[0])} to {int(numbers[-1])}"
            raise InputError(f"the offsets go {found}, and the values are {shown(values)}: they have to go from 0 to {values.shape[0]}.")
        numbers = numbers.diff()
    least, most = (int(end) for end in torch.aminmax(numbers)) if numbers.numel() else (0, 0)
    if least < 0:
        place = int((numbers < 0).nonzero()[0])
        told = f"offsets[{place + 1}] is below offsets[{place}]" if name == "offsets" else f"lengths[{place}] is {least}"
        raise InputError(f"{told}; a set has 0 elements or more.")
    if values.dim() == 3 and most > values.shape[1]:
        place = int((numbers > values.shape[1]).nonzero()[0])
        raise InputError(f"lengths[{place}] is {int(numbers[place])}, and the sets are padded to {values.shape[1]} elements.")
    if values.dim() == 2 and name == "lengths" and int(numbers.sum()) != values.shape[0]:
        raise InputError(f"the lengths add up to {int(numbers.sum())}, and there are {values.shape[0]} rows; they have to agree.")
