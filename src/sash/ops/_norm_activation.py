"""A norm and the activation after it as one operator that saves its output only: what backward needs of the input is found from that."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sash.errors import InputError
from sash.ops._invertible import Undoable, undoable
from sash.ops._norms import along, check_groups, check_map, check_varies, counted, scaled, uses_batch
from sash.ops._tensors import is_stand_in, shown

CHUNK_BYTES = 4 << 20
"""Of the map, worked on at a time in backward."""
MOST_CHUNKS = 128
"""Larger maps get larger chunks: a forecast meets every chunk's operators."""


def batch_norm_act(
    x: Float[Tensor, "batch channel *space"],
    activation: nn.Module | None,
    running_mean: Float[Tensor, " channel"] | None = None,
    running_var: Float[Tensor, " channel"] | None = None,
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Tensor, "batch channel *space"]:
    """`activation(F.batch_norm(x, …))`, of which only the result is saved for backward; the next layer mostly saves the same tensor anyway.

    Activations: `nn.LeakyReLU`, `ELU`, `CELU` and `Softplus` (slope, alpha, beta above 0), `SELU`, `Sigmoid`, `Tanh`, `Identity` or None.
    With fixed statistics (`training=False`) also `ReLU`, `ReLU6` and `Hardtanh`; with the batch's, backward needs the values that these
    cut. The result must not be written over. It has the input's type, under autocast too.

    Backward undoes the activation, then the scale and shift. The normalised input comes back with an error of u · (|x̂| + (|bias| + s) /
    |weight|), where u is the rounding of the type and s what the activation's flat parts lose (1 / slope there; 0 for `LeakyReLU`). For
    channels where the second part could exceed sqrt(u) / 4, the normalised input is saved as well: a weight of 0, an `ELU` driven far
    down. In bf16 that is soon the case for all but `LeakyReLU` and `Softplus`. Forecasts have no values, and take it that there are none.

    Memory of backward beside the gradient: 4 MiB or a sample, whichever is more (of group norm twice that). A second derivative is refused.
    Raises `InputError` as `frozen_norm` does, for an activation that cannot be undone, and for a single value a channel.

    Source: Rota Bulò, Porzi & Kontschieder, "In-Place Activated BatchNorm", 2018 (arXiv 1712.02616).
    """
    check_map(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    undo = _undoable(activation, fixed=not training)
    if not training and (running_mean is None or running_var is None):
        raise InputError("statistics are to be fixed, and there are none; give running_mean and running_var, or training=True.")
    if not x.numel():
        return scaled(x, weight, bias)
    if training:
        check_varies(x, f"the input {shown(x)}")

    def plain() -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    arguments = running_mean, running_var, training, momentum, eps
    return _run(_BatchNormAct, plain, activation, undo, x, weight, bias, *arguments)


def group_norm_act(
    x: Float[Tensor, "batch channel *space"],
    groups: int,
    activation: nn.Module | None,
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "batch channel *space"]:
    """`activation(F.group_norm(x, groups, …))`, of which only the result is saved for backward.

    One group is layer norm over each sample, as many groups as channels are instance norm. For the rest see `batch_norm_act`; ReLU and its
    like are refused always.
    """
    check_map(x, weight=weight, bias=bias)
    check_groups(x.shape[1], groups, "the input")
    undo = _undoable(activation, fixed=False)
    if not x.numel():
        return scaled(x, weight, bias)
    if math.prod(x.shape[2:]) * x.shape[1] == groups:
        raise InputError(f"the input is {shown(x)}, and each of {groups} groups has one value, so no variance; give fewer groups.")
    return _run(_GroupNormAct, lambda: F.group_norm(x, groups, weight, bias, eps), activation, undo, x, weight, bias, groups, eps)


class BatchNormAct(_BatchNorm):
    """`batch_norm_act` as a layer, for inputs of any number of axes; parameters and statistics are named as in `nn.BatchNorm2d`."""

    def __init__(
        self,
        channels: int,
        activation: nn.Module | None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(channels, eps, momentum, affine, track_running_stats)
        self.activation = activation

    def forward(self, input: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
        training = uses_batch(self)
        kept = training and not self.training
        means, variances = (None, None) if kept else (self.running_mean, self.running_var)
        share = counted(self) if self.training and input.numel() else 0.0
        arguments = means, variances, self.weight, self.bias
        return batch_norm_act(input, self.activation, *arguments, training=training, momentum=share, eps=self.eps)


class GroupNormAct(nn.GroupNorm):
    """`group_norm_act` as a layer, for inputs of any number of axes; parameters are named as in `nn.GroupNorm`."""

    def __init__(self, groups: int, channels: int, activation: nn.Module | None, eps: float = 1e-5, affine: bool = True) -> None:
        check_groups(channels, groups, "the layer")
        super().__init__(groups, channels, eps, affine)
        self.activation = activation

    def forward(self, input: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
        return group_norm_act(input, self.num_groups, self.activation, self.weight, self.bias, self.eps)


def _run(
    kind: type[torch.autograd.Function], plain: Callable[[], Tensor], activation: nn.Module | None, undo: Undoable, *arguments: Any
) -> Tensor:
    x, weight, bias = arguments[:3]
    # Meta tensors have no autocast of their own.
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        if torch.compiler.is_compiling():
            return plain() if activation is None else activation(plain())
        if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (x, weight, bias)):
            return undo.apply_(plain())
        return kind.apply(undo, *arguments)  # pyright: ignore[reportReturnType]


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, undo: Undoable, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *settings: Any) -> Tensor:
        training, momentum, eps = settings
        y, own_mean, rstd = torch.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
        if not training:
            own_mean, rstd = mean, torch.rsqrt(var + eps)
        y = undo.apply_(y)
        ctx.undo, ctx.training = undo, training
        which = _unfound(y, weight, bias, undo) if training or any(ctx.needs_input_grad[2:4]) else None
        kept = None
        if which is not None:
            part = x[:, which]
            kept = ((part - along(own_mean[which], part)) * along(rstd[which], part)).to(x.dtype)
        ctx.save_for_backward(y, weight, bias, rstd, which, kept)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second()
        y, weight, bias, rstd, which, kept = ctx.saved_tensors
        gradient, undo, rest = gradients[0], ctx.undo, (None,) * 5
        scale = rstd if weight is None else rstd * weight
        made = torch.empty_like(y)
        if not ctx.training and not any(ctx.needs_input_grad[2:4]):
            return None, undo.gradient(gradient, y, made).mul_(along(scale, y)), None, None, *rest
        shift, slope = _affine(y, weight, bias, which)
        chunks = [*_chunks(y)]
        scratch = torch.empty_like(y[chunks[0]])
        sum_along, sum_plain = torch.zeros_like(shift), torch.zeros_like(shift)
        for chunk in chunks:
            # The result holds the activation's gradient until the sums are known.
            inner = undo.gradient(gradient[chunk], y[chunk], made[chunk])
            found = _undone(undo, y, chunk, scratch, which, kept)
            # For its sums alone: one pass, where products and their sums take three.
            backward = torch.ops.aten.native_batch_norm_backward
            _, part_along, part_plain = backward(inner, found, None, None, None, shift, slope, True, 0.0, [False, True, True])
            sum_along += part_along
            sum_plain += part_plain
        if ctx.needs_input_grad[1] and not ctx.training:
            made.mul_(along(scale, y))
        elif ctx.needs_input_grad[1]:
            count = y.numel() // y.shape[1]
            of_found = -scale * sum_along / count * slope
            constant = -scale * sum_plain / count - of_found * shift
            for chunk in chunks:
                found = scratch[: len(y[chunk])] if len(chunks) == 1 else _undone(undo, y, chunk, scratch, which, kept)
                _combine(made[chunk], found, *(along(each, y) for each in (scale, of_found, constant)))
        return None, made if ctx.needs_input_grad[1] else None, *_own((sum_along, sum_plain), (weight, bias), ctx), *rest


class _GroupNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, undo: Undoable, x: Tensor, weight: Any, bias: Any, groups: int, eps: float) -> Tensor:
        x = x if any(x.is_contiguous(memory_format=each) for each in _layouts(x)) else x.contiguous()
        sizes = x.shape[1], math.prod(x.shape[2:]), groups
        y, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, x.shape[0], *sizes, eps)
        y = undo.apply_(y)
        ctx.undo, ctx.sizes = undo, sizes
        which, kept = _unfound(y, weight, bias, undo), None
        if which is not None:
            part, each = x[:, which], x.shape[1] // groups
            mean, spread = (one.repeat_interleave(each, 1)[:, which] for one in (mean, rstd))
            kept = ((part - _by_sample(mean, part)) * _by_sample(spread, part)).to(x.dtype)
        ctx.save_for_backward(y, weight, bias, rstd, which, kept)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second()
        y, weight, bias, rstd, which, kept = ctx.saved_tensors
        gradient, undo, (channels, space, groups) = gradients[0], ctx.undo, ctx.sizes
        each = channels // groups
        made = torch.empty_like(y)
        shift, slope = _affine(y, weight, bias, which)
        chunks = [*_chunks(y)]
        scratch = torch.empty_like(y[chunks[0]])
        sums = torch.zeros_like(shift), torch.zeros_like(shift)
        for chunk in chunks:
            inner = undo.gradient(gradient[chunk], y[chunk], made[chunk])
            found = _undone(undo, y, chunk, scratch, which, kept)
            part_along, part_plain = _sums(inner, found, shift, slope)
            for total, part in zip(sums, (part_along, part_plain), strict=True):
                total += part.sum(0)
            if ctx.needs_input_grad[1]:
                spread, weighted = rstd[chunk].repeat_interleave(each, 1), 1 if weight is None else weight
                mean_along, mean_plain = (
                    (one * weighted).unflatten(1, (groups, each)).mean(2).repeat_interleave(each, 1) / space
                    for one in (part_along, part_plain)
                )
                of_found = -spread * mean_along * slope
                constant = -spread * mean_plain - of_found * shift
                _combine(made[chunk], found, *(_by_sample(one, y) for one in (spread * weighted, of_found, constant)))
        return None, made if ctx.needs_input_grad[1] else None, *_own(sums, (weight, bias), ctx), None, None


def _own(sums: tuple[Tensor, Tensor], affine: tuple[Tensor | None, Tensor | None], ctx: Any) -> list[Tensor | None]:
    """The gradients of weight and bias, as far as they are asked for."""
    needed = ctx.needs_input_grad[2:4]
    return [one.to(like.dtype) if needs and like is not None else None for one, like, needs in zip(sums, affine, needed, strict=True)]


def _unfound(y: Tensor, weight: Tensor | None, bias: Tensor | None, undo: Undoable) -> Tensor | None:
    """The channels whose normalised input cannot be had from the output; None where all can."""
    if is_stand_in(y):
        return None
    limits = torch.finfo(y.dtype)
    lost = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device)
    if undo.loss is not None:
        lost += undo.loss(y if y.dim() > 2 else y.unsqueeze(2))
    if bias is not None:
        lost += bias.detach().abs()
    scale = 1.0 if weight is None else weight.detach().abs().double()
    found = scale > 4 * math.sqrt(limits.eps / 2) * lost + limits.tiny / limits.eps
    return None if bool(found.all()) else (~found).nonzero()[:, 0]


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, which: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each channel, what takes an undone activation to the normalised input: (that − shift) · slope. Kept channels are there already."""
    wide = torch.promote_types(y.dtype, torch.float32)
    shift, slope = (build(y.shape[1], dtype=wide, device=y.device) for build in (torch.zeros, torch.ones))
    if bias is not None:
        shift = shift + bias
    if weight is not None:
        slope = slope / weight
    if which is not None:
        shift[which], slope[which] = 0, 1
    return shift, slope


def _undone(undo: Undoable, y: Tensor, chunk: slice, scratch: Tensor, which: Tensor | None, kept: Tensor | None) -> Tensor:
    part = y[chunk]
    found = undo.undo(part, scratch[: len(part)])
    if which is not None and kept is not None:
        found[:, which] = kept[chunk]
    return found


def _chunks(y: Tensor) -> Iterator[slice]:
    """Slices of samples, the first being the largest."""
    bytes_each = y.numel() * y.element_size() // y.shape[0]
    step = max(CHUNK_BYTES // max(bytes_each, 1), math.ceil(y.shape[0] / MOST_CHUNKS), 1)
    for first in range(0, y.shape[0], step):
        yield slice(first, min(first + step, y.shape[0]))


def _sums(inner: Tensor, found: Tensor, shift: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample and channel, Σ gradient · normalised input, and Σ gradient."""
    flat, wide = (inner.shape[0], inner.shape[1], -1), shift.dtype
    plain = inner.reshape(flat).sum(2, dtype=wide)
    products = (inner.to(wide) * found).reshape(flat).sum(2)
    return (products - plain * shift) * slope, plain


def _combine(inner: Tensor, found: Tensor, of_inner: Tensor, of_found: Tensor, constant: Tensor) -> None:
    """Writes of_inner · inner + of_found · found + constant over inner; found is written over as well."""
    moved = found.to(constant.dtype).mul_(of_found).add_(constant)
    torch.addcmul(moved, inner, of_inner, out=inner)


def _by_sample(values: Tensor, x: Tensor) -> Tensor:
    """One number a sample and channel, shaped to be multiplied with a map."""
    return values.view(*values.shape, *(1,) * (x.dim() - 2))


def _layouts(x: Tensor) -> list[torch.memory_format]:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return [torch.contiguous_format] if last is None else [torch.contiguous_format, last]


def _refuse_second() -> None:
    if torch.is_grad_enabled():
        raise InputError(
            "a second derivative was asked for (create_graph=True) of a norm that saves its output only; the norm and the activation as "
            "two layers have one."
        )


def _undoable(activation: nn.Module | None, fixed: bool) -> Undoable:
    found = undoable(activation)
    if found.cuts and not fixed:
        raise InputError(
            f"the activation is {activation!r}, and backward through statistics of the batch or the sample needs the values that it cuts: "
            "take nn.LeakyReLU(0.01), which keeps them, or fixed statistics, or the norm and the activation as two layers."
        )
    return found
