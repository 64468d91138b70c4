"""Batches out of whatever holds the data, in an order that a seed alone decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from sash.errors import InputError

Data = tuple[Any, Any] | Dataset[Any] | Iterable[Any]
"""(inputs, targets); a Dataset of such pairs; or batches of such pairs."""


def batches_of(data: Data, size: int, order: int | None = None, skip: int = 0) -> Iterator[Any]:
    """Pairs of inputs and targets, the first `skip` left out: shuffled by the seed `order`, as they lie where it is None.

    Data that bring their own batches keep their order, and have drawn the first `skip` when this returns.
    """
    count = samples_of(data)
    if count is not None:
        indices = torch.arange(count) if order is None else torch.randperm(count, generator=torch.Generator().manual_seed(order))
        return (_taken(data, part) for part in indices.split(size)[skip:])
    batches = iter(data)  # pyright: ignore[reportArgumentType]
    for _ in range(skip):
        next(batches, None)
    return batches


def samples_of(data: Data) -> int | None:
    """How many samples the data hold; None for data that bring their own batches. Raises `InputError` where they are neither, and for 0."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        count = len(data)  # pyright: ignore[reportArgumentType]
    elif not isinstance(data, tuple):
        if not isinstance(data, Iterable):
            raise InputError(f"data are a {type(data).__name__}; give (inputs, targets), a Dataset or an iterable of batches.")
        return None
    else:
        leaves = _leaves(data)
        if len(data) != 2 or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            found = ", ".join(type(leaf).__name__ for leaf in data) or "nothing"
            raise InputError(f"data are a tuple of {found}; give (inputs, targets), tensors with one axis of samples.")
        counts = [len(leaf) for leaf in leaves]
        if len(set(counts)) > 1:
            raise InputError(f"inputs and targets hold {', '.join(map(str, counts))} samples; they have to hold as many each.")
        count = counts[0]
    if not count:
        raise InputError("data hold 0 samples; training wants at least 1.")
    return count


def on_device(batch: Any, device: torch.device) -> tuple[Any, Any]:
    """Inputs and targets where the model is. Raises `InputError` for a batch that is no such pair."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"a batch is a {type(batch).__name__}; it has to be a pair of inputs and targets.")
    inputs, targets = (_each(part, lambda leaf: leaf.to(device)) for part in batch)
    return inputs, targets


def size_of(targets: Any) -> int:
    """Samples of a batch, by its targets."""
    first = _leaves(targets)[0]
    return len(first) if first.dim() else 1


def _taken(data: Any, indices: Tensor) -> Any:
    if isinstance(data, Dataset):
        return default_collate([data[index] for index in indices.tolist()])
    return _each(data, lambda leaf: leaf[indices.to(leaf.device)])


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple | list) else [value]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The tensors changed, in the tuples that they are in: a model of several inputs has them in one."""
    return tuple(_each(part, change) for part in value) if isinstance(value, tuple | list) else change(value)
