"""`sash blur`: a Gaussian over a file of any size, inside a budget."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from sash.cli._array import ArrayBudget, Axes, Border, Device, Fill, In, Out, Overwrite, PlanOnly, Restart, Workers, axes_of, numbers, run
from sash.cli._show import guarded
from sash.cli._workload import Debug, Json

Sigma = Annotated[str, typer.Argument(help="Standard deviation in samples; several as '2,8', one an axis.")]
Tolerance = Annotated[float, typer.Option("--tolerance", "-t", help="Largest error allowed, as a share of the input's range.")]
Order = Annotated[str, typer.Option("--order", help="Derivative of the Gaussian; several as '0,1', one an axis.")]
Method = Annotated[str, typer.Option("--method", help="auto, direct or multirate.")]


@guarded
def blur(
    source: In,
    sigma: Sigma,
    out: Out,
    budget: ArrayBudget = "512 MiB",
    tolerance: Tolerance = 1e-3,
    boundary: Border = "reflect",
    fill: Fill = 0.0,
    order: Order = "0",
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
    """Blur a file with a Gaussian, from file to file.

    sash blur scan.tif 20 smooth.tif --budget "1 GiB"
    """
    from sash import arrays

    told: dict[str, Any] = {"boundary": boundary, "method": method}
    run(
        partial(
            arrays.blur,
            source,
            numbers(sigma, "SIGMA"),
            out,
            budget=budget,
            tolerance=tolerance,
            fill=fill,
            order=numbers(order, "--order", int),
            axes=axes_of(axes),
            device=device,
            workers=workers,
            overwrite=overwrite,
            restart=restart,
            **told,
        ),
        out,
        plan_only,
        as_json,
    )
