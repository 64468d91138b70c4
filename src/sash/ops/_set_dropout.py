"""The maximum over a set of which parts are dropped: drawn in training, and exactly what is to be expected at test time."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from sash.errors import InputError
from sash.ops._sets import masked_max, members, read_lengths, set_max
from sash.ops._tensors import computed_type

Drop = Literal["unit", "element", "channel"]


def dropped_max(
    values: Float[Tensor, "batch set channel"],
    keep: float,
    drop: Drop = "unit",
    lengths: Integer[Tensor, " batch"] | None = None,
    inverted: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel"]:
    """The largest value of each channel in each set after a random part of it was dropped; 0 for a set without elements.

    `drop` is what is dropped with probability 1 − `keep`: `"unit"` each value of each element on its own becomes 0 (which wins over
    negative values); `"channel"` a channel becomes 0 for all of a set; `"element"` whole elements leave the set, drawn under the condition
    that at least one stays. What stays of units and channels is divided by `keep` if `inverted`, as in `F.dropout`; elements are never
    scaled.

    Lengths, padding, gradients and what is raised: see `set_max`; also for a `keep` that is not above 0 and at most 1.

    Source: H. Wu, X. Gu, "Towards Dropout Training for Convolutional Neural Networks", 2015, for units.
    """
    lengths = _check(values, keep, drop, lengths)
    scale = 1 / keep if inverted and drop != "element" else 1.0
    if drop == "element":
        return masked_max(values, _staying(values, keep, lengths, generator), lengths)
    if drop == "unit":
        return set_max(_zeroed(values, keep, generator), lengths) * scale
    return _zeroed(set_max(values, lengths), keep, generator) * scale


def expected_max(
    values: Float[Tensor, "batch set channel"],
    keep: float,
    drop: Drop = "unit",
    lengths: Integer[Tensor, " batch"] | None = None,
    inverted: bool = True,
) -> Float[Tensor, "batch channel"]:
    """The mean of `dropped_max` over all masks, exactly; 0 for a set without elements.

    With a set's values of a channel in falling order a₁ ≥ … ≥ aₙ, p = keep and q = 1 − p, where nothing is inverted:

    * unit: Σ p·qⁱ⁻¹·max(aᵢ, 0) + pⁿ·min(a₁, 0), since any dropped value wins over negative ones;
    * element: Σ p·qⁱ⁻¹·aᵢ / (1 − qⁿ), for at least one stays;
    * channel: p·a₁.

    `inverted` divides units and channels by p: for channels, and only there, the plain maximum comes out.

    One sort for each set and channel. Within n roundings of the type computed in (bf16 and fp16 in fp32), relative to the largest absolute
    value; no cancellation or overflow, however small or near to 1 `keep` is. Memory beside the values: some four copies of them.

    Lengths, padding and what is raised: see `dropped_max`.

    Source: H. Wu, X. Gu, "Towards Dropout Training for Convolutional Neural Networks", 2015, for units that are not negative; the rest
    follows by the same argument.
    """
    lengths = _check(values, keep, drop, lengths)
    if drop == "channel" or keep == 1 or not values.shape[1]:
        return set_max(values, lengths) * (1.0 if inverted or drop != "channel" else keep)
    wide = values.to(computed_type(values))
    ordered, lengths = _ordered(wide, lengths)
    # 1 − p is rounded once; a power n of it makes n roundings of that.
    above = torch.pow(1 - keep, torch.arange(values.shape[1], dtype=torch.float64, device=values.device))
    if drop == "element":
        least = -torch.expm1(lengths.clamp(min=1).double() * math.log1p(-keep))
        weights = (keep * above / least.unsqueeze(-1)).to(wide.dtype)
        found = (ordered * weights.unsqueeze(-1)).sum(1)
    else:
        scale = 1.0 if inverted else keep
        weights = (scale * above).to(wide.dtype)
        # All n stay, which one division by p makes n − 1.
        together = torch.pow(keep, (lengths - int(inverted)).clamp(min=0).double()).to(wide.dtype)
        found = (ordered.relu() * weights.unsqueeze(-1)).sum(1) + ordered[:, 0].clamp(max=0) * together.unsqueeze(-1)
    return found.to(values.dtype)


class DroppedMax(nn.Module):
    """`dropped_max` while training, `expected_max` afterwards: (values, lengths) → one row a set."""

    def __init__(self, keep: float, drop: Drop = "unit", inverted: bool = True) -> None:
        super().__init__()
        _check_setting(keep, drop)
        self.keep, self.inverted = keep, inverted
        self.drop: Drop = drop

    def forward(
        self, values: Float[Tensor, "batch set channel"], lengths: Integer[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch channel"]:
        pool = dropped_max if self.training else expected_max
        return pool(values, self.keep, self.drop, lengths, self.inverted)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, drop={self.drop!r}, inverted={self.inverted}"


def _zeroed(values: Tensor, keep: float, generator: torch.Generator | None) -> Tensor:
    """The values, each 0 with probability 1 − keep."""
    return torch.where(_drawn(values, values.shape, keep, generator), values, 0)


def _staying(values: Tensor, keep: float, lengths: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Which elements stay, (batch, set): drawn under the condition that one does, without drawing again."""
    batch, size, _ = values.shape
    order = torch.arange(size, device=values.device)
    inside = order.expand(batch, -1) < size if lengths is None else members(values, lengths)
    if keep == 1:
        return inside
    # The first to stay is the i-th with probability p·qⁱ⁻¹ / (1 − qⁿ); behind it all are free.
    count, failing = inside.sum(1), math.log1p(-keep)
    uniform = torch.rand(batch, dtype=torch.float64, device=values.device, generator=generator)
    first = (torch.log1p(uniform * torch.expm1(count.double() * failing)) / failing).long().minimum(count - 1).unsqueeze(-1)
    return inside & ((order == first) | ((order > first) & _drawn(values, inside.shape, keep, generator)))


def _drawn(values: Tensor, shape: torch.Size, keep: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device=values.device).bernoulli_(keep, generator=generator)


def _ordered(values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each set's values of each channel in falling order, zeros behind them; and the lengths."""
    if lengths is None:
        return values.sort(1, descending=True).values, torch.full((values.shape[0],), values.shape[1], device=values.device)
    outside = ~members(values, lengths).unsqueeze(-1)
    return values.masked_fill(outside, -math.inf).sort(1, descending=True).values.masked_fill(outside, 0), lengths


def _check(values: Tensor, keep: float, drop: str, lengths: Tensor | None) -> Tensor | None:
    _check_setting(keep, drop)
    if values.dim() == 2:
        raise InputError(
            f"the values are flat ({'x'.join(map(str, values.shape))}), and sets that something is dropped from are padded to one size: "
            "torch.nn.utils.rnn.pad_sequence(values.split(lengths.tolist()), batch_first=True) would be."
        )
    return read_lengths(values, lengths)


def _check_setting(keep: float, drop: str) -> None:
    if drop not in get_args(Drop):
        raise InputError(f"drop is {drop!r}; it may be {', '.join(map(repr, get_args(Drop)))}.")
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(f"keep is {keep!r}; it is the probability to stay, above 0 and at most 1.")
