"""The bench's tables: one line a workload, then each promised figure beside its aim."""

from __future__ import annotations

from typing import Any

import _summary as aims
from _summary import ANSWERS, PEAKS, RowsByName, errors, mapped_errors, slacks, step_s
from rich.console import Console
from rich.table import Table

MACS = (
    "exact on 600 random convolutions, forward and backward: tests/cost/test_macs.py; "
    "on whole models, as published and as torch counts them: tests/parity/test_macs_published.py"
)


def print_rows(rows: RowsByName) -> None:
    """One line a workload: the true peak in MB, errors beside it, the process, the times."""
    table = Table(title="Peak of one step, error against the allocator's true peak", title_justify="left")
    table.add_column("workload")
    for heading in ("true MB", *PEAKS, "process", "mapped", "forecast s", "step s", "extra MB"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        truth, found, seconds = row["truth"], row["forecast"], step_s(row)
        table.add_row(
            name,
            "failed" if "error" in truth else f"{truth['peak_bytes'] / 1e6:.1f}",
            *(_percent(errors({name: row}, key).get(name)) for key in PEAKS.values()),
            _percent(min(slacks(row), default=None)),
            _percent(max(mapped_errors(row), key=abs, default=None)),
            "failed" if "error" in found else f"{found['forecast_s']:.2f}",
            "" if seconds is None else f"{seconds:.2f}",
            "" if "error" in found else f"{found['extra_bytes'] / 1e6:.0f}",
        )
    console = _console()
    console.print(table)
    console.print("process: smallest slack of the forecast over a measured growth. mapped: the error farthest from 0.")
    for name, row in rows.items():
        for answer in ANSWERS:
            if "error" in row[answer]:
                console.print(f"{name}, {answer}: {row[answer]['error'][:300]}", markup=False, highlight=False)


def print_summary(summary: dict[str, Any], made_on: dict[str, Any]) -> None:
    """The figures beside their aims."""
    libraries = ", ".join(f"{library} {count}" for library, count in summary["architectures_by_library"].items())
    title = f"{summary['workloads']} workloads, {summary['architectures']} architectures ({libraries})"
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "aim", *PEAKS):
        table.add_column(heading)
    for part, aim in (("median", aims.PEAK_MEDIAN), ("p95", aims.PEAK_P95), ("worst", aims.PEAK_WORST)):
        cells = [_percent(summary["peak_error"][who].get(part)) for who in PEAKS]
        table.add_row(f"allocator peak, absolute error, {part}", f"≤ {aim:.1%}", *cells)
    table.add_row("allocator peak, lowest … highest error", "", *(_range(summary["peak_error"][who]) for who in PEAKS))
    table.add_row("under by more than 0.5 %", "none", *(str(summary["under_estimates"][who]) for who in PEAKS))
    table.add_row("no answer", "none", *(str(summary["failed"][who]) for who in PEAKS))
    above, measured, runs = summary["process_rows_above_forecast"], summary["process_rows"], summary["process_runs"]
    table.add_row("process: rows with a run that grew past the forecast", "none", f"{above} of {measured} ({runs} runs)")
    table.add_row("process: slack, median", f"≤ {aims.PROCESS_SLACK:.0%}", _percent(summary["process_slack"].get("median")))
    table.add_row("process: slack, lowest … highest", "", _range(summary["process_slack"]))
    mapped = summary["mapped_error"]
    table.add_row(
        f"mapped: absolute error, worst of {summary['mapped_runs']} runs", f"≤ {aims.MAPPED_WORST:.0%}", _percent(mapped.get("worst"))
    )
    table.add_row("mapped: lowest … highest error", "", _range(mapped))
    table.add_row("mapped: seconds of a step, median ratio", "stated", _number(summary["mapped_time_ratio"].get("median"), "× default"))
    seconds, extra = summary["forecast_s"], summary["extra_bytes"]
    table.add_row("seconds of a forecast, median", f"≤ {aims.FORECAST_MEDIAN_S}", _number(seconds.get("median"), "s"))
    table.add_row("seconds of a forecast, worst", f"≤ {aims.FORECAST_WORST_S:.0f}", _number(seconds.get("worst"), "s"))
    table.add_row("extra memory of a forecast, worst", f"≤ {aims.EXTRA_BYTES / 1e6:.0f} MB", _number(extra.get("worst"), "MB", 1e-6))
    huge, batches = summary.get("huge", {}), summary.get("batches", {})
    table.add_row("a step too large for this machine: its peak", "≥ 500 GB", huge.get("error", _number(huge.get("peak_bytes"), "GB", 1e-9)))
    table.add_row("its forecast's extra memory", f"≤ {aims.EXTRA_BYTES / 1e6:.0f} MB", _number(huge.get("extra_bytes"), "MB", 1e-6))
    table.add_row("seconds, batch 1024 over batch 1", "0.9 … 1.1", batches.get("error", _number(batches.get("ratio"), "×")))
    table.add_row("sash.measure's peak against the truth, worst", "exact", _percent(summary["measured_against_truth"].get("worst")))
    console = _console()
    console.print(table)
    console.print(f"MACs: {MACS}.", highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    console.print(f"{versions}; Python {made_on['python']}; {made_on['threads']} threads; {made_on['processor']}", highlight=False)


def print_misses(summary: dict[str, Any]) -> None:
    """What does not reach its aim: figures over all rows first, then rows."""
    console = _console()
    missed = [f"over all rows: {text}" for text in summary["missed_overall"]]
    missed += [f"{name}: {text}" for name, texts in summary["misses"].items() for text in texts]
    console.print(f"{len(missed)} misses" if missed else "Every aim is reached.")
    for line in missed:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 150)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}" if abs(value) >= 0.1 else f"{value:+.2%}"


def _range(spread: dict[str, float]) -> str:
    return f"{_percent(spread['lowest'])} … {_percent(spread['highest'])}" if spread else ""


def _number(value: float | None, unit: str, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.4g} {unit}"
