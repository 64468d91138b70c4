"""A forward pass as operator calls and the values that they make, with what backward will want of them."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sash.cost import Category, Rates, Tracer, Workload, looking, operator_seconds, trace_step
from sash.plans._operators import (
    IN_PLACE,
    LOOKS,
    is_replayable,
    note_bytes,
    outputs_of,
    share_again,
    tensors_in_call,
    without_updates,
    written,
)


@dataclass(slots=True, eq=False)
class Node:
    """One operator call of the forward pass."""

    number: int
    name: str
    nth: int
    """Calls of the same operator before it."""
    module: str
    moment: int
    seconds: float
    again_s: float
    """Seconds of a second run."""
    reads: tuple[Fact, ...]
    """Values that it reads; parameters, buffers and inputs of the model are not among them."""
    replayable: bool
    """Running it again on the same values gives the same bits, and changes nothing else."""
    scratch_bytes: int = 0
    """What its kernel allocates inside."""
    makes: list[Fact] = field(default_factory=list)
    over: list[Fact] = field(default_factory=list)
    """Of `reads`, those that it writes over."""
    in_place: bool = False
    """Whether a second run may write over its only input, where nothing else reads that."""
    note_bytes: int = 0
    """What has to be noted of its results for a second run."""
    leaves: tuple[int, ...] = ()
    """Storages of parameters, buffers and inputs that it reads."""

    @property
    def spread_bytes(self) -> int:
        """What noting takes for a while, and reading the notes."""
        return 8 * self.note_bytes


@dataclass(slots=True, eq=False)
class Fact:
    """One storage's content between two writes."""

    node: Node
    place: int
    """Which of the call's results it is."""
    bytes: int
    born: int
    """Moment of the step in which it was made."""
    freed: int
    """Moment from which forward itself does without it; autograd may hold it longer."""
    shape: tuple[int, ...]
    overwritten: bool = False
    """A later call wrote into its storage: it can only be computed again."""
    wanted: list[int] = field(default_factory=list)
    """Moments of the backward pass in which a node asks for it."""
    released: int = 0
    """Moment from which backward does without it; 0 where autograd does not hold it."""


@dataclass
class Graph:
    """The model's forward pass in one step, and the step's memory without what autograd holds for it."""

    nodes: list[Node]
    facts: list[Fact]
    levels: list[int]
    """Bytes alive in each moment up to the optimizer, if autograd held none of the facts."""
    carried: list[int]
    """Of these, what was alive in the moment before as well: there is as much between the two."""
    forward_end: int
    """First moment after the model's forward."""


def record(work: Workload, rates: Rates) -> Graph:
    """The graph of a training step, found on stand-ins: nothing is computed. Raises what `forecast` raises."""
    observer = _Observer(rates)
    before = work.rewrite

    def rewrite(model: nn.Module) -> nn.Module:
        return observer.attach(before(model) if before is not None else model)

    # Further micro-batches find the gradients of the first one there; what they save is the same.
    traced = trace_step(replace(work, rewrite=rewrite, accumulate=1), meet=observer.meet)
    end, steady = traced.optimizer_start, traced.steady_start
    lives = traced.trace.lives
    moments = len(traced.trace.moments) if end is None else end
    change, lasting = [0] * (moments + 1), [0] * (moments + 1)
    for life in lives:
        died = moments if life.died is None else min(life.died, moments)
        born = life.born
        if life.category is Category.OPTIMIZER and steady is not None and born >= moments:
            born, died = 0, moments  # made by the first optimizer step, there from the start in every later one
        if born < moments:
            change[born] += life.bytes
            change[died] -= life.bytes
            lasting[min(born + 1, died) if born else 0] += life.bytes
            lasting[died] -= life.bytes
    levels, carried = list(accumulate(change[:-1])), list(accumulate(lasting[:-1]))
    scratch = {life.born: life.bytes for life in lives if life.category is Category.SCRATCH}
    for node in observer.nodes:
        node.scratch_bytes = scratch.get(node.moment, 0)
    if work.accumulate > 1:
        gradients = sum(life.bytes for life in lives if life.category is Category.GRADIENT)
        levels, carried = [level + gradients for level in levels], [level + gradients for level in carried]
    for fact in observer.facts:
        fact.freed = fact.freed or moments
    return Graph(observer.nodes, observer.facts, levels, carried, observer.forward_end)


class _Observer:
    """Attached to a model before its step is traced."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.nodes: list[Node] = []
        self.facts: list[Fact] = []
        self.forward_end = 0
        self._tracer: Tracer | None = None
        self._entered: list[Any] = []

    def meet(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @property
    def tracer(self) -> Tracer:
        assert self._tracer is not None
        return self._tracer

    @property
    def now(self) -> int:
        return len(self.tracer.trace.moments)

    def attach(self, model: nn.Module) -> nn.Module:
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        return model

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.nodes or self._entered:
            return
        recorder = _Recorder(self)
        hooks = torch.autograd.graph.saved_tensors_hooks(recorder.pack, recorder.unpack)
        hooks.__enter__()
        recorder.__enter__()
        self._entered.append((recorder, hooks))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._entered:
            recorder, hooks = self._entered.pop()
            recorder.__exit__(None, None, None)
            hooks.__exit__(None, None, None)
            recorder.close()
            # Its watchers go on telling when forward's values die.
            self.recorder = recorder
            self.forward_end = self.now


class _Recorder(TorchDispatchMode):
    """Sits above the tracer: sees the calls that it sees, and takes what autograd saves out of its sight."""

    def __init__(self, observer: _Observer) -> None:
        super().__init__()
        self.observer = observer
        self._counts: Counter[Any] = Counter()
        self._now: dict[int, Fact] = {}
        self._watchers: dict[int, weakref.ref] = {}
        self._unsteady: set[int] = set()
        """Leaves that forward writes into."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in LOOKS or func.namespace == "prim":
            return func(*args, **kwargs)
        observer = self.observer
        nth = self._counts[func]
        self._counts[func] += 1
        keys = {tensor.untyped_storage()._cdata for tensor in tensors_in_call((*without_updates(func, args), *kwargs.values()))}
        over = {tensor.untyped_storage()._cdata for tensor in written(func, args, kwargs)}
        moment = observer.now
        result = func(*args, **kwargs)
        module = observer.tracer.trace.moments[-1].module if observer.now > moment else ""
        reads = tuple(self._now[key] for key in keys if key in self._now)
        leaves = tuple(key for key in keys if key not in self._now)
        self._unsteady.update(over.difference(self._now))
        with _disable_current_modes():
            # Its questions to shapes are no calls of the step.
            seconds = operator_seconds(func, args, kwargs, result, observer.rates).seconds
        node = Node(
            len(observer.nodes),
            str(func),
            nth,
            module,
            moment,
            seconds,
            seconds * share_again(func, args),
            reads,
            is_replayable(func),
            in_place=func in IN_PLACE,
            leaves=leaves,
            note_bytes=note_bytes(func, args),
        )
        observer.nodes.append(node)
        for place, output in enumerate(outputs_of(result)):
            if output is not None:
                self._made(node, place, output, keys, over)
        return result

    def _made(self, node: Node, place: int, output: Tensor, keys: set[int], over: set[int]) -> None:
        storage = output.untyped_storage()
        key = storage._cdata
        if key in over and key in self._now:
            self._now[key].overwritten = True
            node.over.append(self._now[key])
        elif key in keys:
            return  # a view of what it read
        life = self.observer.tracer.life_of(output)
        size = life.bytes if life is not None else 0
        fact = Fact(node, place, size, node.moment, 0, tuple(output.shape))
        node.makes.append(fact)
        self.observer.facts.append(fact)
        self._now[key] = fact
        self._watchers[key] = weakref.ref(storage, lambda _: self._freed(key))

    def _freed(self, key: int) -> None:
        fact = self._now.pop(key, None)
        self._watchers.pop(key, None)
        if fact is not None:
            fact.freed = self.observer.now

    def close(self) -> None:
        """The forward pass is over; what still lives is the outputs' and theirs."""
        for node in self.observer.nodes:
            node.replayable &= self._unsteady.isdisjoint(node.leaves)

    def pack(self, tensor: Tensor) -> Any:
        fact = self._now.get(tensor.untyped_storage()._cdata)
        if fact is None:
            return tensor.detach()
        return _Saved(self.observer, fact, self._stand_in(tensor))

    def _stand_in(self, tensor: Any) -> Tensor:
        with _disable_current_modes(), tensor.fake_mode:
            stand = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        self.observer.tracer.ignore(stand)
        return stand

    def unpack(self, saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if not looking():
            saved.fact.wanted.append(self.observer.now)
        return saved.stand


class _Saved:
    """What autograd holds instead of a fact; when it is gone, backward does without the fact."""

    def __init__(self, observer: _Observer, fact: Fact, stand: Tensor) -> None:
        self.observer = observer
        self.fact = fact
        self.stand = stand

    def __del__(self) -> None:
        self.fact.released = max(self.fact.released, self.observer.now)
