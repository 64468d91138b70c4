"""A model in training: its state between two steps, and the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sash.errors import InputError, ModelError
from sash.models._batches import Data, batches_of, on_device, size_of
from sash.models._history import Epoch
from sash.units import format_shape

Compare = Callable[[Any, Any], Tensor]
"""Outputs and targets → one number."""
_PLAIN = ("steps", "in_epoch", "sums", "samples", "began", "best", "best_weights")
"""What of a run is saved as it is."""


class Run:
    """All that changes while a model trains."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None, loss: Compare, metrics: Mapping[str, Compare]
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.compared = {"loss": loss, **metrics}
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        self.epochs: list[Epoch] = []
        self.steps, self.in_epoch, self.sums, self.samples = 0, 0, dict.fromkeys(self.compared, 0.0), 0
        self.began, self.clock = self.random(), time.perf_counter()
        self.best: int | None = None
        self.best_weights: dict[str, Tensor] | None = None

    def batches(self, data: Data, batch: int, order: int) -> Iterator[Any]:
        """What is left of the epoch."""
        now = self.random()
        if not self.in_epoch:
            self.began = now
            return batches_of(data, batch, order)
        # Data that draw their order from torch draw the same one again.
        self.set_random(self.began)
        found = batches_of(data, batch, order, self.in_epoch)
        self.set_random(now)
        return found

    def step(self, pair: Any) -> None:
        """One step of the optimizer, and of the schedule."""
        self.model.train()
        inputs, targets = on_device(pair, self.device)
        seen: dict[str, float] = {}

        def closure() -> float:
            self.optimizer.zero_grad()
            outputs = self._outputs(inputs)
            value = self.compared["loss"](outputs, targets)
            self._check_loss(value)
            value.backward()
            if not seen:  # Some optimizers ask several times in a step.
                seen.update(self._compare(outputs, targets, loss=value.item()))
            return value.item()

        self.optimizer.step(closure)
        if self.schedule is not None:
            self.schedule.step()
        count = size_of(targets)
        self.sums = {name: total + count * seen[name] for name, total in self.sums.items()}
        self.samples += count
        self.steps, self.in_epoch = self.steps + 1, self.in_epoch + 1

    def end_epoch(self, held_out: Data | None, batch: int, keeps_best: bool) -> None:
        """Closes the epoch with the held-out losses, and notes whether it is the best so far."""
        if not self.in_epoch:
            raise InputError(
                f"the data gave no batches in epoch {len(self.epochs) + 1}; give what can be gone through again, as a list of them."
            )
        now = time.perf_counter()
        means = {name: total / self.samples for name, total in self.sums.items()}
        other = {} if held_out is None else self._evaluated(held_out, batch)
        self.epochs.append(Epoch(self.steps, means, other, now - self.clock))
        losses = [(epoch.held_out or epoch.train)["loss"] for epoch in self.epochs]
        if self.best is None or losses[-1] < losses[self.best]:
            self.best = len(losses) - 1
            if keeps_best:
                self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.in_epoch, self.sums, self.samples, self.clock = 0, dict.fromkeys(self.sums, 0.0), 0, time.perf_counter()

    def waited(self, patience: int | None) -> bool:
        """Whether so many epochs have passed since the best."""
        return patience is not None and self.best is not None and len(self.epochs) - 1 - self.best >= patience

    def random(self) -> dict[str, Tensor]:
        """Torch's random states, of the processor and of the model's device."""
        found = {"cpu": torch.get_rng_state()}
        return {**found, "cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else found

    def set_random(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def state(self) -> dict[str, Any]:
        """What the next step depends on, as plain containers of tensors and numbers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "random": self.random(),
            **{name: getattr(self, name) for name in _PLAIN},
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.set_random(state["random"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]

    def _outputs(self, inputs: Any) -> Any:
        return self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)

    @torch.no_grad()
    def _compare(self, outputs: Any, targets: Any, **known: float) -> dict[str, float]:
        return {name: known[name] if name in known else _number(name, compare(outputs, targets)) for name, compare in self.compared.items()}

    @torch.no_grad()
    def _evaluated(self, held_out: Data, batch: int) -> dict[str, float]:
        """Means over the held-out samples."""
        self.model.eval()
        sums, samples = dict.fromkeys(self.compared, 0.0), 0
        for pair in batches_of(held_out, batch):
            inputs, targets = on_device(pair, self.device)
            count, found = size_of(targets), self._compare(self._outputs(inputs), targets)
            sums, samples = {name: total + count * found[name] for name, total in sums.items()}, samples + count
        if not samples:
            raise InputError(f"held_out gave no batches after epoch {len(self.epochs) + 1}; give what can be gone through again.")
        return {name: total / samples for name, total in sums.items()}

    def _check_loss(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            found = type(value).__name__
            if isinstance(value, Tensor):
                found = "a number without a gradient" if value.numel() == 1 else format_shape(value.shape)
            raise InputError(f"the loss is {found}; it has to be one number that depends on the model's weights.")
        if not math.isfinite(value.item()):
            raise ModelError(f"the loss became {value.item()} at step {self.steps + 1}, in epoch {len(self.epochs) + 1}; try a lower rate.")


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real):
        found = format_shape(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"the metric {name!r} is {found}; it has to be one number a batch, as the mean over its samples.")
    return float(value)
