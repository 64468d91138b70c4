"""Which storages autograd keeps, and for which node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sash.cost._trace import Tracer

_looking = False


def looking() -> bool:
    """Whether saved tensors are being looked at and not used: an unpack hook should then return an empty stand-in and do nothing else."""
    return _looking


@contextmanager
def _only_looking() -> Iterator[None]:
    global _looking
    _looking = True
    try:
        yield
    finally:
        _looking = False


def mark_saved(loss: Tensor, tracer: Tracer) -> None:
    """Note on every life that a backward node holds which node that is.

    Walks the graph behind `loss` and looks at what its nodes saved; nothing is computed.
    """
    with _only_looking():
        _mark_saved(loss, tracer)


def _mark_saved(loss: Tensor, tracer: Tracer) -> None:
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for tensor in _saved_by(node):
            life = tracer.life_of(tensor)
            if life is not None and not life.kept_for:
                life.kept_for = node.name()
        waiting += [after for after, _ in node.next_functions]


def _saved_by(node: Any) -> list[Tensor]:
    found = []
    for name in _names(type(node)):
        try:
            value = getattr(node, name)
        except RuntimeError:
            continue  # the node has let go of it already
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


@cache
def _names(kind: type) -> tuple[str, ...]:
    names = [name for name in dir(kind) if name.startswith("_saved_")]
    if issubclass(kind, torch.autograd.function.BackwardCFunction):
        names.append("saved_tensors")
    return tuple(names)
