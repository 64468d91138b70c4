"""What the kernels of normalisation, softmax and losses allocate inside.

Sources: measured with the profiler's memory record, torch 2.13 on x86; tests/parity/test_scratch.py repeats it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from sash.cost._ledger import copy_bytes, data_bytes

_FLOAT = 4
_PARTIAL_SUM = 12
"""A whole-tensor mean keeps its shape and strides in three small blocks."""


def batch_norm(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Scale and shift per channel; per-thread sums where channels lie last."""
    input, training = args[0], _training_of(args)
    last = _channels_lie_last(input)
    if not (input.is_contiguous() or last):
        return 0
    sums = torch.get_num_threads() if training and last else 0
    return (2 + sums) * input.shape[1] * _FLOAT


def batch_norm_backward(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A second result where gradient and input lie alike, per-thread sums where these are more, or alone if no gradient is asked for."""
    gradient, input = args[0], args[1]
    last = _channels_lie_last(input) and _channels_lie_last(gradient)
    sums = 2 * torch.get_num_threads() * input.shape[1] * _FLOAT if last else 0
    if outputs[0] is None:
        return sums
    if last or (input.is_contiguous() and not (gradient.dim() > 3 and _channels_lie_last(gradient))):
        return max(sums, data_bytes(input))
    return input.shape[1] * _FLOAT


def group_norm(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Sums per picture and channel where channels lie last."""
    input = args[0]
    return 2 * input.shape[0] * input.shape[1] * _FLOAT if _channels_lie_last(input) else copy_bytes_loose(input)


def group_norm_backward(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Two sums per picture and channel, and plain copies of what lies otherwise."""
    gradient, input = args[0], args[1]
    return 2 * input.shape[0] * input.shape[1] * _FLOAT + copy_bytes_loose(input) + _as_input(gradient, input)


def layer_norm(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A plain copy of an input that is not contiguous."""
    return copy_bytes(args[0])


def layer_norm_backward(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Per-thread sums for the two parameters, and plain copies of what is not contiguous."""
    gradient, input, shape = args[0], args[1], args[2]
    length = 1
    for size in shape:
        length *= size
    mask = args[7] if len(args) > 7 else (True, True, True)
    sums = 2 * torch.get_num_threads() * length * max(input.element_size(), _FLOAT) if mask[1] or mask[2] else 0
    return sums + copy_bytes(gradient) + copy_bytes(input)


def softmax(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A plain copy of an input that is not contiguous."""
    return copy_bytes(args[0])


def softmax_backward(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Plain copies of a gradient and an output that are not contiguous."""
    return copy_bytes(args[0]) + copy_bytes(args[1])


def safe_softmax(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A mask of the elements, one flag a row, a scalar."""
    input = args[0]
    rows = input.numel() // max(input.shape[args[1]], 1)
    return input.numel() + rows + 4


def logsumexp(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """The exponentials, and the maxima."""
    return data_bytes(args[0]) + data_bytes(outputs)


def bce_with_logits(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """Two maps; one of them is the result where nothing is reduced."""
    size = data_bytes(args[0])
    return size if outputs.numel() == args[0].numel() else 2 * size + _PARTIAL_SUM


def reduced_loss(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """The map of losses, before it is reduced."""
    return 0 if outputs.numel() == args[0].numel() else data_bytes(args[0]) + _PARTIAL_SUM


def log_sigmoid(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A plain copy of an input that is not contiguous."""
    return copy_bytes(args[0])


def copy_bytes_loose(input: Tensor) -> int:
    """Bytes of a copy of an input that is neither contiguous nor channels-last."""
    return 0 if input.is_contiguous() or input.is_contiguous(memory_format=suggest_memory_format(input)) else data_bytes(input)


def _as_input(gradient: Tensor, input: Tensor) -> int:
    format = suggest_memory_format(input)
    return 0 if gradient.is_contiguous(memory_format=format) else data_bytes(gradient)


def _channels_lie_last(input: Tensor) -> bool:
    return input.dim() == 2 or (input.dim() > 3 and suggest_memory_format(input) is not torch.contiguous_format)


def _training_of(args: tuple) -> bool:
    # native_batch_norm(input, weight, bias, mean, var, training, …); without running statistics two arguments fewer.
    return next((value for value in args[3:] if isinstance(value, bool)), False)
