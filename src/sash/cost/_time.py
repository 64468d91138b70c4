"""Seconds of one operator call: what its kernels compute and move, at the rates that this machine was measured for.

A product or a convolution takes the sum of its start, its arithmetic and its traffic, for oneDNN lays operands out anew before it computes;
an operator over maps takes its start and the longer of the two, for it computes while it reads. Source of the limits: S. Williams,
A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 52 (4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from math import log
from typing import Any, NamedTuple

from sash.cost import _time_convolution as convolutions
from sash.cost import _time_matrices as matrices
from sash.cost._laws import STREAMS
from sash.cost._piece import Piece, kind_of, tensors_of
from sash.cost._rates import Rates
from sash.cost._time_maps import GRAIN, map_pieces


class Bound(StrEnum):
    """What an operator waits for most."""

    ARITHMETIC = "arithmetic"
    MEMORY = "memory traffic"
    OVERHEAD = "overhead"


class Estimate(NamedTuple):
    """What one operator call takes."""

    seconds: float
    bound: Bound
    start_s: float
    """Of it, starting the operator."""
    limit_s: float
    """What the arithmetic that was asked for and one pass over the operands would take at this machine's best rates."""


def operator_seconds(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any, rates: Rates) -> Estimate:
    """Seconds of one call of an ATen operator below autograd, as a dispatch mode sees it, and what bounds them.

    Reads sizes, strides and types only: tensors may be real, meta or fake. Pages that are made for its results are not in it.
    """
    call_s = rates["operator.s"]
    parts = [_parts(piece, rates) for piece in pieces(func, args, kwargs, outputs)]
    if not parts:
        return Estimate(rates["view.s"], Bound.OVERHEAD, rates["view.s"], 0.0)
    overhead = call_s + sum(part[0] for part in parts)
    arithmetic, traffic = sum(part[1] for part in parts), sum(part[2] for part in parts)
    named = {Bound.ARITHMETIC: arithmetic, Bound.MEMORY: traffic, Bound.OVERHEAD: overhead}
    limit_s = _limit(func, args, kwargs, outputs, parts, rates)
    return Estimate(overhead + arithmetic + traffic, max(named, key=named.__getitem__), overhead, limit_s)


def pieces(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any) -> list[Piece]:
    """What the operator's kernels do."""
    name = func.overloadpacket.__name__
    if name == "convolution":
        return list(convolutions.forward(args, kwargs, outputs))
    if name == "convolution_backward":
        return list(convolutions.backward(args, kwargs, outputs))
    if name in matrices.PRODUCTS:
        return list(matrices.product(func, args, kwargs, outputs))
    if name in matrices.ATTENTIONS:
        return list(matrices.attention(func, args, kwargs, outputs))
    if name in matrices.RECURRENT:
        return list(matrices.recurrent(func, args, kwargs, outputs))
    if name in matrices.TRANSFORMS:
        return list(matrices.transform(func, args, kwargs, outputs))
    return list(map_pieces(func, args, kwargs, outputs))


def bandwidth(size: float, values: Mapping[str, float], way: str = "stream") -> float:
    """Bytes a second over a working set of `size` bytes; `way` is "kept" where the result overwrites an operand."""
    first, last = STREAMS[0], STREAMS[-1]
    for low, high in pairwise(STREAMS):
        if low <= size <= high:
            share = log(size / low) / log(high / low)
            return values[f"{way}.{low}.bytes_per_s"] ** (1 - share) * values[f"{way}.{high}.bytes_per_s"] ** share
    return values[f"{way}.{first if size < first else last}.bytes_per_s"]


def slowness(size: float, values: Mapping[str, float]) -> float:
    """How much longer a byte takes in a working set of `size` bytes than in one that the caches hold."""
    fastest = max(STREAMS, key=lambda stream: values[f"stream.{stream}.bytes_per_s"])
    return bandwidth(fastest, values) / bandwidth(max(size, fastest), values)


def _parts(piece: Piece, rates: Rates) -> tuple[float, float, float, float]:
    """Seconds of starting, of arithmetic, of traffic; and the multiply-accumulates that were asked for."""
    law = piece.law
    if f"{law}.s_per_byte" in rates.values:  # start, arithmetic and traffic add up
        moved = piece.bytes * slowness(piece.bytes, rates.values) * rates[f"{law}.s_per_byte"]
        moved += piece.weights * rates[f"{law}.s_per_weight_byte"]
        return rates[f"{law}.start_s"] + piece.calls * rates[f"{law}.call_s"], piece.work * rates[f"{law}.s_per_item"], moved, piece.macs
    shared = piece.threads >= GRAIN
    start = rates[f"{law}.call_s"] + (rates["region.s"] if shared else 0.0)
    work = piece.work * rates[f"{law}.s_per_item"] * (1.0 if shared else rates.threads)
    traffic = piece.bytes / bandwidth(piece.bytes, rates.values, "kept" if piece.kept else "stream") if shared else 0.0
    return (start, work, 0.0, piece.macs) if work > traffic else (start, 0.0, traffic, piece.macs)


def _limit(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any, parts: list, rates: Rates) -> float:
    tensors = list(tensors_of((args, kwargs, outputs)))
    kind = "bf16" if any(kind_of(tensor) == "bf16" for tensor in tensors) else "f32"
    macs = sum(part[3] for part in parts)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(macs / rates[f"best.{kind}.macs_per_s"], size / bandwidth(size, rates.values))
