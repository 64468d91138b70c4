"""The forecast peak of array jobs beside what the process grew by, over 200 random cases, each in a fresh process.

A case is an operation, a shape, a type, a kernel or sigma or frame, a border, a format to read and one to write, and a budget
(`_arrays_cases.py`, seed fixed). `_arrays_probe.py` says what growth is: resident memory at most, over the level after imports and after
the same operation ran on a tiny array. A budget that is refused counts as kept where the refusal came before work, and where the least
budget that it names then runs, and is kept. Forecast over growth is never to be less than 1, and is to be 1.3 at most in the median.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from _arrays_kept import Kept
from _arrays_rounds import folder
from rich.console import Console
from rich.table import Table

CASES = 200
MEDIAN_AIM = 1.3
LIMIT_S = 600
BEFORE_WORK = 0.1
"""A refusal came before work if the process grew by less than that share of the budget that would do, or by a mebibyte."""


def truth_section(kept: Kept, cases: int = CASES, jobs: int = 1) -> dict[str, Any]:
    """All rows, and what they come to."""
    left = [index for index in range(cases) if str(index) not in kept.rows]
    with ThreadPoolExecutor(jobs) as pool:
        for index, row in zip(left, pool.map(one, left), strict=True):
            kept.keep(str(index), row)
            print(f"{index} {told(row)}", file=sys.stderr, flush=True)
    rows = [kept.rows[str(index)] for index in range(cases)]
    return {**summary(rows), "rows": rows}


def one(index: int) -> dict[str, Any]:
    """A case and its answer."""
    from _arrays_cases import drawn, placed
    from _arrays_probe import ask

    case = drawn(index)
    with folder() as place:
        found = ask(placed(case, place), LIMIT_S)
    row = {**case, **{key: value for key, value in found.items() if key not in ("shape", "dtype", "read_by_file", "written_by_file")}}
    row.pop("tiny")
    return {**row, **({"ratio": found["peak_bytes"] / max(found["growth_bytes"], 1)} if "growth_bytes" in found else {})}


def is_kept(row: dict[str, Any]) -> bool:
    """Whether the budget was: the one asked for, or the least one that a refusal named."""
    if "error_text" in row or row["growth_bytes"] > row["held_to_bytes"]:
        return False
    return not row["refused"] or row["refused_growth_bytes"] <= max(BEFORE_WORK * row["least_bytes"], 1 << 20)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and ratios, over all and by operation."""

    def over(some: list[dict[str, Any]]) -> dict[str, Any]:
        ratios = [row["ratio"] for row in some if "ratio" in row]
        return {
            "cases": len(some),
            "kept": sum(map(is_kept, some)),
            "refused": sum(row.get("refused", False) for row in some),
            "failed": sum("error_text" in row for row in some),
            "below_one": sum(ratio < 1 for ratio in ratios),
            "least_ratio": min(ratios, default=None),
            "median_ratio": median(ratios) if ratios else None,
            "most_ratio": max(ratios, default=None),
        }

    names = sorted({row["operation"] for row in rows})
    return {"all": over(rows), "by_operation": {name: over([row for row in rows if row["operation"] == name]) for name in names}}


def told(row: dict[str, Any]) -> str:
    """A case and its answer, in a line."""
    asked = f"{row['operation']} {row['shape']} {row['dtype']} {row['read']} to {row['written']}, {row['args']} {row.get('taps', '')}"
    asked += f" {json.dumps(row['words'])}, {row.get('method', '')}"
    if "growth_bytes" not in row:
        return f"{asked}: {row['error_text']}"
    sizes = ("held_to_bytes", "peak_bytes", "growth_bytes")
    held, peak, growth = (f"{row[key] / 2**20:.2f}" for key in sizes)
    refused = f", refused {row['budget'] / 2**20:.2f}" if row["refused"] else ""
    return f"{asked}: growth {growth} of {peak} forecast, budget {held} MiB{refused}, ratio {row['ratio']:.2f}"


def show_truth(found: dict[str, Any]) -> None:
    """A line an operation."""
    table = Table(title="Array jobs: forecast peak / growth of the process", title_justify="left")
    for heading in ("operation", "cases", "kept", "refused", "failed", "below 1", "least", "median", "most"):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    for name, row in {**found["by_operation"], "all": found["all"]}.items():
        ratios = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("least_ratio", "median_ratio", "most_ratio")]
        table.add_row(name, *(str(row[key]) for key in ("cases", "kept", "refused", "failed", "below_one")), *ratios)
    Console(width=160).print(table)


def missed_truth(found: dict[str, Any]) -> list[str]:
    """Every case that is not kept, or grew by more than its forecast; and the median."""
    rows: Iterable[dict[str, Any]] = found["rows"]
    lines = [told(row) for row in rows if not is_kept(row) or row.get("ratio", 1) < 1]
    middle = found["all"]["median_ratio"]
    return [*lines, *([f"median {middle:.2f}; the aim is {MEDIAN_AIM}"] if middle is not None and middle > MEDIAN_AIM else [])]


if __name__ == "__main__":
    # One case, its files left in the folder: python bench/_arrays_truth.py 17 FOLDER
    from _arrays_cases import drawn, placed
    from _arrays_probe import ask

    place = Path(sys.argv[2])
    place.mkdir(exist_ok=True)
    case = placed(drawn(int(sys.argv[1])), place)
    (place / "job.json").write_text(json.dumps(case))
    print(json.dumps(ask(case), indent=1))
