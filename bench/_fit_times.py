"""Two ways to run one step, timed in one process in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from _fit_models import Fitted
from torch import nn

import sash

PAIRS, FEWEST, MOST_S = 9, 3, 75.0
"""Pairs that are timed: as many, or as fit into so many seconds, but a fewest."""
WARMING = 2

Step = Callable[[], Any]


def in_turn(plain: Step, other: Step, pairs: int = PAIRS, most_s: float = MOST_S) -> dict[str, Any]:
    """Median seconds of either, the median of the ratios other/plain of neighbours, and their range; either goes first in turn."""
    for step in (plain, other) * WARMING:
        step()
    gc.collect()
    seconds: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while len(seconds[0]) < pairs and (len(seconds[0]) < FEWEST or time.perf_counter() - began < most_s):
        for which in (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0):
            started = time.perf_counter()
            (plain, other)[which]()
            seconds[which].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    plain_s, other_s = (statistics.median(one) for one in seconds)
    return {
        "plain_s": plain_s, "other_s": other_s, "ratio": other_s / plain_s, "pairs": len(ratios),
        "pair_ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
    }  # fmt: skip


def plain_step(asked: Fitted, rewrite: Callable[[nn.Module], Any] = lambda model: model) -> Step:
    """The step as anybody would write it, with the model as rewritten."""
    work = asked.work()
    model = work.model
    assert isinstance(model, nn.Module)
    make: Any = work.optimizer
    optimizer = make(model.parameters())
    run = rewrite(model)
    positional, keyword = work.arguments()

    def step() -> None:
        # The outputs live until the step ends, as in a training loop that names them.
        outputs = run(*positional, **keyword)
        asked.loss(outputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def planned_step(plan: sash.Plan) -> Step:
    """`Plan.step` on the workload's own batch."""
    return lambda: plan.step(plan.work.inputs)
