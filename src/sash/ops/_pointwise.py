"""A linear layer as a 1×1 convolution, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sash.errors import InputError
from sash.units import format_shape

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def linear_to_conv(linear: nn.Linear, axes: int = 2) -> Conv:
    """The 1×1 convolution that does at each position what the linear layer does to a row of features; 1 to 3 spatial axes.

    Weights and bias are copies, equal to the last bit; type, device, `requires_grad` and training mode stay. Outputs are the same sums,
    which another kernel may add in another order: they differ by at most 2 · features · 2⁻²⁴ · Σ |weight · input| in fp32.
    Raises `InputError` for what is no linear layer, or one without weights yet.
    """
    if axes not in CONVOLUTIONS:
        raise InputError(f"axes is {axes!r}; a convolution has 1, 2 or 3 spatial axes.")
    if not isinstance(linear, nn.Linear):
        raise InputError(f"a {type(linear).__name__} was given; only an nn.Linear can be made a 1×1 convolution.")
    _check_ready(linear)
    return conv_of(linear, (linear.in_features,), (1,) * axes)


def conv_to_linear(conv: Conv) -> nn.Linear:
    """The linear layer that does to a row of features what the 1×1 convolution does at each position: `linear(x.movedim(1, -1))`.

    What stays and what may differ: as in `linear_to_conv`. Raises `InputError` unless it is a convolution with 1×1 windows, stride 1, no
    padding and one group.
    """
    if not isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise InputError(f"a {type(conv).__name__} was given; only an nn.Conv1d, 2d or 3d can be made a linear layer.")
    _check_ready(conv)
    ones, zeros = (1,) * len(conv.kernel_size), (0,) * len(conv.kernel_size)
    if conv.kernel_size != ones:
        raise InputError(
            f"the convolution's window is {format_shape(conv.kernel_size)}; only a 1×1 window reads one position: "
            "for a window as large as the map, see convolutional_head."
        )
    # Words for padding add nothing to a 1×1 window.
    padded = not isinstance(conv.padding, str) and conv.padding != zeros
    for name, wrong, found in (("stride", conv.stride != ones, conv.stride), ("padding", padded, conv.padding)):
        if wrong:
            raise InputError(f"the convolution has {name} {found}; a linear layer has none: take it out, and slice or pad the input.")
    if conv.groups != 1:
        raise InputError(
            f"the convolution has {conv.groups} groups; a linear layer joins all features: give a linear layer for each group."
        )
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
    return _fill(linear, conv, conv.weight.shape[:2])


def conv_of(linear: nn.Linear, channels: tuple[int, ...], window: tuple[int, ...], dilation: tuple[int, ...] | int = 1) -> Any:
    """The convolution whose window covers all features of a linear layer, which are (channel, *window) in order."""
    convolution = CONVOLUTIONS[len(window)]
    gaps: Any = dilation
    sizes: Any = window
    conv = convolution(channels[0], linear.out_features, sizes, dilation=gaps, bias=linear.bias is not None, device="meta")
    return _fill(conv, linear, (linear.out_features, channels[0], *window))


def _fill(module: Any, source: nn.Linear | Conv, shape: tuple[int, ...]) -> Any:
    """The module, made on the meta device so that no random number is drawn, with copies of the source's weights."""
    module.weight = _copied(source.weight, shape)
    if source.bias is not None:
        module.bias = _copied(source.bias, source.bias.shape)
    return module.train(source.training)


def _copied(tensor: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format).view(shape), tensor.requires_grad)


def _check_ready(module: nn.Module) -> None:
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise InputError(f"the {type(module).__name__} has no weights yet; run it once first.")
