"""How far sash's forecasts are from what steps need, beside MemTracker and torchinfo.

    python bench/forecast.py                        every workload; writes bench/results/forecast.json
    python bench/forecast.py --quick                a dozen workloads, one measured run each; prints only
    python bench/forecast.py --only NAME            one workload (may be repeated); prints only

Each workload is asked about in turn, as bench/_probe.py says: sash's forecast in a fresh process, its measurements with the two
allocators, the true allocator peak (profiler) and the two peers. An interrupted run continues where it stopped, as long as sash's
forecaster and this bench are unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _summary import ANSWERS, summarise
from _tables import print_misses, print_rows, print_summary
from _truth import THREADS
from _workloads import WORKLOADS

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "forecast.json"
PARTIAL = BENCH / "results" / "forecast.partial.json"
QUICK = (
    "resnet18-b1-infer", "mobilenet_v2-b8-infer", "efficientnet_b0-b4-adam-train", "densenet121-b4-infer", "convnext_tiny-b2-train",
    "swin_t-b2-infer", "bert-b8-infer", "gpt2-b2-bf16-infer", "unet-b1-adam-train", "lstm-b32-adam-train", "circular-b16-infer",
    "spectral-b4-adam-train",
)  # fmt: skip
PACKAGES = ("torch", "torchvision", "timm", "transformers", "torchinfo", "sash")
LIMIT_S = 600
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads sleep at barriers: where they spin, anything else that wants a core makes a step ten times longer."""


def ask(*words: str) -> dict[str, Any]:
    """The answer of `_probe.py`; `{"error": reason}` where it failed or took too long."""
    command = [sys.executable, "-W", "ignore", str(BENCH / "_probe.py"), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env={**WAITING, **os.environ})
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {LIMIT_S} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def complete(found: dict[str, Any]) -> dict[str, Any]:
    """A row whose process died has the reason in the place of every answer."""
    return found if "error" not in found else {"library": "", "architecture": "", **dict.fromkeys(ANSWERS, found)}


def setting() -> dict[str, Any]:
    """On what the numbers were made."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), platform.machine())
    waiting = {name: os.environ.get(name, value) for name, value in WAITING.items()}
    return {"versions": versions, "python": platform.python_version(), "threads": THREADS, **waiting, "processor": processor}


def code_digest() -> str:
    """Of everything that an answer depends on: the forecaster and this bench."""
    files = sorted([*BENCH.glob("*.py"), *(BENCH.parent / "src" / "sash" / "cost").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def read_partial(key: dict[str, Any]) -> dict[str, Any]:
    """Rows of an interrupted run of the same code on the same machine."""
    found = json.loads(PARTIAL.read_text()) if PARTIAL.exists() else {}
    return found.get("rows", {}) if found.get("key") == key else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(WORKLOADS), metavar="NAME", help="this workload")
    parser.add_argument("--quick", action="store_true", help="a dozen workloads, one measured run each")
    parser.add_argument("--runs", type=int, default=3, help="measured runs with the default allocator (3)")
    parser.add_argument("--mapped-runs", type=int, default=1, help="measured runs with every block mapped (1)")
    asked = parser.parse_args()
    whole = not (asked.only or asked.quick)
    names = asked.only or (QUICK if asked.quick else tuple(WORKLOADS))
    runs, mapped_runs = (1, 1) if asked.quick else (asked.runs, asked.mapped_runs)
    made_on = setting()
    key = {**made_on, "code": code_digest(), "runs": [runs, mapped_runs]}
    rows = read_partial(key) if whole else {}
    started = time.perf_counter()
    for number, name in enumerate(names, 1):
        if name not in rows:
            print(f"{number}/{len(names)} {name}", file=sys.stderr, end=" ", flush=True)
            asked_at = time.perf_counter()
            rows[name] = complete(ask("row", name, str(runs), str(mapped_runs)))
            print(f"{time.perf_counter() - asked_at:.0f} s", file=sys.stderr, flush=True)
            if whole:
                PARTIAL.parent.mkdir(exist_ok=True)
                PARTIAL.write_text(json.dumps({"key": key, "rows": rows}))
    scaling = {} if asked.only else {"huge": ask("huge"), "batches": ask("batches")}
    summary = summarise(rows, scaling)
    print_rows(rows)
    print_summary(summary, made_on)
    print_misses(summary)
    print(f"{(time.perf_counter() - started) / 60:.0f} minutes", file=sys.stderr)
    if whole:
        RESULT.write_text(json.dumps({**made_on, "summary": summary, "scaling": scaling, "rows": rows}, indent=1) + "\n")
        PARTIAL.unlink()


if __name__ == "__main__":
    main()
