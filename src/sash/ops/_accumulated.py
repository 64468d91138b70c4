"""Batch norm over a batch that comes in parts: outputs, gradients and running statistics are those of the whole."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sash.errors import InputError
from sash.ops._norms import along, check_map, check_varies, counted, scaled, uses_batch
from sash.ops._tensors import shown


def batch_norm_over(
    parts: Sequence[Float[Tensor, "_batch channel *_space"]],
    running_mean: Float[Tensor, " channel"] | None = None,
    running_var: Float[Tensor, " channel"] | None = None,
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Float[Tensor, "_batch channel *_space"]]:
    """Each part normalised by the statistics of all parts together, as if they were one batch; gradients and running statistics too.

    Parts have the same channels, type and device; their batch and their other axes may differ, so pictures of several sizes can be
    normalised together. Empty parts pass through. Running statistics are updated once.

    Statistics are summed in fp32 at least and joined in fp64. Memory: forward one more map, as large as the largest part; the parts are
    saved for backward. The second derivative is computed from plain operators.

    Raises `InputError` as `frozen_norm` does, for parts that do not go together, and for a single value a channel in all.

    Source: Chan, Golub & LeVeque 1983 (statistics of parts joined); Ioffe & Szegedy 2015 (arXiv 1502.03167) for the gradient.
    """
    filled = _check(parts, running_mean, running_var, weight, bias)
    if not filled:
        return [scaled(part, weight, bias) for part in parts]
    if torch.compiler.is_compiling():
        normal, statistics = _plain(filled, weight, bias, eps)
    else:
        statistics = Statistics.of(filled, eps)
        normal = _Over.apply(statistics, eps, weight, bias, *filled)
    if running_mean is not None and running_var is not None:
        statistics.update(running_mean, running_var, momentum)
    found: Iterator[Tensor] = iter(normal)  # pyright: ignore[reportArgumentType]
    return [next(found) if part.numel() else scaled(part, weight, bias) for part in parts]


class AccumulatedBatchNorm(_BatchNorm):
    """`batch_norm_over` as a layer: a list of parts → a list; a single tensor is one part. Any number of axes.

    In evaluation the running statistics, as in torch's batch norms.
    """

    def forward(self, input: Any) -> Any:
        parts = [input] if isinstance(input, Tensor) else input
        if uses_batch(self):
            means, variances = (self.running_mean, self.running_var) if self.training else (None, None)
            share = counted(self) if self.training and any(part.numel() for part in parts) else 0.0
            found = batch_norm_over(parts, means, variances, self.weight, self.bias, momentum=share, eps=self.eps)
        else:
            _check(parts, self.running_mean, self.running_var, self.weight, self.bias)
            found = [F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps) for x in parts]
        return found[0] if isinstance(input, Tensor) else found


class Statistics:
    """Count, mean and sum of squared distances of each channel, over the parts seen so far."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Tensor], eps: float) -> Statistics:
        found = cls()
        for part in parts:
            found.add(part, eps)
        return found

    def add(self, part: Tensor, eps: float) -> None:
        """One more part. `eps` is the norm's own: a variance far below it is only known to within its rounding, and not needed better."""
        wide = torch.promote_types(part.dtype, torch.float32)
        # The kernel's outputs are dropped: none of torch's that runs on every device and on stand-ins gives the statistics alone.
        _, mean, rstd = torch.native_batch_norm(part.detach(), None, None, None, None, True, 0.0, eps)
        count = part.numel() // part.shape[1]
        self.join(mean.to(wide).double(), (rstd.to(wide).double() ** -2 - eps).clamp(min=0) * count, count)

    def join(self, mean: Tensor, squares: Tensor, count: int) -> None:
        if self._mean is None or self._squares is None:
            self._mean, self._squares, self.count = mean, squares, count
            return
        total, apart = self.count + count, mean - self._mean
        self._mean = self._mean + apart * (count / total)
        self._squares = self._squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        assert self._mean is not None
        return self._mean

    @property
    def var(self) -> Tensor:
        """With the count as divisor."""
        assert self._squares is not None
        return self._squares / self.count

    def update(self, running_mean: Tensor, running_var: Tensor, momentum: float) -> None:
        with torch.no_grad():
            running_mean.lerp_(self.mean.to(running_mean.dtype), momentum)
            running_var.lerp_((self.var * (self.count / max(self.count - 1, 1))).to(running_var.dtype), momentum)


class _Over(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, statistics: Statistics, eps: float, weight: Tensor | None, bias: Tensor | None, *parts: Tensor) -> Any:
        wide = torch.promote_types(parts[0].dtype, torch.float32)
        mean, var = statistics.mean.to(wide), statistics.var.to(wide)
        ctx.save_for_backward(weight, bias, mean, var, *parts)
        ctx.count, ctx.eps = statistics.count, eps
        return tuple(torch.native_batch_norm(part, weight, bias, mean, var, False, 0.0, eps)[0] for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, mean, var, *parts = ctx.saved_tensors
        if torch.is_grad_enabled():
            normal, _ = _plain(parts, weight, bias, ctx.eps)
            tensors = (weight, bias, *parts)
            wanted = [one for one, needs in zip(tensors, ctx.needs_input_grad[2:], strict=True) if needs]
            found = iter(torch.autograd.grad(normal, wanted, gradients, create_graph=True))
            return None, None, *(next(found) if needs else None for needs in ctx.needs_input_grad[2:])
        sums = [part_sums(gradient, part, mean, var, ctx.eps) for gradient, part in zip(gradients, parts, strict=True)]
        along_x, plain = (torch.stack(each).sum(0) for each in zip(*sums, strict=True))
        made = [
            part_gradient(gradient, part, mean, var, weight, ctx.eps, along_x / ctx.count, plain / ctx.count) if needs else None
            for gradient, part, needs in zip(gradients, parts, ctx.needs_input_grad[4:], strict=True)
        ]
        own = along_x if weight is None else along_x.to(weight.dtype), plain if bias is None else plain.to(bias.dtype)
        return None, None, *(one if needs else None for one, needs in zip(own, ctx.needs_input_grad[2:4], strict=True)), *made


def part_sums(gradient: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Σ gradient · normalised x, and Σ gradient, of one part."""
    rstd = (var + eps).rsqrt()
    layout = gradient.contiguous(memory_format=torch.channels_last) if _last(x) else gradient.contiguous()
    backward = torch.ops.aten.native_batch_norm_backward
    _, along_x, plain = backward(layout, x, torch.ones_like(rstd), None, None, mean, rstd, True, eps, [False, True, True])
    return along_x, plain


def part_gradient(
    gradient: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float, along_x: Tensor, plain: Tensor
) -> Tensor:
    """The gradient of one part of a batch, with the means over the whole batch of gradient · normalised x and of gradient."""
    rstd = (var + eps).rsqrt()
    slope = rstd if weight is None else rstd * weight
    of_x = -slope * along_x * rstd
    rest = -slope * plain - of_x * mean
    return (x * along(of_x, x)).add_(along(rest, x)).addcmul_(gradient, along(slope, x)).to(x.dtype)


def _plain(parts: Sequence[Tensor], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[list[Tensor], Statistics]:
    """The same from operators that can be differentiated again and traced."""
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    wides = [part.to(wide) for part in parts]
    others = [[axis for axis in range(part.dim()) if axis != 1] for part in parts]
    count = sum(part.numel() // part.shape[1] for part in parts)
    mean = torch.stack([part.sum(axes) for part, axes in zip(wides, others, strict=True)]).sum(0) / count
    apart = [part - along(mean, part) for part in wides]
    squares = torch.stack([part.square().sum(axes) for part, axes in zip(apart, others, strict=True)]).sum(0)
    scale = (squares / count + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = torch.zeros_like(scale) if bias is None else bias
    statistics = Statistics()
    statistics.join(mean.detach().double(), squares.detach().double(), count)
    return [(part * along(scale, part) + along(shift, part)).to(parts[0].dtype) for part in apart], statistics


def _last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _check(parts: Sequence[Tensor], *vectors: Tensor | None) -> list[Tensor]:
    """The parts that are not empty. Raises `InputError` for what does not go together."""
    if not parts:
        raise InputError("no parts were given; give one at least, which may be empty.")
    running_mean, running_var, weight, bias = vectors
    for number, part in enumerate(parts):
        if part.dim() < 2 or part.shape[1] != parts[0].shape[1] or part.dtype != parts[0].dtype or part.device != parts[0].device:
            raise InputError(
                f"part {number} is {shown(part)} of {part.dtype} on {part.device}, and part 0 {shown(parts[0])} of {parts[0].dtype} on "
                f"{parts[0].device}; all have to be batch x channels, then any axes, with the same channels, type and device."
            )
    check_map(parts[0], running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    filled = [part for part in parts if part.numel()]
    if len(filled) == 1:
        check_varies(filled[0], f"the only part that is not empty, {shown(filled[0])},")
    return filled
