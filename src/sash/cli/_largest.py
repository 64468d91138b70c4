"""`sash largest`: the largest batch, side or length that fits."""

from __future__ import annotations

from typing import Annotated

import typer

from sash import plans, report
from sash.cli._show import DID_NOT_FIT, check_writable, guarded, say, show, show_json, working
from sash.cli._workload import Accumulate, Autocast, Budget, Debug, Html, Inputs, Json, Loss, Model, Optimizer, Train, make_workload

Vary = Annotated[str, typer.Option(help="What varies: batch, side (height and width together) or length.")]
Prove = Annotated[bool, typer.Option("--prove/--no-prove", help="Run the size found once, in a process of its own.")]


@guarded
def largest(
    model: Model,
    inputs: Inputs,
    budget: Budget,
    vary: Vary = "batch",
    train: Train = False,
    optimizer: Optimizer = None,
    loss: Loss = None,
    autocast: Autocast = None,
    accumulate: Accumulate = 1,
    prove: Prove = True,
    html: Html = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the largest batch, side or length that fits.

    It is found from forecasts alone, and proven by one measured run. Exit code 1 says that not even the smallest fits.

    sash largest my_model.py:Net --input 8x3x512x512 --train --optimizer adamw --budget "6 GiB"
    """
    check_writable(html)
    doing = f"Finding the largest {vary} of {model}" + (", and measuring it" if prove else "")
    with working(doing):
        found = plans.largest(make_workload(model, inputs, train, optimizer, loss, autocast, accumulate), budget, vary, prove=prove)
    if html:
        report.to_html(found, html)
        say(f"wrote {html}")
    if as_json:
        show_json(report.to_json(found))
    else:
        show(report.text(found))
    if found.kept is False:
        raise typer.Exit(DID_NOT_FIT)
