"""Depthwise convolutions that a pointwise one follows, found by the flow of data: which layers can run as one, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from sash.cost import Phase
from sash.plans._flow import Flow, Passed, Visit

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh),
)
"""Each number by itself, without parameters and without randomness."""


class Chain(NamedTuple):
    """Paths of the layers that become one; empty where there is none."""

    depthwise: str
    norm: str
    activation: str
    pointwise: str
    out_norm: str


def chains_in(flow: Flow) -> Iterator[Chain]:
    """Every chain that can run as one."""
    taken: set[str] = set()
    for chain, told in _followed(flow):
        if not told and not taken & {path for path in chain if path}:
            taken |= set(chain)
            yield chain


def refusals_in(flow: Flow) -> Iterator[str]:
    """Why the others cannot."""
    return (told for _, told in _followed(flow) if told)


def _followed(flow: Flow) -> Iterator[tuple[Chain, str]]:
    """Every depthwise convolution with the pointwise one that follows it, and the reason where they cannot run as one."""
    modules, visits = dict(flow.model.named_modules()), flow.visits_of()
    for path, calls in visits.items():
        walks = (_walk(flow, modules, call) for call in calls) if is_depthwise(modules[path]) else ()
        walked = next((walk for walk in walks if walk is not None), None)
        if walked is None:
            continue
        after = _next(flow, modules, walked["pointwise"])
        if after is not None and type(modules[after.path]) in NORMS and not _reason(flow, modules, visits, {**walked, "out_norm": after}):
            walked["out_norm"] = after
        yield _named(walked), _reason(flow, modules, visits, walked)


def _named(walked: dict[str, Visit]) -> Chain:
    return Chain(*(walked[name].path if name in walked else "" for name in Chain._fields))


def _walk(flow: Flow, modules: dict[str, nn.Module], first: Visit) -> dict[str, Visit] | None:
    """From a depthwise convolution, by way of a norm and an activation where there are any, to a pointwise one."""
    found, last, wanted = {"depthwise": first}, first, [("norm", NORMS), ("activation", ACTIVATIONS), ("pointwise", CONVOLUTIONS)]
    while "pointwise" not in found:
        follows = _next(flow, modules, last)
        if follows is None:
            return None
        last = follows
        kind = type(modules[last.path])
        if kind is nn.Identity:
            continue
        while wanted and kind not in wanted[0][1]:
            wanted.pop(0)
        if not wanted:
            return None
        found[wanted.pop(0)[0]] = last
    return found if is_pointwise(modules[last.path]) else None


def _next(flow: Flow, modules: dict[str, nn.Module], last: Visit) -> Visit | None:
    """The first layer that is given exactly what `last` returned."""
    kinds = (*CONVOLUTIONS, *NORMS, *ACTIVATIONS, nn.Identity)
    if len(last.returned) != 1:
        return None
    for visit in flow.visits:
        later = visit.start >= last.stop and visit is not last and visit.phase is last.phase
        if later and type(modules[visit.path]) in kinds and len(visit.given) == 1 and _same(visit.given[0], last.returned[0]):
            return visit
    return None


def _same(one: Passed, other: Passed) -> bool:
    return (one.storage, one.shape, one.strides) == (other.storage, other.shape, other.strides)


def _reason(flow: Flow, modules: dict[str, nn.Module], visits: dict[str, list[Visit]], walked: dict[str, Visit]) -> str:
    """Why a chain cannot run as one; empty where it can."""
    first, last, chain = walked["depthwise"], walked["pointwise"], list(walked.values())
    pair = f"{first.path} and {last.path} stay apart: "
    for visit in chain:
        module: Any = modules[visit.path]
        if len(visits[visit.path]) > 1:
            return (
                f"{pair}{visit.path} is called {len(visits[visit.path])} times in a step; with a layer for each call they would be fused."
            )
        if type(module) in NORMS and (visit.training or module.running_mean is None):
            return (
                f"{pair}{visit.path} normalises by each batch's own statistics, which need the whole map; "
                f"with fixed ones, as model.{visit.path}.eval() in a training step has them, they would be fused."
            )
    for path in _seeing({visit.path for visit in chain}):
        if _is_watched(modules[path]):
            return f"{pair}{path} has hooks or a parametrization, which would not see the maps between; remove them to fuse."
    for visit in chain[:-1]:
        storage = visit.returned[0].storage
        reads = [index for index in flow.reads[storage] if flow.touches[index].phase is not Phase.BACKWARD]
        if storage in flow.kept or not all(any(one.start <= index < one.stop for one in chain) for index in reads):
            return f"{pair}the output of {visit.path} is used elsewhere as well, so it has to be held whole."
    between = (flow.touches[index].name for index in flow.reads[first.given[0].storage] if first.stop <= index < last.start)
    if any(_may_write(name) for name in between):
        return f"{pair}the input of {first.path} is written over before {last.path} is called."
    return ""


def _seeing(paths: set[str]) -> set[str]:
    """The layers, and the modules around some of them but not all: they are given or return a map in the middle of a chain."""
    around = {path[:at] for path in paths for at in range(len(path)) if path[at] == "."}
    return paths | {outer for outer in around if not all(path.startswith(f"{outer}.") for path in paths)}


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or parametrize.is_parametrized(module)


def _may_write(name: str) -> bool:
    space, operator, overload = name.split(".")[:3]
    return space != "aten" or operator.endswith("_") or "out" in overload


def is_depthwise(module: Any) -> bool:
    return type(module) in CONVOLUTIONS and module.groups == module.in_channels


def is_pointwise(module: Any) -> bool:
    ones = type(module) in CONVOLUTIONS and module.groups == 1 and {*module.kernel_size, *module.stride} == {1}
    return ones and (isinstance(module.padding, str) or not any(module.padding))
