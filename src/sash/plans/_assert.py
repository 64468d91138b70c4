"""A budget as a test: for people's own test suites."""

from __future__ import annotations

from sash.cost import Cost, Forecast, Measurement, Workload, forecast, measure
from sash.errors import DoesNotFit, InputError, SashError
from sash.plans._largest import largest
from sash.plans._search import fit
from sash.units import format_bytes, parse_bytes

TOLD = 3
"""Reasons that a message names."""


def assert_fits(work: Workload, budget: str | int, *, measured: bool = False) -> Forecast | Measurement:
    """The forecast of a step whose peak is within the budget ("2 GiB", or bytes); with `measured=True` its measurement, made in
    a process of its own.

    Raises `AssertionError` where the peak is over the budget: with the peak, what holds it, and what would fit (a plan, a smaller batch).
    Finding that takes seconds, and only where it fails. Raises what `forecast` and `measure` raise where there is no step to speak of.
    """
    __tracebackhide__ = True  # pytest then points at the test, not here
    budget_bytes = parse_bytes(budget)
    if budget_bytes == 0:
        raise InputError("the budget is 0 bytes; write it like '2 GiB', '512 MB' or 1073741824.")
    expected = forecast(work)
    found = measure(work) if measured else expected
    if found.peak_bytes > budget_bytes:
        raise AssertionError(_told(work, found, expected, budget_bytes))
    return found


def _told(work: Workload, found: Cost, expected: Forecast, budget: int) -> str:
    how = "measured, peaks" if isinstance(found, Measurement) else "peaks by forecast"
    over = found.peak_bytes - budget
    lines = [
        f"{found.name} ({found.setting}) {how} at {format_bytes(found.peak_bytes)} ({found.peak_bytes} bytes); "
        f"the budget is {format_bytes(budget)} ({budget} bytes), {format_bytes(over)} less."
    ]
    lines += [f"  {number}. {reason.text}" for number, reason in enumerate([one for one in expected.why() if one.bytes][:TOLD], 1)]
    return "\n".join([*lines, _planned(work, budget), *_smaller(work, budget)])


def _planned(work: Workload, budget: int) -> str:
    try:
        plan = fit(work, budget)
    except DoesNotFit as error:
        least = f"{format_bytes(error.least_bytes)} ({error.least_bytes} bytes)"
        return f"No plan that gives the same result was found within the budget; the least is {least}."
    except SashError as error:
        return f"Whether a plan keeps it could not be found out: {error}"
    if not plan.levers:
        # By forecast it fits; the measured run did not.
        return f"By forecast it peaks at {format_bytes(plan.forecast.peak_bytes)}, within the budget."
    names = ", ".join(lever.name for lever in plan.levers)
    return (
        f"sash.fit(work, {budget}) keeps it: {names}; peak {format_bytes(plan.forecast.peak_bytes)}, "
        f"{plan.overhead:+.0%} time, {plan.exactness}."
    )


def _smaller(work: Workload, budget: int) -> list[str]:
    try:
        found = largest(work, budget, prove=False)
    except SashError:
        return []  # no batch fits, or there is none to choose
    return [f"The largest batch that fits as it is: {found.size}, at {format_bytes(found.peak_bytes)}."]
