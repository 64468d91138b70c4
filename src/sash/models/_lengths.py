"""Signals and sets of different lengths in one tensor (batch, step, channel): what lies behind an end."""

from __future__ import annotations

import torch
from torch import Tensor

from sash.errors import InputError
from sash.units import format_shape


def ended(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The tensor with zeros from each length on, whatever was there."""
    if lengths is None:
        return x
    behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[:, :, None], 0)


def check_lengths(what: str, x: Tensor, channels: int, lengths: Tensor | None) -> None:
    """Raises `InputError` for another rank or other channels, and for lengths that do not go with them."""
    shape = format_shape(x.shape)
    if x.dim() != 3 or x.shape[2] != channels or not x.is_floating_point():
        raise InputError(f"the {what} are {shape} of {x.dtype}; they have to be batch x length x {channels}, floating.")
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
        found = f"{format_shape(lengths.shape)} of {lengths.dtype}"
        raise InputError(f"lengths are {found}; for {what} of {shape} they have to be {x.shape[0]} whole numbers.")
    if lengths.device != x.device:
        raise InputError(f"the {what} are on {x.device} and lengths on {lengths.device}; move one to the other's.")
    if _has_values(lengths) and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > x.shape[1]:
            raise InputError(f"lengths go from {least} to {most}; {what} of {shape} have lengths from 0 to {x.shape[1]}.")


def _has_values(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch.compiler.is_compiling())
