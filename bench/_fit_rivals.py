"""The others on the same steps: `torch.utils.checkpoint` around every block, `torch.compile` with a budget for activations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _fit_bits import compare, plain
from _fit_models import Fitted
from _fit_times import in_turn, plain_step
from _step import static_tensors, storage_bytes
from _truth import risen
from torch import nn
from torch.utils.checkpoint import checkpoint

import sash

BUDGETS = (0.5,)
"""Of `torch.compile`: shares of what it would save. Each costs a compilation of minutes."""
PAIRS, MOST_S = 7, 30.0


@dataclass(frozen=True)
class Checkpointed:
    """A rewriting of a model: each of the modules runs again in backward."""

    paths: tuple[str, ...]

    def __call__(self, model: nn.Module) -> nn.Module:
        for path in self.paths:
            module = model.get_submodule(path)
            module.forward = functools.partial(_again, module.forward)  # pyright: ignore[reportAttributeAccessIssue]
        return model


def _again(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """The checkpointed forward; a list that it is given is copied, for DenseNet's grows after the call and would be longer in backward."""
    return checkpoint(forward, *(list(one) if isinstance(one, list) else one for one in given), use_reentrant=False, **named)


def blocks(asked: Fitted) -> Iterator[dict[str, Any]]:
    """Peak, time and differences of checkpointing every block, as they are found."""
    work = asked.work()
    assert isinstance(work.model, nn.Module)
    rewrite = Checkpointed(tuple(asked.paths(work.model)))
    peak = sash.measure(dataclasses.replace(work, rewrite=rewrite)).peak_bytes
    yield {"peak_bytes": peak}
    yield in_turn(plain_step(asked), plain_step(asked, rewrite))
    yield {"bits": _differences(asked, rewrite)}


def compiled(asked: Fitted, budget: float) -> Iterator[dict[str, Any]]:
    """The same of `torch.compile`; and the differences from itself where it saves all that it would, whose dropout draws the same masks.

    Random numbers are to be drawn as eager draws them, as far as the backend does that.
    """
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config

    torch._functorch.config.activation_memory_budget = budget
    torch._inductor.config.fallback_random = True  # pyright: ignore[reportAttributeAccessIssue]
    rewrite: Callable[[nn.Module], Any] = torch.compile
    yield {"peak_bytes": _peak(asked, rewrite)}
    yield in_turn(plain_step(asked), plain_step(asked, rewrite), PAIRS, MOST_S)
    yield {"bits": _differences(asked, rewrite)}
    # One step: after a wrong gradient the next step's outputs differ as well.
    lean = plain(asked, rewrite, steps=1)
    torch._dynamo.reset()
    torch._functorch.config.activation_memory_budget = 1.0
    yield {"itself": dataclasses.asdict(compare(plain(asked, rewrite, steps=1), lean))}


def _peak(asked: Fitted, rewrite: Callable[[nn.Module], Any]) -> int:
    """The allocator's peak of the third step, in this process."""
    work = asked.work()
    assert isinstance(work.model, nn.Module)
    make: Any = work.optimizer
    optimizer = make(work.model.parameters())
    positional, keyword = work.arguments()
    run = rewrite(work.model)

    def step() -> None:
        outputs = run(*positional, **keyword)
        asked.loss(outputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    peak, _ = risen(step)
    return peak + storage_bytes(static_tensors(work.model, (*positional, *keyword.values()), optimizer))


def _differences(asked: Fitted, rewrite: Callable[[nn.Module], Any]) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    return dataclasses.asdict(compare(plain(asked), plain(asked, rewrite)))


RIVALS: dict[str, Callable[[Fitted], Iterator[dict[str, Any]]]] = {
    "checkpoint": blocks,
    **{f"compile-{budget}": functools.partial(compiled, budget=budget) for budget in BUDGETS},
}
"""By name; none of them knows of a budget in bytes."""
