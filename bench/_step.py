"""One step of a workload as the bench defines it, written without sash so that it can contradict sash."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn, optim

if TYPE_CHECKING:
    from _workloads import Inputs, Row


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors inside nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from tensors_in(getattr(value, item.name))


class SumOfMeans:
    """The loss of every row: the means of all floating outputs, summed; an output that is returned twice counts once.

    An object, not a function: sash's measuring process imports the module of an object's class before it starts to count.
    """

    def __call__(self, outputs: Any) -> Tensor:
        found = {id(tensor): tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()}
        return functools.reduce(torch.add, [tensor.mean() for tensor in found.values()])


def static_tensors(model: nn.Module, inputs: Inputs, optimizer: optim.Optimizer | None) -> Iterator[Tensor]:
    """Parameters, buffers, inputs and optimizer state: what is alive before a steady step."""
    yield from model.parameters()
    yield from model.buffers()
    yield from tensors_in(inputs)
    if optimizer is not None:
        for state in optimizer.state.values():
            yield from tensors_in(state)


def storage_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once."""
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def make_step(row: Row, model: nn.Module, inputs: Inputs) -> tuple[Callable[[], None], optim.Optimizer | None]:
    """A function that runs one step, and the optimizer it steps (None in inference).

    A training step is `row.accumulate` times forward, loss and backward, then `optimizer.step()` and `zero_grad(set_to_none=True)`.
    Outputs live until the step ends, as in a training loop that names them. Forward and loss run under autocast, backward does not.
    With micro-batches the loss is divided by their number.
    """
    optimizer = row.optimizer(p for p in model.parameters() if p.requires_grad) if row.train and row.optimizer else None

    def forward() -> Any:
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)

    def precision() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", row.autocast) if row.autocast else contextlib.nullcontext()

    def infer() -> None:
        with torch.inference_mode(), precision():
            forward()

    def train() -> None:
        for _ in range(row.accumulate):
            outputs = None
            with precision():
                outputs = forward()
                loss = SumOfMeans()(outputs)
                if row.accumulate > 1:
                    loss = loss / row.accumulate
            loss.backward()
            del loss
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return (train if row.train else infer), optimizer
