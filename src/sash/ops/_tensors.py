"""What operators ask of a tensor: how it stands in messages, whether its numbers can be read, and the type of its sums."""

from __future__ import annotations

import torch
from torch import Tensor

from sash.units import format_shape


def shown(tensor: Tensor) -> str:
    """A tensor's shape, as `2x3x4`."""
    return format_shape(tensor.shape)


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's numbers can be read: not so where it `is_stand_in`, and while a graph is made."""
    return not (is_stand_in(tensor) or torch.compiler.is_compiling())


def is_stand_in(tensor: Tensor) -> bool:
    """Whether the tensor is a shape without numbers: on the meta device, or fake."""
    from torch._subclasses.fake_tensor import FakeTensor

    return tensor.is_meta or isinstance(tensor, FakeTensor)


def computed_type(values: Tensor) -> torch.dtype:
    """The type that sums of the values are kept in: fp32 at least."""
    return torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype
