"""One step, run the same way by the forecast (on fake tensors) and by the measurement (on real ones)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sash.cost._results import Phase
from sash.cost._workload import Workload
from sash.errors import InputError


def run_step(
    model: Callable[..., Any],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    loss: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer | None,
    autocast: torch.dtype | None,
    accumulate: int,
    train: bool,
    enter: Callable[[Phase, Tensor | None], None],
) -> Any:
    """The outputs of the step. Before each part of it `enter(phase, loss)` is called; gradients are left as they are when it ends."""
    positional, keyword = arguments
    if not train:
        enter(Phase.FORWARD, None)
        with torch.no_grad(), _casting(autocast, keep_weights=False):
            return model(*positional, **keyword)
    outputs = None
    for _ in range(accumulate):
        del outputs
        enter(Phase.FORWARD, None)
        with torch.enable_grad(), _casting(autocast, keep_weights=True):
            outputs = model(*positional, **keyword)
            enter(Phase.LOSS, None)
            scalar = loss(outputs)
            _check_loss(scalar)
            if accumulate > 1:
                scalar = scalar / accumulate
        enter(Phase.BACKWARD, scalar)
        scalar.backward()
        del scalar
    if optimizer is not None:
        enter(Phase.OPTIMIZER, None)
        optimizer.step()
    return outputs


def make_optimizer(work: Workload, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
    """The workload's optimizer over the model's parameters; raises `InputError` where there are none or it is no optimizer."""
    if work.optimizer is None:
        return None
    assert not isinstance(work.optimizer, str)
    if not parameters:
        raise InputError(f"an optimizer was asked for, and {work.name} has no parameters.")
    try:
        maker: Any = work.optimizer
        made = maker(parameters)
    except TypeError as error:
        raise InputError(
            f"the optimizer cannot be made from the parameters alone ({error}); "
            "give a function, as lambda parameters: SGD(parameters, lr=0.1)."
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"the optimizer function returned a {type(made).__name__}; it has to return a torch.optim.Optimizer.")
    return made


@contextmanager
def training_mode(model: Any, train: bool) -> Iterator[None]:
    """Every submodule in training or evaluation mode; as they were, afterwards."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    before = [module.training for module in modules]
    if modules:
        modules[0].train(train)
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.training = was


def _check_loss(scalar: Any) -> None:
    if not isinstance(scalar, Tensor):
        raise InputError(f"the loss returned a {type(scalar).__name__}; it has to be a tensor with one number, as y.mean().")
    if not scalar.requires_grad:
        raise InputError(
            "no parameter that takes a gradient leads to the loss: there is nothing to train; unfreeze one, or leave train out."
        )


@contextmanager
def _casting(dtype: torch.dtype | None, keep_weights: bool) -> Iterator[None]:
    """Under autocast, with or without its cache of cast weights, also where the model enters autocast itself.

    `inference_mode`, in which a step is measured, does not fill that cache; `no_grad`, in which one is forecast, does.
    Source: `cached_cast` in ATen/autocast_mode.cpp.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(before and keep_weights)
    try:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
            yield
    finally:
        torch.set_autocast_cache_enabled(before)
