"""From the bench's rows to the figures that the project promises: numbers only, nothing is run or printed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

RowsByName = dict[str, dict[str, Any]]

PEAKS = {"sash": "forecast", "MemTracker": "memtracker", "torchinfo": "torchinfo"}
"""Who forecasts a peak, and the answer that holds it."""
ANSWERS = (*PEAKS.values(), "truth", "measure")

UNDER = -0.005
"""A forecast this far below the truth counts as an under-estimate."""
PEAK_MEDIAN, PEAK_P95, PEAK_WORST = 0.003, 0.015, 0.03
PROCESS_SLACK = 0.15
MAPPED_WORST = 0.03
FORECAST_MEDIAN_S, FORECAST_WORST_S = 1.5, 10.0
EXTRA_BYTES = 400e6
HUGE_BYTES = 500e9
BATCH_RATIO = 0.1


def errors(rows: RowsByName, key: str) -> dict[str, float]:
    """Relative error of a peak by workload, where both the peak and the truth are known."""
    return {name: row[key]["peak_bytes"] / row["truth"]["peak_bytes"] - 1 for name, row in rows.items() if _known(row, key, "truth")}


def slacks(row: dict[str, Any]) -> list[float]:
    """`process_bytes` over each measured growth, minus 1; negative where the process grew past the forecast."""
    return list(_ratios({"": row}, "process_bytes", "default"))


def mapped_errors(row: dict[str, Any]) -> list[float]:
    """`mapped_bytes` over each measured growth with every block mapped, minus 1."""
    return list(_ratios({"": row}, "mapped_bytes", "mapped"))


def step_s(row: dict[str, Any]) -> float | None:
    """Median seconds of a measured step, default allocator; None where none was measured."""
    return _median(run["wall_s"] for run in row["measure"].get("default", ()))


def summarise(rows: RowsByName, scaling: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table of aims, as numbers; relative figures are fractions of what was measured."""
    forecasts = [row["forecast"] for row in rows.values() if _known(row, "forecast")]
    process = [slack for row in rows.values() for slack in slacks(row)]
    mapped = [error for row in rows.values() for error in mapped_errors(row)]
    classes = {(row["library"], row["architecture"]) for row in rows.values() if row["architecture"]}
    summary = {
        "workloads": len(rows),
        "architectures": len(classes),
        "architectures_by_library": dict(Counter(library for library, _ in sorted(classes))),
        "peak_error": {who: _spread(errors(rows, key).values()) for who, key in PEAKS.items()},
        "under_estimates": {who: sum(error < UNDER for error in errors(rows, key).values()) for who, key in PEAKS.items()},
        "failed": {who: sum(not _known(row, key) for row in rows.values()) for who, key in PEAKS.items()},
        "measured_against_truth": _spread(_measured_errors(rows)),
        "process_rows": sum(bool(slacks(row)) for row in rows.values()),
        "process_rows_above_forecast": sum(min(slacks(row), default=0) < 0 for row in rows.values()),
        "process_runs": len(process),
        "process_slack": {**_spread(process), **({"median": statistics.median(process)} if process else {})},
        "mapped_runs": len(mapped),
        "mapped_error": _spread(mapped),
        "mapped_time_ratio": _spread(_time_ratios(rows)),
        "forecast_s": _spread(found["forecast_s"] for found in forecasts),
        "step_s": _spread(seconds for row in rows.values() if (seconds := step_s(row)) is not None),
        "extra_bytes": _spread(found["extra_bytes"] for found in forecasts),
        "misses": misses(rows),
        **scaling,
    }
    return {**summary, "missed_overall": list(_missed_overall(summary))}


def misses(rows: RowsByName) -> dict[str, list[str]]:
    """The bars that each row misses, in words; only rows that miss one."""
    found = {name: list(_misses(row)) for name, row in rows.items()}
    return {name: texts for name, texts in found.items() if texts}


def _misses(row: dict[str, Any]) -> Iterator[str]:
    for answer in ANSWERS:
        if not _known(row, answer) and answer in ("forecast", "truth", "measure"):
            yield f"no {answer}: {row[answer]['error'][:300]}"
    error = errors({"": row}, "forecast").get("", 0.0)
    if abs(error) > PEAK_WORST:
        yield f"peak {error:+.2%}, worst allowed ± {PEAK_WORST:.0%}"
    elif error < UNDER:
        yield f"peak {error:+.2%}, an under-estimate"
    elif abs(error) > PEAK_P95:
        yield f"peak {error:+.2%}, above the 95th percentile's {PEAK_P95:.1%}"
    if (lowest := min(slacks(row), default=0.0)) < 0:
        yield f"the process grew past the forecast: slack {lowest:+.2%}"
    if abs(mapped := max(mapped_errors(row), key=abs, default=0.0)) > MAPPED_WORST:
        yield f"mapped {mapped:+.2%}, worst allowed ± {MAPPED_WORST:.0%}"
    if (seconds := row["forecast"].get("forecast_s", 0.0)) > FORECAST_WORST_S:
        yield f"the forecast took {seconds:.1f} s"
    if (extra := row["forecast"].get("extra_bytes", 0)) > EXTRA_BYTES:
        yield f"the forecast took {extra / 1e6:.0f} MB"


def _missed_overall(summary: dict[str, Any]) -> Iterator[str]:
    """Bars over many rows, and those of the two questions about scale."""
    peak = summary["peak_error"]["sash"]
    if peak.get("median", 0.0) > PEAK_MEDIAN:
        yield f"peak error, median {peak['median']:.2%}, at most {PEAK_MEDIAN:.1%}"
    if peak.get("p95", 0.0) > PEAK_P95:
        yield f"peak error, 95th percentile {peak['p95']:.2%}, at most {PEAK_P95:.1%}"
    if (slack := summary["process_slack"].get("median", 0.0)) > PROCESS_SLACK:
        yield f"process slack, median {slack:.1%}, at most {PROCESS_SLACK:.0%}"
    if (seconds := summary["forecast_s"].get("median", 0.0)) > FORECAST_MEDIAN_S:
        yield f"seconds of a forecast, median {seconds:.2f}, at most {FORECAST_MEDIAN_S}"
    huge, batches = summary.get("huge", {}), summary.get("batches", {})
    for what, found in (("a step too large", huge), ("batch 1 and 1024", batches)):
        if "error" in found:
            yield f"{what}: {found['error'][:300]}"
    if huge.get("peak_bytes", HUGE_BYTES) < HUGE_BYTES:
        yield f"the step too large for this machine needs {huge['peak_bytes'] / 1e9:.0f} GB, at least {HUGE_BYTES / 1e9:.0f} was meant"
    if huge.get("extra_bytes", 0) > EXTRA_BYTES:
        yield f"its forecast took {huge['extra_bytes'] / 1e6:.0f} MB, at most {EXTRA_BYTES / 1e6:.0f}"
    if abs(batches.get("ratio", 1.0) - 1) > BATCH_RATIO:
        yield f"seconds, batch 1024 over batch 1: {batches['ratio']:.2f}, within {BATCH_RATIO:.0%} of 1"


def _known(row: dict[str, Any], *answers: str) -> bool:
    return all("error" not in row[answer] for answer in answers)


def _ratios(rows: RowsByName, forecast: str, allocator: str) -> Iterator[float]:
    for row in rows.values():
        if _known(row, "forecast", "measure"):
            for run in row["measure"][allocator]:
                yield row["forecast"][forecast] / run["process_bytes"] - 1


def _measured_errors(rows: RowsByName) -> Iterator[float]:
    for row in rows.values():
        if _known(row, "measure", "truth"):
            for run in row["measure"]["default"]:
                yield run["peak_bytes"] / row["truth"]["peak_bytes"] - 1


def _time_ratios(rows: RowsByName) -> Iterator[float]:
    for row in rows.values():
        default, mapped = step_s(row), _median(run["wall_s"] for run in row["measure"].get("mapped", ()))
        if default is not None and mapped is not None:
            yield mapped / default


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


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
