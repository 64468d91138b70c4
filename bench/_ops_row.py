"""One operator beside its peers: what `ops.py` asks of each file of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One operator on one size of input."""

    name: str
    """The operator, the sizes, the setting: as a reader of the table wants it."""
    inputs: Callable[[], tuple[Tensor, ...]]
    """The same tensors whenever it is called; those that require a gradient get one in the row's backward."""
    ours: Callable[..., Any]
    """sash's operator on them: a function or a module that a fresh process can import."""
    peers: dict[str, Callable[..., Any]]
    """Others, by name, as far as they compute the same; the first is the one that the aim is held against."""
    backward: bool = True
    """Whether forward and backward together are timed as well; False where there is no gradient."""
    aim: float = 1.1
    """At most so many times the first peer's time."""
    peak_aim: float | None = None
    """At most so many times its peak, where that is claimed."""
