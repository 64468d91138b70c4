"""The convolution with limited weight sharing: each section of a spectrum has filters of its own, pooled to one unit a map."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._tensors import shown
from sash.window import Window


def limited_sharing_conv(
    x: Float[Tensor, "*batch channel band"],
    weight: Float[Tensor, "section out channel size"],
    bias: Float[Tensor, "section out"] | None = None,
    *,
    pool: int,
    shift: int,
) -> Float[Tensor, "*batch out section"]:
    """For each section of the bands and each map, the largest of `pool` outputs of that section's own filter, one band apart.

    Section k reads the `pool + size - 1` bands from band `k · shift` on; with `shift` below that, sections overlap. An activation that
    never falls (sigmoid, ReLU) comes after: it passes through the maximum. Where all sections have the same filters, this is a convolution
    followed by max pooling (full weight sharing).

    Memory beside the result: the outputs before pooling, `pool` a section and map, which are saved. The gradient of a maximum goes to the
    first place that has it. Sections run one after another: that is faster than one grouped convolution, which wants them copied apart.
    Raises `InputError` where shapes do not go together, and unless there are as many sections as the bands have room for.

    Source: O. Abdel-Hamid et al., "Convolutional Neural Networks for Speech Recognition", 2014, section III-D.
    """
    window = _check(x, weight, bias, pool, shift)
    offsets = [None] * weight.shape[0] if bias is None else bias
    units = []
    for section, (filters, offset) in enumerate(zip(weight, offsets, strict=True)):
        read = window.reads(section, section + 1)
        units.append(F.max_pool1d(F.conv1d(x[..., read.start : read.stop], filters, offset), pool))
    return torch.cat(units, -1)


class LimitedSharingConv(nn.Module):
    """`limited_sharing_conv` as a layer, for spectra of `bands` bands: as many sections as they have room for."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, bands: int, pool: int, shift: int, bias: bool = True
    ) -> None:
        super().__init__()
        sections = _section(kernel_size, pool, shift).outputs(bands)
        if sections < 1:
            raise InputError(
                f"a section of {pool} outputs of a filter of {kernel_size} reads {pool + kernel_size - 1} bands, and there are "
                f"{bands}; give fewer outputs or a shorter filter."
            )
        self.weight = nn.Parameter(torch.empty(sections, out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(sections, out_channels)) if bias else None
        self.pool, self.shift = pool, shift
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and biases as `nn.Conv1d` does, within one over the root of what a filter reads."""
        limit = 1 / math.sqrt(self.weight[0, 0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -limit, limit)

    def forward(self, x: Float[Tensor, "*batch channel band"]) -> Float[Tensor, "*batch out section"]:
        return limited_sharing_conv(x, self.weight, self.bias, pool=self.pool, shift=self.shift)

    def extra_repr(self) -> str:
        sections, maps, channels, size = self.weight.shape
        return f"{channels}, {maps}, kernel_size={size}, sections={sections}, pool={self.pool}, shift={self.shift}"


def _section(size: int, pool: int, shift: int) -> Window:
    """What a section reads of the bands, and how far it is to the next."""
    for name, value in (("pool", pool), ("shift", shift)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} is {value!r}; it is a whole number from 1 on.")
    return Window(size + pool - 1, shift)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, pool: int, shift: int) -> Window:
    """A section's window. Raises `InputError` for what does not go together."""
    if weight.dim() != 4 or not weight.numel():
        raise InputError(f"the weight is {shown(weight)}; it has to be section x out x channel x size, each at least 1.")
    sections, maps, channels, size = weight.shape
    if x.dim() not in (2, 3) or x.shape[-2] != channels:
        raise InputError(
            f"the input is {shown(x)}, and the weight {shown(weight)} reads {channels} channels; "
            f"it has to be batch x {channels} x band, or {channels} x band."
        )
    if bias is not None and bias.shape != (sections, maps):
        raise InputError(f"bias is {shown(bias)}; it has to be {sections}x{maps}, one number a section and map.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise InputError(f"the input is on {x.device} and the {name} on {tensor.device}; move one to the other's.")
    window = _section(size, pool, shift)
    room = window.outputs(x.shape[-1])
    if room != sections:
        raise InputError(
            f"the weight has {sections} sections, and {x.shape[-1]} bands have room for {room} of {pool} outputs of a filter of {size}, "
            f"{shift} apart; {window.span + (sections - 1) * shift} bands have room for {sections}."
        )
    return window
