"""Jobs from file to file, killed at a random moment (SIGKILL) and run again: the bits, and the tasks that are run twice.

A hundred kills over blur (direct and at two rates), convolution by transforms and stft, each to .npy and to .zarr, with budgets so small
that there are many tasks. The moment is uniform over the job, which a tiny one went before: so many tasks have begun, and a share of the
mean time of one has passed; from none to one more than there are. Where the job has ended by then, or its output has its name, the
moment is drawn again. The result after the second run is compared with that of a
run without interruption. Lost tasks are those that the killed run had begun and that its journal did not have: they are run again. The
aim is one a worker, at most.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _arrays_kept import Kept
from _arrays_rounds import folder
from rich.console import Console
from rich.table import Table

KILLS, WORKERS = 100, 2
SEED = 1
SIDE, SAMPLES = 3072, 6_000_000
MORE = 1.4
"""Times the least budget."""
JOBS: dict[str, dict[str, Any]] = {
    "blur direct": {"operation": "blur", "args": [3.0], "words": {"method": "direct"}},
    "blur at two rates": {"operation": "blur", "args": [12.0], "words": {"method": "multirate"}},
    "convolve by fft": {"operation": "convolve", "args": ["kernel.npy"], "words": {"method": "fft"}},
    "stft": {"operation": "stft", "args": [1024, 256], "words": {"output": "magnitude"}},
}
KINDS = (".npy", ".zarr")


def kill_section(kept: Kept, cases: int = KILLS, jobs: int = 1) -> dict[str, Any]:
    """A row a kill, and what they come to."""
    with folder(2 << 30) as place:
        inputs(place)
        names = [f"{job} to {kind}" for job in JOBS for kind in KINDS]
        with ThreadPoolExecutor(jobs) as pool:
            whole = dict(zip(names, pool.map(lambda name: uninterrupted(name, place), names), strict=True))
            left = [number for number in range(cases) if str(number) not in kept.rows]
            found = pool.map(lambda number: killed(number, names[number % len(names)], whole[names[number % len(names)]], place), left)
            for number, row in zip(left, found, strict=True):
                kept.keep(str(number), row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    rows = [kept.rows[str(number)] for number in range(cases)]
    return {"jobs": whole, "rows": rows, "by_job": {name: over([row for row in rows if row["job"] == name]) for name in names}}


def inputs(place: Path) -> None:
    """What the jobs read; a small one of each beside it."""
    rng = np.random.default_rng(SEED)
    np.save(place / "kernel.npy", rng.standard_normal((65, 65)))
    np.save(place / "picture.npy", rng.random((SIDE, SIDE), np.float32))
    np.save(place / "sound.npy", rng.random(SAMPLES, np.float32))
    np.save(place / "picture-tiny.npy", rng.random((256, 256), np.float32))
    np.save(place / "sound-tiny.npy", rng.random(65536, np.float32))


def asked(name: str, place: Path, label: str) -> dict[str, Any]:
    """A job as `_arrays_probe.py` takes it; its files are the label's."""
    what, _, kind = name.rpartition(" to ")
    job = JOBS[what]
    args = [str(place / one) if isinstance(one, str) else one for one in job["args"]]
    source = "sound" if job["operation"] == "stft" else "picture"
    made = {**job, "args": args, "source": str(place / f"{source}.npy"), "out": str(place / f"{label}{kind}")}
    return {**made, "warm": {**made, "source": str(place / f"{source}-tiny.npy"), "out": str(place / f"{label}-tiny{kind}")}}


class Run:
    """A job in a process of its own, which waits for a line before it begins."""

    def __init__(self, job: dict[str, Any], log: Path) -> None:
        self.log = log
        log.unlink(missing_ok=True)
        command = [sys.executable, "-W", "ignore", __file__, json.dumps(job), str(log)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.told = json.loads(self.process.stdout.readline() or "{}")
        if not self.told:
            raise RuntimeError(f"{job['operation']} did not start: {self.process.communicate()[1][-300:]}")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def ended(self, within_s: float | None = None) -> dict[str, Any] | None:
        """What it says at its end; None where that is not reached within so many seconds."""
        try:
            out, error = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            return None
        if self.process.returncode:
            raise RuntimeError(f"exit code {self.process.returncode}: {error[-300:]}")
        return json.loads(out.strip().splitlines()[-1])

    def kill(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def begun(self) -> int:
        """Tasks that were."""
        return Counter(self.log.read_text()).get("b", 0) if self.log.exists() else 0


def uninterrupted(name: str, place: Path) -> dict[str, Any]:
    """A run from beginning to end: its digest, tasks and seconds."""
    job = asked(name, place, f"whole-{name.replace(' ', '-').replace('.', '')}")
    run = Run(job, place / f"{job['operation']}-{os.urandom(4).hex()}.log")
    found = run.ended()
    assert found is not None
    return {**run.told, **found, "begun": run.begun(), "digest": digest(Path(job["out"]))}


def killed(number: int, name: str, whole: dict[str, Any], place: Path) -> dict[str, Any]:
    """A kill and the run after it."""
    rng = np.random.default_rng([SEED, number])
    job = asked(name, place, f"kill-{number}")
    out = Path(job["out"])
    row: dict[str, Any] = {"job": name, "draws": 0}
    each_s = whole["wall_s"] / whole["begun"]
    while True:
        moment = float(rng.uniform(0, whole["begun"] + 1))
        row |= {"draws": row["draws"] + 1, "moment": moment / (whole["begun"] + 1)}
        run = Run(job, place / f"{number}.log")
        while run.begun() < int(moment) and run.process.poll() is None:
            time.sleep(0.001)
        # It ends either by itself or by the kill.
        if run.ended(moment % 1 * each_s) is None:
            run.kill()
            if not out.exists():
                break
            row["published"] = row.get("published", 0) + 1
            row["same_when_published"] = digest(out) == whole["digest"]
        clear(out)
    before, noted = run.begun(), journaled(out)
    row |= {"tasks": whole["tasks"], "begun_before": before, "noted": noted, "lost": before - noted}
    try:
        again = Run(job, place / f"{number}.log")
        again.ended()
        row |= {"run_after": again.begun(), "same": digest(out) == whole["digest"]}
        row["exact"] = row["run_after"] == again.told["tasks"] - noted
    except RuntimeError as error:
        row |= {"error_text": str(error), "same": False, "exact": False}
    clear(out)
    return row


def journaled(out: Path) -> int:
    """Tasks that the journal has, of whole lines; 0 without one."""
    journal = out.with_name(out.name + ".journal")
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return sum(line.isdigit() for line in lines)


def digest(out: Path) -> str:
    """Of shape, type and numbers."""
    if out.suffix == ".zarr":
        import zarr

        array = np.asarray(zarr.open_array(out, mode="r")[...])
    else:
        array = np.load(out)
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def clear(out: Path) -> None:
    """Take away what a job left."""
    import shutil

    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a job's kills."""
    lost = sorted(row["lost"] for row in rows)
    return {
        "kills": len(rows),
        "same": sum(row["same"] for row in rows),
        "exact": sum(row["exact"] for row in rows),
        "within_one_a_worker": sum(one <= WORKERS for one in lost),
        "most_lost": lost[-1] if lost else None,
        "published": sum(row.get("published", 0) for row in rows),
    }


def show_kill(found: dict[str, Any]) -> None:
    """A line a job."""
    table = Table(title=f"Killed and run again, {WORKERS} workers", title_justify="left")
    table.add_column("job")
    for heading in ("tasks", "seconds", "kills", "same bits", "no task but the missing", "lost ≤ one a worker", "most lost", "published"):
        table.add_column(heading, justify="right")
    for name, row in found["by_job"].items():
        job = found["jobs"][name]
        counts = (row[key] for key in ("kills", "same", "exact", "within_one_a_worker", "most_lost", "published"))
        table.add_row(name, str(job["begun"]), f"{job['wall_s']:.2f}", *map(str, counts))
    Console(width=160).print(table)


def missed_kill(found: dict[str, Any]) -> list[str]:
    """What is not the same, or lost more."""
    lines = []
    for row in found["rows"]:
        at = f"{row['job']}, killed at {row['moment']:.0%}"
        if not row["same"]:
            lines.append(f"{at}: the result is another one {row.get('error_text', '')}")
        elif not row["exact"]:
            lines.append(f"{at}: {row['run_after']} tasks were run, and {row['tasks'] - row['noted']} were missing")
        if row["lost"] > WORKERS:
            lines.append(f"{at}: {row['lost']} tasks had begun and were not noted; the aim is {WORKERS}")
    return lines


def child(job: dict[str, Any], log: Path) -> None:
    """The job, after a tiny one; a letter in the log for each task that begins."""
    from _arrays_probe import Call

    from sash.arrays import _pass_run, _tasks
    from sash.errors import DoesNotFit

    Call(job["warm"])(budget="1 GiB", overwrite=True)
    call = Call(job)
    try:
        call(budget=1, plan_only=True)
        raise AssertionError("a byte is no budget")
    except DoesNotFit as error:
        budget = int(MORE * error.least_bytes)
    plan = call(budget=budget, plan_only=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noting(run_in_turn: Any) -> Any:
        def noted(pool: Any, tasks: Any, *words: Any) -> Any:
            def begins(task: Any) -> Any:
                os.write(file, b"b")
                return task()

            return run_in_turn(pool, Each(tasks, begins), *words)

        return noted

    _pass_run.run_in_turn, _tasks.run_in_turn = noting(_pass_run.run_in_turn), noting(_tasks.run_in_turn)
    print(json.dumps({"tasks": plan.tasks, "workers": plan.workers, "method": plan.method, "budget_bytes": budget}), flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    call(budget=budget)
    print(json.dumps({"wall_s": time.perf_counter() - began}))


class Each:
    """Tasks, each by way of a function; made when it is asked for."""

    def __init__(self, tasks: Any, by: Any) -> None:
        self._tasks, self._by = tasks, by

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Any:
        return ((lambda task=task: self._by(task)) for task in self._tasks)


if __name__ == "__main__":
    child(json.loads(sys.argv[1]), Path(sys.argv[2]))
