"""`sash tiled`: one huge image through a model, from file to file, inside a budget."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sash import plans
from sash.cli._show import guarded, say, show, show_json
from sash.cli._workload import Budget, Debug, Json, Model, find_model

ImageFile = Annotated[Path, typer.Argument(help="A .npy file (channels, height, width), read tile by tile; or a picture, read whole.")]
OutFile = Annotated[Path, typer.Argument(help="The .npy file to write. It appears when it is whole; an interrupted run is taken up again.")]
TwoPass = Annotated[bool, typer.Option("--two-pass", help="Allow layers that see the whole image, each with a pass of its own.")]
Output = Annotated[str | None, typer.Option(help="Which of several outputs: its key, or its place from 0.")]
Scale = Annotated[float | None, typer.Option(help="What pixels are multiplied by; 1/255 for uint8 unless said.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, whatever an interrupted run left.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Print the tiles and the forecast, and run nothing.")]


@guarded
def tiled(
    model: Model,
    image: ImageFile,
    out: OutFile,
    budget: Budget,
    two_pass: TwoPass = False,
    output: Output = None,
    scale: Scale = None,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a model on one huge image, tile by tile.

    The result is the whole image's, up to rounding: no seams.

    sash tiled my_model.py:Net scan.npy scores.npy --budget "2 GiB"
    """
    source = find_model(model).load()
    which = int(output) if output is not None and output.isdigit() else output
    settings = {"two_pass": two_pass, "output": which, "scale": scale}
    try:
        plan = plans.tiled(source, image, budget, out, **settings, plan_only=True)
        if not as_json:
            say(str(plan))
        if not plan_only:
            plans.tiled(source, image, budget, out, **settings, tile=plan.tile, restart=restart)
    except KeyboardInterrupt:
        say(f"interrupted; the same command goes on from {out}.partial.")
        raise
    if as_json:
        show_json(json.dumps({"schema": "sash.tiled/1", **asdict(plan), "out": None if plan_only else str(out)}))
    else:
        show(str(plan) if plan_only else f"wrote {out}")
