"""The lever that lets activations and dropout write over their input, where nobody else reads it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sash.cost import Phase, Workload, forecast
from sash.errors import InputError, ModelError
from sash.plans._flow import Flow, Passed, Visit, record_flow
from sash.plans._lever import Exactness, Lever, pull

LEAST_BYTES = 1 << 14
"""Of an input, to be worth writing over."""
_PROBE = 5
"""Longest axis of the small tensor that a module is tried on."""


@dataclass(frozen=True)
class InPlace(Lever):
    """Activations and dropout that write their result over their input. Modules only: what a forward calls by itself stays as it is."""

    name: ClassVar[str] = "inplace"
    modules: tuple[str, ...]
    """Paths; a module with `inplace` has it set, a sigmoid, tanh or GELU becomes one that writes in place."""

    @property
    def exactness(self) -> Exactness:
        return Exactness.BITS

    def describe(self) -> str:
        shown = ", ".join(self.modules[:3]) + (", …" if len(self.modules) > 3 else "")
        return f"{len(self.modules)} activation{'s' * (len(self.modules) != 1)} in place: {shown}"

    def on_model(self, model: nn.Module) -> nn.Module:
        known = dict(model.named_modules(remove_duplicate=False))
        for path in self.modules:
            if path not in known:
                raise InputError(f"'inplace' was planned for a model with a module {path!r}, and this one has none; plan again.")
            _set_in_place(known[path])
        return model


def propose(work: Workload, model: nn.Module) -> InPlace | None:
    """The lever where autograd and the flow of data allow it and the peak falls with it; found on stand-ins.

    A module may write over its input if no other operator reads that afterwards, in forward, loss or backward, if it is no input, output,
    parameter or buffer of the model and nobody holds it when the step is over, and if a small try gives the same bits and gradients.
    """
    if not any(_can_be(module) for module in model.modules()):
        return None
    flow = record_flow(work)
    allowed, calls = allowed_in(flow, work.train), flow.visits_of()
    found = []
    for paths in _choices(allowed, calls):
        try:
            tried = record_flow(pull(work, [InPlace(paths)]))
        except ModelError:
            continue  # autograd refuses
        saving = tuple(path for path in paths if _saves(flow, calls[path], tried, tried.visits_of()[path]))
        if saving:
            found.append((forecast(pull(work, [InPlace(saving)])).peak_bytes, saving))
        if paths == tuple(allowed):
            break
    if not found:
        return None
    peak, paths = min(found)
    return InPlace(paths) if peak < forecast(work).peak_bytes else None


def allowed_in(flow: Flow, train: bool) -> list[str]:
    """Modules that may write over their input, each by itself."""
    modules = dict(flow.model.named_modules())
    return [
        path
        for path, visits in flow.visits_of().items()
        if _can_be(modules[path]) and all(_unread(flow, visit) for visit in visits) and _same_bits(modules[path], visits[0], train)
    ]


def _choices(allowed: list[str], calls: dict[str, list[Visit]]) -> list[tuple[str, ...]]:
    """All that are allowed, and what is left where autograd refuses that.

    It refuses to write into one of several views of a tensor, and to let a second module write over what a first one, once it writes in
    place itself, keeps for its backward.
    """
    if not allowed:
        return []
    apart = [path for path in allowed if not any(visit.given[0].view for visit in calls[path])]
    made = {visit.returned[0].storage for path in apart for visit in calls[path]}
    taken = {visit.given[0].storage for path in apart for visit in calls[path]}
    first = tuple(path for path in apart if not any(visit.given[0].storage in made for visit in calls[path]))
    last = tuple(path for path in apart if not any(visit.returned[0].storage in taken for visit in calls[path]))
    return list(dict.fromkeys(choice for choice in (tuple(allowed), tuple(apart), first, last) if choice))


class _Sigmoid(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        return torch.sigmoid_(input)


class _Tanh(nn.Tanh):
    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh_(input)


class _GELU(nn.GELU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(input, approximate=self.approximate)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Sigmoid: _Sigmoid, nn.Tanh: _Tanh, nn.GELU: _GELU}
"""Of the modules that have no `inplace`, those whose function has a twin that writes in place."""


def _can_be(module: nn.Module) -> bool:
    """Whether a module has a form that writes in place, has it not yet, and holds nothing of its own."""
    bare = not any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
    return bare and (getattr(module, "inplace", None) is False or type(module) in _TWINS)


def _set_in_place(module: nn.Module) -> None:
    if type(module) in _TWINS:
        # The same object, so that every place that shares it has the new form, and its hooks stay.
        module.__class__ = _TWINS[type(module)]
    elif type(module) not in _TWINS.values():
        module.inplace = True  # pyright: ignore[reportArgumentType]


def _unread(flow: Flow, visit: Visit) -> bool:
    """Whether, after this call, nobody but the module's own backward reads its input."""
    if len(visit.given) != 1 or len(visit.returned) != 1:
        return False
    given, returned = visit.given[0], visit.returned[0]
    if given.storage in flow.kept or given.storage == returned.storage or not given.dense or given.bytes < LEAST_BYTES:
        return False
    if given.shape != returned.shape or given.dtype is not returned.dtype:
        return False
    later = [flow.touches[index] for index in flow.reads[given.storage] if index >= visit.stop]
    return all(touch.phase is Phase.BACKWARD and touch.node is not None and touch.node == returned.node for touch in later)


def _saves(plain: Flow, before: list[Visit], tried: Flow, after: list[Visit]) -> bool:
    """Whether every call makes less than it did: where its backward needs the input, autograd copies what is written over."""
    return len(before) == len(after) and all(tried.made_bytes(new) < plain.made_bytes(old) for old, new in zip(before, after, strict=True))


def _same_bits(module: nn.Module, visit: Visit, train: bool) -> bool:
    """Whether the form that writes in place gives the same bits, and the same gradients, on a small tensor."""
    plain = copy.deepcopy(module).train(visit.training)
    changed = copy.deepcopy(plain)
    _set_in_place(changed)
    with torch.random.fork_rng(devices=[]):
        values = _values(visit.given[0])
        towards = torch.randn(values.shape).to(values.dtype)
        found = [_run(one, values, towards, train) for one in (plain, changed)]
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _values(given: Passed) -> Tensor:
    shape = [min(size, _PROBE) for size in given.shape]
    values = 4 * torch.randn(shape)
    edges = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0, 6.0, 100.0, -100.0])
    values.view(-1)[: len(edges)] = edges[: values.numel()]
    return values.to(given.dtype)


def _run(module: nn.Module, values: Tensor, towards: Tensor, train: bool) -> list[Tensor]:
    torch.manual_seed(0)
    if not train:
        with torch.no_grad():
            return [module(values.clone())]
    leaf = values.clone().requires_grad_()
    result = module(leaf.clone())
    result.backward(towards)
    assert leaf.grad is not None
    return [result.detach(), leaf.grad]
