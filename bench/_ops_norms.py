"""Norms beside torch's: with fixed statistics, together with an activation, and over a batch in parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _ops_row import Row
from torch import Tensor, nn
from torch.nn import functional as F

import sash.ops

SHAPE, GROUPS, PARTS = (32, 64, 56, 56), 8, 4
LEAKY, ELU = nn.LeakyReLU(0.01), nn.ELU()
LAST = torch.channels_last
Inputs = Callable[[], tuple[Tensor, ...]]


def problem(layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32) -> Inputs:
    """A map as ResNet's first stage has it, with weight, bias, mean and variance of each channel."""

    def made() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(SHAPE, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
        weight, bias, mean, var = (torch.rand(SHAPE[1], generator=generator) + 0.5 for _ in range(4))
        return x, weight.requires_grad_(), bias.requires_grad_(), mean, var

    return made


def fixed(inputs: Inputs) -> Inputs:
    """The same, of which only the map takes a gradient."""
    return lambda: (inputs()[0], *(one.detach() for one in inputs()[1:]))


def our_frozen(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return sash.ops.frozen_norm(x, mean, var, weight, bias)


def torchs_frozen(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False)


def our_leaky(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return sash.ops.batch_norm_act(x, LEAKY, weight=weight, bias=bias)


def torchs_leaky(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return LEAKY(F.batch_norm(x, None, None, weight, bias, True))


def our_elu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return sash.ops.batch_norm_act(x, ELU, weight=weight, bias=bias)


def torchs_elu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return ELU(F.batch_norm(x, None, None, weight, bias, True))


def our_group(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return sash.ops.group_norm_act(x, GROUPS, LEAKY, weight, bias)


def torchs_group(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return LEAKY(F.group_norm(x, GROUPS, weight, bias))


def our_parts(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return torch.stack([part.sum() for part in sash.ops.batch_norm_over(x.tensor_split(PARTS), weight=weight, bias=bias)])


def torchs_parts(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    whole = F.batch_norm(torch.cat(x.tensor_split(PARTS)), None, None, weight, bias, True)
    return torch.stack([part.sum() for part in whole.tensor_split(PARTS)])


SIZES = "x".join(map(str, SHAPE))
ROWS: tuple[Row, ...] = tuple(
    Row(f"{name}, {SIZES}{laid}", inputs, ours, {peer: theirs}, peak_aim=peak)
    for laid, layout in (("", torch.contiguous_format), (", channels last", LAST))
    for name, inputs, ours, peer, theirs, peak in (
        ("frozen_norm", fixed(problem(layout)), our_frozen, "F.batch_norm, evaluation", torchs_frozen, 1.0),
        ("batch_norm_act, leaky ReLU", problem(layout), our_leaky, "F.batch_norm, leaky_relu", torchs_leaky, 0.9),
        ("batch_norm_act, ELU", problem(layout), our_elu, "F.batch_norm, elu", torchs_elu, 0.9),
        ("group_norm_act, leaky ReLU", problem(layout), our_group, "F.group_norm, leaky_relu", torchs_group, 0.9),
        (f"batch_norm_over {PARTS} parts", problem(layout), our_parts, "joined, F.batch_norm, split", torchs_parts, None),
    )
)
