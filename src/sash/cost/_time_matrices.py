"""The work and the traffic of matrix products, attention, recurrent layers and transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log2, prod
from typing import Any

from torch import Tensor

from sash.cost._macs import operator_macs
from sash.cost._piece import Piece, bytes_of, kind_of, tensors_of


def product(func: Any, args: Sequence, kwargs: dict, output: Tensor) -> Iterator[Piece]:
    """Pieces of mm, addmm, bmm, baddbmm, mv and their like."""
    places = {"addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2), "addmv": (1, 2), "_addmm_activation": (1, 2)}
    left, right = (args[place] for place in places.get(func.overloadpacket.__name__, (0, 1)))
    macs = operator_macs(func, args, kwargs, output)
    family = "products" if left.dim() == 3 else "product"
    moved = bytes_of(left) + bytes_of(right) + bytes_of(output)
    if left.is_complex():
        macs, family = 4 * macs, "products"  # four real products each
    calls = left.shape[0] if left.dim() == 3 else 1
    rows = output.shape[-2] if output.dim() > 1 and right.dim() > 1 else 1
    if family == "product" and min(rows, output.shape[-1]) < _FEW:
        family = "vector"
    yield Piece(f"{family}.{kind_of(left)}", macs, moved, macs=macs, calls=calls if family == "products" else 1)


def attention(func: Any, args: Sequence, kwargs: dict, outputs: Any) -> Iterator[Piece]:
    """Pieces of fused attention."""
    macs = operator_macs(func, args, kwargs, outputs)
    way = "backward" if "backward" in func.overloadpacket.__name__ else "forward"
    moved = sum(bytes_of(tensor) for tensor in tensors_of((args, outputs)))
    yield Piece(f"attention.{way}.{kind_of(args[0])}", macs, moved, macs=macs)


def recurrent(func: Any, args: Sequence, kwargs: dict, outputs: Any) -> Iterator[Piece]:
    """Pieces of oneDNN's LSTM layer: its steps follow each other."""
    macs = operator_macs(func, args, kwargs, outputs)
    way = "backward" if "backward" in func.overloadpacket.__name__ else "forward"
    moved = sum(bytes_of(tensor) for tensor in tensors_of((args, outputs)))
    weights = sum(tensor.nbytes for tensor in args[1:5] if isinstance(tensor, Tensor))
    yield Piece(f"recurrent.{way}.{kind_of(args[0])}", macs, moved, weights, macs, calls=max(args[0].shape[0], 1))


def transform(func: Any, args: Sequence, kwargs: dict, output: Tensor) -> Iterator[Piece]:
    """Pieces of a Fourier transform."""
    signal = max((args[0], output), key=lambda tensor: tensor.numel())
    points = max(prod(signal.shape[axis] for axis in args[1]), 2)
    moved = bytes_of(args[0]) + bytes_of(output)
    yield Piece("transform.f32", signal.numel() * log2(points), moved, macs=operator_macs(func, args, kwargs, output))


_FEW = 16
"""Rows or columns below which a product is bound by reading its larger factor."""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "_addmm_activation", "dot", "vdot", "linear", "matmul"})
ATTENTIONS = frozenset(
    f"_scaled_dot_product_{kind}{way}"
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention")
    for way in ("", "_backward")
)
RECURRENT = frozenset({"mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"})
TRANSFORMS = frozenset({"_fft_r2c", "_fft_c2c", "_fft_c2r"})
