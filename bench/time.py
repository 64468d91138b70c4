"""How far sash's forecasts of time are from what steps take, and whether they name the slowest layers in the right order.

    python bench/time.py                        every workload; writes bench/results/time.json
    python bench/time.py --quick                a dozen workloads; prints only
    python bench/time.py --only NAME            one workload (may be repeated); prints only

The machine is calibrated anew every sixteen workloads. Each workload runs in a fresh process: forecast, then steps of it (the median
counts), then steps under torch.profiler, whose events are summed by layer (the median step counts): what an operator takes in forward goes
to the module around it, what an autograd node takes in backward to the module that made it. An interrupted run continues where it stopped,
as long as sash's forecaster and this bench are unchanged.

The bars: half of the forecasts within 20 %, and a rank correlation (Spearman) of 0.9 over the ten slowest layers of half of the workloads.
Two figures stand beside it. Repeat is the correlation between two halves of the profiled steps: about the most that could be reached.
Pooled is that of the means of layers that are alike: a transformer's ten slowest layers are often the same one ten times, in no order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "time.json"
PARTIAL = BENCH / "results" / "time.partial.json"
QUICK = (
    "resnet18-b1-infer", "mobilenet_v2-b8-infer", "efficientnet_b0-b4-adam-train", "densenet121-b4-infer", "convnext_tiny-b2-train",
    "swin_t-b2-infer", "bert-b8-infer", "gpt2-b2-bf16-infer", "unet-b1-adam-train", "lstm-b32-adam-train", "circular-b16-infer",
    "tcn-b8-train",
)  # fmt: skip
LIMIT_S = 120
STEPS, MOST_S = 9, 3.0
"""Steps that are timed: as many, or as fit into so many seconds, three at least."""
PROFILED, MOST_PROFILED_S = 16, 6.0
"""Steps under the profiler: a layer's median over them counts, so that an interruption of a step is none of its layers'."""
SLOWEST = 10
ANEW = 16
"""Workloads between calibrations: the guests of one host slow each other down, by half within minutes."""
BAR_ERROR, BAR_ORDER = 0.20, 0.9


def row(name: str) -> dict[str, Any]:
    """Forecast and measurement of one workload, made in this process."""
    import torch
    from _probe import _work
    from _truth import THREADS
    from _workloads import WORKLOADS

    import sash

    torch.set_num_threads(THREADS)
    asked = WORKLOADS[name]
    model, inputs = asked.make()
    work = _work(asked, model, inputs)
    started = time.perf_counter()
    found = sash.forecast(work)
    taken = time.perf_counter() - started
    # The forecast's paths lead through the module that stands around a library's model.
    around = 0 if asked.library == "own" else len("model.")
    expected = {layer.path[around:]: layer.forward_s + layer.backward_s for layer in found.layers if layer.leaf}
    kinds = {layer.path[around:]: (layer.kind, layer.params, layer.outputs) for layer in found.layers}
    measured = _steps(asked, model, inputs)
    profiled = measured.pop("profiled")
    whole, first, second = (usual(steps, expected) for steps in (profiled, profiled[::2], profiled[1::2]))
    slowest = sorted(whole, key=lambda path: -whole[path])[:SLOWEST]
    return {
        "library": asked.library,
        "forecast_s": taken,
        "wall_s": found.wall_s,
        **measured,
        "error": found.wall_s / measured["step_s"] - 1,
        "order": spearman([expected[path] for path in slowest], [whole[path] for path in slowest]),
        "pooled": spearman(*(pooled(slowest, values, kinds) for values in (expected, whole))),
        "repeat": spearman([first[path] for path in slowest], [second[path] for path in slowest]),
        "profiled": len(profiled),
        "layers": [[path, expected[path], whole[path]] for path in slowest],
    }


def usual(steps: list[dict[str, float]], paths: Iterable[str]) -> dict[str, float]:
    """Median seconds of each layer over some steps; layers that no step met are left out."""
    return {path: statistics.median(step.get(path, 0.0) for step in steps) for path in paths if any(path in step for step in steps)}


def pooled(paths: list[str], values: dict[str, float], kinds: dict[str, Any]) -> list[float]:
    """Values by path, layers that are alike (class, parameters, output) at the mean of their group: which of them is slower is chance."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for path in paths:
        groups[kinds[path]].append(values[path])
    return [statistics.fmean(groups[kinds[path]]) for path in paths]


def _steps(asked: Any, model: Any, inputs: Any) -> dict[str, Any]:
    """Seconds of a step, and of each leaf module in each of the profiled steps."""
    import gc

    from _step import make_step

    step, _ = make_step(asked, model, inputs)
    step()
    step()
    gc.collect()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < STEPS and (len(seconds) < 3 or time.perf_counter() - began < MOST_S):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    profiled: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(profiled) < PROFILED and (len(profiled) < 4 or time.perf_counter() - began < MOST_PROFILED_S):
        profiled.append(layer_seconds(model, step))
    low, high = min(seconds), max(seconds)
    return {"step_s": statistics.median(seconds), "step_low_s": low, "step_high_s": high, "steps": len(seconds), "profiled": profiled}


def layer_seconds(model: Any, step: Any) -> dict[str, float]:
    """Seconds of each module's own operators in one step, forward and backward, as torch.profiler saw them."""
    from torch.profiler import ProfilerActivity, profile, record_function

    open_scopes: list[Any] = []

    def enter(path: str) -> Any:
        def hook(module: Any, positional: Any) -> None:
            open_scopes.append(record_function(f"layer:{path}"))
            open_scopes[-1].__enter__()

        return hook

    def leave(module: Any, positional: Any, outputs: Any) -> None:
        open_scopes.pop().__exit__(None, None, None)

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    for handle in handles:
        handle.remove()
    return _by_layer(profiler.events())


def _by_layer(events: Any) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    started: list[tuple[float, int, str]] = []
    for event in events:
        if event.name.startswith("layer:"):
            path = event.name.removeprefix("layer:")
            # Its own seconds are those of its operators that no inner layer is around.
            inner = sum(child.cpu_time_total for child in _layers_in(event))
            found[path] += (event.cpu_time_total - inner) * 1e-6
            started += [(start, number, path) for start, number in _numbered(event)]
    # An operator is told the number of the next node to be made, whether it makes it or not: the last one that was told made it.
    makers = {number: path for _, number, path in sorted(started)}
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function: ") and event.sequence_nr in makers:
            found[makers[event.sequence_nr]] += event.cpu_time_total * 1e-6
    return found


def _layers_in(event: Any) -> list[Any]:
    found = []
    for child in event.cpu_children:
        found += [child] if child.name.startswith("layer:") else _layers_in(child)
    return found


def _numbered(event: Any) -> Iterator[tuple[float, int]]:
    """Start and number of the next autograd node, of the operators of a layer itself."""
    for child in event.cpu_children:
        if not child.name.startswith("layer:"):
            if child.sequence_nr >= 0 and child.scope == 0:
                yield child.time_range.start, child.sequence_nr
            yield from _numbered(child)


def spearman(left: list[float], right: list[float]) -> float | None:
    """The rank correlation, equal values sharing their rank; None for fewer than three layers or where all are equal."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    from scipy.stats import spearmanr

    found: Any = spearmanr(left, right)
    return float(found.statistic)


def ask(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """A workload's row, made in a fresh process; `{"error_text": reason}` where that failed or took too long."""
    command = [sys.executable, "-W", "ignore", str(BENCH / "time.py"), "--row", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        return {"error_text": f"no answer in {LIMIT_S} s"}
    if done.returncode:
        return {"error_text": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def code_digest() -> str:
    """Of everything that an answer depends on: the forecaster and this bench."""
    files = sorted([*BENCH.glob("*.py"), *(BENCH.parent / "src" / "sash" / "cost").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians, quantiles and the rows beyond the bars."""
    told = {name: found for name, found in rows.items() if "error_text" not in found}
    errors = [abs(found["error"]) for found in told.values()]
    orders = [found["order"] for found in told.values() if found["order"] is not None]
    pools = [found["pooled"] for found in told.values() if found["pooled"] is not None]
    repeats = [found["repeat"] for found in told.values() if found["repeat"] is not None]
    return {
        "workloads": len(rows),
        "failed": {name: found["error_text"] for name, found in rows.items() if "error_text" in found},
        "error": spread(errors),
        "signed_error": spread([found["error"] for found in told.values()]),
        "order": spread(orders),
        "pooled": spread(pools),
        "repeat": spread(repeats),
        "forecast_s": spread([found["forecast_s"] for found in told.values()]),
        "within_20_percent": sum(error <= BAR_ERROR for error in errors),
        "order_reached": sum(order >= BAR_ORDER for order in orders),
        "order_rows": len(orders),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Lowest, quartiles and highest."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {"lowest": 0.0, "quarter": 0.25, "median": 0.5, "three quarters": 0.75, "p90": 0.9, "highest": 1.0}
    return {name: ordered[round(place * (len(ordered) - 1))] if place != 0.5 else statistics.median(ordered) for name, place in at.items()}


def show(rows: dict[str, dict[str, Any]], summary: dict[str, Any]) -> None:
    """The table and the distribution."""
    print(f"{'workload':38} {'forecast':>9} {'measured':>9} {'range':>15} {'error':>7} {'order':>6} {'pooled':>6} {'repeat':>6}")
    for name, found in sorted(rows.items(), key=lambda item: -abs(item[1].get("error", 9))):
        if "error_text" in found:
            print(f"{name:38} {found['error_text']}")
            continue
        low, high = found["step_low_s"] * 1e3, found["step_high_s"] * 1e3
        orders = " ".join("     –" if found[name] is None else f"{found[name]:6.2f}" for name in ("order", "pooled", "repeat"))
        times = f"{found['wall_s'] * 1e3:6.1f} ms {found['step_s'] * 1e3:6.1f} ms {low:6.0f}–{high:.0f} ms"
        print(f"{name:38} {times:36} {found['error']:+7.0%} {orders}")
    for name in ("error", "signed_error", "order", "pooled", "repeat", "forecast_s"):
        print(f"{name:14}", "  ".join(f"{at} {value:.2f}" for at, value in summary[name].items()))
    print(f"within 20 %: {summary['within_20_percent']} of {summary['workloads']}")
    print(f"order ≥ 0.9: {summary['order_reached']} of {summary['order_rows']}")
    reached = summary["error"]["median"] <= BAR_ERROR, summary["order"]["median"] >= BAR_ORDER
    print(f"bars: median error ≤ 20 % {'reached' if reached[0] else 'MISSED'}; median order ≥ 0.9 {'reached' if reached[1] else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this workload")
    parser.add_argument("--quick", action="store_true", help="a dozen workloads")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(row(asked.row)))
        return
    import torch
    from _truth import THREADS
    from _workloads import WORKLOADS

    from sash import cost

    torch.set_num_threads(THREADS)
    names = asked.only or (QUICK if asked.quick else tuple(WORKLOADS))
    whole = not (asked.only or asked.quick)
    key = {"code": code_digest(), "torch": torch.__version__, "threads": THREADS, "waiting": os.environ.get("OMP_WAIT_POLICY", "")}
    kept = json.loads(PARTIAL.read_text()) if whole and PARTIAL.exists() else {}
    rows = kept.get("rows", {}) if kept.get("key") == key else {}
    taken = kept.get("calibrated_s", []) if rows else []
    began = time.perf_counter()
    rates = cost.calibrate()
    for number, name in enumerate(names, 1):
        if name in rows:
            continue
        if len(rows) % ANEW == 0 or not taken:
            rates = cost.calibrate(again=True)
            taken.append(rates.made_s)
            print(f"calibrated in {rates.made_s:.1f} s: {rates.machine}", file=sys.stderr)
        print(f"{number}/{len(names)} {name}", file=sys.stderr, end=" ", flush=True)
        started = time.perf_counter()
        rows[name] = ask(name, dict(os.environ))
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if whole:
            PARTIAL.parent.mkdir(exist_ok=True)
            PARTIAL.write_text(json.dumps({"key": key, "calibrated_s": taken, "rows": rows}))
    summary = summarise(rows)
    show(rows, summary)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)
    if whole:
        made_on = {"machine": rates.machine, "torch": rates.torch, "threads": rates.threads, "calibrated_s": taken}
        RESULT.write_text(json.dumps({**made_on, "waiting": key["waiting"], "summary": summary, "rows": rows}, indent=1) + "\n")
        PARTIAL.unlink()


if __name__ == "__main__":
    main()
