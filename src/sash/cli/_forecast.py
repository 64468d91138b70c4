"""`sash forecast`: what a step will need, before it runs."""

from __future__ import annotations

from sash import cost, report
from sash.cli._show import check_writable, guarded, say, show, show_json, working
from sash.cli._workload import (
    Accumulate,
    Autocast,
    Debug,
    Html,
    Inputs,
    Json,
    Loss,
    Model,
    Optimizer,
    PlanFile,
    Real,
    Train,
    as_planned,
    make_workload,
)


@guarded
def forecast(
    model: Model,
    inputs: Inputs,
    train: Train = False,
    optimizer: Optimizer = None,
    loss: Loss = None,
    autocast: Autocast = None,
    accumulate: Accumulate = 1,
    plan: PlanFile = None,
    real: Real = False,
    html: Html = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Forecast the memory and the work of a step.

    Nothing of the model is computed or allocated: shapes flow through it, and every allocation is followed.

    sash forecast my_model.py:Net --input 8x3x512x512 --train --optimizer adamw --html out.html
    """
    check_writable(html)
    with working(f"Forecasting {model}"):
        work = as_planned(make_workload(model, inputs, train, optimizer, loss, autocast, accumulate), plan)
        found = cost.forecast(work, real=real)
    if html:
        report.to_html(found, html)
        say(f"wrote {html}")
    if as_json:
        show_json(report.to_json(found))
    else:
        show(report.text(found))
