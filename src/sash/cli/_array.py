"""What every verb for arrays shares: options, and running a job with its plan shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli._show import say, show, show_json
from sash.errors import InputError

In = Annotated[Path, typer.Argument(help="The file to read: .npy, .zarr, .tif, .png, .jpg, .wav or .flac.")]
Out = Annotated[
    Path, typer.Argument(help="The file to write, of one of these kinds. It appears when it is whole; the same command goes on.")
]
ArrayBudget = Annotated[str, typer.Option("--budget", "-b", help="Bytes to keep within, as '2 GiB'.")]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        callback=lambda text: int(text) if text is not None and text.strip().isdecimal() else text,
        help="Tasks side by side, as many as there are processors unless said; or a Dask scheduler, as tcp://127.0.0.1:8786.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:0: compute there, by torch; by compiled code on the processor unless said."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, whatever an interrupted run left.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print what would run, and why the others lost; run nothing.")]
Border = Annotated[str, typer.Option("--boundary", help="Beyond the ends: reflect, mirror, nearest, wrap or constant.")]
Fill = Annotated[float, typer.Option("--fill", help="The value beyond the ends, where that is constant.")]
Axes = Annotated[str | None, typer.Option("--axes", help="Axes to go along, as '0,1'; the last two unless said.")]


def numbers(text: str, name: str, kind: Callable[[str], Any] = float) -> Any:
    """One number, or several with commas between; raises `InputError` for anything else."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} is {text!r}; write one number, or several as '2,5'.") from None
    return found[0] if len(found) == 1 else found


def axes_of(text: str | None) -> tuple[int, ...] | None:
    """Axes from '0,1'."""
    if text is None:
        return None
    found = numbers(text, "--axes", int)
    return found if isinstance(found, tuple) else (found,)


def run(job: Callable[..., Any], out: Path, plan_only: bool, as_json: bool) -> None:
    """Show the job's plan, run it, and say what was written; `job` takes `plan_only`."""
    plan = job(plan_only=True)
    if not as_json and not plan_only:
        say(str(plan))
    if not plan_only:
        try:
            job()
        except KeyboardInterrupt:
            say(f"interrupted; the same command goes on from {out}.partial.")
            raise
    if as_json:
        show_json(json.dumps({**json.loads(plan.to_json()), "out": None if plan_only else str(out)}))
    else:
        show(str(plan) if plan_only else f"wrote {out}")
