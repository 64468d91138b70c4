"""`sash calibrate`: how fast this machine is, measured once and kept."""

from __future__ import annotations

from typing import Annotated

import typer

from sash.cli._show import guarded, say, show, show_json, working
from sash.errors import InputError


@guarded
def calibrate(
    show_kept: Annotated[bool, typer.Option("--show", help="Print what is kept; measure nothing.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is kept for this machine, torch and number of threads.")] = False,
    of_arrays: Annotated[bool, typer.Option("--arrays", help="The rates of array jobs, instead of those of models.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as SASH_RATES (SASH_ARRAY_RATES) may name it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure how fast this machine is.

    Forecasts of time rest on it. It takes ten seconds or less, two for array jobs, once for each machine, version of torch and number
    of threads; a forecast does it by itself where it was never done. Here it is measured anew.
    """
    if show_kept and delete:
        raise InputError("--show and --delete were both asked for; give one of them.")
    if of_arrays:
        from sash import arrays

        measure, stored, forget = arrays.array_rates, arrays.stored_array_rates, arrays.forget_array_rates
        path, again = arrays.array_rates_path(), "sash calibrate --arrays"
    else:
        from sash import cost

        measure, stored, forget, path, again = cost.calibrate, cost.stored_rates, cost.forget_rates, cost.rates_path(), "sash calibrate"
    if delete:
        say(f"deleted {path}" if forget() else f"nothing was kept at {path}")
        return
    if show_kept:
        found = stored()
        if found is None:
            raise InputError(f"nothing is kept for this machine, its libraries and number of threads at {path}; run: {again}")
    else:
        with working("Measuring how fast this machine is"):
            found = measure(again=True)
        say(f"wrote {path}")
    if as_json:
        show_json(found.to_json())
    else:
        show(str(found))
