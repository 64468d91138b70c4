"""One step, run the same way by the forecast (on fake tensors) and by the measurement (on real ones)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sash.cost._results import Phase


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
        with torch.no_grad(), _casting(autocast):
            return model(*positional, **keyword)
    outputs = None
    for _ in range(accumulate):
        del outputs
        enter(Phase.FORWARD, None)
        with torch.enable_grad(), _casting(autocast):
            outputs = model(*positional, **keyword)
            enter(Phase.LOSS, None)
            scalar = loss(outputs)
            if accumulate > 1:
                scalar = scalar / accumulate
        enter(Phase.BACKWARD, scalar)
        scalar.backward()
        del scalar
    if optimizer is not None:
        enter(Phase.OPTIMIZER, None)
        optimizer.step()
    return outputs


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


def _casting(dtype: torch.dtype | None):
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
