"""One stretch of an operator's work, of a kind whose rates this machine was measured for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """What one kernel does."""

    law: str
    """Whose rates hold for it: the first part of their names."""
    work: float
    """Items as the law counts them: multiply-accumulates, padding included, or elements."""
    bytes: float
    """Traffic through memory or cache: what is read, what is written, what is laid out anew."""
    weights: float = 0
    """Bytes of weights laid out anew, which goes slower than maps."""
    macs: float = 0
    """Multiply-accumulates that were asked for: what the arithmetic limit counts."""
    calls: float = 1
    """Kernels started."""
    kept: bool = False
    """Whether the result overwrites an operand: no memory is written that was not just read."""
    threads: float = 1
    """Elements that the threads can share out; few of them are left to one."""


def kind_of(tensor: Tensor) -> str:
    """`"f32"` or `"bf16"`: the two widths that rates are measured for."""
    return "bf16" if tensor.dtype in (torch.bfloat16, torch.float16) else "f32"


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, each once, however often a broadcast repeats them."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else min(length, 1)
    return size


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor among an operator's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
