"""Softmax cross-entropy, chunk by chunk: neither the softmax nor its logarithm is ever held whole."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._tensors import computed_type, has_values, shown
from sash.units import format_shape

Normalization = Literal["full", "valid", "batch_size", "none"]

CHUNK_BYTES = 4 << 20
"""Of logits, worked on at a time: between the second-level and the third-level cache. Measured flat from 2 to 16 MiB."""
LEAST_BYTES, LEAST_CLASSES = 1 << 20, 4
"""Of logits, for chunks to pay: below, torch's own kernels hold no more that counts and start sooner."""
MOST_CHUNKS = 128
"""Larger logits get larger chunks: a forecast meets every chunk's operators."""


def softmax_loss(
    logits: Float[Tensor, "*shape"],
    labels: Integer[Tensor, "*positions"],
    axis: int = 1,
    ignore: int | None = None,
    normalization: Normalization = "valid",
    *,
    weight: Float[Tensor, " classes"] | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The softmax cross-entropy of logits against class numbers, summed over all positions and divided by their number.

    `axis` of the logits counts the classes; the labels have the other axes. What the sum is divided by, never by less than 1: `"valid"` the
    positions whose label is not `ignore`, `"full"` all positions, `"batch_size"` the product of the axes before `axis`, `"none"` 1. With no
    position that counts, the loss is 0, and so is its gradient. `weight` and `smoothing` are those of `softmax_losses`; the sum is divided
    by a number of positions all the same. A loss above 87.3 stays what it is, where Caffe clips it.

    Types, error, memory and what is raised: see `softmax_losses`.

    Source: Caffe, loss_layer.cpp and softmax_loss_layer.cpp (`LossParameter.NormalizationMode`).
    """
    if normalization not in get_args(Normalization):
        raise InputError(f"normalization is {normalization!r}; it may be {', '.join(map(repr, get_args(Normalization)))}.")
    losses, axis = _losses(logits, labels, axis, ignore, weight, smoothing)
    total = losses.sum()
    if normalization == "valid" and ignore is not None:
        total = total / (labels != ignore).sum().clamp(min=1)
    elif normalization in ("valid", "full"):
        total = total / max(labels.numel(), 1)
    elif normalization == "batch_size":
        total = total / max(math.prod(logits.shape[:axis]), 1)
    return total.to(_result_type(logits))


def softmax_losses(
    logits: Float[Tensor, "*shape"],
    labels: Integer[Tensor, "*positions"],
    axis: int = 1,
    ignore: int | None = None,
    *,
    weight: Float[Tensor, " classes"] | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, "*positions"]:
    """The softmax cross-entropy of every position, 0 where the label is `ignore`.

    With probabilities p: (1 − smoothing) · weight[label] · −log p[label] + smoothing / classes · Σ weight[c] · −log p[c].

    Computed in the logits' type, bf16 and fp16 in fp32, and returned in the logits' type, under autocast in fp32. With u the rounding of
    the type computed in (2⁻²⁴ for fp32), a loss without weight and smoothing is within u · (16 + 4 log classes + 4 spread), where spread
    is the distance from the largest logit to the label's; the logits' own size does not matter. A logit of −inf has probability 0.

    Memory beside the logits, which are saved: forward a chunk of them (4 MiB, a 128th of them or one position, whichever is most) and three
    numbers a position; backward their gradient and two numbers a position, for types computed in fp32 a chunk as well. `F.cross_entropy`
    holds three times the logits. Below 1 MiB of logits, and below 4 classes, torch's own kernels run whole. Logits are copied only where
    their axes cannot be seen as (before, after, classes) without it.

    Raises `InputError` where shapes, types or devices do not go together and where a label is no class (not looked at where tensors have
    no values). The second derivative is computed without chunks.

    Source: log-sum-exp, shifted by the maximum (Blanchard, Higham & Higham 2021, doi 10.1093/imanum/draa038, for the error).
    """
    losses, _ = _losses(logits, labels, axis, ignore, weight, smoothing)
    return losses.to(_result_type(logits))


class SoftmaxLoss(nn.Module):
    """`softmax_loss` as a layer: (logits, labels) → loss."""

    weight: Tensor | None

    def __init__(
        self,
        axis: int = 1,
        ignore: int | None = None,
        normalization: Normalization = "valid",
        *,
        weight: Float[Tensor, " classes"] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.axis, self.ignore, self.smoothing = axis, ignore, smoothing
        self.normalization: Normalization = normalization
        self.register_buffer("weight", weight)

    def forward(self, logits: Float[Tensor, "*shape"], labels: Integer[Tensor, "*positions"]) -> Float[Tensor, ""]:
        return softmax_loss(logits, labels, self.axis, self.ignore, self.normalization, weight=self.weight, smoothing=self.smoothing)


def _losses(logits: Tensor, labels: Tensor, axis: int, ignore: int | None, weight: Tensor | None, smoothing: float) -> tuple[Tensor, int]:
    """The losses in the type computed in, and the axis counted from the front."""
    axis = _check(logits, labels, axis, ignore, weight, smoothing)
    if weight is not None:
        weight = weight.to(computed_type(logits))
    with torch.autocast(logits.device.type, enabled=False):
        if logits.numel() * logits.element_size() < LEAST_BYTES or logits.shape[axis] < LEAST_CLASSES:
            return _torchs_losses(logits, labels, weight, axis, ignore, smoothing), axis
        return _SoftmaxLosses.apply(logits, labels, weight, axis, ignore, float(smoothing)), axis  # pyright: ignore[reportReturnType]


class _SoftmaxLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, axis: int, ignore: int | None, smoothing: float) -> Tensor:
        split = _split(logits, axis)
        if split is None:
            logits, split = logits.contiguous(), axis
        rows = _rows(logits, axis, split)
        outer, inner, classes = rows.shape
        wanted = labels.reshape(outer, inner)
        largest, total, losses = (torch.empty(outer, inner, dtype=computed_type(logits), device=logits.device) for _ in range(3))
        whole = classes if weight is None else weight.sum()
        scratch = _Scratch(rows, losses.dtype)
        for part in _chunks(rows):
            y, most = scratch.like(rows[part]), largest[part]
            # A subtraction of mixed types would make copies of its own.
            x = rows[part] if logits.dtype is y.dtype else y.copy_(rows[part])
            valid, index = _index(wanted[part], ignore)
            most.copy_(x.amax(-1))
            torch.sub(x, most.unsqueeze(-1), out=y)
            # Before the exponential: label's logit and sum of logits, seen from the largest, so that the logits' size cancels exactly.
            picked = y.gather(-1, index.unsqueeze(-1)).squeeze(-1)
            spread = _weighted_sum(y, weight) if smoothing else 0
            sums = torch.sum(y.exp_(), -1, out=total[part])
            loss = torch.log(sums, out=losses[part])
            smooth = (loss * whole - spread) * (smoothing / classes) if smoothing else 0
            loss.sub_(picked)
            if weight is not None:
                loss.mul_(weight[index])
            if smoothing:
                loss.mul_(1 - smoothing).add_(smooth)
            if valid is not None:
                loss.masked_fill_(~valid, 0)
        ctx.save_for_backward(logits, labels, weight, largest, total)
        ctx.settings = axis, ignore, smoothing, split
        return losses.view(labels.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        logits, labels, weight, largest, total = ctx.saved_tensors
        axis, ignore, smoothing, split = ctx.settings
        if torch.is_grad_enabled():
            losses = _torchs_losses(logits, labels, weight, axis, ignore, smoothing)
            (found,) = torch.autograd.grad(losses, logits, gradient, create_graph=True)
            return found, None, None, None, None, None
        found = torch.empty_strided(logits.shape, _dense_strides(logits), dtype=logits.dtype, device=logits.device)
        rows, made = _rows(logits, axis, split), _rows(found, axis, split)
        outer, inner, classes = rows.shape
        gradient, wanted = gradient.reshape(outer, inner), labels.reshape(outer, inner)
        whole = classes if weight is None else weight.sum()
        scratch = _Scratch(rows, total.dtype) if total.dtype is not logits.dtype else None
        for part in _chunks(rows):
            y = made[part] if scratch is None else scratch.like(rows[part])
            x = rows[part] if scratch is None else y.copy_(rows[part])
            valid, index = _index(wanted[part], ignore)
            g = gradient[part] if valid is None else gradient[part].masked_fill(~valid, 0)
            on_label = (g if weight is None else g * weight[index]) * (1 - smoothing)
            torch.sub(x, largest[part].unsqueeze(-1), out=y)
            y.exp_()
            if smoothing:
                on_each = g * (smoothing / classes)
                y.mul_(((on_label + on_each * whole) / total[part]).unsqueeze(-1))
                y.sub_(on_each.unsqueeze(-1) if weight is None else on_each.unsqueeze(-1) * weight)
            else:
                y.mul_((on_label / total[part]).unsqueeze(-1))
            y.scatter_add_(-1, index.unsqueeze(-1), -on_label.unsqueeze(-1))
            if scratch is not None:
                made[part].copy_(y)
        return found, None, None, None, None, None


def _torchs_losses(logits: Tensor, labels: Tensor, weight: Tensor | None, axis: int, ignore: int | None, smoothing: float) -> Tensor:
    """The same from torch's own kernels, whole; they can be differentiated again."""
    moved = logits.to(computed_type(logits)).movedim(axis, min(1, logits.dim() - 1))
    # Without ignore=, every label is a class: -100 leaves none out.
    left_out = -100 if ignore is None else ignore
    return F.cross_entropy(moved, labels.long(), weight, ignore_index=left_out, reduction="none", label_smoothing=smoothing)


def _index(labels: Tensor, ignore: int | None) -> tuple[Tensor | None, Tensor]:
    """Which positions count (None: all), and a class for each."""
    if ignore is None:
        return None, labels.long()
    valid = labels != ignore
    return valid, torch.where(valid, labels, 0).long()


def _weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.sum(-1) if weight is None else values @ weight


class _Scratch:
    """One block of memory for a chunk after the other, each laid out as its part of the logits, so that both are walked in order."""

    def __init__(self, rows: Tensor, dtype: torch.dtype) -> None:
        first = rows[next(_chunks(rows), (slice(0, 0), slice(0, 0)))]
        self._block = torch.empty(first.numel(), dtype=dtype, device=rows.device)

    def like(self, part: Tensor) -> Tensor:
        return self._block.as_strided(part.shape, _dense_strides(part))


def _chunks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of (outer, inner) that cover the rows, the first being the largest."""
    outer, inner, classes = rows.shape
    if not rows.numel():
        return
    size = rows.element_size()
    positions = max(CHUNK_BYTES // (classes * size), math.ceil(outer * inner / MOST_CHUNKS), 1)
    step = max(positions // inner, 1)
    width = inner if positions >= inner else math.ceil(inner / math.ceil(inner / positions))
    for first in range(0, outer, step):
        for start in range(0, inner, width):
            yield slice(first, min(first + step, outer)), slice(start, min(start + width, inner))


def _rows(tensor: Tensor, axis: int, split: int) -> Tensor:
    """The tensor as (outer, inner, classes), a view: `split` of its other axes are the outer ones."""
    moved = tensor.movedim(axis, -1)
    outer, inner = math.prod(moved.shape[:split]), math.prod(moved.shape[split:-1])
    return moved.view(outer, inner, moved.shape[-1])


def _split(logits: Tensor, axis: int) -> int | None:
    """How many of the other axes merge into one, so that the rest of them merge too, in the logits and in their gradient."""
    shape = [*logits.shape]
    del shape[axis]
    for split in range(len(shape) + 1):
        merges = True
        for strides in (logits.stride(), _dense_strides(logits)):
            rest = [*strides]
            del rest[axis]
            merges = merges and _merge(shape[:split], rest[:split]) and _merge(shape[split:], rest[split:])
        if merges:
            return split
    return None


def _merge(shape: list[int], strides: list[int]) -> bool:
    """Whether axes lie in memory like one."""
    kept = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    return all(stride == inner * size for (_, stride), (size, inner) in pairwise(kept))


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a tensor of the same sizes without gaps, its axes in the same order in memory."""
    found, step = [0] * tensor.dim(), 1
    for axis in sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), -axis)):
        found[axis] = step
        step *= max(tensor.shape[axis], 1)
    return tuple(found)


def _result_type(logits: Tensor) -> torch.dtype:
    # As autocast has it for torch's own cross_entropy.
    return computed_type(logits) if torch.is_autocast_enabled(logits.device.type) else logits.dtype


def _check(logits: Tensor, labels: Tensor, axis: int, ignore: int | None, weight: Tensor | None, smoothing: float) -> int:
    """The axis, counted from the front. Raises `InputError` for what does not go together."""
    if not isinstance(axis, int) or isinstance(axis, bool) or not -logits.dim() <= axis < logits.dim():
        raise InputError(f"axis {axis!r} was asked for, and the logits are {shown(logits)}: {_offered(logits.dim())}.")
    axis %= logits.dim()
    classes = logits.shape[axis]
    wanted = torch.Size([*logits.shape[:axis], *logits.shape[axis + 1 :]])
    if not logits.is_floating_point():
        raise InputError(f"the logits are of type {logits.dtype}; they have to be floating: logits.float() would be.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise InputError(f"the labels are of type {labels.dtype}; they have to be class numbers, as int64: labels.long() would be.")
    if labels.shape != wanted:
        raise InputError(
            f"the labels are {shown(labels)}, and the logits {shown(logits)} with classes on axis {axis} "
            f"want labels {format_shape(wanted)}."
        )
    if classes == 0:
        raise InputError(f"the logits are {shown(logits)}: no class on axis {axis}; give at least one.")
    if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int)):
        raise InputError(f"ignore is {ignore!r}; it is the number of a label, or None.")
    if not 0 <= smoothing <= 1:
        raise InputError(f"smoothing is {smoothing!r}; it is a share from 0 to 1.")
    if weight is not None and (weight.shape != (classes,) or not weight.is_floating_point() or weight.requires_grad):
        found = f"{shown(weight)} of type {weight.dtype}{', with a gradient' if weight.requires_grad else ''}"
        raise InputError(f"weight is {found}; it has to be {classes} floating numbers, one a class, without a gradient.")
    for name, tensor in (("labels", labels), ("weight", weight)):
        if tensor is not None and tensor.device != logits.device:
            raise InputError(f"the logits are on {logits.device} and the {name} on {tensor.device}; move one to the other's.")
    if has_values(labels) and labels.numel():
        _check_labels(labels, classes, ignore)
    return axis


def _check_labels(labels: Tensor, classes: int, ignore: int | None) -> None:
    least, most = (int(value) for value in torch.aminmax(labels))
    if least >= 0 and most < classes:
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if not wrong.any():
        return
    place = tuple(wrong.nonzero()[0].tolist())
    count = int(wrong.sum())
    others = f" ({count} such labels)" if count > 1 else ""
    spared = "give ignore= to leave such labels out" if ignore is None else f"only {ignore} is left out"
    raise InputError(
        f"the label at {place} is {int(labels[place])}, and there are {classes} classes, 0 to {classes - 1}{others}; {spared}."
    )


def _offered(axes: int) -> str:
    return "give logits with an axis of classes" if axes == 0 else "it may be 0" if axes == 1 else f"it may be 0 to {axes - 1}"
