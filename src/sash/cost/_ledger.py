"""Bookkeeping for what a kernel allocates inside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scratch(NamedTuple):
    """What a kernel allocates inside."""

    bytes: int
    """Most bytes alive at once beside the results."""
    steps: tuple[int, ...] = ()
    """Every block in order where that is known, results included: positive where one is taken, negative where one is given back."""


class Ledger:
    """Adds up what is alive inside a kernel, and remembers the most."""

    def __init__(self) -> None:
        self.level = 0
        self.peak = 0
        self.steps: list[int] = []
        """Blocks in order: positive where one is taken, negative where one is given back."""

    def take(self, *sizes: int) -> None:
        """These are allocated."""
        self.level += sum(sizes)
        self.peak = max(self.peak, self.level)
        self.steps += [size for size in sizes if size]

    def give(self, *sizes: int) -> None:
        """These are freed."""
        self.level -= sum(sizes)
        self.steps += [-size for size in sizes if size]

    def beyond(self, results: int) -> Scratch:
        """The most that was alive beside the kernel's results, had they all been there from the start."""
        return Scratch(max(self.peak - results, 0), tuple(self.steps))


def data_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, each once."""
    return tensor.numel() * tensor.element_size()


def copy_bytes(tensor: Tensor, format: torch.memory_format = torch.contiguous_format) -> int:
    """Bytes of a copy in the wanted layout; 0 where the tensor already lies so."""
    if tensor.dim() == 3 or format is torch.contiguous_format:
        return 0 if tensor.is_contiguous() else data_bytes(tensor)
    return 0 if tensor.is_contiguous(memory_format=format) else data_bytes(tensor)
