"""Activations whose input can be found again from their output, and how well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sash.errors import InputError

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Undoable:
    """An activation seen from its output y. What writes does so into the tensor given last."""

    apply_: Callable[[Tensor], Tensor]
    """y, in the place of the input."""
    undo: Callable[[Tensor, Tensor], Tensor]
    """y → the input; where the activation cuts, anything finite."""
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(gradient of y, y) → gradient of the input."""
    loss: Callable[[Tensor], Tensor] | None = None
    """y → of each channel, the largest error that y's rounding (relative, of size 1) leaves in an undone input; None where that is of the
    input's own size."""
    cuts: bool = False
    """Whether inputs are lost. Their gradient is 0 then."""


def undoable(activation: nn.Module | None) -> Undoable:
    """How to undo a layer. Raises `InputError` for a layer that is not known to lose nothing (or to cut, as ReLU does)."""
    match activation:
        case None | nn.Identity():
            return Undoable(lambda x: x, lambda y, out: out.copy_(y), lambda g, y, out: out.copy_(g))
        case nn.LeakyReLU() if activation.negative_slope > 0:
            return _leaky_relu(activation.negative_slope)
        case nn.ELU() if activation.alpha > 0:
            return _elu(activation.alpha, 1.0, 1.0)
        case nn.CELU() if activation.alpha > 0:
            return _elu(activation.alpha, 1.0, 1.0 / activation.alpha)
        case nn.SELU():
            return _elu(1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)
        case nn.Softplus() if activation.beta > 0 and activation.threshold >= 20:
            # A lower threshold, above which torch returns the input, makes a step: two inputs have one output.
            return _softplus(activation.beta, activation.threshold)
        case nn.Sigmoid():
            return Undoable(torch.sigmoid_, _into(torch.logit), _backward(aten.sigmoid_backward), _lost_by_sigmoid)
        case nn.Tanh():
            return Undoable(torch.tanh_, _into(torch.atanh), _backward(aten.tanh_backward), _lost_by_tanh)
        case nn.ReLU():
            return Undoable(torch.relu_, lambda y, out: out.copy_(y), _backward(aten.threshold_backward, 0), cuts=True)
        case nn.Hardtanh():  # ReLU6 is one
            low, high = activation.min_val, activation.max_val
            clip = _backward(aten.hardtanh_backward, low, high)
            return Undoable(lambda x: x.clamp_(low, high), lambda y, out: out.copy_(y), clip, cuts=True)
        case _:
            raise InputError(
                f"the activation is {activation!r}, whose input cannot be found from its output; it may be None, nn.LeakyReLU, ELU, CELU, "
                "Softplus (slope, alpha, beta above 0, threshold from 20), SELU, Sigmoid, Tanh, Identity, and with statistics that are "
                "fixed ReLU, ReLU6, Hardtanh."
            )


def _leaky_relu(slope: float) -> Undoable:
    return Undoable(
        lambda x: aten.leaky_relu_(x, slope),
        lambda y, out: aten.leaky_relu.out(y, 1 / slope, out=out),
        _backward(aten.leaky_relu_backward, slope, True),
    )


def _elu(alpha: float, scale: float, steepness: float) -> Undoable:
    """scale · x above 0, and scale · alpha · (exp(steepness · x) − 1) below."""
    floor = scale * alpha

    def undo(y: Tensor, out: Tensor) -> Tensor:
        torch.clamp(y, max=0, out=out)
        out = out.log1p_() if floor == 1 else out.div_(floor).log1p_()
        out = out if steepness == 1 else out.div_(steepness)
        return out.add_(y.clamp(min=0), alpha=1 / scale)

    def gradient(g: Tensor, y: Tensor, out: Tensor) -> Tensor:
        return aten.elu_backward.grad_input(g, alpha, scale, steepness, True, y, grad_input=out)

    def loss(y: Tensor) -> Tensor:
        low = _least(y).clamp(max=0)
        return -low / (low + floor).clamp(min=0) / steepness

    return Undoable(lambda x: aten.elu_(x, alpha, scale, steepness), undo, gradient, loss)


def _softplus(beta: float, threshold: float) -> Undoable:
    def undo(y: Tensor, out: Tensor) -> Tensor:
        # x = y + log(1 − exp(−beta · y)) / beta: right for small y and for large.
        torch.mul(y, -beta, out=out)
        return out.expm1_().neg_().log_().div_(beta).add_(y)

    def gradient(g: Tensor, y: Tensor, out: Tensor) -> Tensor:
        torch.mul(y, -beta, out=out)
        return out.expm1_().neg_().mul_(g)

    def loss(y: Tensor) -> Tensor:
        return _unless_tiny(y, 1 / beta)

    def apply(x: Tensor) -> Tensor:
        return x.copy_(torch.nn.functional.softplus(x, beta, threshold))

    return Undoable(apply, undo, gradient, loss)


def _into(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda y, out: function(y, out=out)


def _backward(operator: torch._ops.OpOverloadPacket, *settings: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda g, y, out: operator.grad_input(g, y, *settings, grad_input=out)


def _lost_by_sigmoid(y: Tensor) -> Tensor:
    return _unless_tiny(y, 1 / (1 + _least(-y)))


def _lost_by_tanh(y: Tensor) -> Tensor:
    most = -_least(-y.abs())
    return most / (1 - most.square())


def _unless_tiny(y: Tensor, loss: Tensor | float) -> Tensor:
    """All is lost below the smallest normal number, where relative rounding ends."""
    return torch.where(_least(y) < torch.finfo(y.dtype).tiny, torch.inf, loss)


def _least(y: Tensor) -> Tensor:
    """The least value of each channel, along the axes that lie together in memory first."""
    if y.stride(1) == 1:
        return y.movedim(1, -1).flatten(0, -2).amin(0)
    return y.flatten(2).amin(2).amin(0)
