"""The lever that computes cross-entropy in chunks, where the step calls torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sash.cost import Workload, forecast
from sash.ops import softmax_losses
from sash.plans._lever import Exactness, Lever, pull

LEAST_BYTES = 1 << 20
"""Of logits, for chunks to pay."""


@dataclass(frozen=True)
class ChunkedLoss(Lever):
    """`F.cross_entropy`, and so `nn.CrossEntropyLoss`, without the softmax: one map as large as the logits instead of three.

    Class-probability targets stay with torch, and so do logits under `least_bytes`. Log-softmax followed by a loss of its own is two calls,
    and is left as it is. A label that is no class raises `InputError`, where torch raises `IndexError`.
    """

    name: ClassVar[str] = "loss"
    modules: tuple[str, ...] = ()
    """Paths of modules whose own forward calls it."""
    in_loss: bool = True
    """Whether the workload's loss calls it."""
    least_bytes: int = LEAST_BYTES

    @property
    def exactness(self) -> Exactness:
        return Exactness.ROUNDING

    def describe(self) -> str:
        places = [path or "the model" for path in self.modules] + ["the loss"] * self.in_loss
        return f"cross-entropy in chunks, called by {', '.join(places)}"

    def on_model(self, model: nn.Module) -> nn.Module:
        for path in self.modules:
            around = _Around(self.least_bytes)
            module = model.get_submodule(path)
            module.register_forward_pre_hook(around.enter)
            module.register_forward_hook(around.leave, always_call=True)
        return model

    def on_work(self, work: Workload) -> Workload:
        if not self.in_loss or work.loss is None:
            return work
        return replace(work, loss=LossInChunks(work.loss, self.least_bytes))


def propose(work: Workload, model: nn.Module) -> ChunkedLoss | None:
    """The lever where the step calls cross-entropy on large enough logits and its peak falls with it; found on stand-ins."""
    seen = _Seen()
    with seen:
        plain = forecast(replace(work, rewrite=_Watched(work.rewrite, seen)))
    if not seen.paths:
        return None
    lever = ChunkedLoss(tuple(sorted(seen.paths - {None}, key=str)), None in seen.paths)  # pyright: ignore[reportArgumentType]
    return lever if forecast(pull(work, [lever])).peak_bytes < plain.peak_bytes else None


@dataclass(frozen=True)
class LossInChunks:
    """A workload's loss, with the cross-entropy it calls computed in chunks."""

    loss: Callable[[Any], Tensor]
    least_bytes: int

    def __call__(self, outputs: Any) -> Tensor:
        with InChunks(self.least_bytes):
            return self.loss(outputs)


class InChunks(TorchFunctionMode):
    """While it is entered, `F.cross_entropy` is computed in chunks where that is possible."""

    def __init__(self, least_bytes: int = LEAST_BYTES) -> None:
        super().__init__()
        self.least_bytes = least_bytes

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.cross_entropy:
            return cross_entropy(self.least_bytes, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def cross_entropy(
    least_bytes: int,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """What `F.cross_entropy` returns for the same arguments, computed in chunks where that is possible."""
    if size_average is not None or reduce is not None or not _chunkable(input, target, weight, least_bytes):
        legacy = {} if size_average is None and reduce is None else {"size_average": size_average, "reduce": reduce}
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, **legacy
        )
    axis = min(1, input.dim() - 1)
    losses = softmax_losses(input, target, axis, ignore_index, weight=weight, smoothing=label_smoothing)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction != "mean":
        raise ValueError(f"{reduction} is not a valid value for reduction")  # as torch says it
    counts = target != ignore_index
    if weight is None:
        return losses.sum() / counts.sum()
    return losses.sum() / (weight[torch.where(counts, target, 0)] * counts).sum().to(losses.dtype)


def _chunkable(input: Tensor, target: Tensor, weight: Tensor | None, least_bytes: int) -> bool:
    """Whether the target holds class numbers and all else is as `softmax_losses` takes it; what is not is for torch to refuse."""
    if not input.is_floating_point() or target.dtype is not torch.int64 or input.dim() == 0:
        return False
    axis = min(1, input.dim() - 1)
    fits = target.shape == (*input.shape[:axis], *input.shape[axis + 1 :]) and target.device == input.device
    if weight is not None:
        fits = fits and weight.shape == input.shape[axis : axis + 1] and weight.dtype is input.dtype and not weight.requires_grad
    return fits and input.numel() * input.element_size() >= least_bytes


class _Around:
    """Hooks that enter the mode for one module's forward, also where that calls itself, and leave it also where that raises."""

    def __init__(self, least_bytes: int) -> None:
        self.least_bytes = least_bytes
        self._entered: list[InChunks] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._entered.append(InChunks(self.least_bytes))
        self._entered[-1].__enter__()

    def leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        # Where an earlier hook raised, it was never entered.
        if self._entered:
            self._entered.pop().__exit__(None, None, None)


@dataclass
class _Seen(TorchFunctionMode):
    """Notes who calls cross-entropy."""

    stack: list[str] = field(default_factory=list)
    """Modules at work, the innermost last."""
    paths: set[str | None] = field(default_factory=set)
    """Of the modules; None for the loss."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy:
            given = dict(zip(("input", "target", "weight"), args, strict=False)) | kwargs
            if _chunkable(given["input"], given["target"], given.get("weight"), LEAST_BYTES):
                self.paths.add(self.stack[-1] if self.stack else None)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Watched:
    """A rewrite that tells `seen` which module is at work."""

    before: Callable[[nn.Module], nn.Module] | None
    seen: _Seen

    def __call__(self, model: nn.Module) -> nn.Module:
        model = model if self.before is None else self.before(model)
        for path, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, path=path: self.seen.stack.append(path))
            module.register_forward_hook(lambda *_: _last_off(self.seen.stack), always_call=True)
        return model


def _last_off(stack: list[str]) -> None:
    stack.pop()
