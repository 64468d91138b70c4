"""The work and the traffic of a convolution, in the layouts that oneDNN computes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from sash.cost._ledger import copy_bytes, data_bytes
from sash.cost._onednn import Plan
from sash.cost._piece import Piece, kind_of
from sash.cost._scratch_convolution import ONEDNN, ConvolutionCall, backend_of

SHARED_PLACES = 512
"""Of a map, from which oneDNN shares each of a depthwise convolution's many small products out to all threads, and waits for them."""


def forward(args: Sequence, kwargs: dict, output: Tensor) -> Iterator[Piece]:
    """Pieces of `aten.convolution`."""
    call = ConvolutionCall.read(tuple(args))
    places = output.numel() // max(output.shape[1], 1) if not call.transposed else call.input.numel() // call.input.shape[1]
    copies = copy_bytes(call.input, call.format) + copy_bytes(call.weight, call.format)
    plan = call.plan("forward", output.shape) if backend_of(call) in ONEDNN else None
    yield _piece("forward", call, plan, places, (call.input, call.weight, output), copies)


def backward(args: Sequence, kwargs: dict, outputs: Sequence[Tensor | None]) -> Iterator[Piece]:
    """Pieces of `aten.convolution_backward`: one for each gradient."""
    gradient, input, weight, bias_sizes, *rest, mask = args
    call = ConvolutionCall.read((input, weight, None, *rest), bias=bool(mask[2]))
    places = gradient.numel() // max(gradient.shape[1], 1) if not call.transposed else input.numel() // input.shape[1]
    copies = sum(copy_bytes(tensor, call.format) for tensor in (gradient, input, weight))
    backend = backend_of(call, bias_sizes) in ONEDNN
    if mask[0]:
        plan = call.plan("data", gradient.shape) if backend else None
        yield _piece("data", call, plan, places, (gradient, weight, input), copies)
        copies = 0
    if mask[1] or mask[2]:
        plan = call.plan("weights", gradient.shape) if backend else None
        yield _piece("weights", call, plan, places, (gradient, input, weight), copies)


def _piece(
    direction: str, call: ConvolutionCall, plan: Plan | None, places: int, tensors: tuple[Tensor, Tensor, Tensor], copies: int
) -> Piece:
    """`tensors` are the primitive's first and second operand and its result."""
    macs = places * prod(call.weight.shape) if not call.transposed else call.input.numel() * prod(call.weight.shape[1:])
    plain = [data_bytes(tensor) for tensor in tensors]
    kind = kind_of(tensors[0])
    if plan is None or any(word in plan.kernel for word in ("gemm", "ref")):
        # Unfolded into columns and multiplied, one picture and one group after the other.
        return Piece(
            f"convolution.unfolded.{_unfolded(call, places)}.{kind}",
            macs,
            sum(plain) + copies,
            0,
            macs,
            calls=call.groups * call.input.shape[0],
        )
    law = f"convolution.{_form(call)}.{direction}.{'last' if call.channels_last else 'plain'}.{kind}"
    blocked = [plan.first, plan.second, plan.result if plan.result_layout == "blocked" else 0]
    # What is padded in a blocked layout is computed on: oneDNN does not skip it.
    padding = [size / max(here, 1) for size, here in zip(blocked, plain, strict=True)]
    weights = {"forward": 1, "data": 1, "weights": 2}[direction]
    maps = prod(max(1.0, padding[place]) for place in range(3) if place != weights)
    moved = [size + here if size else 0 for size, here in zip(blocked, plain, strict=True)]
    traffic = sum(moved) - moved[weights] + sum(plain) + 2 * copies
    return Piece(law, macs * min(max(maps, padding[weights]), 8.0), traffic, moved[weights], macs)


def _unfolded(call: ConvolutionCall, places: int) -> str:
    if _form(call) != "depthwise":
        return "dense"
    return "shared" if places >= SHARED_PLACES * call.input.shape[0] else "depthwise"


def _form(call: ConvolutionCall) -> str:
    if call.transposed:
        return "transposed"
    if call.groups > 1:
        return "depthwise" if call.weight.shape[1] == 1 and call.groups == call.input.shape[1] else "grouped"
    return "pointwise" if prod(call.weight.shape[2:]) == 1 else "dense"
