"""The lever that lets go of values as soon as nobody reads them, in inference, although the caller still names them."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sash.cost import Workload, forecast, tensors_in
from sash.errors import InputError
from sash.plans._flow import Flow, Passed, Visit, record_flow
from sash.plans._lever import Exactness, Lever, pull

SHARE = 256
"""Values smaller than this part of the peak are not worth a hook."""

Row = tuple[str, int, str, int, str, int, str]
"""Where a value is met: a module's path, which of its calls, "given" or "returned", its place there. Where it goes: path, call, "enter" or
"leave"."""


@dataclass(frozen=True)
class Release(Lever):
    """Values freed right after their last reader, in inference.

    While a module runs, its caller's names and the call itself hold its input, and the first layers of a chain are long done with it. The
    tensor then keeps its sizes and loses its values. Planned for one way through the model's forward: who reads such a tensor all the same,
    as a hook added later, finds NaN. Nothing is released while gradients are recorded, in parts of the model called on their own, nor
    where a module returns the very memory it was given.
    """

    name: ClassVar[str] = "release"
    rows: tuple[Row, ...]

    @property
    def exactness(self) -> Exactness:
        return Exactness.BITS

    def describe(self) -> str:
        places = list(dict.fromkeys(row[4] or "the model" for row in self.rows))
        shown = ", ".join(places[:2]) + (", …" if len(places) > 2 else "")
        return f"values freed once read, at {len(places)} module{'s' * (len(places) != 1)}: {shown}"

    def on_model(self, model: nn.Module) -> nn.Module:
        known = dict(model.named_modules())
        forward = _Forward()
        hooks = {path: _Hooks(path, forward) for row in self.rows for path in (row[0], row[4])}
        for path, hook in hooks.items():
            if path not in known:
                raise InputError(f"'release' was planned for a model with a module {path!r}, and this one has none; plan again.")
            known[path].register_forward_pre_hook(hook.enter, with_kwargs=True)
            known[path].register_forward_hook(hook.leave, with_kwargs=True)
        for path, call, side, place, at, at_call, when in self.rows:
            hooks[path].meets.setdefault((call, side), []).append((place, (at, at_call, when)))
        # Around all other hooks of the model.
        model.register_forward_pre_hook(forward.start, prepend=True)
        model.register_forward_hook(forward.stop, always_call=True)
        return model


def propose(work: Workload, model: nn.Module) -> Release | None:
    """The lever where values outlive their last reader, in inference, and the peak falls without them; found on stand-ins.

    In training there is nothing to gain: what a caller names is what autograd keeps.
    """
    if work.train:
        return None
    flow = record_flow(work)
    peak = forecast(work).peak_bytes
    rows = tuple(dict.fromkeys(_rows(flow, peak // SHARE)))
    if not rows:
        return None
    lever = Release(rows)
    return lever if forecast(pull(work, [lever])).peak_bytes < peak else None


@dataclass(frozen=True, slots=True)
class _Event:
    """A module is entered or left, between two operators."""

    at: int
    """The operator after it."""
    order: int
    """Among those before the same operator: inner ones are left before the next is entered."""
    path: str
    call: int
    when: str
    passed: tuple[Passed, ...]


def _rows(flow: Flow, least_bytes: int) -> Iterator[Row]:
    """A row for every way in which a value is met that could go before it does."""
    met: dict[int, list[tuple[Passed, str, int, str, int, int]]] = defaultdict(list)
    events = []
    for path, visits in flow.visits_of().items():
        for call, visit in enumerate(visits):
            for side, passed, at in (("given", visit.given, visit.start), ("returned", visit.returned, visit.stop)):
                for place, one in enumerate(passed):
                    met[one.storage].append((one, path, call, side, place, at))
            events += _events(path, call, visit)
    events.sort(key=lambda event: (event.at, event.order))
    for storage, places in met.items():
        one = places[0][0]
        if storage in flow.kept or one.bytes < least_bytes or not one.dtype.is_floating_point or not flow.reads[storage]:
            continue
        last = flow.reads[storage][-1]
        event = next((event for event in events if event.at > last), None)
        if event is None or flow.died.get(storage, 0) <= event.at or any(each.storage == storage for each in event.passed):
            continue
        seen = set()
        for passed, path, call, side, place, at in places:
            if at <= event.at and (passed.shape, passed.strides) not in seen:
                seen.add((passed.shape, passed.strides))
                yield path, call, side, place, event.path, event.call, event.when


def _events(path: str, call: int, visit: Visit) -> list[_Event]:
    depth = path.count(".") + bool(path)
    return [
        _Event(visit.stop, -depth, path, call, "leave", visit.returned),
        _Event(visit.start, 1 + depth, path, call, "enter", visit.given),
    ]


class _Forward(threading.local):
    """One forward of the model, in each thread its own. A copy starts anew."""

    def __init__(self) -> None:
        self.running = False
        self.calls: dict[str, int] = defaultdict(int)
        self.met: dict[tuple[str, int, str], list[weakref.ref]] = defaultdict(list)

    def __reduce__(self) -> Any:
        return _Forward, ()

    def start(self, module: nn.Module, args: Any) -> None:
        self.running = not torch.is_grad_enabled()
        self.calls.clear()
        self.met.clear()

    def stop(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self.running = False
        self.met.clear()


@dataclass
class _Hooks:
    """Of one module."""

    path: str
    forward: _Forward
    meets: dict[tuple[int, str], list[tuple[int, tuple[str, int, str]]]] = field(default_factory=dict)
    """By call and side: the places of values, and where each of them goes."""

    def enter(self, module: nn.Module, positional: Any, keyword: Any) -> None:
        if self.forward.running:
            call = self.forward.calls[self.path]
            self.forward.calls[self.path] += 1
            self._pass(call, "given", "enter", tensors_in((positional, keyword)))

    def leave(self, module: nn.Module, positional: Any, keyword: Any, outputs: Any) -> None:
        if self.forward.running:
            self._pass(self.forward.calls[self.path] - 1, "returned", "leave", tensors_in(outputs))

    def _pass(self, call: int, side: str, when: str, passing: list[Tensor]) -> None:
        for place, where in self.meets.get((call, side), ()):
            if place < len(passing):
                self.forward.met[where].append(weakref.ref(passing[place]))
        # What is passed on is still wanted, also where another lever has since made it the same memory.
        wanted = {tensor.untyped_storage()._cdata for tensor in passing}
        for one in self.forward.met.pop((self.path, call, when), ()):
            tensor = one()
            if tensor is not None and tensor.untyped_storage()._cdata not in wanted:
                # The same sizes, for whoever asks; NaN, so that a reader that should not be would be seen.
                tensor.data = torch.full((), torch.nan, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
