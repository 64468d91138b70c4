"""What every lever says of itself: what it changes, and whether the result stays the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from torch import nn

from sash.cost import Workload, copy_of, static_tensors


class Exactness(StrEnum):
    """How the result of a run with a lever relates to the result without it."""

    BITS = "bit-identical"
    """Outputs, gradients and buffers are the same to the last bit, dropout and batch norm included."""
    ROUNDING = "equal up to rounding"
    """The same sums in another order."""
    CHANGED = "changes the result"
    """Another result, by design; only ever used where the user allowed it by name."""


@dataclass(frozen=True)
class Lever(ABC):
    """One change of a run that lowers its peak. Its fields are plain values, so that a plan can be written as JSON."""

    name: ClassVar[str]
    """As users type it: one word."""

    @property
    @abstractmethod
    def exactness(self) -> Exactness:
        """How the result relates to the plain run's."""

    @abstractmethod
    def describe(self) -> str:
        """What it does to this run, in one line."""

    def on_model(self, model: nn.Module) -> nn.Module:
        """The model with the lever in it. It may change the module it is given, never the values of its parameters."""
        return model

    def on_work(self, work: Workload) -> Workload:
        """The step with the lever in it, where it is about more than the model: its inputs, its loss, its precision."""
        return work


@dataclass(frozen=True)
class Rewrite:
    """Levers, applied one after the other to the model where it is loaded; what `Workload.rewrite` takes."""

    levers: tuple[Lever, ...]

    def __call__(self, model: nn.Module) -> nn.Module:
        for lever in self.levers:
            model = lever.on_model(model)
        return model


def pull(work: Workload, levers: Iterable[Lever]) -> Workload:
    """`work` as it runs with the levers."""
    levers = tuple(levers)
    for lever in levers:
        work = lever.on_work(work)
    before = work.rewrite.levers if isinstance(work.rewrite, Rewrite) else ()
    return replace(work, rewrite=Rewrite((*before, *levers)))


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer with the original: rewriting it leaves the original as it was."""
    return copy_of(model, {id(tensor): tensor for _, _, _, tensor in static_tensors(model)})
