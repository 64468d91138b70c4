"""Array jobs on two Dask workers of one thread each, beside two threads of one process: wall time, and CPU time of all processes.

    python bench/_arrays_dask.py                 8192 x 8192, the blur on 16384 x 16384 as well, five rounds
    python bench/_arrays_dask.py --side 2048

From file to file, both ways by turns, medians; a first round, in which kernels are loaded, does not count. "Work" is CPU time, user's and
system's: of this process and, on the cluster, of the workers and the nannies that keep them. The scheduler's stands in a column of its
own. Workers and nannies take some while they do nothing: that is part of the work, and grows with the wall time on a busy machine; "less
idle" is the ratio without it. Both ways fill and empty the same page cache. Connecting to the cluster is part of its time; loading its
library is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

SIDE, ROUNDS, THREADS = 8192, 5, 2
BUDGET = "2 GiB"
"""Enough for both ways to be cut alike: workers that share nothing hold more."""
IDLE_S = 5.0
AIM = 1.10
"""Work on the cluster as a share of that of threads, at most."""


@contextmanager
def cluster() -> Iterator[tuple[str, psutil.Process, psutil.Process]]:
    """The address of a scheduler, its process, and the one whose children are the workers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        dask, quiet = [sys.executable, "-m", "dask"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        told = ["--scheduler-file", str(file)]
        with subprocess.Popen([*dask, "scheduler", "--port", "0", "--no-dashboard", *told], **quiet) as scheduler:
            each = ["--nworkers", str(THREADS), "--nthreads", "1", "--no-dashboard", "--local-directory", folder]
            with subprocess.Popen([*dask, "worker", *told, *each], **quiet) as workers:
                try:
                    from distributed import Client

                    with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
                        client.wait_for_workers(THREADS, timeout=60)
                        address = client.scheduler.address
                    yield address, psutil.Process(scheduler.pid), psutil.Process(workers.pid)
                finally:
                    workers.terminate()
                    scheduler.terminate()


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process and of those below it."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def jobs(side: int) -> dict[str, tuple[int, Callable[[Path, Path, Any], Any]]]:
    """What is run, by name: the source's side, and a function of source, output and workers."""
    from sash import arrays

    kernel = np.random.default_rng(1).random((255, 255))
    blur = lambda source, out, workers: arrays.blur(source, 20, out, workers=workers, overwrite=True, budget=BUDGET)  # noqa: E731
    return {
        f"blur, sigma 20, {side}²": (side, blur),
        f"blur, sigma 20, {2 * side}²": (2 * side, blur),
        f"convolution, 255x255, {side}²": (
            side,
            lambda source, out, workers: arrays.convolve(source, kernel, out, workers=workers, overwrite=True, budget=BUDGET),
        ),
    }


def dask_section(side: int = SIDE, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians by job, and whether the bits are the same."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("SASH_BENCH_FOLDER")) as name, cluster() as (address, scheduler, workers):
        before = cpu_s(workers)
        time.sleep(IDLE_S)
        idle = (cpu_s(workers) - before) / IDLE_S
        for job, (length, run) in jobs(side).items():
            print(job, file=sys.stderr, flush=True)
            source = Path(name) / f"{length}.npy"
            if not source.exists():
                made = np.lib.format.open_memmap(source, "w+", np.float32, (length, length))
                rng = np.random.default_rng(0)
                for top in range(0, length, 1024):
                    made[top : top + 1024] = rng.random(made[top : top + 1024].shape, dtype=np.float32)
                del made
            found[job] = row(run, source, {"threads": THREADS, "dask": address}, rounds, (scheduler, workers))
            ours, theirs = (found[job][way] for way in ("dask", "threads"))
            found[job]["less_idle_ratio"] = (ours["work_s"] - idle * ours["wall_s"]) / theirs["work_s"]
    ours, theirs = (sum(one[way]["work_s"] for one in found.values()) for way in ("dask", "threads"))
    return {"side": side, "rounds": rounds, "aim": AIM, "idle_cpu": idle, "work_ratio": ours / theirs, "rows": found}


def row(run: Callable[..., Any], source: Path, ways: dict[str, Any], rounds: int, cluster: tuple[psutil.Process, psutil.Process]) -> Any:
    """One job, both ways by turns."""
    scheduler, workers = cluster
    taken: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    outs = {way: source.with_name(f"{way}.npy") for way in ways}

    def clocks() -> list[float]:
        return [time.perf_counter(), time.process_time(), cpu_s(workers), cpu_s(scheduler)]

    for turn in range(rounds + 1):
        for way, where in ways.items():
            before = clocks()
            run(source, outs[way], where)
            wall, own, theirs, scheduling = (end - begin for begin, end in zip(before, clocks(), strict=True))
            numbers = {"wall_s": wall, "work_s": own + (theirs if way == "dask" else 0), "client_s": own, "scheduler_s": scheduling}
            for key, value in numbers.items() if turn else ():
                taken[way].setdefault(key, []).append(value)
    found: dict[str, Any] = {way: {key: median(values) for key, values in by.items()} for way, by in taken.items()}
    for key in ("work", "wall"):
        found[f"{key}_ratio"] = found["dask"][f"{key}_s"] / found["threads"][f"{key}_s"]
    first, second = (np.load(out, mmap_mode="r") for out in outs.values())
    found["same_bits"] = all(np.array_equal(first[top : top + 1024], second[top : top + 1024]) for top in range(0, len(first), 1024))
    return found


def show_dask(section: dict[str, Any]) -> None:
    """A line a job."""
    table = Table(title="Two Dask workers / two threads, float32, file to file", title_justify="left")
    table.add_column("job")
    for heading in (
        "threads s",
        "dask s",
        "wall",
        "threads CPU s",
        "dask CPU s",
        "work",
        "aim",
        "less idle",
        "of it client",
        "scheduler",
        "same bits",
    ):
        table.add_column(heading, justify="right")
    for job, row in section["rows"].items():
        ours, theirs = row["dask"], row["threads"]
        seconds = [f"{one:.2f}" for one in (theirs["wall_s"], ours["wall_s"], row["wall_ratio"], theirs["work_s"], ours["work_s"])]
        rest = [
            f"{row['work_ratio']:.3f}",
            f"{section['aim']:.2f}",
            f"{row['less_idle_ratio']:.3f}",
            f"{ours['client_s']:.2f}",
            f"{ours['scheduler_s']:.2f}",
        ]
        table.add_row(job, *seconds, *rest, "yes" if row["same_bits"] else "NO")
    console = Console(width=160)
    console.print(table)
    console.print(
        f"All of them: work {section['work_ratio']:.3f}. Idle workers and nannies: {section['idle_cpu']:.3f} CPU seconds a second."
    )


def missed_dask(section: dict[str, Any]) -> list[str]:
    """A line for each job whose work is above the aim, or whose bits are others."""
    over = [
        f"dask: {job}: {found['work_ratio']:.2f}x the work of threads; the aim is {section['aim']:.2f}x"
        for job, found in section["rows"].items()
        if found["work_ratio"] > section["aim"]
    ]
    return over + [f"dask: {job}: other bits" for job, found in section["rows"].items() if not found["same_bits"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    show_dask(dask_section(asked.side, asked.rounds))


if __name__ == "__main__":
    main()
