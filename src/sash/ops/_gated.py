"""The gated activation σ(a) · tanh(b), which keeps one map less for backward than it is written."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sash.errors import InputError
from sash.ops._tensors import shown


def gated(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"] | None = None, *, axis: int = 1) -> Float[Tensor, "*gated"]:
    """The gate's logistic function times the other's hyperbolic tangent, σ(a) · tanh(b); of one tensor, its first half along `axis` is a.

    Written out, autograd keeps σ(a) and tanh(b) beside the result. Here it keeps σ(a) and the result itself, which the next layer keeps
    anyhow; tanh(b) is their quotient. So the result may not be changed in place. Backward makes the gradients and nothing beside them.

    Computed in the tensors' own type. The gradient for b is within 8 roundings of |gradient · σ(a)|, that for a within 8 of its size; where
    σ(a) is below the type's least normal number (a < −87 in fp32), that for b is 0 to within that number. Under `torch.compile` and
    `torch.export` it is written out. Raises `InputError` where shapes, types or devices differ, and where one tensor cannot be halved.

    Source: A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, equation 2.
    """
    _check(a, b, axis)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        first, second = _pair(a, b, axis)
        return torch.sigmoid(first) * torch.tanh(second)
    if torch.is_grad_enabled() and (a.requires_grad or (b is not None and b.requires_grad)):
        return _Gated.apply(a, b, axis)[0]  # pyright: ignore[reportOptionalSubscript]
    first, second = _pair(a, b, axis)
    return torch.tanh(second).mul_(torch.sigmoid(first))


class Gated(nn.Module):
    """`gated` as a layer: halves its input along `axis`."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*gated"]:
        return gated(x, axis=self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class _Gated(torch.autograd.Function):
    """Returns σ(a) as a second result, so that what backward makes of it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
        first, second = _pair(a, b, axis)
        gate = torch.sigmoid(first)
        return torch.tanh(second).mul_(gate), gate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, b, axis = inputs
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)
        ctx.axis = axis if b is None else None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        y, gate = ctx.saved_tensors
        towards, towards_gate = gradients
        if towards is not None and towards_gate is None and not torch.is_grad_enabled():
            return *_gradients(y, gate, towards, ctx.axis), None
        of_y = torch.zeros_like(y) if towards is None else towards
        of_gate = torch.zeros_like(y) if towards_gate is None else towards_gate
        of_a = (of_y * y + of_gate * gate) * (1 - gate)
        of_b = of_y * (gate - y * (y / gate.clamp(min=_least(gate))))
        return (of_a, of_b, None) if ctx.axis is None else (torch.cat([of_a, of_b], ctx.axis), None, None)


def _gradients(y: Tensor, gate: Tensor, towards: Tensor, axis: int | None) -> tuple[Tensor, Tensor | None]:
    """Those of a and b, or of the tensor whose halves they are, with no map beside them."""
    if axis is None:
        whole, of_a, of_b = None, torch.empty_like(y), torch.empty_like(y)
    else:
        sizes = [*y.shape]
        sizes[axis] *= 2
        # In memory as the halves lie.
        order = sorted(range(y.dim()), key=lambda one: -y.stride(one))
        whole = torch.empty_permuted(sizes, order, dtype=y.dtype, device=y.device)
        of_a, of_b = whole.chunk(2, axis)
    torch.div(y, torch.clamp(gate, min=_least(gate), out=of_b), out=of_b)
    torch.addcmul(gate, y, of_b, value=-1, out=of_b).mul_(towards)
    torch.mul(towards, y, out=of_a)
    torch.addcmul(of_a, of_a, gate, value=-1, out=of_a)
    return (of_a, of_b) if whole is None else (whole, None)


def _least(gate: Tensor) -> float:
    return torch.finfo(gate.dtype).tiny


def _pair(a: Tensor, b: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    if b is not None:
        return a, b
    first, second = a.chunk(2, axis)
    return first, second


def _check(a: Tensor, b: Tensor | None, axis: int) -> None:
    """Raises `InputError` for what does not go together."""
    for name, tensor in (("a", a), ("b", b)):
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(f"{name} is of type {tensor.dtype}; a gate is of floating numbers: {name}.float() would be.")
    if b is not None:
        if a.shape != b.shape:
            raise InputError(f"a is {shown(a)} and b is {shown(b)}; a gate and what it lets through have one shape.")
        if (a.dtype, a.device) != (b.dtype, b.device):
            raise InputError(f"a is {a.dtype} on {a.device} and b is {b.dtype} on {b.device}; bring one to the other's.")
        return
    if not isinstance(axis, int) or isinstance(axis, bool) or not -a.dim() <= axis < a.dim():
        raise InputError(f"axis {axis!r} was asked for, and the input is {shown(a)}: it has {a.dim()} axes, counted from 0.")
    if a.shape[axis] % 2:
        raise InputError(
            f"the input is {shown(a)}, and its axis {axis} of {a.shape[axis]} cannot be halved into gate and content; "
            f"make it {a.shape[axis] + 1}, or give the two apart: gated(a, b)."
        )
