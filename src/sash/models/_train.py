"""A small training loop: seeded, checkpointed, and after a kill the same to the last bit."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sash.errors import InputError
from sash.models._batches import Data, samples_of
from sash.models._checkpoint import describe_run, read_checkpoint, write_checkpoint
from sash.models._history import Epoch, History
from sash.models._pictures import check_counts
from sash.models._run import Compare, Run

_EPOCH_SEEDS = 1_000_003
"""Between the seeds of two epochs' orders: a prime, so that runs with neighbouring seeds do not share orders."""


def train(
    model: nn.Module,
    data: Data,
    *,
    loss: Compare,
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] | Optimizer,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int = 64,
    seed: int = 0,
    held_out: Data | None = None,
    metrics: Mapping[str, Compare] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    resume: bool = True,
    log: str | Path | None = None,
    progress: bool = True,
) -> History:
    """The history of a training run; the model has its last weights after it, and is in evaluation mode.

    `data` are (inputs, targets), tensors of as many samples, shuffled anew each epoch; a `Dataset` of such pairs, likewise; or an iterable
    of batches, as a `DataLoader`, in its own order and for each epoch anew. A model of several inputs has them in a tuple. Training ends
    after `epochs`, or after `steps` of the optimizer. `optimizer` is a class, a function of the parameters, or made already; `schedule` a
    function of the optimizer, stepped once a step.

    `loss` and `metrics` are functions of outputs and targets, each one number: the mean over the samples of a batch. With `patience`,
    training ends after so many epochs without a lower loss on `held_out` (without it, in training), and the model has the weights of its
    best epoch, of which a copy is kept.

    `seed` decides the order and all that the model draws; the caller's own random state stays as it is. With `checkpoint`, the run is
    written there after each epoch and after `every` steps. Called again, it is taken up there, and ends with the bits of a run that nothing
    broke: weights, optimizer, history but for the seconds (on one machine, with as many threads, and as far as torch itself repeats itself;
    what draws from elsewhere than torch does not). `log` gets one line of JSON for each epoch.

    Raises `InputError` for what does not go together and for a checkpoint of another run, naming what is different; `ModelError` where the
    loss is no finite number, before a step with it.
    """
    _check(epochs, steps, batch, patience, every, checkpoint)
    if "loss" in (metrics or {}):
        raise InputError("metrics has a 'loss', which is the name of the loss itself; give it another.")
    stepper = optimizer if isinstance(optimizer, Optimizer) else optimizer(model.parameters())
    run = Run(model, stepper, schedule(stepper) if schedule else None, loss, metrics or {})
    known = {"seed": seed, "batch": batch, "samples": samples_of(data), "schedule": type(run.schedule).__name__}
    described = describe_run(model, stepper, **known, metrics=sorted(metrics or {}), keeps_best=patience is not None)
    path = None if checkpoint is None else Path(checkpoint)
    last_epoch, last_step = math.inf if epochs is None else epochs, math.inf if steps is None else steps

    def save() -> None:
        if path is not None:
            write_checkpoint(path, {"run": described, **run.state()})

    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []), _bar(progress, data, batch, epochs, steps) as show:
        torch.manual_seed(seed)
        if path is not None and resume and path.exists():
            run.restore(read_checkpoint(path, described))
        _write_log(log, run.epochs, "w")
        while len(run.epochs) < last_epoch and run.steps < last_step and not run.waited(patience):
            for pair in run.batches(data, batch, seed + _EPOCH_SEEDS * len(run.epochs)):
                run.step(pair)
                show(run)
                if run.steps >= last_step:
                    break
                if every is not None and run.steps % every == 0:
                    save()
            else:
                run.end_epoch(held_out, batch, patience is not None)
                _write_log(log, run.epochs[-1:], "a")
            save()
        if run.in_epoch:
            # Not in the checkpoint: called with more steps, the epoch goes on.
            run.end_epoch(held_out, batch, patience is not None)
            _write_log(log, run.epochs[-1:], "a")
    if run.best_weights is not None:
        model.load_state_dict(run.best_weights)
    model.eval()
    return History(tuple(run.epochs), run.best, run.waited(patience))


@contextlib.contextmanager
def _bar(progress: bool, data: Data, batch: int, epochs: int | None, steps: int | None) -> Iterator[Callable[[Run], None]]:
    """A function that shows how far a run is; on stderr, and gone when it is over."""
    if not progress:
        yield lambda run: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    samples = samples_of(data)
    by_epochs = None if epochs is None or samples is None else epochs * math.ceil(samples / batch)
    total = min((one for one in (steps, by_epochs) if one is not None), default=None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=total)

        def show(run: Run) -> None:
            mean = f", loss {run.sums['loss'] / run.samples:.4g}" if run.samples else ""
            bar.update(task, completed=run.steps, description=f"epoch {len(run.epochs) + 1}{mean}")

        yield show


def _write_log(path: str | Path | None, epochs: list[Epoch], mode: str) -> None:
    if path is not None:
        with open(path, mode) as file:
            file.writelines(json.dumps(asdict(epoch)) + "\n" for epoch in epochs)


def _check(epochs: int | None, steps: int | None, batch: int, patience: int | None, every: int | None, checkpoint: object) -> None:
    if epochs is None and steps is None:
        raise InputError("neither epochs nor steps are given; training ends after the one or the other.")
    counts = {"epochs": epochs, "steps": steps, "batch": batch, "patience": patience, "every": every}
    check_counts("training", **{name: count for name, count in counts.items() if count is not None})
    if every is not None and checkpoint is None:
        raise InputError(f"every={every} steps a checkpoint was asked for, and no path for it: give checkpoint as well.")
