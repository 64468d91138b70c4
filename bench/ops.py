"""Each operator of `sash.ops` beside its peers: time forward and backward, and the peak, as ratios.

    OMP_WAIT_POLICY=PASSIVE python bench/ops.py                    every row; writes bench/results/ops.json
    OMP_WAIT_POLICY=PASSIVE python bench/ops.py --topic roi        the rows of _ops_roi.py; the rest of the file stays
    OMP_WAIT_POLICY=PASSIVE python bench/ops.py --only "nms"       rows whose name has this in it; prints only

Time is the median of rounds in which all take turns in one process, with two threads; the first round does not count. Peaks are the
allocator's, of one call (with its backward, where there is one) in a fresh process, by `sash.measure`; `sash.forecast`'s of the same
stands beside. A row that misses its aim is listed under the table.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _ops_row import Row
from forecast import setting
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sash

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "ops.json"
THREADS = 2
ROUNDS, MOST_S = 9, 30.0
TOPICS = tuple(sorted(path.stem.removeprefix("_ops_") for path in BENCH.glob("_ops_*.py") if path.stem != "_ops_row"))


def rows_of(topic: str) -> tuple[Row, ...]:
    """The rows of a file."""
    return importlib.import_module(f"_ops_{topic}").ROWS


def seconds(row: Row, backward: bool) -> dict[str, float]:
    """Median seconds by who."""
    calls = {"sash": row.ours, **row.peers}
    inputs = row.inputs()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            once(call, inputs, backward, None if not turn else taken[name])
        if time.perf_counter() - began > MOST_S and turn > 2:
            break
    return {name: statistics.median(values) for name, values in taken.items()}


def once(call: Callable[..., Any], inputs: tuple[Tensor, ...], backward: bool, taken: list[float] | None) -> None:
    """One call, its seconds noted."""
    for one in inputs:
        one.grad = None
    gc.collect()
    with torch.set_grad_enabled(backward):
        started = time.perf_counter()
        found = call(*inputs)
        if backward:
            first = found if isinstance(found, Tensor) else found[0]
            first.backward(torch.ones_like(first))
        elapsed = time.perf_counter() - started
    if taken is not None:
        taken.append(elapsed)


def peaks(row: Row) -> dict[str, dict[str, int | str]]:
    """By who: the measured peak and the forecast, or why there is none."""
    found: dict[str, dict[str, int | str]] = {}
    for name, call in {"sash": row.ours, **row.peers}.items():
        work = sash.Workload(call, row.inputs(), train=row.backward)
        try:
            found[name] = {"peak_bytes": sash.measure(work).peak_bytes}
            found[name]["forecast_bytes"] = sash.forecast(work).peak_bytes
        except sash.SashError as error:
            found.setdefault(name, {})["error_text"] = str(error).replace(f"{BENCH.parent}/", "")
    return found


def answer(row: Row) -> dict[str, Any]:
    """All there is to say of a row."""
    times = {part: seconds(row, part == "both") for part in (("forward", "both") if row.backward else ("forward",))}
    return {"seconds": times, "peaks": peaks(row), "aim": row.aim, "peak_aim": row.peak_aim}


def ratio(found: dict[str, Any], part: str, peer: str) -> float | None:
    """sash's time, or its peak, as a share of a peer's."""
    if part == "peak":
        ours, theirs = (found["peaks"].get(who, {}).get("peak_bytes") for who in ("sash", peer))
    else:
        ours, theirs = (found["seconds"].get(part, {}).get(who) for who in ("sash", peer))
    return ours / theirs if ours and theirs else None


def missed(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every aim that is missed."""
    found = []
    for name, row in rows.items():
        first = next((who for who in row["seconds"]["forward"] if who != "sash"), None)
        if first is None:
            continue
        for part, aim in (("forward", row["aim"]), ("both", row["aim"]), ("peak", row["peak_aim"])):
            share = ratio(row, part, first)
            if aim is not None and share is not None and share > aim:
                found.append(f"{name}: {part} is {share:.2f}x {first}'s; the aim is {aim:g}x")
    return found


def show(rows: dict[str, dict[str, Any]]) -> None:
    """One line for each peer of a row."""
    table = Table(title="Operators: sash, and sash / peer", title_justify="left")
    for heading in ("row", "peer"):
        table.add_column(heading)
    for heading in ("sash ms", "forward", "aim", "with backward", "sash MB", "peak", "forecast"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        ours = row["peaks"].get("sash", {})
        peak, forecast = ours.get("peak_bytes"), ours.get("forecast_bytes")
        for turn, who in enumerate([who for who in row["seconds"]["forward"] if who != "sash"]):
            shares = {part: ratio(row, part, who) for part in ("forward", "both", "peak")}
            shown = {part: "" if share is None else f"{share:.2f}" for part, share in shares.items()}
            table.add_row(
                "" if turn else name,
                who,
                "" if turn else " / ".join(f"{taken['sash'] * 1e3:.1f}" for taken in row["seconds"].values()),
                shown["forward"],
                "" if turn else f"{row['aim']:g}",
                shown["both"],
                "" if turn or peak is None else f"{peak / 1e6:.1f}",
                shown["peak"],
                "" if turn or peak is None or forecast is None else f"{forecast / peak - 1:+.2%}",
            )
    console = Console(width=160)
    console.print(table)
    for line in missed(rows):
        console.print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topic", action="append", choices=TOPICS, help="the rows of this file")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name has this in it; prints only")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    kept: dict[str, Any] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    rows: dict[str, dict[str, Any]] = {}
    for topic in asked.topic or TOPICS:
        for row in rows_of(topic):
            if asked.only is None or asked.only.lower() in row.name.lower():
                print(row.name, file=sys.stderr, flush=True)
                rows[row.name] = {"topic": topic, **answer(row)}
    show(rows)
    if asked.only is None:
        others = {name: row for name, row in kept.items() if row["topic"] not in (asked.topic or TOPICS)}
        RESULT.write_text(json.dumps({**setting(), "rounds": ROUNDS, "rows": others | rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
