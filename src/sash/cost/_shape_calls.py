"""What an explanation is made from and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One forward call of a module."""

    path: str
    module: nn.Module
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...] | None
    """None where its forward did not return."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a shape does not fit."""

    came: str
    expected: str
    fix: str
    """The nearest change that works; empty where none is known."""
