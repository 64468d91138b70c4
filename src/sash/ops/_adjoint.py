"""The exact adjoint of a convolution layer, for an input of a stated size."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._separable_bands import Geometry, PaddingMode, Pads, read_geometry
from sash.ops._tensors import shown

TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv_adjoint(
    y: Float[Tensor, "*batch_out_sides"],
    weight: Float[Tensor, "out inner *window"],
    size: int | Sequence[int],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int | tuple[int, int], ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "*batch_channel_size"]:
    """Aᵀy, where A is the convolution by `weight`, without its bias, of inputs whose spatial axes have `size` samples.

    For all x and y, ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ up to rounding: it is what backward does to a gradient of the output, and a transposed convolution.
    With a stride, inputs of several sizes have outputs of one size; which is meant, `size` says (torch's `output_padding` does for some).
    `weight` and the other settings are those of the convolution, one to three spatial axes, with or without a batch; `padding` may be
    (before, after) for each axis. What padding took from elsewhere (circular, reflect, replicate) is added back to where it came from.

    Memory beside input and result: where padding is not plain zeros, a padded map. Raises `InputError` where y is not the size that inputs
    of `size` give, and where other shapes or settings do not go together.
    """
    axes = check_weight(y, weight, groups)
    sides = (size,) * axes if isinstance(size, int) else tuple(size)
    geometry = read_geometry(tuple(weight.shape[2:]), stride, padding, dilation, padding_mode)
    _check_sides(y, sides, geometry)
    batched = y.dim() == axes + 2
    padded = _transposed(y if batched else y[None], weight, sides, geometry, groups)
    x = padded if geometry.mode == "zeros" else _folded(padded, sides, geometry.pads, geometry.mode)
    return x if batched else x[0]


def _transposed(y: Tensor, weight: Tensor, sides: tuple[int, ...], geometry: Geometry, groups: int) -> Tensor:
    """The adjoint of the window alone: a map of the padded size; of the input's, where the padding is zeros."""
    zeros = geometry.mode == "zeros"
    # What a transposed convolution can cut off by itself is never made.
    kept = [min(pads) if zeros else 0 for pads in geometry.pads]
    padded = [side + sum(pads) for side, pads in zip(sides, geometry.pads, strict=True)]
    windows = geometry.windows
    left_over = [
        length - (count - 1) * window.stride - window.span for length, count, window in zip(padded, y.shape[2:], windows, strict=True)
    ]
    transpose = TRANSPOSED[y.dim() - 2]
    # Not torch.convolution, which autocast does not know.
    x = transpose(y, weight, None, geometry.stride, kept, left_over, groups, geometry.dilation)
    if zeros:
        for axis, (side, (before, _), cut) in enumerate(zip(sides, geometry.pads, kept, strict=True), start=2):
            if x.shape[axis] != side:
                x = x.narrow(axis, before - cut, side)
    return x


def _folded(padded: Tensor, sides: tuple[int, ...], pads: Pads, mode: str) -> Tensor:
    """The adjoint of padding: every virtual sample is added to the sample it was a copy of."""
    for axis, (side, (before, after)) in enumerate(zip(sides, pads, strict=True), start=2):
        if before or after:
            # Which sample each is a copy of, padding itself tells; numbers up to 2^53 are exact.
            numbers = torch.arange(side, dtype=torch.float64, device=padded.device)
            copied = F.pad(numbers[None, None], (before, after), mode)[0, 0].long()
            first, own, last = padded.split([before, side, after], axis)
            index = torch.cat([copied[:before], copied[before + side :]])
            padded = own.index_add(axis, index, torch.cat([first, last], axis))
    return padded


def check_weight(y: Tensor, weight: Tensor, groups: int) -> int:
    """The number of spatial axes. Raises `InputError` for what does not go together."""
    axes = weight.dim() - 2
    for name, tensor in (("y", y), ("the weight", weight)):
        if not tensor.is_floating_point():
            raise InputError(f"{name} is of type {tensor.dtype}; it has to be floating.")
    if axes not in (1, 2, 3) or not weight.numel():
        raise InputError(f"the weight is {shown(weight)}; it has to be out x channel x window, with 1 to 3 axes of window.")
    out = weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or out % groups:
        raise InputError(f"groups is {groups!r}, and the weight {shown(weight)} has {out} output channels; it has to divide them.")
    if y.dim() not in (axes + 1, axes + 2) or y.shape[-axes - 1] != out:
        raise InputError(
            f"y is {shown(y)}, and the weight {shown(weight)} makes {out} channels on {axes} spatial axes; "
            f"it has to be batch x {out} and {axes} axes, or that without a batch."
        )
    if y.device != weight.device:
        raise InputError(f"y is on {y.device} and the weight on {weight.device}; move one to the other's.")
    return axes


def _check_sides(y: Tensor, sides: tuple[int, ...], geometry: Geometry) -> None:
    """Raises `InputError` unless inputs of these sides make outputs of y's."""
    if len(sides) != len(geometry.windows):
        raise InputError(f"size is {sides}, {len(sides)} entries, and the weight has {len(geometry.windows)} spatial axes.")
    for axis, (window, side, count) in enumerate(zip(geometry.windows, sides, y.shape[-len(sides) :], strict=True)):
        most: Any = {"reflect": side - 1, "circular": side}.get(geometry.mode)
        if most is not None and max(window.pad) > most:
            raise InputError(f"{geometry.mode} padding {window.pad} was asked for on an axis of {side}; it reaches {most} at most.")
        found = window.outputs(side)
        if found != count or count < 1:
            least = max((count - 1) * window.stride + window.span - sum(window.pad), 1)
            wanted = f"from {least} to {least + window.stride - 1}" if window.stride > 1 else f"{least}"
            told = f"sizes that give {count}: {wanted}" if count else "no input gives none"
            raise InputError(f"y is {shown(y)}, and an input of {side} samples on spatial axis {axis} gives {found} outputs; {told}.")
