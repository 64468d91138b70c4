"""What the kernels of matrix products, attention, recurrent layers and Fourier transforms allocate inside.

Sources: the order of allocations was measured with the profiler's memory record, torch 2.13 on x86 (tests/parity/test_scratch.py repeats
it); scratchpads are asked of oneDNN; the tile sizes of fused attention are those of torch's `FlashAttentionKernel.cpp`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sash.cost import _onednn
from sash.cost._ledger import Ledger, copy_bytes, data_bytes

_FLOAT = 4


def matrix_product(args: tuple, kwargs: dict, outputs: Tensor) -> int | None:
    """oneDNN's scratchpad for the half-precision types; nothing for the others, whose library packs outside torch's allocator."""
    left, right = [value for value in args if isinstance(value, Tensor)][-2:]
    if left.dtype not in (torch.bfloat16, torch.float16) or not _product_uses_onednn(left, right):
        return 0
    return _onednn.matmul_scratchpad(left, right, outputs)


def _product_uses_onednn(left: Tensor, right: Tensor) -> bool:
    # torch's use_mkldnn_bf16_matmul: nothing empty, and more than a single multiply.
    return left.numel() > 0 and right.numel() > 0


def flash_attention(args: tuple, kwargs: dict, outputs: Any) -> int:
    """One tile of scores, its maxima, sums and products, for every thread."""
    query, key = args[0], args[1]
    rows, columns = _tile(query.shape[2], key.shape[2], 768, 192)
    size = rows * columns + 2 * rows + rows * query.shape[3]
    half = rows * columns * query.element_size() if query.dtype in (torch.bfloat16, torch.float16) else 0
    return torch.get_num_threads() * (size * _FLOAT + half)


def flash_attention_backward(args: tuple, kwargs: dict, outputs: Any) -> int:
    """The gradient with heads behind positions, where it lies otherwise, and two tiles of scores for every thread."""
    gradient, query, key = args[0], args[1], args[2]
    rows, columns = _tile(query.shape[2], key.shape[2], 768, 192)
    tiles = 2 * torch.get_num_threads() * rows * columns
    half = query.dtype in (torch.bfloat16, torch.float16)
    copy = 0 if _heads_lie_behind(gradient) else data_bytes(gradient)
    return copy + tiles * _FLOAT + rows * _FLOAT + (tiles * query.element_size() if half else 0)


def _heads_lie_behind(gradient: Tensor) -> bool:
    _, heads, length, size = gradient.shape
    return gradient.stride() == (length * heads * size, size, heads * size, 1)


def _tile(queries: int, keys: int, large: int, middle: int) -> tuple[int, int]:
    rows = 256 if queries >= large else 64 if queries >= middle else 32
    return min(rows, max(queries, 1)) if queries < 32 else rows, min(512, keys)


def fused_attention_layer(args: tuple, kwargs: dict, outputs: Any) -> int:
    """Queries, keys and values at once, twice while they are reordered, or beside the scores."""
    query, heads = args[0], args[4]
    size = data_bytes(query)
    batch, length = query.shape[0], query.shape[1]
    scores = batch * heads * length * length * query.element_size()
    return 3 * size + max(3 * size, scores) - size


def recurrent_layer(args: tuple, kwargs: dict, outputs: Any) -> int | None:
    """The summed biases, both weights in oneDNN's layout, its scratchpad."""
    plan = _onednn.lstm(*_lstm_sizes(args), training=torch.is_grad_enabled())
    if plan is None:
        return None
    hidden = args[5].shape[-1]
    return 4 * hidden * args[0].element_size() + plan.first + plan.second + plan.scratchpad


def recurrent_workspace(args: tuple, kwargs: dict, outputs: Any) -> dict[int, int]:
    """Bytes of the workspace that a training layer keeps; the fake kernel knows no size for it."""
    if not torch.is_grad_enabled():
        return {}
    plan = _onednn.lstm(*_lstm_sizes(args), training=True)
    return {3: plan.workspace} if plan is not None and isinstance(outputs[3], Tensor) else {}


def recurrent_layer_backward(args: tuple, kwargs: dict, outputs: Any) -> int | None:
    """Gradients of the states where none came, the summed biases, both weights and their gradients in oneDNN's layout, its scratchpad."""
    input, layer_weight, state_weight = args[0], args[1], args[2]
    plan = _onednn.lstm(*_lstm_sizes(args), training=True, backward=True)
    if plan is None:
        return None
    length, batch, _ = input.shape
    hidden = state_weight.shape[1]
    ledger = Ledger()
    ledger.take(*(batch * hidden * _FLOAT for given in args[11:13] if given is None), 4 * hidden * _FLOAT)
    ledger.take(copy_bytes(args[10]) if args[10] is not None else length * batch * hidden * _FLOAT)
    ledger.take(plan.first, plan.second, data_bytes(layer_weight), data_bytes(state_weight), 4 * hidden * _FLOAT, plan.scratchpad)
    return ledger.peak


def _lstm_sizes(args: tuple) -> tuple[int, int, int, int, torch.dtype]:
    input, state_weight = args[0], args[2]
    length, batch, features = input.shape
    return length, batch, features, state_weight.shape[1], input.dtype


def fft(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """A copy of the input where the other axes cannot be walked as one."""
    input, axes = args[0], [axis % args[0].dim() for axis in args[1]]
    return data_bytes(input) if _must_move(input, axes) else 0


def fft_to_real(args: tuple, kwargs: dict, outputs: Tensor) -> int:
    """With several axes the first ones are transformed apart, each time from a copy."""
    input, axes = args[0], [axis % args[0].dim() for axis in args[1]]
    if len(axes) > 1:
        return 2 * data_bytes(input)
    return data_bytes(input) if _must_move(input, axes) else 0


def _must_move(input: Tensor, axes: list[int]) -> bool:
    """The axes that are not transformed do not lie as one: they cannot be walked with a single stride."""
    others = [(input.stride(axis), input.shape[axis]) for axis in range(input.dim()) if axis not in axes and input.shape[axis] > 1]
    others.sort(reverse=True)
    return any(outer != inner * size for (outer, _), (inner, size) in pairwise(others))


def singular_values(args: tuple, kwargs: dict, outputs: Any) -> int:
    """A copy, column by column, that LAPACK works in, and whether each matrix converged."""
    return data_bytes(args[0]) + _infos(args[0])


def inverse(args: tuple, kwargs: dict, outputs: Any) -> int:
    """The triangular factors and their pivots."""
    return data_bytes(args[0]) + args[0].shape[-1] * _infos(args[0])


def orthogonal(args: tuple, kwargs: dict, outputs: Any) -> int:
    """One number for each reflection."""
    matrices, length = args[0].shape[:-2].numel(), min(args[0].shape[-2:])
    return matrices * length * args[0].element_size()


def _infos(input: Tensor) -> int:
    return input.shape[:-2].numel() * _FLOAT
