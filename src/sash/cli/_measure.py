"""`sash measure`: what a step does need, observed beside its forecast."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

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
from sash.errors import TraceError


class Allocator(StrEnum):
    """How the measured process gets its memory."""

    DEFAULT = "default"
    MAPPED = "mapped"


@guarded
def measure(
    model: Model,
    inputs: Inputs,
    train: Train = False,
    optimizer: Optimizer = None,
    loss: Loss = None,
    autocast: Autocast = None,
    accumulate: Accumulate = 1,
    plan: PlanFile = None,
    real: Real = False,
    runs: Annotated[int, typer.Option(min=1, help="Processes to measure in; the highest growth counts.")] = 1,
    allocator: Annotated[Allocator, typer.Option(help="mapped: every block mapped on its own; exact, and slower.")] = Allocator.DEFAULT,
    html: Html = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a step, beside its forecast.

    The step runs in a process of its own.

    sash measure my_model.py:Net --input 8x3x512x512 --train --optimizer adamw --html out.html
    """
    check_writable(html)
    with working(f"Forecasting {model}"):
        work = as_planned(make_workload(model, inputs, train, optimizer, loss, autocast, accumulate), plan)
        try:
            expected = cost.forecast(work, real=real)
        except TraceError as error:
            # Running needs no trace: the measurement stands alone.
            expected = None
            say(f"no forecast: {error}")
    with working(f"Measuring {model}"):
        observed = cost.measure(work, runs=runs, allocator=allocator.value)
    if html:
        report.to_html(expected or observed, html, observed if expected else None)
        say(f"wrote {html}")
    if as_json:
        show_json(report.to_json(observed))
    else:
        show(report.text(expected, observed) if expected else report.text(observed))
