"""What the kernels of pooling, resampling, indexing, reductions and mixed types allocate inside.

Sources: measured with the profiler's memory record, torch 2.13 on x86; tests/parity/test_scratch.py repeats it. The rule for
resampling is that of torch's `UpSampleKernel.cpp` (`_use_vectorized_kernel_cond_2d`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes, suggest_memory_format

from sash.cost._ledger import copy_bytes, data_bytes

_FLOAT = 4
_INDEX = 8
_SMALL_OUTPUT = 128
_HALVES = (torch.bfloat16, torch.float16)


def pool_backward(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Works in the gradient's layout: an input gradient in another one, and indices, are made apart."""
    gradient = args[0]
    format = suggest_memory_format(gradient)
    indices = next((value for value in args[2:] if isinstance(value, Tensor) and value.dtype is torch.int64), None)
    return copy_bytes(gradient, format) + copy_bytes(outputs, format) + (copy_bytes(indices, format) if indices is not None else 0)


def resample(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """A small plain result is made channels-last, between two copies."""
    input = args[0]
    last = suggest_memory_format(input) is torch.channels_last
    if (last and input.shape[1] > 3) or sum(outputs.shape[-2:]) > _SMALL_OUTPUT:
        return 0
    return 0 if last else data_bytes(input) + data_bytes(outputs)


def resample_smoothed(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """The picture resampled along its rows."""
    input = args[0]
    return data_bytes(input) // input.shape[-1] * outputs.shape[-1]


def unfold(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """A copy of the input, where it is padded."""
    return data_bytes(args[0]) if any(args[3]) else 0


def affine_grid(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """The grid in homogeneous coordinates."""
    axes = outputs.shape[-1]
    return outputs.numel() // axes * (axes + 1) * outputs.element_size()


def roll(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """One map for every axis but the last."""
    axes: list[int] = args[2] if len(args) > 2 else []
    return max(len(axes) - 1, 0) * data_bytes(outputs)


def embedding(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """A plain copy of indices that are not contiguous."""
    return copy_bytes(args[1])


def embedding_backward(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Plain copies of indices and gradients that are not contiguous."""
    return copy_bytes(args[0]) + copy_bytes(args[1])


def total(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Half precision over axes that do not lie together is summed in single precision, flags as whole numbers: converted first.

    Source: torch's `should_use_acc_buffer` (`SumKernel.cpp`).
    """
    input = args[0]
    if input.dtype in _HALVES and outputs.dtype is input.dtype:
        return _in_single(input, outputs) if _reduced_stretches(input, args[1] if len(args) > 1 else None) > 1 else 0
    return input.numel() * outputs.dtype.itemsize if input.dtype is not outputs.dtype else 0


def average(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Half precision is averaged in single precision: the input is converted first."""
    input = args[0]
    if input.dtype in _HALVES and outputs.dtype is input.dtype:
        return _in_single(input, outputs)
    return input.numel() * outputs.dtype.itemsize if input.dtype is not outputs.dtype else 0


def _in_single(input: Tensor, outputs: Tensor) -> int:
    return (input.numel() + outputs.numel()) * _FLOAT


def _reduced_stretches(input: Tensor, axes: Any) -> int:
    """Runs of neighbouring axes that are summed; axes of length 1 aside."""
    summed = {axis % input.dim() for axis in axes} if axes else set(range(input.dim()))
    long = [axis for axis in range(input.dim()) if input.shape[axis] > 1]
    return sum(axis in summed and (place == 0 or long[place - 1] not in summed) for place, axis in enumerate(long))


def running_total(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """The input in the result's type."""
    return data_bytes(outputs) if args[0].dtype is not outputs.dtype else 0


def median(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A copy to reorder; along one axis, rows outside of torch's allocator."""
    return data_bytes(args[0]) if isinstance(outputs, Tensor) else 0


def kth_value(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A copy to reorder, and its indices."""
    return data_bytes(args[0]) + args[0].numel() * 8


def distance(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Both sets of points, two coordinates longer."""
    return sum((value.numel() // value.shape[-1]) * (value.shape[-1] + 2) * value.element_size() for value in args[:2])


def unknown(args: tuple, kwargs: dict, outputs: Any) -> None:
    """Not found out yet."""
    return None


def pointwise(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Operands of another type than the computation's are converted first, each into a block of its own.

    Source: torch's `TensorIterator`, which casts to the common type on the CPU.
    """
    values = [
        value for value in args if isinstance(value, (Tensor, int, float, complex)) and not (isinstance(value, Tensor) and value.is_sparse)
    ]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len({tensor.dtype for tensor in tensors}) < 2:
        return _from_complex(tensors, outputs)
    _, common = elementwise_dtypes(*values, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)
    sizes = sum(tensor.numel() * common.itemsize for tensor in tensors if tensor.dtype is not common and tensor.dim())
    if isinstance(outputs, Tensor) and outputs.dtype not in (common, torch.bool):
        sizes += outputs.numel() * common.itemsize
    return sizes


def choice(args: tuple, kwargs: dict, outputs: Any) -> int:
    """As `pointwise`, the flags that choose aside."""
    return pointwise(tuple(value for value in args if not (isinstance(value, Tensor) and value.dtype is torch.bool)), kwargs, outputs)


def _from_complex(tensors: list[Tensor], outputs: Any) -> int:
    # abs and angle of complex numbers are computed as complex numbers, and converted after.
    if not (tensors and tensors[0].is_complex() and isinstance(outputs, Tensor) and outputs.is_floating_point()):
        return 0
    return data_bytes(tensors[0])


def sort(args: tuple, kwargs: dict, outputs: Any) -> int:
    """The places along the axis, which all rows of the indices begin with."""
    input = args[0]
    found = [value for value in (*args[1:], kwargs.get("dim", -1)) if isinstance(value, int) and not isinstance(value, bool)]
    return _INDEX * input.shape[found[0]] if input.dim() else 0
