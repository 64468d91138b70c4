"""How tensors stand in messages, and whether there is anything in them to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from sash.units import format_shape


def shown(tensor: Tensor) -> str:
    """A tensor's shape, as `2x3x4`."""
    return format_shape(tensor.shape)


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's numbers can be read: not so on the meta device, of fake tensors, and while a graph is made."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch.compiler.is_compiling())
