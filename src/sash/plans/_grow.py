"""A workload's inputs at another size: which dimensions of which inputs belong together, and how they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sash.cost import Workload, map_tensors
from sash.errors import InputError
from sash.units import TensorSpec, format_shape

VARIES = ("batch", "side", "length")


@dataclass(frozen=True)
class Growth:
    """Dimensions that grow together, and the sizes that they have now."""

    word: str
    """As users type it: one of `VARIES`."""
    start: int
    """The size that the workload has: its batch, its longest side, its length."""
    dims: tuple[tuple[int, ...], ...]
    """Of every input in order, the dimensions that vary."""
    power: int = 1
    """Dimensions of the first input that vary: bytes grow with this power of the size."""

    def lengths(self, shape: tuple[int, ...], place: int, size: int, step: int) -> tuple[int, ...]:
        """The shape of input number `place` at a size: sides that are not the longest grow in proportion, by whole steps."""
        found = list(shape)
        for dim in self.dims[place]:
            steps = round((size - self.start) * shape[dim] / (self.start * step))
            found[dim] = shape[dim] + steps * step
        return tuple(found)

    def work(self, work: Workload, size: int, step: int = 1, values: bool = False) -> Workload:
        """The workload at a size: shapes stay shapes; tensors are without data, or with `values` repeat the given ones' along what grows.

        Raises `InputError` where a side would vanish.
        """
        places = iter(range(len(self.dims)))

        def grown(value: Any) -> Any:
            shape = self.lengths(tuple(value.shape), next(places), size, step)
            if min(shape, default=1) < 1:
                raise InputError(f"at {self.word} {size} an input would be {'x'.join(map(str, shape))}.")
            if isinstance(value, TensorSpec):
                return replace(value, shape=shape)
            return _repeated(value, shape) if values and not _unreal(value) else _bare(value, shape)

        return replace(work, inputs=map_tensors(grown, work.inputs))


def growths(work: Workload, vary: str) -> Iterator[Growth]:
    """What `vary` may mean for the inputs, the likeliest first. Raises `InputError` where it can mean nothing."""
    inputs: list[Any] = []
    map_tensors(inputs.append, work.inputs)
    sized = [value for value in inputs if len(value.shape) > 0]
    shown = ", ".join(format_shape(value.shape) for value in inputs) or "none"
    if not sized:
        raise InputError(f"{vary} is to vary, and no input has a dimension; inputs: {shown}.")
    if any(0 in value.shape for value in sized):
        raise InputError(f"{vary} is to vary, and an input is empty; inputs: {shown}.")
    if vary == "batch":
        size = sized[0].shape[0]
        yield Growth(vary, size, tuple((0,) if len(value.shape) > 0 and value.shape[0] == size else () for value in inputs))
    elif vary == "side":
        yield _sides(inputs, shown)
    else:
        yield from _lengths(inputs, shown)


def _sides(inputs: list[Any], shown: str) -> Growth:
    first = next((value for value in inputs if len(value.shape) in (4, 5)), None)
    if first is None:
        raise InputError(
            f"side is to vary, and no input has sides: (batch, channels, height, width), or with a depth; inputs: {shown}. "
            "For (batch, channels, length), vary='length'."
        )
    axes = len(first.shape) - 2
    sides = tuple(first.shape[2:])

    def dims(value: Any) -> tuple[int, ...]:
        rank = len(value.shape)
        return tuple(range(rank - axes, rank)) if rank >= axes and tuple(value.shape[rank - axes :]) == sides else ()

    return Growth("side", max(sides), tuple(dims(value) for value in inputs), axes)


def _lengths(inputs: list[Any], shown: str) -> Iterator[Growth]:
    first = next((value for value in inputs if len(value.shape) >= 2), None)
    if first is None:
        raise InputError(f"length is to vary, and no input has one beside its batch; inputs: {shown}.")
    rank, batch = len(first.shape), first.shape[0]
    # (batch, length) and (batch, length, features), or (batch, channels, length): the model is asked which.
    for dim in (2, 1) if rank == 3 and _floating(first) else (1,) if not _floating(first) else (rank - 1,):
        length = first.shape[dim]

        def dims(value: Any, dim: int = dim, length: int = length) -> tuple[int, ...]:
            shape = tuple(value.shape)
            if shape == tuple(first.shape):
                return (dim,)
            skipped = 1 if len(shape) > 1 and shape[0] == batch else 0
            return tuple(place for place in range(skipped, len(shape)) if shape[place] == length)

        yield Growth("length", length, tuple(dims(value) for value in inputs))


def _floating(value: Any) -> bool:
    dtype = getattr(torch, value.dtype) if isinstance(value, TensorSpec) else value.dtype
    return dtype.is_floating_point or dtype.is_complex


def _unreal(value: Tensor) -> bool:
    return value.is_meta or isinstance(value, FakeTensor)


def _bare(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As the given tensor in all but data."""
    return _part(value, shape, lambda shape: torch.empty(shape, dtype=value.dtype, device="meta", memory_format=_format(value)))


def _repeated(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The given values again and again along what grows: token ids, masks and classes stay valid."""

    def repeated(shape: tuple[int, ...]) -> Tensor:
        found = value.detach()
        for dim, length in enumerate(shape):
            if length != found.shape[dim]:
                found = found.index_select(dim, torch.arange(length, device=found.device) % found.shape[dim])
        return found.contiguous(memory_format=_format(value))

    return _part(value, shape, repeated)


def _part(value: Tensor, shape: tuple[int, ...], make: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """One that is part of a batch, as a planned micro-batch is, stays that part of one: the rest waits in memory, and counts."""
    parts = value.untyped_storage().nbytes() // max(value.numel() * value.element_size(), 1) if value.is_contiguous() else 1
    whole = make((max(parts, 1) * shape[0], *shape[1:])) if shape else make(shape)
    return (whole.narrow(0, 0, shape[0]) if shape else whole).requires_grad_(value.requires_grad)


def _format(value: Tensor) -> torch.memory_format:
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim())
    last = form is not None and not value.is_contiguous() and value.is_contiguous(memory_format=form)
    return form if last and form is not None else torch.contiguous_format
