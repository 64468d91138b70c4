"""Losses, and what may follow them: where they compare samples with each other, and where their mean is not one over samples."""

from __future__ import annotations

from math import prod
from typing import Any

from sash.plans._recorded import Call, Ref
from sash.plans._samples import SAME_ORDER, Const, Mixes, Reader, Rows, State, Total, place, same_number, same_scalars


def likelihood(reader: Reader, call: Call) -> list[State]:
    """The negative log-likelihood of labels."""
    scores, labels = call.args["self"], call.args["target"]
    if not all(isinstance(reader.state(ref), Rows) for ref in (scores, labels)):
        raise Mixes("compares samples with labels that are no input: they belong to the whole batch; make them an input of the model")
    if reader.place(scores).dim != 0 or reader.place(labels).dim != 0 or reader.place(scores).inner != reader.place(labels).inner:
        raise Mixes("is given scores and labels in different orders")
    reduction = call.args["reduction"]
    if reduction == 1:
        _same_number_of_labels(reader, call, labels)
    state = reader.rows_along(call.outputs[0], 0, reader.place(scores).inner) if reduction == 0 else _REDUCED[reduction]
    return [state, Const(flat=True)]


def _same_number_of_labels(reader: Reader, call: Call, labels: Ref) -> None:
    """A mean over labels weighs samples alike only if each has as many."""
    if call.args["weight"] is not None:
        raise Mixes("is a mean weighted by class: each batch has its own sum of weights. Exact as a sum divided by a fixed number")
    state, label = reader.state(labels), call.args["ignore_index"]
    source = state.source if isinstance(state, Rows) else None
    found = reader.ignored(source, label) if source is not None else None
    several = prod(reader.full.shape(labels)) > reader.batch
    if found or (several and found is None):
        which = "hold it" if found else "are not known not to hold it"
        raise Mixes(
            f"is a mean over the labels that are not {label} (ignored), and the labels {which}: micro-batches may hold unequally many. "
            "Exact as a sum divided by a fixed number"
        )


def measured(reader: Reader, call: Call) -> list[State]:
    """A loss of two tensors, element by element, then reduced."""
    shape = reader.full.shape(call.args["self"])
    steps = set()
    for ref, state in reader.given(call):
        if reader.full.shape(ref) != shape:
            raise Mixes("pairs samples with each other")
        steps.add(state.step)
    if len(steps) != 1:
        raise Mixes("pairs samples with each other")
    place(shape, next(iter(steps)), reader.batch)
    reduction = call.args["reduction"]
    return [Rows(steps.pop()) if reduction == 0 else _REDUCED[reduction]]


def of_totals(reader: Reader, call: Call, twin: Call, name: str) -> State:
    """Only what is linear may follow a sum or a mean over the samples."""
    states = [reader.state(ref) for ref in call.refs()]
    if any(isinstance(state, Rows) for state in states):
        raise Mixes("gives a figure of the whole batch (a mean, a sum) back to its samples")
    totals = [state for state in states if isinstance(state, Total)]
    kinds = {state.kind for state in totals}
    if len(kinds) > 1:
        raise Mixes("adds a mean over the samples to a sum over them")
    kind = kinds.pop()
    if name in ("add", "sub", "rsub") and (len(totals) == 2 or kind == "mean"):
        same_scalars(call, twin, name)
        return Total(kind)
    if name in ("mul", "div") and len(totals) == 1 and not call.args.get("rounding_mode") and isinstance(call.args["self"], Ref):
        other = next((key for key in ("other", "self") if not _is_total(reader, call.args[key])), "")
        if not (name == "div" and other == "self"):
            return _scaled(reader, call, twin, name, kind, other)
    if (name in _LINEAR or name in SAME_ORDER) and all(isinstance(state, Total) for state in states):
        return Total(kind)
    if len(totals) > 1:
        raise Mixes(f"weighs one {kind} over the samples by another, as a weighted mean does")
    raise Mixes(f"is no linear function of a {kind} over the samples")


def _is_total(reader: Reader, value: Any) -> bool:
    return isinstance(value, Ref) and isinstance(reader.state(value), Total)


def _scaled(reader: Reader, call: Call, twin: Call, name: str, kind: str, other: str) -> State:
    one, two = call.args[other], twin.args[other]
    if isinstance(one, Ref):
        if reader.state(one) == Const() and reader.grows(one):
            raise Mixes("scales by a constant whose size depends on the batch")
        return Total(kind)
    if same_number(one, two):
        return Total(kind)
    ratio = one / two if name == "div" else two / one if one else 0
    if kind == "sum" and same_number(ratio, reader.parts):
        return Total("mean")
    raise Mixes(f"uses a number that depends on the batch size ({one:g} and {two:g})")


_LINEAR = frozenset({"neg", "sum", "mean", "stack", "cat", "select", "unbind", "expand", "permute", "t", "transpose"})
_REDUCED: dict[int, State] = {1: Total("mean"), 2: Total("sum")}
