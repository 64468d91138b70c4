"""How far `sash.fit` goes: budgets kept, results the same, and the time that it costs, beside checkpointing and torch.compile.

    python bench/fit.py                         every model and part; writes bench/results/fit.json
    python bench/fit.py --quick                 three models, three budgets; prints only
    python bench/fit.py --only NAME             one model (may be repeated)
    python bench/fit.py --part budgets          peaks and results, which no load disturbs; or times, or rivals (may be repeated)
    python bench/fit.py --jobs 2                so many answers about peaks and results at once; times and rivals one by one all the same
    python bench/fit.py --summary               the tables of what is there already

Every model takes a training step. `activations` are the bytes alive at the plain step's forecast peak that are neither there before the
step starts (weights, optimizer state, inputs) nor gradients of parameters; halving them is a budget of the peak less half of them, and
where no plan reaches that, the least that one does, which the row says. Each question is asked in a fresh process:

    budgets   the plain step's peak, forecast and measured; the least budget; ten budgets evenly from the least to the plain peak, both of
              them among the ten, each planned and measured, with the levers that promise the same bits ("exact"), and some of ten with all
              that need no leave ("all"); what differs from the plain step in deterministic mode; a budget 3 % below the least
    times     the planned and the plain step in one process, in turn, with two threads
    rivals    torch.utils.checkpoint around every block; torch.compile with its budget for activations

An interrupted run continues where it stopped, as far as the code that the part's answers depend on is unchanged. Rows of several calls
come together: --part and --only leave the others' rows in place, and fit.json is written whenever every row of every model is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from _fit_summary import LADDERS, TIMES, Rows, summarise
from _fit_tables import print_budgets, print_summary, print_times

BENCH = Path(__file__).resolve().parent
RESULT = BENCH / "results" / "fit.json"
PARTIAL = BENCH / "results" / "fit.partial.json"
PARTS = ("budgets", "times", "rivals")
BUDGETS = 10
ASKED = {"exact": range(BUDGETS), "all": (0, 3, 6)}
"""Of ten budgets, those that are planned for."""
WITH_BITS = {"exact": (0, 4, 8), "all": (0, 3)}
"""Of those, the ones whose results are compared as well."""
LIMIT_S = {"budgets": 1800, "times": 400, "rivals": 150}
"""Seconds for one answer."""
ASKING = ("_fit_models", "_fit_probe", "_fit_bits", "_fit_times", "_models", "_workloads", "_step", "_truth")
PLANNING = ("plans/*.py", "cost/*.py", "ops/_loss.py", "ops/_separable*.py", "models/_unet.py")
ANSWERING = {
    "budgets": (ASKING, PLANNING),
    "times": (ASKING, PLANNING),
    "rivals": ((*ASKING, "_fit_rivals"), ("models/_unet.py", "cost/_measure.py", "cost/_child.py")),
}
"""Files of this bench and of sash that a part's answers depend on; what sums up and prints is not among them."""


def questions(part: str, free: dict[str, Any], budgets: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The questions of a part about one model, by name, with their words for `_fit_probe.py`."""
    if part == "times":
        for question, words in TIMES.items():
            yield question, ("times", *words)
    elif part == "rivals":
        from _fit_rivals import RIVALS

        for who in RIVALS:
            yield who, ("rival", who)
    elif "least" in free:
        for levers in LADDERS:
            least = free["least"][levers]["bytes"]
            yield f"refusal:{levers}", ("refusal", levers, str(least))
            for index in ASKED[levers] if budgets == BUDGETS else range(budgets):
                budget = least + round(index * (free["forecast_bytes"] - least) / (budgets - 1))
                compared = index in WITH_BITS[levers] if budgets == BUDGETS else index == 0
                yield f"{levers}-{index}", ("point", levers, str(budget), *(["bits"] if compared else []))


def ask(limit_s: int, *words: str) -> dict[str, Any]:
    """The last answer of `_fit_probe.py`; `{"error_text": reason}` where it failed or took too long before there was one."""
    command = [sys.executable, "-W", "ignore", str(BENCH / "_fit_probe.py"), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        out, failed = done.stdout, done.returncode and (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:500]
    except subprocess.TimeoutExpired as ended:
        out, failed = (ended.stdout or b"").decode(), f"no answer in {limit_s} s"
    answers = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    if not answers:
        return {"error_text": failed or "no answer"}
    return {**json.loads(answers[-1]), **({"broken_off": failed} if failed else {})}


def code_digest(part: str) -> str:
    """Of everything that a part's answers depend on."""
    asking, patterns = ANSWERING[part]
    files = [BENCH / f"{name}.py" for name in asking]
    files += [path for pattern in patterns for path in (BENCH.parent / "src" / "sash").glob(pattern)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def setting() -> dict[str, Any]:
    """On what the numbers were made."""
    from forecast import setting as versions

    return {**versions(), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""), "device": "CPU; not measured on a GPU"}


def run(names: Sequence[str], parts: Sequence[str], budgets: int, rows: Rows, jobs: int, keep: Callable[[], None]) -> None:
    """Every answer that is not there yet, kept as it comes; of peaks and results, which no load disturbs, several at once."""
    if "times" in parts and not any("/times/" in key for key in rows):
        print(f"calibrated: {ask(LIMIT_S['times'], 'calibrated')}", file=sys.stderr, flush=True)
    for part in parts:
        at_once = jobs if part == "budgets" else 1
        if part != "times":
            _answer({f"{name}/budgets/free": ("free", name) for name in names}, LIMIT_S["budgets"], at_once, rows, keep)
        wanted = {
            f"{name}/{part}/{question}": (words[0], name, *words[1:])
            for name in names
            for question, words in questions(part, rows.get(f"{name}/budgets/free", {}), budgets)
        }
        # Results of every model before more peaks of one: what is wrong shows early.
        for first in (True, False):
            some = {key: words for key, words in wanted.items() if first == (words[-1] == "bits")}
            _answer(some, LIMIT_S[part], at_once, rows, keep)


def _answer(wanted: dict[str, tuple[str, ...]], limit_s: int, at_once: int, rows: Rows, keep: Callable[[], None]) -> None:
    def one(key: str) -> tuple[str, dict[str, Any], float]:
        started = time.perf_counter()
        return key, ask(limit_s, *wanted[key]), time.perf_counter() - started

    with ThreadPool(at_once) as pool:
        for key, answer, seconds in pool.imap_unordered(one, [key for key in wanted if key not in rows]):
            rows[key] = answer
            keep()
            print(f"{key} {seconds:.0f} s {answer.get('error_text', '')}", file=sys.stderr, flush=True)


def missing(rows: Rows, names: list[str]) -> int:
    """Answers that are not there yet, of all."""
    wanted = [f"{name}/budgets/free" for name in names]
    for name in names:
        for part in PARTS:
            wanted += [f"{name}/{part}/{question}" for question, _ in questions(part, rows.get(f"{name}/budgets/free", {}), BUDGETS)]
    return sum(key not in rows for key in wanted)


def read(path: Path, key: dict[str, Any]) -> Rows:
    """Rows that are there already, of the same code on the same machine; what failed is asked again, but for the rivals'."""
    found = json.loads(path.read_text()) if path.exists() else {}
    kept = found.get("key", {})
    if {**kept, "code": None} != {**key, "code": None}:
        return {}
    same = {part for part in PARTS if kept["code"][part] == key["code"][part]}
    rows = {name: answer for name, answer in found["rows"].items() if name.split("/")[1] in same}
    return {name: answer for name, answer in rows.items() if "error_text" not in answer or "/rivals/" in name}


def show(rows: Rows, made_on: dict[str, Any]) -> None:
    """The tables."""
    print_budgets(rows)
    print_times(rows)
    print_summary(summarise(rows), made_on)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this model")
    parser.add_argument("--quick", action="store_true", help="three models, three budgets; keeps nothing")
    parser.add_argument("--part", action="append", choices=PARTS, help="this part")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many answers about peaks and results at once")
    parser.add_argument("--summary", action="store_true", help="ask nothing; print what is there")
    asked = parser.parse_args()
    if asked.summary:
        kept = json.loads((PARTIAL if PARTIAL.exists() else RESULT).read_text())
        show(kept["rows"], kept.get("key", kept))
        return
    from _fit_models import FITTED, QUICK

    if unknown := set(asked.only or ()).difference(FITTED):
        parser.error(f"{', '.join(sorted(unknown))}: no such model; there are {', '.join(FITTED)}")
    names = asked.only or (list(QUICK) if asked.quick else list(FITTED))
    parts = asked.part or list(PARTS)
    made_on = setting()
    key = {**made_on, "code": {part: code_digest(part) for part in PARTS}}
    rows: Rows = {} if asked.quick else read(PARTIAL, key) or read(RESULT, key)

    def keep() -> None:
        if not asked.quick:
            PARTIAL.parent.mkdir(exist_ok=True)
            fresh = PARTIAL.with_suffix(".part")
            fresh.write_text(json.dumps({"key": key, "rows": rows}))
            fresh.replace(PARTIAL)

    began = time.perf_counter()
    run(names, parts, 3 if asked.quick else BUDGETS, rows, asked.jobs, keep)
    show(rows, made_on)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)
    if not asked.quick and not missing(rows, list(FITTED)):
        RESULT.write_text(json.dumps({**made_on, "key": key, "summary": summarise(rows), "rows": rows}, indent=1) + "\n")
        PARTIAL.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
