"""One question about one fitted step, asked in a process of its own: `python bench/_fit_probe.py point tcn exact 400000000 bits`.

The last line printed is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _fit_bits import STEPS, applied, compare, nudged, plain, stepped, without_outputs
from _fit_models import FITTED, Fitted
from _truth import THREADS

import sash
from sash.cost import Category

BELOW = 0.97
"""Of the least bytes: a budget to be refused."""


def free(name: str) -> dict[str, Any]:
    """The plain step: its peak, forecast and measured, what of it is activations, and the least that either set of levers can keep."""
    work = FITTED[name].work()
    found = sash.forecast(work)
    return {
        "forecast_bytes": found.peak_bytes,
        "measured_bytes": sash.measure(work).peak_bytes,
        "static_bytes": found.static_bytes,
        "gradient_bytes": _gradients(found),
        "activation_bytes": activations(found),
        "wall_s": found.wall_s,
        "setting": work.setting,
        **repeats(FITTED[name]),
        "least": {levers: least(work, levers) for levers in ("exact", "all")},
    }


def activations(found: sash.Forecast) -> int:
    """Bytes alive at the forecast peak that are neither there before the step starts (weights, optimizer state, inputs) nor gradients."""
    return found.peak_bytes - found.static_bytes - _gradients(found)


def _gradients(found: sash.Forecast) -> int:
    # At the peak; most steps peak before the first gradient of a parameter is there.
    return found.timeline.levels_of(Category.GRADIENT)[found.timeline.peak_moment]


def least(work: sash.Workload, levers: str) -> dict[str, Any]:
    """The least bytes that a refusal names: of one byte, and of a budget that holds the weights and nothing else."""
    started = time.perf_counter()
    found = [_refused(work, levers, budget) for budget in (1, sash.forecast(work).static_bytes + 1)]
    return {"bytes": min(found), "told_for_one_byte": found[0], "seconds": time.perf_counter() - started}


def _refused(work: sash.Workload, levers: str, budget: int) -> int:
    try:
        plan = sash.fit(work, budget, bit_identical=levers == "exact")
    except sash.DoesNotFit as error:
        return error.least_bytes
    raise AssertionError(f"{budget} bytes are no budget, and were planned for: {plan.forecast.peak_bytes} bytes")


def refusal(name: str, levers: str, least_bytes: str) -> dict[str, Any]:
    """A budget 3 % below the least, which has to be refused with the least."""
    budget = int(BELOW * int(least_bytes))
    started = time.perf_counter()
    try:
        plan = sash.fit(FITTED[name].work(), budget, bit_identical=levers == "exact")
    except sash.DoesNotFit as error:
        return {"budget_bytes": budget, "least_bytes": error.least_bytes, "seconds": time.perf_counter() - started}
    return {"budget_bytes": budget, "planned_bytes": plan.forecast.peak_bytes, "seconds": time.perf_counter() - started}


def point(name: str, levers: str, budget: str, bits: str = "") -> dict[str, Any]:
    """One budget: the plan, its peak forecast and measured, and where asked what differs from the plain step in deterministic mode."""
    asked = FITTED[name]
    try:
        plan, taken = planned(asked.work(), levers, int(budget))
    except sash.DoesNotFit as error:
        return {"budget_bytes": int(budget), "least_bytes": error.least_bytes, "refused": str(error).splitlines()[1]}
    row = {**taken, "measured_bytes": sash.measure(plan.planned).peak_bytes}
    return {**row, "bits": differences(asked, plan, STEPS if levers == "exact" else 1)} if bits else row


def planned(work: sash.Workload, levers: str, budget: int) -> tuple[sash.Plan, dict[str, Any]]:
    """A plan, and the facts of it."""
    cpu = time.process_time()
    plan = sash.fit(work, budget, bit_identical=levers == "exact")
    return plan, {
        "budget_bytes": budget,
        "forecast_bytes": plan.forecast.peak_bytes,
        "plan_s": plan.plan_s,
        "plan_cpu_s": time.process_time() - cpu,
        "overhead": plan.overhead,
        "levers": [lever.describe() for lever in plan.levers],
        "exactness": plan.exactness.value,
    }


def differences(asked: Fitted, plan: sash.Plan, steps: int) -> dict[str, Any]:
    """What differs from the plain step with `Plan.apply` and with `Plan.step`."""
    with _deterministic():
        wanted = plain(asked, steps=steps)
        found = {
            "apply": compare(wanted, applied(asked, plan, steps)),
            "step": compare(without_outputs(wanted, asked.loss), stepped(asked, plan, steps)),
        }
    return {way: dataclasses.asdict(one) for way, one in found.items()}


def repeats(asked: Fitted) -> dict[str, Any]:
    """Whether the plain step, run again in deterministic mode, gives the same bits; and what rounding alone makes of its result."""
    with _deterministic():
        again = compare(plain(asked), plain(asked))
        moved = compare(plain(asked, steps=1), plain(asked, nudged, steps=1))
    return {"repeats": not again.differing, "rounding": dataclasses.asdict(moved)}


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def times(name: str, levers: str, share: str) -> dict[str, Any]:
    """Planned against plain, the budget leaving so large a share of the activations, or the least where that is above it."""
    from _fit_times import in_turn, plain_step, planned_step

    asked = FITTED[name]
    work = asked.work()
    found = sash.forecast(work)
    aim = found.peak_bytes - round((1 - float(share)) * activations(found))
    floor = None
    try:
        plan, taken = planned(work, levers, aim)
    except sash.DoesNotFit as error:
        floor = error.least_bytes
        plan, taken = planned(work, levers, floor)
    reached = 1 - (found.peak_bytes - plan.forecast.peak_bytes) / activations(found)
    return {**taken, "asked_bytes": aim, "floor_bytes": floor, "reached": reached, **in_turn(plain_step(asked), planned_step(plan))}


def rival(name: str, who: str) -> dict[str, Any]:
    """One of the others, as `_fit_rivals.py` runs it; printed as it is found, for whoever does not wait for the rest."""
    from _fit_rivals import RIVALS

    found: dict[str, Any] = {}
    for part in RIVALS[who](FITTED[name]):
        found |= part
        print(json.dumps(found), flush=True)
    return found


def calibrated() -> dict[str, Any]:
    """This machine's rates, measured anew."""
    from sash.cost import calibrate

    rates = calibrate(again=True)
    return {"machine": rates.machine, "seconds": rates.made_s}


def main() -> None:
    torch.set_num_threads(THREADS)
    what, *words = sys.argv[1:]
    questions = {"free": free, "point": point, "refusal": refusal, "times": times, "rival": rival, "calibrated": calibrated}
    print(json.dumps(questions[what](*words)))


if __name__ == "__main__":
    main()
