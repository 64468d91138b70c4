"""A training loop inside a memory budget, twice: with the planned module, and with the planned step.

    python examples/plain_loop.py "20 MB"

`plan.apply(model)` returns an ordinary module for a loop of your own; `plan.step(batch, target, loss)` runs the whole step, and also keeps
what is about the step rather than the model: micro-batches, autocast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sash

BATCH, CLASSES = 16, 10


def make_model() -> nn.Module:
    """A small convolutional network with dropout and batch norm."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout2d(0.1))]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def make_batches(count: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Random pictures and classes, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.rand(BATCH, 3, 32, 32, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


def loss_of_any(outputs: Tensor) -> Tensor:
    """For the forecast: as the loss of the loop, towards classes that are made up."""
    return F.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.int64))


def make_plan(model: nn.Module, budget: str) -> sash.Plan:
    """A plan that gives the plain loop's result to the last bit."""
    work = sash.Workload(model, f"{BATCH}x3x32x32", train=True, optimizer="adamw", loss=loss_of_any)
    return sash.fit(work, budget, bit_identical=True)


def train_with_module(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """A loop as anyone writes it: the losses. `model` is the plain one, or `plan.apply(model)`, whose parameters are the same tensors."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []
    torch.manual_seed(2)  # the same dropout in every loop of this file
    for pictures, classes in batches:
        loss = F.cross_entropy(model(pictures), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def train_with_step(plan: sash.Plan, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """The same loop, each step run by the plan; the workload's model learns, with the workload's optimizer."""
    torch.manual_seed(2)
    return [plan.step(pictures, classes, F.cross_entropy).item() for pictures, classes in batches]


def main(budget: str) -> None:
    model = make_model()
    plan = make_plan(model, budget)
    print(plan)
    for name, losses in {
        "plain": train_with_module(make_model(), make_batches(5)),
        "plan.apply": train_with_module(plan.apply(model), make_batches(5)),
        "plan.step": train_with_step(make_plan(make_model(), budget), make_batches(5)),
    }.items():
        print(f"{name:>10}: {', '.join(f'{loss:.6f}' for loss in losses)}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["20 MB"]))
