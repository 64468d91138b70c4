"""How tensors stand in messages, and whether there is anything in them to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shown(tensor: Tensor) -> str:
    """A tensor's shape, as `2x3x4`."""
    return joined(tensor.shape) or "a single number"


def joined(sizes: Sequence[int]) -> str:
    """Sizes of axes, as `2x3x4`."""
    return "x".join(map(str, sizes))


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's numbers can be read: not so on the meta device, of fake tensors, and while a graph is made."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch.compiler.is_compiling())
