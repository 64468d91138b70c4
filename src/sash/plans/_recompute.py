"""The lever "recompute": less is kept for backward, and made again when backward asks for it."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from sash.plans._graph import Fact
from sash.plans._lever import Exactness, Lever
from sash.plans._schedule import Cut, Problem, Schedule, solve
from sash.plans._session import Marks, Session
from sash.plans._simulate import Simulation
from sash.units import format_bytes

SOLVE_S = 4.0
"""Most seconds for one integer program; a good solution found by then is taken as it is."""
LEAST_S = 1.0
"""The same where the program is to lower the peak as far as it can, which is harder to prove and easier to improve on by targets."""
PATIENCE_S = 5.0
"""After so long no further cut is tried if a schedule was found."""
WORTH = 0.005
"""A further cut must save this share of the extra time."""
AIMS = 6
"""Programs for one cut: each aims lower by what the last one's simulation was over, and by twice its own step at least."""
STEPS = 0.02, 0.005
"""The least peak is looked for in steps of the first share, then of halves of it down to the second."""

Row = tuple[str, int, tuple[int, ...], tuple[int, ...], bool, tuple[int, ...]]


@dataclass(frozen=True)
class Recompute(Lever):
    """Activation checkpointing operator by operator.

    Gradients, batch-norm statistics and dropout masks are those of the plain step to the last bit, given deterministic kernels: what runs
    again runs on the same values, random draws from the state their generator had, and batch norm updates its statistics once. A call is
    known by its operator and how many of that operator came before it in the forward pass. Where the model takes another path than planned,
    less is dropped and the result stays right. Does not go with `create_graph=True`.
    """

    name: ClassVar[str] = "recompute"

    calls: tuple[Row, ...]
    """Operator, how many of it came before, results to hold, results not to save, whether it may run again, segment."""
    saved_bytes: int
    """What is not saved for backward."""
    again_s: float
    """Seconds of the calls that run again, forecast."""

    @property
    def exactness(self) -> Exactness:
        return Exactness.BITS

    def describe(self) -> str:
        again = sum(row[4] for row in self.calls)
        return f"{format_bytes(self.saved_bytes)} not saved for backward; {again} operator calls run again ({self.again_s * 1e3:.0f} ms)"

    def on_model(self, model: nn.Module) -> nn.Module:
        around = Around(self.calls)
        model.register_forward_pre_hook(around.enter)
        model.register_forward_hook(around.leave, always_call=True)
        return model


@dataclass
class Around:
    """Hooks that put a session around every forward pass with gradients."""

    calls: tuple[Row, ...]
    _running: list[Session | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._marks: dict[str, dict[int, Marks]] = defaultdict(dict)
        for operator, nth, keep, drop, replay, segment in self.calls:
            self._marks[operator][nth] = Marks(tuple(keep), tuple(drop), replay, tuple(segment))

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before forward."""
        # A model that calls itself is inside its own session already.
        session = Session(self._marks) if torch.is_grad_enabled() and not any(self._running) else None
        self._running.append(session)
        if session is not None:
            session.start()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After forward, also after one that raised."""
        session = self._running.pop() if self._running else None
        if session is not None:
            session.stop()

    def __deepcopy__(self, memo: dict[int, Any]) -> Around:
        return Around(self.calls)

    def __reduce__(self) -> Any:
        return Around, (self.calls,)


def recompute_within(problem: Problem, target: int) -> tuple[Recompute, int] | None:
    """The quickest schedule found whose simulated peak stays within the target, and that peak; None where none was found."""
    best: tuple[Schedule, Simulation] | None = None
    started = time.perf_counter()
    for cut in problem.cuts():
        if best is not None and time.perf_counter() - started > PATIENCE_S:
            break
        found = _within(problem, target, cut, best[1].seconds * (1 - WORTH) if best is not None else math.inf)
        if found is not None and (best is None or found[1].seconds < best[1].seconds):
            best = found
    return None if best is None else (as_lever(*best), best[1].peak_bytes)


def least_recompute(problem: Problem) -> tuple[Recompute, int]:
    """The schedule with the least simulated peak found, and that peak."""
    plain = problem.everything()
    best = plain, Simulation(problem, plain)
    for cut in problem.cuts():
        best = _lower(problem, solve(problem, None, cut, LEAST_S), best)
    # The program sees the worst case only; what it finds within a target often ends below its own least.
    (step, finest), started = STEPS, time.perf_counter()
    while step >= finest and time.perf_counter() - started < PATIENCE_S:
        before = best[1].peak_bytes
        for cut in problem.cuts():
            best = _lower(problem, solve(problem, int(before * (1 - step)), cut, SOLVE_S), best)
            if best[1].peak_bytes < before:
                break
        else:
            step /= 2
    return as_lever(*best), best[1].peak_bytes


def _lower(problem: Problem, schedule: Schedule | None, best: tuple[Schedule, Simulation]) -> tuple[Schedule, Simulation]:
    if schedule is None:
        return best
    simulation = Simulation(problem, schedule)
    return (schedule, simulation) if simulation.peak_bytes < best[1].peak_bytes else best


def _within(problem: Problem, target: int, cut: Cut, below_s: float) -> tuple[Schedule, Simulation] | None:
    aim, step = target, 0
    for _ in range(AIMS):
        schedule = solve(problem, aim, cut, SOLVE_S, below_s)
        if schedule is None:
            return None
        simulation = Simulation(problem, schedule)
        if simulation.peak_bytes <= target:
            return schedule, simulation
        # What second runs take for a moment is not in the program, so a lower aim may change nothing: go further each time.
        step = max(simulation.peak_bytes - target, 2 * step)
        aim -= step
    return None


def as_lever(schedule: Schedule, simulation: Simulation) -> Recompute:
    """The schedule in plain values."""
    nodes = sorted({*schedule.replay, *(fact.node for fact in schedule.keep)}, key=lambda node: node.number)
    rows = []
    for node in nodes:
        keep, drop = _places(schedule.keep, node), _places(schedule.drop, node)
        rows.append((node.name, node.nth, keep, drop, node in schedule.replay, schedule.segments.get(node, ())))
    return Recompute(tuple(rows), sum(fact.bytes for fact in schedule.drop), simulation.seconds)


def _places(facts: Iterable[Fact], node: Any) -> tuple[int, ...]:
    return tuple(sorted(fact.place for fact in facts if fact.node is node))
