"""The work and the traffic of operators over maps: elementwise, copies, reductions, norms, pooling, resampling, gathering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from sash.cost._laws import ELEMENTWISE, ROWED
from sash.cost._piece import Piece, bytes_of, kind_of, tensors_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GRAIN = 32768
"""Elements from which torch shares an elementwise operator out over the threads (`at::internal::GRAIN_SIZE`)."""
_VECTOR = _words("sqrt exp log tanh sin cos erf")
_STEEP = _words(
    "cos tan expm1 log1p log2 log10 log_sigmoid_forward log_sigmoid_backward erfc asin acos atan atan2 sinh cosh mish_backward "
    "softplus_backward logit lgamma digamma erfinv native_dropout"
)
_RANDOM = _words("bernoulli_ bernoulli normal_ uniform_ random_ rand randn rand_like randn_like exponential_ native_dropout")
_ALIKE = {"sub": "add", "rsub": "add", "neg": "add", "clamp": "hardtanh", "clamp_min": "relu", "native_dropout_backward": "mul"}
_COPIES = _words("clone copy_ _to_copy contiguous copy _reshape_copy constant_pad_nd roll repeat flip im2col col2im cat stack")
_FILLS = _words("zero_ fill_ zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full fill arange scalar_tensor")
_NOTHING = _words(
    "empty empty_like new_empty empty_strided new_empty_strided detach lift_fresh alias resize_ _local_scalar_dense set_ _unsafe_view "
    "unsafe_split unsafe_split_with_sizes unsafe_chunk"
)
_SUMS = frozenset(
    {"sum", "mean", "amax", "amin", "max", "min", "any", "all", "prod", "norm", "linalg_vector_norm", "argmax", "argmin", "nansum"}
)
_SPREADS = _words("var std var_mean std_mean logsumexp")
_NORMS = {
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_batch_norm_backward": "batch_norm.backward",
    "native_layer_norm": "layer_norm",
    "native_layer_norm_backward": "layer_norm.backward",
    "native_group_norm": "group_norm",
    "native_group_norm_backward": "group_norm.backward",
}
_SOFTMAX = {
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), "softmax"),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), "softmax.backward"),
}
_GATHERS = _words("embedding index_select gather index take_along_dim take")
_SCATTERS = _words(
    "embedding_dense_backward index_put_ index_put _index_put_impl_ scatter scatter_ scatter_add scatter_add_ index_add index_add_ "
    "slice_backward select_backward"
)
_MEAN = 20
"""What a mean over a window takes beside its taps, as so many of them: it divides, and finds its borders, for each output."""
_TAPS = {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}


def map_pieces(func: Any, args: Sequence, kwargs: dict, outputs: Any) -> Iterator[Piece]:
    """What an operator over maps does; nothing where it only makes a view or an empty tensor."""
    name = func.overloadpacket.__name__
    if name in _NOTHING or is_view(func):
        return
    inputs, results = list(tensors_of((args, kwargs))), list(tensors_of(outputs))
    if not results and not inputs:
        return
    main = max((*inputs, *results), key=lambda tensor: tensor.numel())
    kept = bool(func._schema.returns) and all(value.alias_info is not None and value.alias_info.is_write for value in func._schema.returns)
    moved = sum(bytes_of(tensor) for tensor in (inputs if kept else (*inputs, *results)))
    # The vendor's vector functions start the threads for a few elements already (torch 2.13 with MKL: from 65 to 384 of them on).
    eager = name.removesuffix("_") in _VECTOR and main.dtype in (torch.float32, torch.float64) and main.numel() >= 128
    threads = max(main.numel(), GRAIN) if eager else main.numel()
    law = _law(func, name, args, inputs, results)
    rows = _rows(name, law, args, inputs) if law in ROWED else 1
    yield Piece(f"{law}.{_kind(main)}", _work(name, args, main, results), moved, calls=rows, kept=kept, threads=threads)
    if law in ROWED or law.startswith("group_norm"):
        # These kernels go along memory, and copy what lies otherwise.
        for tensor in inputs:
            if tensor.numel() == main.numel() and tensor.dim() > 1 and _order(tensor) != tuple(sorted(_order(tensor))):
                yield Piece(f"copy.permuted.{_kind(main)}", main.numel(), 2 * bytes_of(tensor), threads=main.numel())
    if name == "_safe_softmax":
        # It looks for rows that are masked as a whole: compared, and the result chosen anew.
        yield Piece(f"elementwise.gt.{_kind(main)}", main.numel(), main.numel() + bytes_of(main), threads=main.numel())
        yield Piece(f"elementwise.where.{_kind(main)}", main.numel(), 2 * bytes_of(main), threads=main.numel())


def is_view(func: Any) -> bool:
    """Whether the operator returns its argument's memory, unchanged."""
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def _kind(tensor: Tensor) -> str:
    return kind_of(tensor) if tensor.is_floating_point() else "f32"


def _law(func: Any, name: str, args: Sequence, inputs: list[Tensor], results: list[Tensor]) -> str:
    out = results[0] if results else inputs[0]
    if name in _NORMS:
        law = _NORMS[name]
        if law == "batch_norm":
            training = name.endswith("_legit") or (name == "native_batch_norm" and bool(args[5]))
            law = f"batch_norm.{'training' if training else 'inference'}"
        return f"{law}.{_layout(inputs[0])}" if law.startswith("batch_norm") else law
    if name in _SOFTMAX:
        axis = args[2] if "backward" in name else args[1]
        return f"{_SOFTMAX[name]}.{'inner' if axis % max(out.dim(), 1) == out.dim() - 1 else 'outer'}"
    if name in _FILLS:
        return "fill"
    if name in _COPIES:
        # copy_ writes its first argument and reads the second.
        source = args[1] if name == "copy_" else inputs[0]
        if isinstance(source, Tensor) and source.dtype != out.dtype:
            return "copy.cast"
        if name == "cat":
            return "copy.join"
        return "copy.permuted" if _mixed([source, out]) or name in ("im2col", "col2im", "roll", "flip") else "copy.straight"
    if name in _SUMS or name in _SPREADS:
        return f"{'reduce' if name in _SUMS else 'spread'}.{_direction(args, inputs[0])}"
    if "pool" in name:
        way = ".backward" if "backward" in name else ""
        return f"pool.{'max' if 'max' in name else 'mean'}{way}.{_layout(args[1] if way else inputs[0])}"
    if name.startswith(("upsample_", "_upsample", "grid_sampler")):
        return f"resample.{'backward' if 'backward' in name else 'forward'}.{_layout(inputs[0])}"
    if name in _GATHERS:
        return "gather"
    if name in _SCATTERS:
        return "scatter"
    if name in _RANDOM:
        return "elementwise.bernoulli_"
    if name.startswith("cum") or name in ("sort", "topk", "median", "kthvalue"):
        return "scan"
    bare = name.removesuffix("_")
    if bare == "pow" and len(args) > 1 and isinstance(args[1], (int, float)) and args[1] in (0.5, 2, 3):
        bare = "sqrt" if args[1] == 0.5 else "mul"
    bare = _ALIKE.get(bare, bare)
    if bare not in ELEMENTWISE:
        bare = "exp" if bare in _STEEP else "add"
    if torch.Tag.pointwise in func.tags and _mixed([tensor for tensor in (*inputs, *results) if tensor.numel() == out.numel()]):
        return "copy.permuted"
    return f"elementwise.{bare}"


def _work(name: str, args: Sequence, main: Tensor, results: list[Tensor]) -> float:
    if "pool" in name and "adaptive" not in name and results and "backward" not in name:
        taps = prod(args[1]) if len(args[1]) > 1 else args[1][0] ** max(results[0].dim() - 2, 1)
        return results[0].numel() * (taps if "max" in name else taps + _MEAN)
    for kind, taps in _TAPS.items():
        if kind in name:
            places = results[0].numel() if "backward" not in name else args[0].numel()
            return places * taps / 4
    if name in _GATHERS and results:
        return results[0].numel()
    if name in _SCATTERS and isinstance(args[0], Tensor):
        return args[0].numel() if name == "embedding_dense_backward" else main.numel()
    if name in ("sort", "topk", "median", "kthvalue"):
        return 8 * main.numel()
    return main.numel()


def _rows(name: str, law: str, args: Sequence, inputs: list[Tensor]) -> int:
    source = inputs[0]
    if name.startswith("native_layer_norm"):
        return source.numel() // max(prod(args[1] if name == "native_layer_norm" else args[2]), 1)
    axes = args[2] if name in _SOFTMAX and "backward" in name else args[1] if len(args) > 1 else None
    axes = [axes] if isinstance(axes, int) else axes if isinstance(axes, (list, tuple)) else []
    if not axes or not source.dim():
        return 1
    if law.endswith(".outer"):
        # Along an outer axis whole planes are gone through at once.
        return prod(source.shape[: axes[0] % source.dim()])
    return source.numel() // max(prod(source.shape[axis] for axis in axes), 1)


def _layout(tensor: Tensor) -> str:
    if tensor.dim() == 4:
        last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    elif tensor.dim() == 5:
        last = tensor.is_contiguous(memory_format=torch.channels_last_3d) and not tensor.is_contiguous()
    else:
        last = False
    return "last" if last else "plain"


def _direction(args: Sequence, source: Tensor) -> str:
    axes = args[1] if len(args) > 1 else None
    if isinstance(axes, int):
        axes = [axes]
    if not isinstance(axes, (list, tuple)) or not axes or not all(isinstance(axis, int) for axis in axes):
        return "inner"
    inner = min(range(source.dim()), key=lambda axis: (source.stride(axis), -axis) if source.shape[axis] > 1 else (1 << 62, 0), default=0)
    return "inner" if inner in {axis % max(source.dim(), 1) for axis in axes} else "outer"


def _mixed(tensors: list[Tensor]) -> bool:
    """Whether their elements lie in different orders, so that one of them is not walked along its memory."""
    orders = {_order(tensor) for tensor in tensors if tensor.numel() > 1}
    return len(orders) > 1


def _order(tensor: Tensor) -> tuple[int, ...]:
    axes = [axis for axis in range(tensor.dim()) if tensor.shape[axis] > 1 and tensor.stride(axis)]
    return tuple(sorted(axes, key=lambda axis: (-tensor.stride(axis), axis)))
