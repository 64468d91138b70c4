"""What convolution kernels allocate inside.

Sources: the order of allocations was measured with the profiler's memory record, torch 2.13 on x86 (tests/parity/test_scratch.py repeats
it); the sizes of oneDNN's own layouts and scratchpads are asked of oneDNN (`_onednn`); which kernel runs is asked of torch
(`torch._C._select_conv_backend`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from sash.cost import _onednn
from sash.cost._ledger import Ledger, Scratch, copy_bytes, data_bytes
from sash.cost._onednn import Plan

ONEDNN = ("Mkldnn", "MkldnnTranspose")
_WHOLE_BATCH = ("Slow2d", "Slow3d")
_ONE_PICTURE = ("SlowDilated2d", "SlowDilated3d", "SlowTranspose2d", "SlowTranspose3d")
"""torch's own kernels, by how much of the batch they unfold at once."""


def forward_scratch(args: tuple, kwargs: dict, output: Tensor) -> Scratch | None:
    """Scratch of `aten.convolution`."""
    call = ConvolutionCall.read(args)
    backend = backend_of(call)
    ledger = Ledger()
    if backend in ONEDNN:
        plan = call.plan("forward", output.shape)
        if plan is None:
            return None
        copies = [copy_bytes(call.input, call.format), copy_bytes(call.weight, call.format)]
        ledger.take(*copies)
        inside = (plan.scratchpad, plan.first, plan.second)
        if call.channels_last:
            ledger.take(output.nbytes, *inside)
            ledger.give(*inside)
        else:
            ledger.take(*inside, plan.result)
            ledger.give(*inside)
            _to_dense(ledger, plan, output.nbytes)
        ledger.give(*copies)
        return ledger.beyond(output.nbytes)
    return _native_forward(call, backend, output)


def backward_scratch(args: tuple, kwargs: dict, outputs: tuple[Tensor | None, ...]) -> Scratch | None:
    """Scratch of `aten.convolution_backward`."""
    gradient, input, weight, bias_sizes, *rest, mask = args
    call = ConvolutionCall.read((input, weight, None, *rest), bias=bool(mask[2]))
    backend = backend_of(call, bias_sizes)
    results = [0 if output is None else output.nbytes for output in outputs]
    ledger = Ledger()
    if backend not in ONEDNN:
        return _native_backward(call, backend, gradient)
    copies = [copy_bytes(tensor, call.format) for tensor in (gradient, input, weight)]
    ledger.take(*copies)
    if mask[0]:
        plan = call.plan("data", gradient.shape)
        if plan is None:
            return None
        inside = (plan.first, plan.second, plan.scratchpad)
        if call.channels_last:
            ledger.take(results[0], *inside)
            ledger.give(*inside)
        else:
            ledger.take(*inside, plan.result)
            ledger.give(*inside)
            _to_dense(ledger, plan, results[0])
    if mask[1] or mask[2]:
        plan = call.plan("weights", gradient.shape)
        if plan is None:
            return None
        bias = results[2]
        inside = (plan.first, plan.second, plan.scratchpad)
        ledger.take(*inside, plan.result, bias)
        ledger.give(*inside)
        ledger.take(bias)
        plain = call.weight.nbytes
        _to_dense(ledger, plan, plain, keep=True)
        if call.channels_last:
            ledger.take(plain)
            ledger.give(plain)
        ledger.give(plan.result, bias)
    ledger.give(*copies)
    return ledger.beyond(sum(results))


class ConvolutionCall:
    """One convolution's arguments, in two or three dimensions."""

    def __init__(self, input: Tensor, weight: Tensor, bias: bool, stride, padding, dilation, transposed, output_padding, groups) -> None:
        self.original = (input, weight, None, stride, padding, dilation, transposed, output_padding, groups)
        self.bias = bias
        self.line = input.dim() == 3
        self.input, self.weight = input, weight
        self.stride, self.padding, self.dilation, self.output_padding = (
            list(values) for values in (stride, padding, dilation, output_padding)
        )
        self.transposed, self.groups = transposed, groups
        axes = input.dim() - 2
        for values in (self.stride, self.padding, self.dilation, self.output_padding):
            if len(values) == 1:
                values *= axes
        double = input.dtype is torch.float64 or weight.dtype is torch.float64
        formats = {suggest_memory_format(tensor) for tensor in (input, weight)} if not self.line else set()
        wanted = torch.channels_last if input.dim() == 4 else torch.channels_last_3d
        self.channels_last = wanted in formats and not double
        self.format = wanted if self.channels_last else torch.contiguous_format

    @classmethod
    def read(cls, args: tuple, bias: bool | None = None) -> ConvolutionCall:
        input, weight, given, *rest = args
        return cls(input, weight, given is not None if bias is None else bias, *rest)

    def plan(self, direction: str, output: Sequence[int]) -> Plan | None:
        """oneDNN's layouts; a 1-D convolution runs as a 2-D one of height 1."""
        source, destination, weight = tuple(self.input.shape), tuple(output), tuple(self.weight.shape)
        stride, dilation, padding, more = self.stride, self.dilation, self.padding, self.output_padding
        if self.line:
            source, destination, weight = ((*shape[:2], 1, shape[2]) for shape in (source, destination, weight))
            stride, dilation, padding, more = [1, *stride], [1, *dilation], [0, *padding], [0, *more]
        after = padding
        if self.transposed:
            weight = (weight[1] * self.groups, weight[0] // self.groups, *weight[2:])
            after = [pad - extra for pad, extra in zip(padding, more, strict=True)]
        return _onednn.convolution(
            direction,
            self.transposed,
            source,
            weight,
            destination,
            self.bias,
            stride,
            dilation,
            (padding, after),
            self.groups,
            self.input.dtype,
            self.channels_last,
        )


def backend_of(call: ConvolutionCall, bias_sizes: Sequence[int] | None = None) -> str:
    input, weight, _, stride, padding, dilation, transposed, output_padding, groups = call.original
    found = torch._C._select_conv_backend(  # pyright: ignore[reportAttributeAccessIssue]
        input,
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        list(bias_sizes) if bias_sizes else None,
    )
    # torch does not name oneDNN's transposed kernel to Python.
    return "MkldnnTranspose" if found.name == "???" and transposed else found.name


def _to_dense(ledger: Ledger, plan: Plan, plain: int, keep: bool = False) -> None:
    """oneDNN's result becomes a plain tensor; one in channels-last order takes a second copy on the way."""
    ledger.take(plain)
    if plan.result_layout == "channels last":
        ledger.take(plain)
        ledger.give(plain)
    if not keep:
        ledger.give(plan.result)


def _native_forward(call: ConvolutionCall, backend: str, output: Tensor) -> Scratch | None:
    """torch's own kernels unfold the input into columns; groups run one after the other, each on a copy of its channels."""
    columns = _column_bytes(call, backend, output.shape, forward=True)
    if columns is None:
        return None
    return Scratch(columns + (data_bytes(call.input) // call.groups if call.groups > 1 and columns else 0))


def _native_backward(call: ConvolutionCall, backend: str, gradient: Tensor) -> Scratch | None:
    columns = _column_bytes(call, backend, gradient.shape, forward=False)
    if columns is None:
        return None
    copies = (data_bytes(call.input) + data_bytes(gradient)) // call.groups if call.groups > 1 and columns else 0
    return Scratch(columns + copies)


def _column_bytes(call: ConvolutionCall, backend: str, output: Sequence[int], forward: bool) -> int | None:
    """Bytes of the columns of one group; None for a backend that was not measured."""
    if backend in ("Empty", "MkldnnEmpty"):
        return 0
    if backend not in _WHOLE_BATCH and backend not in _ONE_PICTURE:
        return None
    kernel = prod(call.weight.shape[2:])
    if backend == "Slow2d" and kernel == 1 and set(call.stride) == {1} and not any(call.padding):
        return 0
    # A transposed convolution's columns are those of the convolution that it undoes: taps of the output at every place of the input.
    channels, places = (output[1], call.input.shape[2:]) if call.transposed else (call.input.shape[1], output[2:])
    picture = channels // call.groups * kernel * prod(places) * call.input.element_size()
    whole = backend in _WHOLE_BATCH or (backend == "SlowTranspose2d" and forward)
    ones = prod(output[2:]) * call.input.element_size() if backend == "SlowTranspose3d" and forward else 0
    return picture * (call.input.shape[0] if whole else 1) + ones
