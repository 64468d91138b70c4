"""`sash fit`: a plan that keeps a step inside a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sash import cost, plans, report
from sash.cli._show import DID_NOT_FIT, check_writable, guarded, say, show, show_json, working
from sash.cli._workload import Accumulate, Autocast, Budget, Debug, Html, Inputs, Json, Loss, Model, Optimizer, Train, make_workload
from sash.errors import InputError

_ALLOW_HELP = "A lever that changes the result or writes to disk, and may: microbatch, precision or offload. Repeat it for several."

Allow = Annotated[list[str] | None, typer.Option("--allow", help=_ALLOW_HELP)]
BitIdentical = Annotated[bool, typer.Option("--bit-identical", help="Only levers that give the same result to the last bit.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan, for --plan of forecast and measure, and Plan.from_json.")]
Measured = Annotated[bool, typer.Option("--measure", help="Run the planned step once, in a process of its own, beside its forecast.")]


@guarded
def fit(
    model: Model,
    inputs: Inputs,
    budget: Budget,
    train: Train = False,
    optimizer: Optimizer = None,
    loss: Loss = None,
    autocast: Autocast = None,
    accumulate: Accumulate = 1,
    allow: Allow = None,
    bit_identical: BitIdentical = False,
    measure: Measured = False,
    out: Out = None,
    html: Html = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find a plan that keeps a step inside a budget.

    Nothing is run to find it. Exit code 1 says that no plan does, and the least that one can keep. --json prints the plan.

    sash fit my_model.py:Net --input 8x3x512x512 --train --optimizer adamw --budget "6 GiB" --out plan.json
    """
    check_writable(html)
    check_writable(out, "--out", "plan.json")
    with working(f"Planning {model}"):
        work = make_workload(model, inputs, train, optimizer, loss, autocast, accumulate)
        found = plans.fit(work, budget, allow=allow or (), bit_identical=bit_identical)
    if out:
        _write(out, found.to_json())
    observed = None
    if measure:
        with working(f"Measuring {model} as planned"):
            observed = cost.measure(found.planned)
    if html:
        report.to_html(found, html, observed)
        say(f"wrote {html}")
    if as_json:
        show_json(report.to_json(found))
    else:
        show(report.text(found, observed))
    if observed is not None and observed.peak_bytes > found.budget_bytes:
        say(f"sash: measured, the planned step peaks at {observed.peak_bytes} bytes; the budget is {found.budget_bytes}.")
        raise typer.Exit(DID_NOT_FIT)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}. Give a file in a folder that exists.") from error
    say(f"wrote {path}")
