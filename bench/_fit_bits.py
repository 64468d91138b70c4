"""Whether a planned step computes what the plain one does: outputs, gradients, buffers, parameters, random state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from _fit_models import Fitted
from _step import tensors_in
from torch import Tensor, nn

import sash

STEPS = 2
"""The second starts from statistics, moments and a random state that the first left; it also makes much of what was mere rounding."""
SMALL = 1e-3
"""A tensor whose largest value is under this share of the largest of all is compared to that: a bias before a batch norm has noise for a
gradient."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What the last of some steps computed and left."""

    outputs: Tensors
    gradients: Tensors
    buffers: Tensors
    parameters: Tensors
    random: Tensors


@dataclass(frozen=True)
class Difference:
    """Between two outcomes."""

    differing: tuple[str, ...]
    """The parts that are not the same to the last bit, each with its first tensor."""
    relative: dict[str, float]
    """By part: the largest difference of a value, relative to the largest value of its tensor, over all tensors."""
    norm: dict[str, float]
    """By part: the norm of all differences, relative to that of all values."""


def plain(asked: Fitted, rewrite: Callable[[nn.Module], Any] = lambda model: model, steps: int = STEPS) -> Outcome:
    """Of the step as anybody would write it, with the model as rewritten."""
    work = asked.work()
    model = work.model
    assert isinstance(model, nn.Module)
    return _run(work, model, rewrite(model), asked.loss, steps)


def nudged(model: nn.Module) -> nn.Module:
    """The model with every weight moved up or down by one unit in its last place: what a gradient makes of rounding."""
    toss = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + (torch.randint(2, parameter.shape, generator=toss) * 2 - 1) * torch.finfo(parameter.dtype).eps)
    return model


def applied(asked: Fitted, plan: sash.Plan, steps: int = STEPS) -> Outcome:
    """Of the same step with `Plan.apply`."""
    work = asked.work()
    model = work.model
    assert isinstance(model, nn.Module)
    return _run(work, model, plan.apply(model), plan.planned.loss, steps)


def stepped(asked: Fitted, plan: sash.Plan, steps: int = STEPS) -> Outcome:
    """Of `Plan.step`, whose outputs are the loss alone."""
    work = asked.work()
    fresh = replace(plan, work=work)
    model = work.model
    assert isinstance(model, nn.Module)
    gradients: Tensors = {}
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda parameter, name=name: _note(gradients, name, parameter))
        for name, parameter in model.named_parameters()
    ]
    torch.manual_seed(1)
    loss = None
    for _ in range(steps):
        gradients.clear()
        loss = fresh.step(work.inputs)
    for handle in handles:
        handle.remove()
    return _left(model, {"loss": loss}, gradients)


def compare(left: Outcome, right: Outcome) -> Difference:
    """What differs; a tensor that only one of them has differs."""
    differing, relative, norm = [], {}, {}
    for part in ("outputs", "gradients", "buffers", "parameters", "random"):
        ours, theirs = getattr(left, part), getattr(right, part)
        first = next((name for name in {**ours, **theirs} if not _same(ours.get(name), theirs.get(name))), None)
        if first is not None:
            differing.append(f"{part}: {first}")
        relative[part], norm[part] = _relative(ours, theirs)
    return Difference(tuple(differing), relative, norm)


def without_outputs(outcome: Outcome, loss: Callable[[Any], Tensor]) -> Outcome:
    """The outcome as `stepped` has it."""
    return replace(outcome, outputs={"loss": loss(list(outcome.outputs.values()))})


def _run(work: sash.Workload, model: nn.Module, run: nn.Module, loss: Any, steps: int) -> Outcome:
    run.train()
    make: Any = work.optimizer
    optimizer = make(model.parameters())
    positional, keyword = work.arguments()
    torch.manual_seed(1)
    outputs: Any = None
    gradients: Tensors = {}
    for _ in range(steps):
        outputs = run(*positional, **keyword)
        loss(outputs).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return _left(model, {str(place): tensor for place, tensor in enumerate(tensors_in(outputs))}, gradients)


def _left(model: nn.Module, outputs: dict[str, Any], gradients: Tensors) -> Outcome:
    return Outcome(
        {name: tensor.detach() for name, tensor in outputs.items()},
        gradients,
        dict(model.named_buffers()),
        {name: parameter.detach() for name, parameter in model.named_parameters()},
        {"state": torch.get_rng_state()},
    )


def _note(gradients: Tensors, name: str, parameter: Tensor) -> None:
    # Micro-batches come here each; the last finds the whole sum.
    assert parameter.grad is not None
    gradients[name] = parameter.grad.clone()


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return False
    return left.dtype == right.dtype and left.shape == right.shape and bool(((left == right) | ((left != left) & (right != right))).all())


def _relative(left: Tensors, right: Tensors) -> tuple[float, float]:
    shared = [(left[name], right[name]) for name in left if name in right and left[name].is_floating_point() and left[name].numel()]
    if not shared:
        return 0.0, 0.0
    largest = max(float(ours.abs().max()) for ours, _ in shared)
    # Zero twice is no difference.
    scales = [max(float(ours.abs().max()), SMALL * largest) or 1.0 for ours, _ in shared]
    worst = max(float((ours - theirs).abs().max()) / scale for (ours, theirs), scale in zip(shared, scales, strict=True))
    whole = sum(float(ours.double().square().sum()) for ours, _ in shared)
    apart = sum(float((ours.double() - theirs.double()).square().sum()) for ours, theirs in shared)
    return worst, (apart / (whole or 1.0)) ** 0.5
