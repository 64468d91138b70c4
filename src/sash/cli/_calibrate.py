"""`sash calibrate`: how fast this machine is, measured once and kept."""

from __future__ import annotations

from typing import Annotated

import typer

from sash import cost
from sash.cli._show import guarded, say, show, show_json, working
from sash.errors import InputError


@guarded
def calibrate(
    show_kept: Annotated[bool, typer.Option("--show", help="Print what is kept; measure nothing.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is kept for this machine, torch and number of threads.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as SASH_RATES may name it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure how fast this machine is.

    Forecasts of time rest on it. It takes ten seconds or less, once for each machine, version of torch and number of threads; a
    forecast does it by itself where it was never done. Here it is measured anew.
    """
    if show_kept and delete:
        raise InputError("--show and --delete were both asked for; give one of them.")
    if delete:
        say(f"deleted {cost.rates_path()}" if cost.forget_rates() else f"nothing was kept at {cost.rates_path()}")
        return
    if show_kept:
        found = cost.stored_rates()
        if found is None:
            raise InputError(f"nothing is kept for this machine, torch and number of threads at {cost.rates_path()}; run: sash calibrate")
    else:
        with working("Measuring how fast this machine is"):
            found = cost.calibrate(again=True)
        say(f"wrote {cost.rates_path()}")
    if as_json:
        show_json(found.to_json())
    else:
        show(str(found))
