"""A whole network's gradients as of the whole batch, from parts of it: batch norm in the memory of one part, paid for in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sash.errors import InputError
from sash.ops._accumulated import AccumulatedBatchNorm, Statistics, part_gradient, part_sums
from sash.ops._norms import GhostBatchNorm, counted, uses_batch

Part = TypeVar("Part")

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, AccumulatedBatchNorm)


def accumulate_batch_norm(model: nn.Module, parts: Sequence[Part], loss: Callable[[Part], Tensor]) -> Tensor:
    """The loss of a batch given in parts; its gradients are added up as of the whole batch, and running statistics updated once.

    `loss(part)` runs the model on one part and returns that part's share of the loss: shares add up to the batch's, as in
    `F.cross_entropy(model(images), labels, reduction="sum") / whole`. It is called many times for each part and has to do the same each
    time; random numbers are drawn alike, and buffers that it changes are put back after every pass but the last. Every batch norm that
    takes the batch's statistics counts; others, and virtual batches (`GhostBatchNorm`), run as they are. The parts are those of
    one process: synchronised norms do not ask the others.

    Exact up to rounding. A layer's statistics need those of the layers below for the whole batch, and its gradient needs the gradients of
    the layers above, so each of L batch norms takes a pass over all parts up to it, and one from it to the loss and back. With a backward
    of two forwards that is the time of about 1 + 0.8 L ordinary steps. Memory: that of one part, and some numbers a channel. Where the
    memory of the whole batch's maps is at hand, `batch_norm_over` costs nothing; where it nearly is, recomputation costs less.

    Raises `InputError` without parts, for a batch norm with a forward of its own, and for parts that pass different batch norms.

    Source: the gradient through mean and variance of Ioffe & Szegedy 2015 (arXiv 1502.03167), its sums taken over all parts first.
    """
    if not parts:
        raise InputError("no parts were given; give one at least.")
    sweep = _Sweep(_norms(model))
    devices = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    seeds = [int(seed) for seed in torch.randint(2**62, (len(parts),))]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def run(number: int, target: int, gathers: bool = False) -> Tensor | None:
        """The share of one part; None where the pass has ended at the norm whose statistics it gathers."""
        if target >= 0 or not number:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        with torch.random.fork_rng(devices), sweep.passing(target, gathers):
            torch.manual_seed(seeds[number])
            try:
                found = loss(parts[number])
            except _Enough:
                return None
        if sweep.at < len(sweep.calls):
            raise InputError(
                f"part {number} passes {sweep.at} batch norms, and part 0 {len(sweep.calls)}: all have to pass the same, in one order."
            )
        return found

    with torch.no_grad():
        while run(0, len(sweep.calls), gathers=True) is None:
            for number in range(1, len(parts)):
                run(number, len(sweep.calls) - 1, gathers=True)
        for target in reversed(range(len(sweep.calls))):
            for number in range(len(parts)):
                share = run(number, target)
                assert share is not None
                sweep.calls[target].take(share)
    total: Any = 0
    for number in range(len(parts)):
        share = run(number, -1)
        assert share is not None
        if share.requires_grad:
            share.backward()
        total = total + share.detach()
    for call in sweep.calls:
        call.update()
    return total


class _Enough(Exception):  # noqa: N818 (no error: it ends a pass where nothing after counts)
    """The statistics that a pass is for are gathered."""


class _Call:
    """One batch norm in a forward pass: what is known of it over all parts."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.statistics = Statistics()
        self._sums: list[Tensor] = []
        self._affine: tuple[Tensor, Tensor] | None = None

    def normalise(self, x: Tensor) -> Tensor:
        """With the statistics of all parts; the gradient takes the sums of all parts, as far as they are known."""
        norm, (mean, var) = self.norm, self._vectors(x)
        if not torch.is_grad_enabled():
            return F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
        count = self.statistics.count
        along_x, plain = (one / count for one in self._sums)
        return _Given.apply(x, mean, var, norm.weight, norm.bias, norm.eps, along_x, plain)  # pyright: ignore[reportReturnType]

    def start(self, x: Tensor) -> Tensor:
        """The same, such that `take` can ask for the gradient's sums; what comes before gets no gradient."""
        norm, (mean, var) = self.norm, self._vectors(x)
        weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().clone()
        bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().clone()
        self._affine = weight.requires_grad_(), bias.requires_grad_()
        return F.batch_norm(x.detach(), mean, var, weight, bias, False, 0.0, norm.eps)

    def take(self, share: Tensor) -> None:
        """Adds what a part's share of the loss says of the gradient's sums."""
        assert self._affine is not None
        found = [torch.zeros_like(one) for one in self._affine]
        if share.requires_grad:
            found = [*torch.autograd.grad(share, self._affine, materialize_grads=True)]
        self._sums = [one + more for one, more in zip(self._sums, found, strict=True)] if self._sums else found
        self._affine = None

    def update(self) -> None:
        norm = self.norm
        if norm.training and norm.running_mean is not None and norm.running_var is not None:
            self.statistics.update(norm.running_mean, norm.running_var, counted(norm))

    def _vectors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.statistics.mean.to(wide), self.statistics.var.to(wide)


class _Sweep:
    """What the batch norms of a model do instead of their forward, and where the pass is."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self.calls: list[_Call] = []
        self.at = 0
        """Batch norms passed."""
        self._norms = norms
        self._target, self._gathers = 0, False

    @contextmanager
    def passing(self, target: int, gathers: bool) -> Iterator[None]:
        """A pass for one norm's statistics or sums; for -1, the last pass."""
        self.at, self._target, self._gathers = 0, target, gathers
        graded = torch.is_grad_enabled()
        for norm in self._norms:
            # Beside the parameters, where a call looks before it looks at the class.
            vars(norm)["forward"] = partial(self._forward, norm)
        try:
            yield
        finally:
            torch.set_grad_enabled(graded)
            for norm in self._norms:
                del vars(norm)["forward"]

    def _forward(self, norm: _BatchNorm, x: Tensor) -> Tensor:
        at, first = self.at, self._gathers and self.at == len(self.calls)
        if first:
            self.calls.append(_Call(norm))
        if at >= len(self.calls) or self.calls[at].norm is not norm:
            raise InputError(f"batch norm number {at} is another one in one part than in the others: all parts have to pass the same.")
        self.at += 1
        call = self.calls[at]
        if at != self._target:
            return call.normalise(x)
        if self._gathers:
            call.statistics.add(x, norm.eps)
            raise _Enough
        # From here on the pass needs a graph, and nothing before does.
        torch.set_grad_enabled(True)
        return call.start(x)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float, *sums: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, var, weight, bias, *sums)
        ctx.eps = eps
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias, along_x, plain = ctx.saved_tensors
        (gradient,) = gradients
        own = part_sums(gradient, x, mean, var, ctx.eps) if any(ctx.needs_input_grad[3:5]) else (None, None)
        own = [one.to(like.dtype) if one is not None and like is not None else None for one, like in zip(own, (weight, bias), strict=True)]
        found = part_gradient(gradient, x, mean, var, weight, ctx.eps, along_x, plain) if ctx.needs_input_grad[0] else None
        return found, None, None, *own, None, None, None


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that take the batch's statistics. Raises `InputError` for one whose forward is its own."""
    found = []
    for path, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm) or isinstance(norm, GhostBatchNorm) or not uses_batch(norm):
            continue
        if type(norm).forward not in [kind.forward for kind in KINDS]:
            raise InputError(
                f"{path or 'the model'} is a {type(norm).__name__}, whose forward is more than a batch norm; "
                "put a plain one in its place, followed by the rest."
            )
        found.append(norm)
    return found
