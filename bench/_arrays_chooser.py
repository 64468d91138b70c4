"""Whether the way that is chosen is the quickest: random blurs and convolutions, each done by every method that it has.

Regret is the time of the method that was chosen over that of the quickest one, medians of runs in turn. Arrays are in memory, and the
output is given. A method is left out where its plan takes it for more than ten times as slow: it is run once, and told if that was wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

REQUIRED = {"cases": 200, "regret": 1.15, "share_percent": 95.0}
RUNS = 5
FAR = 10.0
LEAST_S = 0.02
"""Shorter runs are repeated until they take as long together."""


def drawn(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random work: shapes, types, sigmas and kernels."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        shape = tuple(int(side) for side in np.exp(rng.uniform(np.log(256), np.log(3000), 2)))
        dtype = str(rng.choice(["float32", "float32", "float64", "uint16", "uint8"]))
        if number % 2:
            sigma = [float(one) for one in np.round(np.exp(rng.uniform(np.log(0.5), np.log(60), 2)), 2)]
            sigma = sigma if rng.random() < 0.3 else sigma[:1] * 2
            found.append(
                {"operation": "blur", "shape": shape, "dtype": dtype, "sigma": sigma, "tolerance": float(rng.choice([1e-3, 1e-6]))}
            )
        else:
            taps = [int(side) for side in np.exp(rng.uniform(np.log(3), np.log(200), 2))]
            taps = taps if rng.random() < 0.3 else taps[:1] * 2
            rank = int(rng.choice([1, 2, 4, 0]))
            found.append({"operation": "convolve", "shape": shape, "dtype": dtype, "taps": taps, "rank": rank, "seed": number})
    return found


def call_of(case: dict[str, Any]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """What runs it, given a method and what else; and the methods."""
    from sash import arrays

    rng = np.random.default_rng(case.get("seed", 0))
    dtype = np.dtype(case["dtype"])
    values = rng.random(case["shape"])
    source = (values * (np.iinfo(dtype).max if dtype.kind in "iu" else 1)).astype(dtype)
    if case["operation"] == "blur":
        out = np.empty_like(source)
        return (
            lambda **more: arrays.blur(source, tuple(case["sigma"]), out, tolerance=case["tolerance"], budget="2 GiB", **more),
            ("direct", "multirate"),
        )
    high, wide = case["taps"]
    kernel = rng.random((high, wide))
    if case["rank"]:
        kernel = sum(np.outer(rng.random(high) - 0.3, rng.random(wide) - 0.3) for _ in range(case["rank"]))
    out = np.empty(case["shape"], np.float64 if dtype == np.float64 else np.float32)
    return lambda **more: arrays.convolve(source, kernel, out, budget="2 GiB", **more), ("separable", "fft")


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each method, and the regret."""
    from sash.errors import InputError

    call, methods = call_of(case)
    plan = call(plan_only=True)
    forecast = {method.name: method.wall_s for method in plan.methods}
    chosen = next(method.name for method in plan.methods if method.verdict == "chosen")
    seconds: dict[str, list[float]] = {}
    for name in methods:
        try:
            seconds[name] = [timed(lambda name=name: call(method=name), 1)]  # the first run compiles, and designs filters
        except InputError:
            continue  # no samples can be left out: there is no such method here
    best = min(min(one) for one in seconds.values())
    near = [name for name, one in seconds.items() if one[0] < FAR * best or name == chosen]
    times = {name: [] for name in near}
    again = {name: max(int(LEAST_S / max(seconds[name][0], 1e-4)), 1) for name in near}
    for _ in range(RUNS):
        for name in near:
            times[name].append(timed(lambda name=name: call(method=name), again[name]))
    taken = {name: median(one) for name, one in times.items()}
    return {
        **case,
        "chosen": chosen,
        "forecast_s": forecast,
        "seconds": taken,
        "regret": taken[chosen] / min(taken.values()),
    }


def timed(work: Callable[[], Any], again: int) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    for _ in range(again):
        work()
    return (time.perf_counter() - start) / again


def chooser_section(cases: int | None = None) -> dict[str, Any]:
    """All cases, and what they come to."""
    rows, count = [], cases or REQUIRED["cases"]
    for number, case in enumerate(drawn(count)):
        rows.append(run_case(case))
        if number % 20 == 19:
            print(f"chooser: {number + 1} of {count}", file=sys.stderr, flush=True)
    regrets = np.array([row["regret"] for row in rows])
    off = [row["seconds"][row["chosen"]] / row["forecast_s"][row["chosen"]] for row in rows]
    return {
        "rows": rows,
        "within_percent": float(100 * np.mean(regrets <= REQUIRED["regret"])),
        "worst_regret": float(regrets.max()),
        "measured_over_forecast": [float(one) for one in np.percentile(off, [10, 50, 90])],
        "required": REQUIRED,
    }


def show_chooser(found: dict[str, Any]) -> None:
    """What was found."""
    low, middle, high = found["measured_over_forecast"]
    print(f"chooser: regret at most {REQUIRED['regret']} in {found['within_percent']:.1f} % of {len(found['rows'])} cases (aim", end=" ")
    print(f"{REQUIRED['share_percent']:g} %), worst {found['worst_regret']:.2f};", end=" ")
    print(f"measured over forecast time {middle:.2f} (10th to 90th percentile {low:.2f} to {high:.2f})")
    for row in sorted(found["rows"], key=lambda row: -row["regret"])[:10]:
        what = {key: row[key] for key in ("operation", "shape", "dtype", "sigma", "tolerance", "taps", "rank") if key in row}
        times = ", ".join(f"{name} {taken * 1e3:.1f} ms" for name, taken in row["seconds"].items())
        print(f"  {row['regret']:.2f}  {row['chosen']} of {times}: {what}")


def missed_chooser(found: dict[str, Any]) -> list[str]:
    """Aims that are missed."""
    within = found["within_percent"]
    return [] if within >= REQUIRED["share_percent"] else [f"regret within {REQUIRED['regret']} in {within:.1f} % of cases"]
