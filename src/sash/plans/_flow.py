"""Who reads what in a step: operators, the storages they touch, and what went in and out of every module; found on stand-ins."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sash.cost import Phase, Tracer, Workload, static_tensors, tensors_in, trace_step


@dataclass(frozen=True, slots=True)
class Touch:
    """One operator's call."""

    name: str
    phase: Phase
    node: tuple[str, int] | None
    """Backward node at work, name and sequence number; None where it only has forward done again, as a checkpoint does."""
    made_bytes: int
    """Of storages that are its own."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A tensor on its way into a module or out of it."""

    storage: int
    """Number of its storage, given out once in a flow."""
    bytes: int
    """Of that storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    dense: bool
    """Its elements lie in memory without gaps, each once."""
    view: bool
    """Autograd takes it for a view."""
    node: tuple[str, int] | None
    """Backward node that made it."""


@dataclass(slots=True)
class Visit:
    """One call of a module's forward."""

    path: str
    training: bool
    phase: Phase
    start: int
    """First operator within."""
    stop: int
    """First operator after it."""
    given: tuple[Passed, ...]
    returned: tuple[Passed, ...]


@dataclass
class Flow:
    """What one step did; its first micro-batch, without the optimizer."""

    touches: list[Touch] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    """In the order in which they began; one that ended early, as a checkpoint's may when it runs again, returned nothing."""
    reads: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By storage, the operators that were given it; making a view is no reading."""
    died: dict[int, int] = field(default_factory=dict)
    """By storage, the first operator that it did not live to see."""
    kept: set[int] = field(default_factory=set)
    """Storages that are not the step's to change: parameters, buffers, inputs, outputs, and what somebody still held when it was over."""
    model: nn.Module = field(default_factory=nn.Module)
    """The model as it was traced."""

    def visits_of(self) -> dict[str, list[Visit]]:
        """Every module's calls, by its path."""
        found: dict[str, list[Visit]] = defaultdict(list)
        for visit in self.visits:
            found[visit.path].append(visit)
        return found

    def made_bytes(self, visit: Visit) -> int:
        """Bytes of the storages that were made within a call."""
        return sum(touch.made_bytes for touch in self.touches[visit.start : visit.stop])


def record_flow(work: Workload) -> Flow:
    """The flow of one step of `work`. Raises what `forecast` raises."""
    watcher = _Watcher()

    def rewrite(model: nn.Module) -> nn.Module:
        return watcher.attach(work.rewrite(model) if work.rewrite is not None else model)

    try:
        trace_step(replace(work, rewrite=rewrite, optimizer=None, accumulate=1), meet=watcher.meet)
    finally:
        watcher.detach()
    return watcher.finish()


class _Watcher:
    def __init__(self) -> None:
        self.flow = Flow()
        self._tracer: Tracer | None = None
        self._handles: list[Any] = []
        self._open: list[Visit] = []
        self._numbers: dict[int, int] = {}
        self._watchers: dict[int, weakref.ref] = {}
        self._count = 0

    def attach(self, model: nn.Module) -> nn.Module:
        self.flow.model = model
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                self._handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leaving(path), with_kwargs=True))
        return model

    def meet(self, tracer: Tracer) -> None:
        self._tracer = tracer
        tracer.observe = self._observe
        self.flow.kept |= {self._number(tensor)[0] for _, _, _, tensor in static_tensors(self.flow.model)}

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._tracer is not None:
            self._tracer.observe = None

    def finish(self) -> Flow:
        gc.collect()
        self.flow.kept |= set(self._numbers.values())
        self._watchers.clear()
        return self.flow

    def _observe(self, func: Any, args: tuple, kwargs: dict, outputs: Any) -> None:
        assert self._tracer is not None
        index = len(self.flow.touches)
        if not func.is_view:
            for tensor in tensors_in((args, kwargs)):
                self.flow.reads[self._number(tensor)[0]].append(index)
        made = 0
        for tensor in tensors_in(outputs):
            _, new = self._number(tensor)
            made += tensor.untyped_storage().nbytes() if new else 0
        node = None if torch.is_grad_enabled() else torch._C._current_autograd_node()
        self.flow.touches.append(Touch(str(func), self._tracer.phase, _key(node), made))

    def _number(self, tensor: Tensor) -> tuple[int, bool]:
        """The number of a tensor's storage, and whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return self._numbers[key], False
        self._count += 1
        self._numbers[key] = self._count
        self._watchers[key] = weakref.ref(storage, lambda _: self._dies(key))
        return self._count, True

    def _dies(self, key: int) -> None:
        number = self._numbers.pop(key, None)
        if number is not None:
            self.flow.died[number] = len(self.flow.touches)

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, positional: Any, keyword: Any) -> None:
            assert self._tracer is not None
            given = self._passed((positional, keyword))
            if not path:
                self.flow.kept |= {passed.storage for passed in given}
            at = len(self.flow.touches)
            self._open.append(Visit(path, module.training, self._tracer.phase, at, at, given, ()))
            self.flow.visits.append(self._open[-1])

        return enter

    def _leaving(self, path: str) -> Any:
        def leave(module: nn.Module, positional: Any, keyword: Any, outputs: Any) -> None:
            # A module that raised and was caught never left.
            while self._open and self._open[-1].path != path:
                self._open.pop()
            if self._open:
                visit = self._open.pop()
                visit.stop, visit.returned = len(self.flow.touches), self._passed(outputs)
                if not path:
                    self.flow.kept |= {passed.storage for passed in visit.returned}

        return leave

    def _passed(self, values: Any) -> tuple[Passed, ...]:
        found = []
        for tensor in tensors_in(values):
            number, _ = self._number(tensor)
            dense = torch.ops.aten.is_non_overlapping_and_dense(tensor)
            size = tensor.untyped_storage().nbytes()
            found.append(
                Passed(number, size, tuple(tensor.shape), tensor.stride(), tensor.dtype, dense, tensor._is_view(), _key(tensor.grad_fn))
            )
        return tuple(found)


def _key(node: Any) -> tuple[str, int] | None:
    return None if node is None else (node.name(), node._sequence_nr())
