"""One forward pass that keeps less for backward, and computes the rest again when backward asks for it.

Below autograd every operator call passes a dispatch mode. Of the calls that the plan names, results to be kept are held, and the calls that
may have to run again are written down with their arguments. What autograd saves goes through a pair of hooks: a value that the plan drops
is replaced by a note of which call made it, and is made again, from what is held, when a backward node unpacks it.

Whatever the plan says, the gradients are right: a value is only dropped if the call that made it was written down in this very pass, and
what it is computed from is copied before anything in forward writes over it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost import looking
from sash.plans._operators import (
    LOOKS,
    copied,
    is_plain,
    is_pure,
    is_random,
    is_replayable,
    note_bytes,
    notes,
    outputs_of,
    storages,
    tensors_in_call,
    updated,
    without_updates,
    written,
    written_places,
)
from sash.plans._replay import Call, Leaf, Value, View, replay, sources


class Marks(NamedTuple):
    """What the plan says of one operator call."""

    keep: tuple[int, ...] = ()
    """Results to hold, by place, because others are computed from them."""
    drop: tuple[int, ...] = ()
    """Results that autograd shall not hold."""
    replay: bool = False
    """Whether it may have to run again."""
    segment: tuple[int, ...] = ()
    """What is made again is made for its whole segment at once; (2, 1) lies within (2,)."""


NONE = Marks()
STATE_BYTES = 5056
"""Of a CPU generator."""


class Session(TorchDispatchMode):
    """Around one forward pass. `marks` names calls by operator and by how many of that operator came before."""

    def __init__(self, marks: dict[str, dict[int, Marks]]) -> None:
        super().__init__()
        self._marks = marks
        self._counts: dict[Any, list[Any]] = {}
        self._number = 0
        self._now: dict[int, Value] = {}
        """By storage: the value that it holds now."""
        self._leaves: dict[int, Leaf] = {}
        """By storage: parameters, inputs and whatever else calls read that no call made."""
        self._watchers: dict[int, weakref.ref] = {}
        self._holding: weakref.WeakSet[Value] = weakref.WeakSet()
        self._dropped: weakref.WeakSet[Value] = weakref.WeakSet()
        self._running = True
        self._hooks: Any = None

    def start(self) -> None:
        """Watch what runs from here on, and what autograd saves of it."""
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        self.__enter__()

    def stop(self) -> None:
        """The forward pass is over. What changes from here on is told when it is needed."""
        self.__exit__(None, None, None)
        self._hooks.__exit__(None, None, None)
        self._hooks = None
        self._running = False
        for value in self._holding:
            value.seal()
        for leaf in self._leaves.values():
            leaf.seal()
        self._now.clear()
        self._leaves.clear()
        self._watchers.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in LOOKS:
            return func(*args, **kwargs)
        state = self._counts.get(func)
        if state is None:
            state = self._counts[func] = [0, self._marks.get(str(func)), is_pure(func)]
        nth, marked, pure = state
        state[0] = nth + 1
        marks = NONE if marked is None else marked.get(nth, NONE)
        if pure and marks is NONE:
            self._number += 1
            return func(*args, **kwargs)
        return self._noted(func, args, kwargs, marks)

    def _noted(self, func: Any, args: tuple, kwargs: dict, marks: Marks) -> Any:
        self._number += 1
        over = storages(written(func, args, kwargs)) if written_places(func) else {}
        call = self._call(func, args, kwargs, marks, over) if marks.replay and is_replayable(func) else None
        changed = over | storages(updated(func, args))
        self._spare(changed)
        result = func(*args, **kwargs)
        for key, tensor in changed.items():
            value = self._now.pop(key, None)
            if value is not None and value.handles:
                # Autograd saved it before the call wrote into it, as it does with the noise of a random ReLU: it wants what is there now.
                value.held, value.call = _alias(tensor), None
                self._holding.add(value)
        if call is not None:
            call.notes = notes(func, args, result)
        if call is None and not marks.keep:
            return result
        read = storages(tensors_in_call((*args, *kwargs.values())))
        for place, output in enumerate(outputs_of(result)):
            if output is None or not is_plain(output) or (call is None and place not in marks.keep):
                continue
            storage = output.untyped_storage()
            key = storage._cdata
            if key in read and key not in over:
                continue  # a view of what it read
            value = Value(call)
            if call is not None:
                call.makes[place] = weakref.ref(value)
                if place in marks.drop:
                    self._dropped.add(value)
            if place in marks.keep:
                value.held = _alias(output)
                self._holding.add(value)
            self._now[key] = value
            self._watchers[key] = weakref.ref(storage, self._forgets(key))
        return result

    def _call(self, func: Any, args: tuple, kwargs: dict, marks: Marks, over: dict[int, Tensor]) -> Call | None:
        """The call, written down; None where it would write into something that is not made again."""
        tensors = list(tensors_in_call((*args, *kwargs.values())))
        if not all(key in self._now for key in over) or not all(is_plain(tensor) for tensor in tensors):
            return None

        def view(tensor: Tensor) -> View:
            key = tensor.untyped_storage()._cdata
            source = self._now.get(key) or self._leaves.get(key)
            if source is None:
                source = self._leaves[key] = Leaf(_alias(tensor))
            return View.of(tensor, source)

        noted = mapped(without_updates(func, args), view), {name: mapped((item,), view)[0] for name, item in kwargs.items()}
        generator = None if note_bytes(func, args) else _generator(func, tensors, kwargs)
        return Call(self._number, func, *noted, generator, marks.segment)

    def _spare(self, over: dict[int, Tensor]) -> None:
        """Copy what may be needed again before it is written over."""
        for key in over:
            leaf, value = self._leaves.pop(key, None), self._now.get(key)
            if leaf is not None:
                leaf.held = copied(leaf.held)
            if value is not None and value.held is not None:
                value.held = copied(value.held)

    def _forgets(self, key: int) -> Callable[[Any], None]:
        # Not the session itself: a storage that outlives the pass would hold it.
        now, watchers = self._now, self._watchers

        def forget(_: Any) -> None:
            now.pop(key, None)
            watchers.pop(key, None)

        return forget

    def _pack(self, tensor: Tensor) -> Any:
        value = self._now.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None
        if value is None or value not in self._dropped or not is_plain(tensor):
            return _Held(_bare(tensor), tensor._version)
        if value.handles == 0:
            value.sources = sources(value)
            for source in value.sources:
                source.waiting += 1
        value.handles += 1
        return _Dropped(self, View.of(tensor, value), value)

    def _unpack(self, handle: Any) -> Tensor:
        if isinstance(handle, _Dropped) and looking():
            return torch.empty_strided(handle.view.size, handle.view.stride, dtype=handle.view.dtype, device="meta")
        if torch.is_grad_enabled() and not looking():
            raise RuntimeError(
                "a planned run makes what backward needs again, outside of any graph: create_graph=True does not go with it."
            )
        if isinstance(handle, _Dropped):
            # As in forward: some kernels ask whether gradients are on. Nothing here requires one, so no graph is made.
            with torch.enable_grad():
                return handle.view.on(replay(handle.value))
        if handle.tensor._version != handle.version:
            raise RuntimeError(
                f"a tensor of size {tuple(handle.tensor.shape)} that backward needs was changed in place after it was saved "
                f"(version {handle.tensor._version}, expected {handle.version})."
            )
        return handle.tensor

    def let_go(self, value: Value) -> None:
        """One saved tensor that stood for the value is gone."""
        value.handles -= 1
        if value.handles:
            return
        value.made = None
        for source in value.sources:
            source.waiting -= 1
            # In forward others may still come to need it.
            if source.waiting == 0 and not self._running:
                source.held = None


def _bare(tensor: Tensor) -> Tensor:
    """The tensor without the graph that made it, past all modes where it is an ordinary one: no other call is made as often."""
    kind = type(tensor)
    if kind is nn.Parameter:
        return tensor  # none made it
    if kind is not Tensor:
        return tensor.detach()
    with torch._C._DisableTorchDispatch():
        return tensor.detach()


def _alias(output: Tensor) -> Tensor:
    """Another tensor on the same storage, for the tensor itself will be given the graph that holds the session.

    It shares the version counter, which a `detach` below autograd would not do by itself; stand-ins have none worth sharing.
    """
    if isinstance(output, FakeTensor):
        return output.detach()
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):  # pyright: ignore[reportAttributeAccessIssue]
        return output.detach()


class _Held:
    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor, version: int) -> None:
        self.tensor = tensor
        self.version = version


class _Dropped:
    __slots__ = ("session", "value", "view")

    def __init__(self, session: Session, view: View, value: Value) -> None:
        self.session = session
        self.view = view
        self.value = value

    def __del__(self) -> None:
        self.session.let_go(self.value)


def mapped(args: tuple, function: Callable[[Tensor], Any]) -> tuple:
    """Arguments with every tensor replaced, in lists too."""
    return tuple(
        function(value)
        if isinstance(value, Tensor)
        else list(mapped(tuple(value), function))
        if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value)
        else value
        for value in args
    )


def _generator(func: Any, tensors: Iterable[Tensor], kwargs: dict) -> tuple[torch.Generator | None, Tensor] | None:
    """The generator that the call draws from, and its state before. Stand-ins draw from none, but the state takes its bytes."""
    if not is_random(func):
        return None
    generator = kwargs.get("generator") or torch.default_generator
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return None, torch.empty(STATE_BYTES, dtype=torch.uint8)
    return generator, generator.get_state()
