"""Micro-batches: a training step's gradient, accumulated over equal parts of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sash.cost import Workload, as_module, default_loss, map_tensors
from sash.errors import InputError
from sash.plans._lever import Exactness, Lever
from sash.plans._mixing import Mixing, mixing
from sash.plans._recorded import record_step
from sash.units import TensorSpec

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class MicroBatch(Lever):
    """Runs forward and backward over `parts` equal parts of the batch, one after the other, before one optimizer step."""

    parts: int
    """A divisor of the batch: unequal parts would weigh samples unequally."""
    loss: str = "mean"
    """`"mean"` or `"sum"`: what the loss is of the samples. A mean is divided by the number of parts, a sum is not."""
    allowed: bool = False
    """The user allowed what `why_not` tells."""
    name: ClassVar[str] = "microbatch"

    def __post_init__(self) -> None:
        if isinstance(self.parts, bool) or not isinstance(self.parts, int) or self.parts < 1:
            raise InputError(f"parts is {self.parts!r}; it is a number of micro-batches, 1 or more.")
        if self.loss not in ("mean", "sum"):
            raise InputError(f"loss is {self.loss!r}; it is 'mean' or 'sum'.")

    @property
    def exactness(self) -> Exactness:
        """Rounding: the parts' gradients are added one after the other. Changed, where the user allowed that."""
        return Exactness.CHANGED if self.allowed else Exactness.ROUNDING

    def describe(self) -> str:
        """What it does, in one line."""
        changed = "; allowed by name although it changes the result" if self.allowed else ""
        return f"micro-batches: the batch in {self.parts} equal parts, gradients added up{changed}"

    def on_work(self, work: Workload) -> Workload:
        """The step over one part of the batch, `parts` times. The rest of the batch stays in memory beside it, and is counted."""
        if not work.train:
            raise InputError("micro-batches were asked for without train=True; inference has no gradient to accumulate.")
        if self.parts == 1:
            return work
        loss = work.loss if self.loss == "mean" else Times(as_module(work.loss or default_loss), self.parts)
        inputs = _cut(work.inputs, batch_size(work), 0, self.parts)
        return replace(work, inputs=inputs, loss=loss, accumulate=self.parts * work.accumulate)


@dataclass(frozen=True)
class Times:
    """A loss that is a sum over the samples, times the number that a step divides it by."""

    loss: Callable[[Any], Tensor]
    parts: int

    def __call__(self, outputs: Any) -> Tensor:
        return self.loss(outputs) * self.parts


def batch_size(work: Workload) -> int:
    """Samples in a batch: the first size of the first input that has sizes. Raises `InputError` where there is none."""
    return _batch_of(work.arguments())


def split(arguments: Arguments, parts: int) -> list[Arguments]:
    """Positional and keyword arguments of every micro-batch, as views of a real batch's.

    Split are the tensors whose first size is the batch's, in tuples, lists and dicts as well; the others go to every part as they are.
    Raises `InputError` where the batch is not divisible.
    """
    batch = _batch_of(arguments)
    if batch % parts:
        near = max(number for number in range(1, parts + 1) if batch % number == 0)
        raise InputError(
            f"a batch of {batch} was to be split in {parts}, which does not divide it; unequal parts would weigh samples unequally. "
            f"{near} parts, or a batch of {max(batch // parts, 1) * parts}, would."
        )
    return [(_cut(arguments[0], batch, index, parts), _cut(arguments[1], batch, index, parts)) for index in range(parts)]


def parts_of(work: Workload) -> tuple[int, ...]:
    """Numbers of micro-batches that a step's batch can be split in, from 2 on."""
    batch = batch_size(work)
    return tuple(number for number in range(2, batch + 1) if batch % number == 0)


def propose(work: Workload, model: nn.Module | None = None, allow: bool = False, parts: int | None = None) -> MicroBatch | None:
    """The fewest micro-batches, or `parts`; None where they would change the result and `allow` does not say that they may.

    `replace(lever, parts=…)` with another number of `parts_of(work)` is as exact, but for a model that treats a single sample otherwise.
    """
    found = considered(work, allow, parts)
    return found if isinstance(found, MicroBatch) else None


def considered(work: Workload, allow: bool = False, parts: int | None = None) -> MicroBatch | str:
    """What `propose` finds, or why there is nothing: what `why_not` says, in one look at the step."""
    if not work.train:
        return "Micro-batches accumulate gradients, and inference has none."
    if not _splits(work):
        return "There are no samples to split: the batch is 1, or no input has a size."
    parts = parts or parts_of(work)[0]
    found = look(work, parts)
    if found.reasons and not allow:
        return " ".join(found.reasons)
    return MicroBatch(parts, found.loss, allowed=bool(found.reasons))


def why_not(work: Workload, model: nn.Module | None = None) -> str | None:
    """What micro-batches would change in the result of this step, layer by layer, and what would make them exact; None where nothing."""
    found = considered(work)
    return found if isinstance(found, str) else None


def look(work: Workload, parts: int) -> Mixing:
    """How the step treats its samples, found on stand-ins. Raises what `forecast` raises for the whole batch."""
    batch = batch_size(work)
    full = record_step(work)
    try:
        part = record_step(replace(work, inputs=_cut(work.inputs, batch, 0, parts)))
    except Exception as error:
        said = str(error).strip().splitlines()[0]
        return Mixing((f"The step does not run on a part of its batch, {batch // parts} of {batch}: {said}",), "mean")
    return mixing(full, part, batch, parts, _ignored(work))


def _splits(work: Workload) -> bool:
    return bool(_sized(work.arguments())) and batch_size(work) > 1


def _ignored(work: Workload) -> Callable[[int, int], bool | None]:
    """Whether an input holds a label; None where its values are not there to be looked at."""
    inputs = _leaves(work.arguments())

    def ignored(source: int, label: int) -> bool | None:
        if source >= len(inputs):
            return None
        value = inputs[source]
        if isinstance(value, TensorSpec):
            return None if value.below is None else 0 <= label < value.below
        return None if value.is_meta or isinstance(value, FakeTensor) else bool((value == label).any())

    return ignored


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    map_tensors(found.append, value)
    return found


def _sized(arguments: Any) -> list[Any]:
    return [value for value in _leaves(arguments) if len(value.shape) > 0]


def _batch_of(arguments: Any) -> int:
    sized = _sized(arguments)
    if not sized:
        raise InputError("no input has a size, so there is no batch to split.")
    return int(sized[0].shape[0])


def _cut(inputs: Any, batch: int, index: int, parts: int) -> Any:
    size = batch // parts

    def cut(value: Any) -> Any:
        if len(value.shape) == 0 or value.shape[0] != batch:
            return value
        if isinstance(value, TensorSpec):
            # A view, so that the whole batch is counted: the parts not at work wait in memory.
            value = torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
        return value.detach().narrow(0, index * size, size).requires_grad_(value.requires_grad)

    return map_tensors(cut, inputs)
