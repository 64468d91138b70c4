"""Batch norms beside torch's own: with statistics that stay as they are, and with statistics of parts of a batch."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sash.errors import InputError
from sash.ops._tensors import shown


def frozen_norm(
    x: Float[Tensor, "batch channel *space"],
    mean: Float[Tensor, " channel"],
    var: Float[Tensor, " channel"],
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "batch channel *space"]:
    """(x − mean) / sqrt(var + eps) · weight + bias, channel by channel, with statistics that no batch changes.

    Saves nothing for backward but a number a channel, unless weight or bias take a gradient, which needs the input; torch's
    `F.batch_norm` saves the input in either case. No gradient goes to mean and var.

    Raises `InputError` for an input without channels, of an integer type, or whose channels are not as many as the statistics.
    """
    check_map(x, mean=mean, var=var, weight=weight, bias=bias)
    trained = any(one is not None and one.requires_grad for one in (weight, bias))
    if not x.requires_grad or trained or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    return _Frozen.apply(x, mean, var, weight, bias, eps)  # pyright: ignore[reportReturnType]


def ghost_norm(
    x: Float[Tensor, "batch channel *space"],
    size: int,
    running_mean: Float[Tensor, " channel"] | None = None,
    running_var: Float[Tensor, " channel"] | None = None,
    weight: Float[Tensor, " channel"] | None = None,
    bias: Float[Tensor, " channel"] | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Tensor, "batch channel *space"]:
    """Batch norm of each virtual batch of about `size` samples by itself, as small batches would have it.

    The batch is cut into batch // size parts (one at least) as equal as can be: none has fewer than `size` samples, unless the batch
    itself has. Running statistics are updated part by part, so they move further in a step than those of one batch norm.

    Raises `InputError` as `frozen_norm` does, for a size below 1, and for a part with a single value a channel, which has no variance.

    Source: Hoffer, Hubara & Soudry, "Train longer, generalize better", 2017 (arXiv 1705.08741), algorithm 1.
    """
    check_map(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"virtual batches of {size!r} samples were asked for; the size is a whole number from 1.")
    if not x.numel():
        return scaled(x, weight, bias)
    parts = x.tensor_split(max(x.shape[0] // size, 1))
    check_varies(parts[-1], f"a virtual batch of {parts[-1].shape[0]} of the batch {shown(x)}")
    return torch.cat([F.batch_norm(part, running_mean, running_var, weight, bias, True, momentum, eps) for part in parts])


class FrozenBatchNorm(nn.Module):
    """`frozen_norm` as a layer, for inputs of any number of axes. Its weight and bias stay as they are too, unless `affine_trains`.

    Loads what a batch norm saved (`state_dict`); how many batches that has seen is left out.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, *, affine_trains: bool = False) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        for name, value in (("weight", torch.ones(channels)), ("bias", torch.zeros(channels))):
            if affine_trains:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_load_state_dict_pre_hook(_without_count)

    def forward(self, x: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
        return frozen_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, affine_trains={isinstance(self.weight, nn.Parameter)}"


class GhostBatchNorm(_BatchNorm):
    """`ghost_norm` as a layer, for inputs of any number of axes; in evaluation the running statistics, as in torch's batch norms."""

    def __init__(
        self,
        channels: int,
        size: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(channels, eps, momentum, affine, track_running_stats)
        self.size = size

    def forward(self, input: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch channel *space"]:
        if not uses_batch(self):
            check_map(input, running_mean=self.running_mean)
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        means, variances = (self.running_mean, self.running_var) if self.training else (None, None)
        share = counted(self) if self.training and input.numel() else 0.0
        return ghost_norm(input, self.size, means, variances, self.weight, self.bias, momentum=share, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, size={self.size}, {super().extra_repr().split(', ', 1)[1]}"


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        gradient = gradients[0] * along(scale, gradients[0])
        return gradient.to(gradients[0].dtype), *(None,) * 5


def _without_count(norm: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Leaves out what a batch norm saved beside its statistics. The state is the loader's own copy."""
    state.pop(f"{prefix}num_batches_tracked", None)


def uses_batch(norm: _BatchNorm) -> bool:
    """Whether a batch norm takes the statistics of the batch that it sees."""
    return norm.training or norm.running_mean is None


def counted(norm: _BatchNorm) -> float:
    """How far one more batch moves the running statistics; the batch is counted."""
    if norm.num_batches_tracked is None:
        return norm.momentum or 0.0
    norm.num_batches_tracked.add_(1)
    return 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def along(values: Tensor, x: Tensor) -> Tensor:
    """One number a channel, shaped to be multiplied with a map."""
    return values.view(-1, *(1,) * (x.dim() - 2))


def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a norm makes of an empty input: nothing, with gradients of zero for weight and bias."""
    y = x.clone() if weight is None else x * along(weight, x).to(x.dtype)
    return y if bias is None else y + along(bias, x).to(x.dtype)


def check_map(x: Tensor, **vectors: Tensor | None) -> None:
    """Raises `InputError` for an input that cannot be normalised by channel with these, each of one number a channel."""
    if x.dim() < 2:
        raise InputError(f"the input is {shown(x)}; it has to be batch x channels, then any number of axes.")
    if not x.is_floating_point():
        raise InputError(f"the input is of type {x.dtype}; it has to be floating: x.float() would be.")
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[1:2]:
            raise InputError(f"{name} is {shown(vector)}, and the input {shown(x)} has {x.shape[1]} channels; give one number a channel.")
        if vector is not None and vector.device != x.device:
            raise InputError(f"the input is on {x.device} and {name} on {vector.device}; move one to the other's.")


def check_varies(x: Tensor, called: str) -> None:
    """Raises `InputError` where a channel has a single value, and with it no variance."""
    if x.numel() == x.shape[1]:
        raise InputError(
            f"{called} has one value a channel, so its variance is 0 and its norm 0 whatever the value; "
            "give two samples at least, or normalise with statistics that stay (frozen_norm)."
        )


def check_groups(channels: int, groups: int, called: str) -> None:
    """Raises `InputError` for a number of groups that does not divide the channels."""
    if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0 and channels % groups == 0:
        return
    divisors = [count for count in range(1, channels + 1) if channels % count == 0]
    wanted = groups if isinstance(groups, int) else 1
    below = max((one for one in divisors if one < wanted), default=None)
    above = min((one for one in divisors if one > wanted), default=None)
    near = " or ".join(str(one) for one in (below, above) if one is not None)
    raise InputError(f"{called} has {channels} channels, which {groups!r} groups do not divide; {near} would.")
