"""The command line: one verb a file. `sash --help` lists them."""

import typer

from sash.cli._blur import blur
from sash.cli._calibrate import calibrate
from sash.cli._convolve import convolve
from sash.cli._deconvolve import deconvolve
from sash.cli._demo import demo
from sash.cli._fit import fit
from sash.cli._forecast import forecast
from sash.cli._largest import largest
from sash.cli._measure import measure
from sash.cli._pca import pca
from sash.cli._stft import stft
from sash.cli._tiled import tiled
from sash.cli._topics import topics
from sash.cli._walk import walk

__all__ = ["app", "main"]

app = typer.Typer(
    name="sash",
    help="Forecast what a windowed workload costs before it runs, fit it into the memory you have, and measure it.\n\n"
    "Exit codes: 0 done; 1 it does not fit, or the measured run died; 2 wrong use; 70 a fault of sash itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (walk, forecast, fit, largest, measure, tiled, blur, convolve, deconvolve, stft, pca, topics, demo, calibrate):
    app.command()(verb)


def main() -> None:
    """Entry point of the `sash` command."""
    app()
