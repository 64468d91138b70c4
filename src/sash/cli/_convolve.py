"""`sash convolve`: a file of any size and a kernel from a file, inside a budget."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli._array import ArrayBudget, Axes, Border, Device, Fill, In, Out, Overwrite, PlanOnly, Restart, Workers, axes_of, run
from sash.cli._show import guarded
from sash.cli._workload import Debug, Json

Kernel = Annotated[Path, typer.Argument(help="The file with the kernel, of one to three axes.")]
Mode = Annotated[str, typer.Option("--mode", help="same, valid or full.")]
Correlate = Annotated[bool, typer.Option("--correlate", help="Do not turn the kernel round.")]
Tolerance = Annotated[float, typer.Option("--tolerance", "-t", help="Largest error, of the largest sample times the kernel's size.")]
Method = Annotated[str, typer.Option("--method", help="auto, separable, direct or fft.")]


@guarded
def convolve(
    source: In,
    kernel: Kernel,
    out: Out,
    budget: ArrayBudget = "512 MiB",
    mode: Mode = "same",
    boundary: Border = "constant",
    fill: Fill = 0.0,
    correlate: Correlate = False,
    tolerance: Tolerance = 1e-6,
    axes: Axes = None,
    method: Method = "auto",
    device: Device = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convolve a file with a kernel, from file to file.

    sash convolve scan.tif kernel.npy out.npy --budget "1 GiB"
    """
    from sash import arrays

    told: dict[str, Any] = {"mode": mode, "boundary": boundary, "method": method}
    settings = {"fill": fill, "correlate": correlate, "tolerance": tolerance, "axes": axes_of(axes)}
    places = {"budget": budget, "device": device, "workers": workers, "overwrite": overwrite, "restart": restart}
    run(partial(arrays.convolve, source, kernel, out, **told, **settings, **places), out, plan_only, as_json)
