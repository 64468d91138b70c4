"""From the bench's rows to the figures that the project promises: tables only, nothing is run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

type_of_rows = dict[str, dict[str, Any]]

PEAKS = {"sash": "forecast", "MemTracker": "memtracker", "torchinfo": "torchinfo"}
UNDER = -0.005
"""A forecast this far below the truth counts as an under-estimate."""


def errors(rows: type_of_rows, key: str) -> dict[str, float]:
    """Relative error of a peak by workload, where both the peak and the truth are known."""
    return {
        name: row[key]["peak_bytes"] / row["truth"]["peak_bytes"] - 1
        for name, row in rows.items()
        if "error" not in row[key] and "error" not in row["truth"]
    }


def summarise(rows: type_of_rows, scaling: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table of aims, as numbers; relative figures are fractions of the truth."""
    forecasts = [row["forecast"] for row in rows.values() if "error" not in row["forecast"]]
    slacks = list(_ratios(rows, "process_bytes", "default"))
    mapped = list(_ratios(rows, "mapped_bytes", "mapped"))
    summary: dict[str, Any] = {
        "workloads": len(rows),
        "peak_error": {who: _spread(errors(rows, key).values()) for who, key in PEAKS.items()},
        "under_estimates": {who: sum(error < UNDER for error in errors(rows, key).values()) for who, key in PEAKS.items()},
        "failed": {who: sum("error" in row[key] for row in rows.values()) for who, key in PEAKS.items()},
        "measured_against_truth": _spread(_measured_errors(rows)),
        "process_runs": len(slacks),
        "process_runs_above_forecast": sum(slack < 0 for slack in slacks),
        "process_slack": {**_spread(slacks), **({"median": statistics.median(slacks)} if slacks else {})},
        "mapped_runs": len(mapped),
        "mapped_error": _spread(mapped),
        "mapped_time_ratio": _spread(_time_ratios(rows)),
        "forecast_s": _spread(found["forecast_s"] for found in forecasts),
        "step_s": _spread(row["truth"]["wall_s"] for row in rows.values() if "error" not in row["truth"]),
        "extra_bytes": _spread(found["extra_bytes"] for found in forecasts),
    }
    return {**summary, **scaling}


def print_rows(rows: type_of_rows) -> None:
    """One line a workload: the true peak in MB, errors beside it, the process, the times."""
    table = Table(title="Peak of one step, error against the allocator's true peak", title_justify="left")
    table.add_column("workload")
    for heading in ("true MB", *PEAKS, "process", "mapped", "forecast s", "step s", "extra MB"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        truth, found = row["truth"], row["forecast"]
        process = list(_ratios({name: row}, "process_bytes", "default"))
        mapped = list(_ratios({name: row}, "mapped_bytes", "mapped"))
        table.add_row(
            name,
            "failed" if "error" in truth else f"{truth['peak_bytes'] / 1e6:.1f}",
            *(_percent(errors({name: row}, key).get(name)) for key in PEAKS.values()),
            _percent(min(process, default=None)),
            _percent(max(mapped, key=abs, default=None)),
            "failed" if "error" in found else f"{found['forecast_s']:.2f}",
            "" if "error" in truth else f"{truth['wall_s']:.2f}",
            "" if "error" in found else f"{found['extra_bytes'] / 1e6:.0f}",
        )
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    for name, row in rows.items():
        for what, answer in row.items():
            if "error" in answer:
                console.print(f"{name}, {what}: {answer['error'][:300]}", markup=False, highlight=False)


def print_summary(summary: dict[str, Any], made_on: dict[str, Any]) -> None:
    """The figures beside their aims."""
    table = Table(title=f"{summary['workloads']} workloads", title_justify="left")
    for heading in ("figure", "aim", *PEAKS):
        table.add_column(heading)
    for part, aim in (("median", "≤ 0.3 %"), ("p95", "≤ 1.5 %"), ("worst", "≤ 3 %")):
        cells = [_percent(summary["peak_error"][who].get(part)) for who in PEAKS]
        table.add_row(f"allocator peak, absolute error, {part}", aim, *cells)
    table.add_row("allocator peak, lowest … highest error", "", *(_range(summary["peak_error"][who]) for who in PEAKS))
    table.add_row("under by more than 0.5 %", "none", *(str(summary["under_estimates"][who]) for who in PEAKS))
    table.add_row("no answer", "none", *(str(summary["failed"][who]) for who in PEAKS))
    above, runs = summary["process_runs_above_forecast"], summary["process_runs"]
    table.add_row("process: runs that grew past the forecast", "none", f"{above} of {runs}")
    table.add_row("process: slack, median", "≤ 15 %", _percent(summary["process_slack"].get("median")))
    table.add_row("process: slack, lowest … highest", "", _range(summary["process_slack"]))
    table.add_row("mapped: error, worst", "≤ 3 %", _percent(summary["mapped_error"].get("worst")))
    table.add_row("mapped: lowest … highest error", "", _range(summary["mapped_error"]))
    table.add_row("mapped: time of a step, median ratio", "stated", _number(summary["mapped_time_ratio"].get("median"), "× default"))
    table.add_row("seconds of a forecast, median", "≤ 1.5", _number(summary["forecast_s"].get("median"), "s"))
    table.add_row("seconds of a forecast, worst", "≤ 10", _number(summary["forecast_s"].get("worst"), "s"))
    table.add_row("extra memory of a forecast, worst", "≤ 400 MB", _number(summary["extra_bytes"].get("worst"), "MB", 1e-6))
    huge = summary.get("huge", {})
    for label, key, aim in (("its peak", "peak_bytes", "≥ 500 GB"), ("its forecast's memory", "extra_bytes", "≤ 400 MB")):
        text = _number(huge.get(key), "MB", 1e-6)
        table.add_row(f"a step too large for any machine here: {label}", aim, huge.get("error", text))
    batches = summary.get("batches", {})
    table.add_row("seconds, batch 1024 over batch 1", "0.9 … 1.1", batches.get("error", _number(batches.get("ratio"), "×")))
    measured = summary["measured_against_truth"].get("worst")
    table.add_row("sash.measure's peak against the truth, worst", "exact", _percent(measured))
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    console.print(f"{versions}; Python {made_on['python']}; {made_on['threads']} threads; {made_on['processor']}", highlight=False)


def _ratios(rows: type_of_rows, forecast: str, allocator: str) -> Iterator[float]:
    """Forecast growth of the process over each measured one, minus 1; negative where the forecast was too small."""
    for row in rows.values():
        if "error" not in row["forecast"] and "error" not in row["measure"]:
            for run in row["measure"][allocator]:
                yield row["forecast"][forecast] / run["process_bytes"] - 1


def _measured_errors(rows: type_of_rows) -> Iterator[float]:
    for row in rows.values():
        if "error" not in row["measure"] and "error" not in row["truth"]:
            for run in row["measure"]["default"]:
                yield run["peak_bytes"] / row["truth"]["peak_bytes"] - 1


def _time_ratios(rows: type_of_rows) -> Iterator[float]:
    for row in rows.values():
        if "error" not in row["measure"] and row["measure"]["default"] and row["measure"]["mapped"]:
            default, mapped = (statistics.median(run["wall_s"] for run in row["measure"][kind]) for kind in ("default", "mapped"))
            yield mapped / default


def _spread(values: Iterable[float]) -> dict[str, float]:
    """Median, 95th percentile and worst of the absolute values, and the range of the signed ones; empty where there are none."""
    signed = sorted(values)
    if not signed:
        return {}
    sizes = sorted(map(abs, signed))
    return {
        "median": statistics.median(sizes),
        "p95": sizes[-(-95 * len(sizes) // 100) - 1],
        "worst": sizes[-1],
        "lowest": signed[0],
        "highest": signed[-1],
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}" if abs(value) >= 0.1 else f"{value:+.2%}"


def _range(spread: dict[str, float]) -> str:
    return f"{_percent(spread['lowest'])} … {_percent(spread['highest'])}" if spread else ""


def _number(value: float | None, unit: str, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.4g} {unit}"
