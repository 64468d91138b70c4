"""Run written-down calls again, in their order, for one value that backward asks for."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sash.plans._operators import IN_PLACE, call_again, copied, outputs_of, written_places


class Leaf:
    """A storage that no written-down call made: a parameter's, an input's."""

    __slots__ = ("held", "version")

    def __init__(self, held: Tensor) -> None:
        self.held = held
        self.version: int | None = None

    def seal(self) -> None:
        """Forward is over: from here on it must not change."""
        self.version = self.held._version

    def content(self, func: Any) -> Tensor:
        """The storage, for a second run of an operator."""
        if self.version in (None, self.held._version) or isinstance(self.held, FakeTensor):
            return self.held
        raise RuntimeError(
            f"a tensor of size {tuple(self.held.shape)} was changed in place between forward and backward (version {self.held._version}, "
            f"expected {self.version}); {func} cannot run again on it. Run backward before the optimizer's step."
        )


class Value:
    """A storage's content as one call left it."""

    __slots__ = ("__weakref__", "call", "handles", "held", "made", "sources", "version", "waiting")

    def __init__(self, call: Call | None) -> None:
        self.call = call
        self.held: Tensor | None = None
        """Held from forward on, for others to be computed from."""
        self.version: int | None = None
        """Of `held` when forward was over."""
        self.made: Tensor | None = None
        """Made again, and wanted by further nodes."""
        self.handles = 0
        """Saved tensors that stand for it."""
        self.sources: tuple[Value, ...] = ()
        """Held values that it is computed from."""
        self.waiting = 0
        """Dropped values that still need `held`."""

    def seal(self) -> None:
        """Forward is over."""
        self.version = None if self.held is None else self.held._version

    @property
    def content(self) -> Tensor | None:
        """The value, where it is at hand."""
        if self.made is not None:
            return self.made
        if self.held is None or not (self.version in (None, self.held._version) or isinstance(self.held, FakeTensor)):
            return None
        return self.held


class View(NamedTuple):
    """A tensor as a window on a storage."""

    source: Value | Leaf
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, source: Value | Leaf) -> View:
        """The tensor as a window on what is known of its storage."""
        return cls(source, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def on(self, whole: Tensor) -> Tensor:
        """The same window on another copy of the storage."""
        if whole.dtype is not self.dtype:
            whole = whole.as_strided((whole.untyped_storage().nbytes() // whole.element_size(),), (1,), 0).view(self.dtype)
        if self.offset == whole.storage_offset() and whole.size() == self.size and whole.stride() == self.stride:
            return whole
        return whole.as_strided(self.size, self.stride, self.offset)


class Call:
    """An operator call that can run again."""

    __slots__ = ("args", "func", "generator", "kwargs", "makes", "notes", "number", "segment")

    def __init__(
        self,
        number: int,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        generator: tuple[torch.Generator | None, Tensor] | None,
        segment: tuple[int, ...],
    ) -> None:
        self.number = number
        """Order in the forward pass."""
        self.func = func
        self.args = args
        """A `View` for every tensor."""
        self.kwargs = kwargs
        self.generator = generator
        """What it draws from, and the state before it."""
        self.segment = segment
        self.makes: dict[int, weakref.ref[Value]] = {}
        """Its results, by place."""
        self.notes: tuple[Tensor, ...] | None = None
        """What a shorter second run needs; see `call_again`."""


def sources(value: Value) -> tuple[Value, ...]:
    """Held values that it is computed from."""
    found, seen, waiting = [], {value}, [value]
    while waiting:
        for source in _reads(waiting.pop()):
            if source not in seen:
                seen.add(source)
                (waiting if source.content is None else found).append(source)
    return tuple(found)


def replay(target: Value) -> Tensor:
    """The value's storage, from what is at hand; values of its segment that backward will ask for next are left at hand as well."""
    whole = target.content
    if whole is not None:
        return whole
    needed = {target}
    waiting = [target]
    while waiting:
        for source in _reads(waiting.pop()):
            if source not in needed and source.content is None:
                needed.add(source)
                waiting.append(source)
    calls = {value.call.number: value.call for value in needed if value.call is not None}
    run = _Run(target, needed, Counter(view.source for call in calls.values() for view in _views(call)))
    for number in sorted(calls):
        run.call(calls[number])
    return run.made[target]


class _Run:
    def __init__(self, target: Value, needed: set[Value], readers: Counter[Value | Leaf]) -> None:
        self.target = target
        self.needed = needed
        self.readers = readers
        self.made: dict[Value | Leaf, Tensor] = {}
        assert target.call is not None
        self.segment = target.call.segment

    def call(self, call: Call) -> None:
        func = call.func
        views = _views(call)
        if func in IN_PLACE and len(views) == 1 and self._free(views[0]):
            func = IN_PLACE[func]
        places = written_places(func)
        args = tuple(self._filled(call, item, place in places) for place, item in enumerate(call.args))
        kwargs = {name: self._filled(call, item, name in places) for name, item in call.kwargs.items()}
        with _as_before(call.generator):
            result = call_again(func, args, kwargs, call.notes)
        del args, kwargs
        for view in views:
            self.readers[view.source] -= 1
            if self.readers[view.source] == 0 and view.source is not self.target:
                self.made.pop(view.source, None)
        for place, output in enumerate(outputs_of(result)):
            value = call.makes[place]() if place in call.makes else None
            if value is None or output is None or not (value in self.needed or self._wanted(value)):
                continue
            self.made[value] = output
            if self._wanted(value):
                value.made = output
            if self.readers[value] == 0 and value is not self.target:
                del self.made[value]

    def _wanted(self, value: Value) -> bool:
        """Whether further nodes will ask for it soon."""
        own = value.call.segment if value.call is not None else ()
        return value.handles > 0 and value.held is None and own == self.segment[: len(own)]

    def _free(self, view: View) -> bool:
        """Whether the tensor was made in this run, for this one reader."""
        if isinstance(view.source, Leaf) or view.source.made is not None:
            return False
        made = self.made.get(view.source)
        return made is not None and self.readers[view.source] == 1 and view.on(made) is made

    def _filled(self, call: Call, item: Any, write: bool) -> Any:
        # Not isinstance(item, tuple): a View is one.
        if isinstance(item, View):
            return item.on(self._whole(call, item.source, write))
        if isinstance(item, list):
            return [self._filled(call, one, write) for one in item]
        return item

    def _whole(self, call: Call, source: Value | Leaf, write: bool) -> Tensor:
        if isinstance(source, Leaf):
            return source.content(call.func)
        made = self.made.get(source)
        if made is not None and source.made is None:
            return made
        whole = source.content
        assert whole is not None
        # What others will read must not be written into.
        return copied(whole) if write else whole


def _reads(value: Value) -> list[Value]:
    if value.call is None:
        raise RuntimeError("a tensor that backward needs was changed in place after forward; leave that out of place, or plan anew.")
    return [view.source for view in _views(value.call) if isinstance(view.source, Value)]


def _views(call: Call) -> list[View]:
    found: list[View] = []
    for item in (*call.args, *call.kwargs.values()):
        if isinstance(item, View):
            found.append(item)
        elif isinstance(item, list):
            found += [one for one in item if isinstance(one, View)]
    return found


@contextmanager
def _as_before(generator: tuple[torch.Generator | None, Tensor] | None):
    """With the generator in the state of the first run; afterwards as it was."""
    if generator is None:
        yield
        return
    drawn_from, state = generator
    if drawn_from is None:
        now = state.clone()
        yield
        del now
        return
    now = drawn_from.get_state()
    drawn_from.set_state(state)
    try:
        yield
    finally:
        drawn_from.set_state(now)
