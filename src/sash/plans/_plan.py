"""What fitting returns: the levers that were pulled, what the run will need with them, and the run itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sash.cost import Forecast, ModelSource, Phase, Workload, as_module, default_loss, forecast, make_optimizer, run_step, training_mode
from sash.errors import InputError, SashError
from sash.plans._lever import Exactness, Lever, Rewrite, pull, shared_copy
from sash.plans._levers import LEVERS
from sash.plans._microbatch import MicroBatch, split
from sash.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

VERSION = 1
"""Of a plan's JSON."""


@dataclass(frozen=True)
class Plan:
    """A run inside a budget."""

    work: Workload = field(repr=False)
    """The step as it was asked for."""
    budget_bytes: int
    levers: tuple[Lever, ...]
    """In the order in which they are applied; none where the plain run fits."""
    forecast: Forecast = field(repr=False)
    """Of the run with the levers; `forecast.peak_bytes` is within the budget."""
    plain_peak_bytes: int
    """Forecast of the run without them."""
    overhead: float
    """Extra time as a share of the plain step's, forecast: 0.1 is 10 % slower, -0.2 is 20 % faster."""
    model: tuple[str, ...] = field(repr=False)
    """The model's layers with their parameters' sizes, one a line: what the plan was made for."""
    plan_s: float = 0.0
    """Seconds that planning took."""

    @property
    def exactness(self) -> Exactness:
        """The weakest of the levers' promises; bit-identical where there is no lever."""
        kinds = [lever.exactness for lever in self.levers]
        return max(kinds, key=list(Exactness).index, default=Exactness.BITS)

    @cached_property
    def planned(self) -> Workload:
        """The step as planned, to be forecast or measured."""
        return pull(self.work, self.levers)

    def apply(self, model: nn.Module | None = None) -> nn.Module:
        """An ordinary module that runs as planned, and shares its parameters and buffers with `model`, which stays as it is.

        What is about the step and not the model (micro-batches, autocast, the loss, an optimizer with masters) is in `planned` and in
        `step`. Raises `InputError` where the model is not the one that the plan was made for, with what differs.
        """
        model = _load(self.work.model) if model is None else model
        check_same(self.model, model)
        return Rewrite(self.levers)(shared_copy(model))

    def step(self, batch: Any, target: Any = None, loss: Callable[..., Tensor] | None = None) -> Any:
        """Run one step as planned on a batch: a tensor, a tuple of positional or a dict of keyword arguments.

        In training: forward, loss, backward, the optimizer's step, gradients to None; returns the loss, a mean over micro-batches. `loss`
        (the workload's where None) is called with the outputs, and with `target`, cut into the same micro-batches, where one is given. In
        inference: returns the outputs. The workload's model is the one that learns; its optimizer lives as long as the plan.
        """
        positional, keyword = (), {}
        if isinstance(batch, dict):
            keyword = batch
        else:
            positional = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        model, optimizer = self._run
        work = self.planned
        assert not isinstance(work.autocast, str)
        with training_mode(model, work.train):
            if not work.train:
                return run_step(model, (positional, keyword), default_loss, None, work.autocast, 1, False, _nothing)
            parts = next((lever.parts for lever in self.levers if isinstance(lever, MicroBatch)), 1)
            told = positional if target is None else (*positional, target)
            pieces = split((told, keyword), parts) if parts > 1 else [(told, keyword)]
            losses: list[Tensor] = []
            for cut, named in pieces:
                inputs, wanted = (cut, ()) if target is None else (cut[:-1], cut[-1:])
                scalar = _Part(self._loss(loss, wanted), parts, losses)
                run_step(model, (inputs, named), scalar, None, work.autocast, 1, True, _nothing)
            if optimizer is not None:
                optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
        return torch.stack(losses).sum()

    def _loss(self, loss: Callable[..., Tensor] | None, wanted: tuple[Any, ...]) -> Callable[[Any], Tensor]:
        """The loss as planned: of the outputs alone."""
        plain = loss or self.work.loss or default_loss
        closed = partial(_towards, plain, wanted) if wanted else plain
        planned = pull(dataclasses.replace(self.work, loss=closed), self.levers).loss
        assert planned is not None
        return planned

    @cached_property
    def _run(self) -> tuple[nn.Module, torch.optim.Optimizer | None]:
        model = self.apply()
        return model, make_optimizer(self.planned, list(model.parameters())) if self.work.train else None

    def to_json(self) -> str:
        """The levers, the budget and the model's layers as JSON, which `Plan.from_json` reads back."""
        levers = [{"lever": lever.name, **dataclasses.asdict(lever)} for lever in self.levers]
        return json.dumps(
            {
                "plan": VERSION,
                "step": self.work.setting,
                "budget_bytes": self.budget_bytes,
                "peak_bytes": self.forecast.peak_bytes,
                "plain_peak_bytes": self.plain_peak_bytes,
                "overhead": self.overhead,
                "levers": levers,
                "model": list(self.model),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, work: Workload) -> Plan:
        """The plan that `to_json` wrote, for the same model; the run with it is forecast anew.

        Raises `InputError` where the text is no plan, where the model has changed since (with what changed), or where the step as it is now
        does not stay within the plan's budget.
        """
        found = _read(text)
        levers = tuple(_lever(row) for row in found["levers"])
        check_same(tuple(found["model"]), _load(work.model))
        try:
            fresh = forecast(pull(work, levers))
        except SashError:
            raise
        except Exception as error:
            raise InputError(f"the plan's levers cannot be pulled: {error}. Give what `Plan.to_json()` wrote.") from error
        if fresh.peak_bytes > found["budget_bytes"]:
            raise InputError(
                f"the plan keeps {work.name} within {format_bytes(found['budget_bytes'])} for {found['step']}; "
                f"for {work.setting} it peaks at {format_bytes(fresh.peak_bytes)}. Fit this step anew."
            )
        return cls(
            work,
            found["budget_bytes"],
            levers,
            fresh,
            found["plain_peak_bytes"],
            found["overhead"],
            tuple(found["model"]),
        )

    def __str__(self) -> str:
        from sash.report import plain_text

        return plain_text(self)

    def __rich__(self) -> RenderableType:
        from sash.report import text

        return text(self)


@dataclass(frozen=True)
class _Part:
    """A loss, divided by the number of micro-batches, and noted."""

    loss: Callable[[Any], Tensor]
    parts: int
    noted: list[Tensor]

    def __call__(self, outputs: Any) -> Tensor:
        found = self.loss(outputs) / self.parts
        self.noted.append(found.detach())
        return found


def _towards(loss: Callable[..., Tensor], wanted: tuple[Any, ...], outputs: Any) -> Tensor:
    return loss(outputs, *wanted)


def describe_model(model: nn.Module) -> tuple[str, ...]:
    """The model's layers, one a line: path, class, the sizes of its own parameters and buffers."""
    lines = []
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        sizes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in own)
        lines.append(f"{path or '(model)'}: {type(module).__name__}{f' ({sizes})' if sizes else ''}")
    return tuple(lines)


def check_same(planned: tuple[str, ...], model: nn.Module) -> None:
    """Raises `InputError` with the first layers that differ, where the model is not the one that a plan was made for."""
    now = describe_model(model)
    if now == planned:
        return
    gone, come = [line for line in planned if line not in set(now)], [line for line in now if line not in set(planned)]
    told = [f"  planned {line}" for line in gone[:3]] + [f"  found   {line}" for line in come[:3]]
    more = max(len(gone), len(come)) - 3
    raise InputError(
        "the plan was made for another model; fit this one anew. What differs:\n"
        + "\n".join(told or ["  the order of its layers"])
        + (f"\n  and {more} more" if more > 0 else "")
    )


def _load(model: Any) -> nn.Module:
    return as_module(model.load() if isinstance(model, ModelSource) else model)


def _nothing(phase: Phase, loss: Tensor | None) -> None:
    pass


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not JSON: {error}. Give what `Plan.to_json()` wrote.") from error
    kinds = {"levers": list, "model": list, "budget_bytes": int, "plain_peak_bytes": int, "overhead": (int, float), "step": str}
    if not isinstance(found, dict) or found.get("plan") != VERSION:
        raise InputError(f"this is no plan of version {VERSION}; give what `Plan.to_json()` wrote.")
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise InputError(f"the plan's {name!r} is {found.get(name)!r}; give what `Plan.to_json()` wrote.")
    return found


def _lever(row: Any) -> Lever:
    kind = LEVERS.get(row.get("lever", "")) if isinstance(row, dict) else None
    if kind is None:
        raise InputError(f"{row.get('lever') if isinstance(row, dict) else row!r} is no lever; there are {', '.join(LEVERS)}.")
    if row.get("folder") is not None:
        raise InputError(f"the plan's lever {row['lever']!r} names a folder; where a run may write is not for a file to say.")
    values = {name: _tuples(value) for name, value in row.items() if name != "lever"}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"the lever {row['lever']!r} cannot be read: {error}. Give what `Plan.to_json()` wrote.") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
