"""Which operators of a step mix the samples of a batch, and whether its loss is their mean or their sum.

The step is recorded on stand-ins at two batch sizes. The samples are then followed through the record, operator by operator: where in
every tensor they lie, and where two of them meet. An operator without a rule here that is given samples counts as mixing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import torch

from sash.plans._mixing_rules import BATCH_NORMS, outcome
from sash.plans._recorded import Call, Record, Ref
from sash.plans._samples import Const, Mixes, Place, Rows, State, Total, place, step_along


@dataclass(frozen=True)
class Mixing:
    """What stands between a step and its micro-batches."""

    reasons: tuple[str, ...]
    """A sentence for everything that would change the result; empty where there is nothing."""
    loss: str
    """`"mean"` or `"sum"`, over the samples."""


def mixing(full: Record, part: Record, batch: int, parts: int, ignored: Callable[[int, int], bool | None]) -> Mixing:
    """What mixes samples in a step recorded with the whole batch and with a part of it.

    `ignored(source, label)` says whether an input's values hold that label; None where they are not known.
    """
    reader = _Reader(full, part, batch, parts, ignored)
    for index in range(len(full.inputs)):
        ref = full.inputs[index]
        if full.shape(ref)[:1] == (batch,) and part.shape(part.inputs[index])[:1] == (batch // parts,):
            reader.states[ref] = Rows(prod(full.shape(ref)[1:]), index)
    return reader.read()


@dataclass
class _Reader:
    full: Record
    part: Record
    batch: int
    parts: int
    ignored: Callable[[int, int], bool | None]
    states: dict[Ref, State] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """By what is to blame."""
    normed: dict[str, None] = field(default_factory=dict)
    """Batch norms that use the batch's own statistics."""
    drawn: dict[str, None] = field(default_factory=dict)
    """Modules that draw random numbers."""
    writes: dict[str, list[str]] = field(default_factory=dict)
    """Modules that write into buffers or parameters, and which."""
    _twins: dict[Ref, Ref] = field(default_factory=dict)

    def read(self) -> Mixing:
        kind = "mean"
        try:
            self._pair()
            for call, twin in zip(self.full.calls, self.part.calls, strict=True):
                try:
                    self._follow(call, twin)
                except Mixes as found:
                    layer = call.module or "outside every layer, in the model's forward or the loss,"
                    raise Mixes(f"{layer}: {call.name} {found}") from found
            kind = self._loss()
        except Mixes as found:
            self.reasons["mixes"] = f"{found}."
        if self.normed:
            self.reasons["normed"] = (
                f"Batch norm in training normalises over the whole batch: {_listed(list(self.normed))}. Exact with frozen statistics "
                "(evaluation mode), group norm, or statistics accumulated over the micro-batches in a pass before."
            )
        for module, names in self.writes.items():
            if module not in self.normed:
                what = ", ".join(sorted(set(names)))
                self.reasons[module] = f"{module or 'the model'} writes into {what} in forward, once for every micro-batch instead of once."
        if self.drawn:
            self.reasons["drawn"] = (
                f"Random numbers (dropout) are drawn by {_listed(list(self.drawn))}: micro-batches draw others than the whole batch, "
                "alike only on average. Exact with dropout 0."
            )
        for name in self.full.own_backwards:
            self.reasons[name] = f"the backward of {name} is its own: whether it keeps samples apart cannot be seen."
        return Mixing(tuple(self.reasons.values()), kind)

    def _pair(self) -> None:
        """The same tensors in both records."""
        ours, theirs = self.full.calls, self.part.calls
        for call, twin in zip(ours, theirs, strict=False):
            if call.func is not twin.func or len(call.outputs) != len(twin.outputs):
                raise Mixes(f"{call.module or 'the model'} calls {call.name} for a batch of {self.batch} and {twin.name} for a part of it")
            given = list(zip(call.refs(), twin.refs(), strict=False))
            self._twins.update([*given, *zip(call.outputs, twin.outputs, strict=True)])
        if len(ours) != len(theirs):
            raise Mixes(f"the step calls {len(ours)} operators for a batch of {self.batch} and {len(theirs)} for a part of it")

    def _loss(self) -> str:
        result = self.full.result
        state = self.state(result) if result is not None else Const()
        if isinstance(state, Total):
            return state.kind
        if isinstance(state, Rows):
            raise Mixes("the loss is neither a mean nor a sum over the samples")
        return "mean"

    def state(self, ref: Ref) -> State:
        return self.states.get(ref, Const())

    def grows(self, ref: Ref) -> bool:
        """Whether a tensor's size depends on the batch."""
        return self.full.shape(ref) != self.part.shape(self._twins.get(ref, ref))

    def place(self, ref: Ref) -> Place:
        state = self.state(ref)
        assert isinstance(state, Rows)
        return place(self.full.shape(ref), state.step, self.batch)

    def rows_along(self, ref: Ref, dim: int, inner: int, source: int | None = None) -> Rows:
        """The samples of an output that lie along `dim`."""
        shape = self.full.shape(ref)
        dim %= max(len(shape), 1)
        state = Rows(step_along(shape, dim, inner), source)
        if place(shape, state.step, self.batch).dim != dim:
            raise Mixes("moves samples in a way that is not known")
        return state

    def rows_by_shape(self, ref: Ref) -> Rows:
        """The samples of a tensor of which only one size depends on the batch, and is the batch."""
        shape, other = self.full.shape(ref), self.part.shape(self._twins[ref])
        dims = [dim for dim, (one, two) in enumerate(zip(shape, other, strict=False)) if one != two]
        if len(shape) != len(other) or len(dims) != 1 or (shape[dims[0]], other[dims[0]]) != (self.batch, self.batch // self.parts):
            raise Mixes("returns samples in an order that is not known")
        return self.rows_along(ref, dims[0], 1)

    def given(self, call: Call) -> list[tuple[Ref, Rows]]:
        """Its arguments that hold samples."""
        states = [(ref, self.state(ref)) for ref in call.refs()]
        return [(ref, state) for ref, state in states if isinstance(state, Rows)]

    def one_place(self, call: Call) -> Place:
        """Where the samples are in all of its arguments that hold any."""
        places = [self.place(ref) for ref, _ in self.given(call)]
        if any(one != places[0] for one in places):
            raise Mixes("is given the samples of its arguments along different axes")
        return places[0]

    def _follow(self, call: Call, twin: Call) -> None:
        states: list[State] = [self.state(ref) for ref in call.refs()]
        if torch.Tag.nondeterministic_seeded in call.func.tags and _draws(call):
            self.drawn[call.module or "the model or its loss"] = None
        made = outcome(self, call, twin)
        for ref, state in zip(call.outputs, made, strict=True):
            self._keep(ref, state, states)
        if call.name in BATCH_NORMS:
            return  # with frozen statistics it writes nothing, and otherwise it is told
        for argument in call.func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(call.args[argument.name], Ref):
                self._write(call, call.args[argument.name], made[0] if made else Const())

    def _keep(self, ref: Ref, state: State, given: list[State]) -> None:
        shape = self.full.shape(ref)
        if isinstance(state, Rows):
            place(shape, state.step, self.batch)
            if prod(shape) != self.parts * prod(self.part.shape(self._twins[ref])):
                raise Mixes("makes a tensor that does not grow as the batch does: it pairs or picks samples")
        elif isinstance(state, Total) and self.grows(ref):
            raise Mixes("gives a figure of the whole batch to each of its samples")
        elif isinstance(state, Const) and any(isinstance(one, Rows) for one in given) and not state.flat:
            raise Mixes("loses track of the samples")
        self.states[ref] = state

    def _write(self, call: Call, ref: Ref, state: State) -> None:
        storage = self.full.storage(ref)
        if storage in self.full.static:
            self.writes.setdefault(call.module, []).append(self.full.static[storage])
            return
        # Every view of the storage has the new content.
        for index, tensor in enumerate(self.full.tensors):
            other = Ref(index)
            if tensor.untyped_storage()._cdata != storage or (other not in self.states and other != ref):
                continue
            before = self.state(other)
            if isinstance(state, Rows) and isinstance(before, Const):
                self.states[other] = state if other == ref else self.rows_by_shape(other)
            elif isinstance(before, Rows):
                self.states[other] = replace(before, source=None)
            elif isinstance(state, Total) or isinstance(before, Total):
                if other != ref:
                    raise Mixes("writes a figure of the whole batch in place")
                self.states[other] = state
            elif not (isinstance(state, Const) and state.flat and other == ref):
                self.states[other] = Const()


def _draws(call: Call) -> bool:
    if call.name == "native_dropout":
        return call.args["train"] is not False and call.args["p"] > 0
    return call.args.get("dropout_p", 1.0) != 0


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
