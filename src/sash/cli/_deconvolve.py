"""`sash deconvolve`: what a file was before a kernel blurred it, with the error to expect, inside a budget."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli._array import ArrayBudget, Axes, Border, Device, In, Out, Overwrite, PlanOnly, Restart, Workers, axes_of, run
from sash.cli._show import guarded
from sash.cli._workload import Debug, Json

Kernel = Annotated[Path, typer.Argument(help="The file with the kernel, of one or two axes.")]
Method = Annotated[str, typer.Option("--method", help="auto, inverse, wiener or richardson-lucy.")]
Noise = Annotated[float | None, typer.Option("--noise", help="Standard deviation of what was added to the data; estimated unless said.")]
Iterations = Annotated[int | None, typer.Option("--iterations", help="Of richardson-lucy; 30 unless said.")]
Adjoint = Annotated[bool, typer.Option("--adjoint", help="Apply the transposed convolution instead.")]


@guarded
def deconvolve(
    source: In,
    kernel: Kernel,
    out: Out,
    budget: ArrayBudget = "512 MiB",
    boundary: Border = "wrap",
    method: Method = "auto",
    noise: Noise = None,
    iterations: Iterations = None,
    adjoint: Adjoint = False,
    axes: Axes = None,
    device: Device = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Undo a convolution with a known kernel, from file to file: condition number and expected error first.

    sash deconvolve blurred.tif kernel.npy sharp.tif --boundary reflect --noise 2
    """
    from sash import arrays

    told: dict[str, Any] = {"boundary": boundary, "method": method}
    settings = {"noise": noise, "iterations": iterations, "adjoint": adjoint, "axes": axes_of(axes)}
    places: dict[str, Any] = {"budget": budget, "device": device, "workers": workers, "overwrite": overwrite, "restart": restart}
    run(partial(arrays.deconvolve, source, kernel, out, **told, **settings, **places), out, plan_only, as_json)
