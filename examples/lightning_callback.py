"""A Lightning callback that fits the training step of a LightningModule inside a memory budget when training starts.

    python examples/lightning_callback.py "20 MB"

    trainer = L.Trainer(callbacks=[FitInside("6 GiB", ("16x3x224x224", "16:int64<1000"))])

The plan's levers go into a copy of the module that shares its parameters and buffers, and `training_step` runs through that copy; what it
logs is logged by the module. The module itself, its state_dict and its validation stay as they are; the plan ends with the training.

Lightning runs the rest of the step, so levers of the step itself are not its to pull: micro-batches and lower precision are refused, with
what to set in their place. An attribute that `training_step` assigns is assigned to the copy.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.cost import map_tensors
from sash.plans import Lever

PRECISIONS = {"32-true": None, "bf16-mixed": "bf16"}
"""Of a Trainer: what its forward runs under."""


class TrainingStep(nn.Module):
    """A LightningModule's training step as a module: forward takes the parts of a batch and returns what `training_step` does."""

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        self.module = module
        self.batch_idx = 0
        self.kind: type | None = None
        """Of a batch that is a list or tuple; None where it is one tensor, or a dict."""
        self.logged: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *parts: Any, **named: Any) -> Any:
        batch = named or (parts[0] if self.kind is None else self.kind(parts))
        # What is logged waits until the step is over: the plan counts the operators of this pass, and logging runs some of its own.
        for name in ("log", "log_dict"):
            self.module.__dict__[name] = partial(self._note, name)
        try:
            given = inspect.signature(self.module.training_step).parameters
            return self.module.training_step(batch, self.batch_idx) if len(given) > 1 else self.module.training_step(batch)
        finally:
            for name in ("log", "log_dict"):
                del self.module.__dict__[name]

    def _note(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.logged.append((name, map_tensors(Tensor.detach, args), map_tensors(Tensor.detach, kwargs)))


class FitInside(L.Callback):
    """Keeps the training step within a budget ("6 GiB", or bytes); `batch` is one as the loader gives it, or its shapes.

    Refuses with `InputError` what it cannot keep: levers of the step, manual optimization, several optimizers. Raises `DoesNotFit`
    with the least budget that there is a plan for.
    """

    def __init__(self, budget: str | int, batch: Any, *, allow: tuple[str, ...] = (), bit_identical: bool = False) -> None:
        self.budget = budget
        self.batch = batch
        self.allow = allow
        self.bit_identical = bit_identical
        self.plan: sash.Plan | None = None
        """What was found, once training has started."""
        self.step: TrainingStep | None = None
        """The planned training step, while training runs."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plan, and lead the training step through the planned copy."""
        plain = TrainingStep(pl_module)
        if isinstance(self.batch, (list, tuple)):
            plain.kind = type(self.batch)
        self.plan = plan_within(self, trainer, plain)
        if not self.plan.levers:
            return
        planned: Any = self.plan.apply(plain)
        planned.module._trainer = trainer
        self.step = planned
        pl_module.__dict__["training_step"] = partial(run, planned, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module its own training step back."""
        pl_module.__dict__.pop("training_step", None)
        self.step = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """As at the end of training."""
        self.on_train_end(trainer, pl_module)


def plan_within(callback: FitInside, trainer: L.Trainer, plain: TrainingStep) -> sash.Plan:
    """A plan of the levers that a LightningModule can be given; raises `InputError` with the others' names where it takes those."""
    module = plain.module
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise sash.InputError("FitInside plans a step with automatic optimization and one optimizer; this module has another.")
    if trainer.precision not in PRECISIONS:
        raise sash.InputError(f"the Trainer's precision is {trainer.precision!r}; FitInside knows {' and '.join(PRECISIONS)}.")
    batch = callback.batch
    work = sash.Workload(
        plain,
        batch if isinstance(batch, (dict, list, tuple)) else (batch,),
        train=True,
        optimizer=maker_of(trainer.optimizers[0]),
        loss=loss_of,
        autocast=PRECISIONS[trainer.precision],
        accumulate=trainer.accumulate_grad_batches,
    )
    plan = sash.fit(work, callback.budget, allow=callback.allow, bit_identical=callback.bit_identical)
    theirs = [f"{lever.name} ({lever.describe()})" for lever in plan.levers if of_the_step(lever, work)]
    if not theirs:
        return plan
    try:
        # These levers are all of the module.
        return sash.fit(work, callback.budget, allow={"offload"}.intersection(callback.allow), bit_identical=True)
    except sash.DoesNotFit as error:
        raise sash.InputError(
            f"the plan within {callback.budget} pulls what is the Trainer's to pull, not the module's: {'; '.join(theirs)}. In place of "
            "micro-batches, give the loader smaller batches and the Trainer accumulate_grad_batches; of precision, precision='bf16-mixed'. "
            f"With the module's own levers the least is {error.least_bytes} bytes."
        ) from error


def of_the_step(lever: Lever, work: sash.Workload) -> bool:
    """Whether the lever changes what Lightning decides: the batch, the precision, the optimizer."""
    pulled = lever.on_work(work)
    return any(getattr(pulled, name) is not getattr(work, name) for name in ("inputs", "autocast", "optimizer", "accumulate"))


def run(planned: Any, module: L.LightningModule, batch: Any, batch_idx: int = 0) -> Any:
    """One training step, as planned, in the module's name."""
    copies = dict(planned.module.named_modules())
    planned.train(module.training)
    for path, part in module.named_modules():
        if path in copies:
            copies[path].training = part.training
    planned.batch_idx = batch_idx
    outputs = planned(**batch) if isinstance(batch, dict) else planned(*(batch if planned.kind else (batch,)))
    for name, args, kwargs in planned.logged:
        getattr(module, name)(*args, **kwargs)
    planned.logged.clear()
    return outputs


def loss_of(outputs: Any) -> Tensor:
    """The loss that a training step returns, alone or in a dict."""
    return outputs["loss"] if isinstance(outputs, dict) else outputs


def maker_of(optimizer: torch.optim.Optimizer) -> Any:
    """Makes an optimizer of the same class and settings."""
    known = inspect.signature(type(optimizer)).parameters
    given = {name: value for name, value in optimizer.defaults.items() if name in known and value != known[name].default}
    return partial(type(optimizer), **given) if given else type(optimizer)


class Classifier(L.LightningModule):
    """A small convolutional network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout2d(0.1))]
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pictures, classes = batch
        loss = F.cross_entropy(self.net(pictures), classes)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def make_loader(batch: int = 16, batches: int = 3) -> torch.utils.data.DataLoader:
    """Random pictures and classes, in the same order every time."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(batch * batches, 3, 32, 32, generator=generator)
    classes = torch.randint(10, (batch * batches,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures, classes), batch_size=batch)


def train(*callbacks: L.Callback, module: L.LightningModule | None = None, **settings: Any) -> L.LightningModule:
    """A short training on the CPU."""
    L.seed_everything(0, verbose=False)
    module = module or Classifier()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", callbacks=list(callbacks), **{"max_epochs": 2, **quiet, **settings})
    torch.manual_seed(2)
    trainer.fit(module, make_loader())
    return module


def main(budget: str) -> None:
    inside = FitInside(budget, ["16x3x32x32", "16:int64<10"], bit_identical=True)
    planned, plain = train(inside), train()
    print(inside.plan)
    same = all(torch.equal(one, other) for one, other in zip(planned.state_dict().values(), plain.state_dict().values(), strict=True))
    print(f"after two epochs, parameters and buffers are {'identical' if same else 'not identical'} to the plain training's.")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["20 MB"]))
