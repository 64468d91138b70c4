"""Plans and largest sizes, in the order and words that every form shows."""

from __future__ import annotations

from dataclasses import dataclass

from sash.cost import Cost, Measurement
from sash.plans import Largest, Plan
from sash.units import format_bytes, format_seconds

Fitted = Plan | Largest
"""What is about a run inside a budget, and carries its forecast."""


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity of a fitted run, written out; empty where a column has none."""

    name: str
    meaning: str
    cells: tuple[str, ...]
    """One for each of `columns`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A level to be drawn across a timeline."""

    name: str
    bytes: int


def sides(fitted: Fitted, measured: Measurement | None) -> tuple[Cost, Measurement | None]:
    """The forecast of the fitted run, and the measurement that it is held against."""
    return fitted.forecast, measured or (fitted.measurement if isinstance(fitted, Largest) else None)


def kind(fitted: Fitted) -> str:
    """What it is, in a word or three."""
    return "plan" if isinstance(fitted, Plan) else f"largest {fitted.vary}"


def columns(fitted: Fitted, measured: Measurement | None) -> tuple[str, ...]:
    """Heads of the figures' columns."""
    if isinstance(fitted, Plan):
        return ("plain", "planned", *(["measured"] if measured else []))
    return (f"{fitted.vary} {fitted.size:,}", *(["measured"] if measured else []), f"{fitted.vary} {fitted.next_size:,}")


def lines(fitted: Fitted, measured: Measurement | None) -> tuple[Line, ...]:
    """The figures of a fitted run, its peak against its budget first."""
    return _plan_lines(fitted, measured) if isinstance(fitted, Plan) else _largest_lines(fitted, measured)


def levers(plan: Plan) -> tuple[tuple[str, str, str], ...]:
    """Name, exactness and what it does, of every lever in order."""
    return tuple((lever.name, str(lever.exactness), lever.describe().removeprefix(f"{lever.name}: ")) for lever in plan.levers)


def summary(fitted: Fitted, measured: Measurement | None) -> str:
    """The result in a sentence or two."""
    over = measured.peak_bytes - fitted.budget_bytes if measured else 0
    told = f" The measured peak is over the budget by {format_bytes(over)}." if over > 0 else ""
    if isinstance(fitted, Plan):
        if not fitted.levers:
            return f"It fits as it is: no lever is pulled.{told}"
        count = f"{len(fitted.levers)} lever{'s' if len(fitted.levers) > 1 else ''}"
        time = f" Time of a step, by forecast: {_share(fitted.overhead)}." if fitted.forecast.wall_s else ""
        return f"{count}; the result is {_result(fitted)}.{time}{told}"
    inputs = ", ".join(fitted.inputs)
    after = "" if fitted.next_peak_bytes is not None else f" The model does not take {fitted.next_size:,}: {fitted.limit}"
    steps = f" It goes by {fitted.step}." if fitted.step > 1 else ""
    how = f" Found in {format_seconds(fitted.search_s)} by {fitted.forecasts} forecasts."
    return f"The largest {fitted.vary} that fits is {fitted.size:,} ({inputs}).{steps}{after}{how}{told}"


def marks(fitted: Fitted) -> tuple[Mark, ...]:
    """The levels that the planned run's timeline is looked at against."""
    budget = Mark("budget", fitted.budget_bytes)
    return (budget, Mark("plain peak", fitted.plain_peak_bytes)) if isinstance(fitted, Plan) and fitted.levers else (budget,)


def _plan_lines(plan: Plan, measured: Measurement | None) -> tuple[Line, ...]:
    planned = plan.forecast
    seconds = planned.wall_s - planned.paging_s
    more = [(format_bytes(measured.peak_bytes), format_seconds(measured.wall_s), format_bytes(measured.process_bytes))] if measured else []
    peaks, times, processes = zip(*more, strict=True) if more else ((), (), ())
    found = [
        Line("peak", "the allocator's highest level", (format_bytes(plan.plain_peak_bytes), format_bytes(planned.peak_bytes), *peaks)),
        _budget(plan, measured, 1),
        _headroom(plan, measured, 1),
    ]
    if seconds:
        plain = seconds / (1 + plan.overhead)
        found.append(
            Line("time of a step", "at this machine's rates, new pages apart", (format_seconds(plain), format_seconds(seconds), *times))
        )
        found.append(Line("extra time", "as a share of the plain step's", ("", _share(plan.overhead), *[""] * len(more))))
    found.append(Line("process", "growth of resident memory, bounded", ("", format_bytes(planned.process_bytes), *processes)))
    return tuple(found)


def _largest_lines(found: Largest, measured: Measurement | None) -> tuple[Line, ...]:
    more = [(format_bytes(measured.peak_bytes), format_seconds(measured.wall_s), format_bytes(measured.process_bytes))] if measured else []
    peaks, times, processes = zip(*more, strict=True) if more else ((), (), ())
    after = format_bytes(found.next_peak_bytes) if found.next_peak_bytes is not None else "not taken"
    told = [
        Line("peak", "the allocator's highest level", (format_bytes(found.peak_bytes), *peaks, after)),
        _budget(found, measured, 0),
        _headroom(found, measured, 0, found.next_peak_bytes),
    ]
    if found.forecast.wall_s:
        told.append(Line("time of a step", "at this machine's rates", (format_seconds(found.forecast.wall_s), *times, "")))
    told.append(Line("process", "growth of resident memory, bounded", (format_bytes(found.forecast.process_bytes), *processes, "")))
    return tuple(told)


def _budget(fitted: Fitted, measured: Measurement | None, before: int) -> Line:
    width = len(columns(fitted, measured))
    return Line("budget", "", ("",) * before + (format_bytes(fitted.budget_bytes),) + ("",) * (width - before - 1))


def _headroom(fitted: Fitted, measured: Measurement | None, before: int, after: int | None = None) -> Line:
    peaks = [fitted.forecast.peak_bytes, *([measured.peak_bytes] if measured else []), *([after] if after is not None else [])]
    cells = ("",) * before + tuple(format_bytes(fitted.budget_bytes - peak) for peak in peaks)
    return Line("headroom", "what the budget leaves over", cells + ("",) * (len(columns(fitted, measured)) - len(cells)))


def _result(plan: Plan) -> str:
    return {"changes the result": "changed"}.get(str(plan.exactness), str(plan.exactness))


def _share(share: float) -> str:
    return f"{share:+.0%}".replace("%", " %").replace("-", "−")
