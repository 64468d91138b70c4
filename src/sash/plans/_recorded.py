"""Forward and loss of one step, written down operator by operator on stand-ins."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost import Tracer, Workload, as_module, default_loss, static_tensors, tensors_in, trace_step


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the record, by its number."""

    index: int


@dataclass(slots=True)
class Call:
    """One operator call, its tensors replaced by their numbers."""

    func: Any
    args: dict[str, Any]
    """By the names of the operator's schema, defaults filled in."""
    outputs: list[Ref]
    module: str

    @property
    def name(self) -> str:
        """Without its overload: `aten.add_.Tensor` is `add_`."""
        return self.func.overloadpacket.__name__

    def refs(self) -> list[Ref]:
        """Every tensor that it is given."""
        return list(_refs(list(self.args.values())))


class Record:
    """Forward and loss of one step, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.tensors: list[Tensor] = []
        """Kept alive, so that no number and no storage is given out twice; stand-ins have no memory."""
        self.inputs: list[Ref] = []
        """The model's, in order."""
        self.static: dict[int, str] = {}
        """Storages of parameters and buffers, with their names."""
        self.result: Ref | None = None
        """The loss."""
        self.own_backwards: list[str] = []
        """Functions of the user's own whose backward cannot be looked into."""
        self._known: dict[int, Ref] = {}

    def ref(self, tensor: Tensor) -> Ref:
        """The number of a tensor; a new one where it was not met before."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = Ref(len(self.tensors))
            self.tensors.append(tensor)
        return self._known[id(tensor)]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return tuple(self.tensors[ref.index].shape)

    def storage(self, ref: Ref) -> int:
        """A name for a tensor's storage."""
        return self.tensors[ref.index].untyped_storage()._cdata


def record_step(work: Workload) -> Record:
    """What forward and loss of one micro-batch of `work` call, found on stand-ins. Raises what `forecast` raises."""
    recorder = _Recorder()
    loss = _Ended(work.loss or default_loss, recorder)

    def rewrite(model: nn.Module) -> nn.Module:
        return recorder.attach(work.rewrite(model) if work.rewrite is not None else model)

    try:
        trace_step(replace(work, rewrite=rewrite, loss=loss, optimizer=None, accumulate=1), meet=recorder.meet)
    except _Recorded:
        return recorder.record
    raise AssertionError("the loss was not called")


class _Recorded(BaseException):
    """Ends the trace after the loss: backward has nothing to tell. Not an `Exception`: it is no failure, and is not to be explained."""


class _Ended:
    """The workload's loss, recorded; the step ends with it."""

    def __init__(self, loss: Any, recorder: _Recorder) -> None:
        self.loss = loss
        self.recorder = recorder

    def __call__(self, outputs: Any) -> Tensor:
        record = self.recorder.record
        with self.recorder.mode():
            scalar = self.loss(outputs)
        if isinstance(scalar, Tensor):
            record.result = record.ref(scalar)
            record.own_backwards = sorted(_own_backwards(scalar))
        raise _Recorded

    def __deepcopy__(self, memo: dict[int, Any]) -> _Ended:
        # A forecast copies the loss with stand-ins for what it holds; what is recorded has to come back.
        return _Ended(copy.deepcopy(as_module(self.loss), memo), self.recorder)


class _Recorder:
    def __init__(self) -> None:
        self.record = Record()
        self._tracer: Tracer | None = None
        self._entered: list[_Mode] = []

    def meet(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def attach(self, model: nn.Module) -> nn.Module:
        for _, path, name, tensor in static_tensors(model):
            self.record.ref(tensor)
            self.record.static[tensor.untyped_storage()._cdata] = f"{path}.{name}" if path else name
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, always_call=True)
        return model

    def mode(self) -> _Mode:
        return _Mode(self.record, self._tracer)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.record.inputs:
            self.record.inputs = [self.record.ref(tensor) for tensor in tensors_in((args, kwargs))]
        self._entered.append(self.mode())
        self._entered[-1].__enter__()

    def _leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self._entered.pop().__exit__(None, None, None)


class _Mode(TorchDispatchMode):
    def __init__(self, record: Record, tracer: Tracer | None) -> None:
        super().__init__()
        self.record = record
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return outputs  # asks for a device or a type
        scopes = self.tracer.scopes if self.tracer is not None else None
        made = [self.record.ref(tensor) for tensor in tensors_in(outputs)]
        given = _numbered(_bound(func, args, kwargs or {}), self.record)
        self.record.calls.append(Call(func, given, made, scopes.current if scopes is not None else ""))
        return outputs


def _bound(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    found = {}
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
        found[argument.name] = value
    return found


def _numbered(value: Any, record: Record) -> Any:
    if isinstance(value, Tensor):
        return record.ref(value)
    if isinstance(value, dict):
        return {key: _numbered(item, record) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_numbered(item, record) for item in value]
    return value


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _refs(item)


def _own_backwards(scalar: Tensor) -> set[str]:
    found, seen, waiting = set(), set(), [scalar.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and function.__module__.partition(".")[0] not in ("torch", "sash"):
            found.add(function.__name__)
        waiting += [after for after, _ in node.next_functions]
    return found
