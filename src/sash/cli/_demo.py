"""`sash demo`: a U-Net and its depthwise-separable twin on a photograph, forecast and then measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sash import cost, report
from sash.cli._show import check_writable, guarded, say, show
from sash.cli._workload import find_model, read_file
from sash.cost import Cost, Forecast, Measurement, Workload
from sash.errors import InputError
from sash.units import format_bytes, format_count

Pair = tuple[Forecast, Measurement]

TWINS = {"plain": "unet", "separable": "unet-separable"}
_MULTIPLE = 16
"""Pixels to one cell of the coarsest map."""


@guarded
def demo(
    photo: Annotated[Path | None, typer.Option(help="A picture of your own; without it, the photograph that matplotlib ships.")] = None,
    side: Annotated[int, typer.Option(min=64, help="Pixels along the longer side of what is cut from its middle.")] = 352,
    html: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report.html"),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Forecast and measure two U-Nets on a photograph: plain, and depthwise-separable."""
    check_writable(html)
    path = photo or sample_photo()
    image = crop(read_file(path), side)
    say(f"One training step on {path.name}, {image.shape[3]} x {image.shape[2]} pixels: forecast, then measured in a process of its own.")
    pairs = run(image)
    report.compare_to_html(pairs, html)
    lines = Table.grid(padding=(0, 1))
    for number, line in enumerate(reasons(pairs), 1):
        lines.add_row(f"{number}.", Text(line))
    show(Group(totals(pairs), Text(), layers(pairs), Text(), lines, Text()))
    say(f"wrote {html}: open it in a browser for the memory timeline of both.")


def sample_photo() -> Path:
    """A photograph that stands in matplotlib's wheel."""
    try:
        from matplotlib import cbook
    except ImportError:
        raise InputError("the demo's photograph comes with matplotlib: pip install 'sash[demo]', or give one with --photo.") from None
    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def crop(image: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of a picture (1, 3, height, width), at most `side` pixels a side, both multiples of 16."""
    height, width = (min(length, side) // _MULTIPLE * _MULTIPLE for length in image.shape[2:])
    if not height or not width:
        raise InputError(f"the picture has {image.shape[3]} x {image.shape[2]} pixels; the demo needs {_MULTIPLE} each way.")
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width].contiguous()


def run(image: torch.Tensor) -> list[Pair]:
    """Both twins, forecast before either is measured."""
    works = {name: Workload(find_model(family), image, train=True, optimizer="adamw") for name, family in TWINS.items()}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=2 * len(works))

        def steps(doing: str) -> Iterator[Workload]:
            for name, work in works.items():
                progress.update(task, description=f"{doing} the {name} U-Net")
                if not console.is_terminal:
                    say(f"{doing} the {name} U-Net")
                yield work
                progress.advance(task)

        forecasts = [cost.forecast(work) for work in steps("Forecasting")]
        measurements = [cost.measure(work) for work in steps("Measuring")]
    return list(zip(forecasts, measurements, strict=True))


def totals(pairs: Sequence[Pair]) -> Table:
    """Forecast beside measured, for each twin."""
    table = _table("One training step", "", pairs)
    rows = {
        "parameters": lambda found: format_count(found.params),
        "multiply-accumulates, forward": lambda found: format_count(found.macs),
        "parameters and optimizer state": lambda found: format_bytes(found.static_bytes),
        "peak of the allocator": lambda found: format_bytes(found.peak_bytes),
        "growth of the process": lambda found: format_bytes(found.process_bytes),
    }
    for name, shown in rows.items():
        # A forecast of the process is a bound, not an estimate.
        bound = "≤ " if name.startswith("growth") else ""
        table.add_row(name, *(cell for forecast, measured in pairs for cell in (bound + shown(forecast), shown(measured))))
    table.add_row("error of the peak", *(cell for pair in pairs for cell in (f"{_error(*pair):+.2%}", "")))
    table.add_row(
        "seconds: of forecasting, of the step",
        *(cell for forecast, measured in pairs for cell in (f"{forecast.forecast_s:.2f}", f"{measured.wall_s:.2f}")),
    )
    return table


def layers(pairs: Sequence[Pair]) -> Table:
    """What forward keeps for backward in each of the model's parts, forecast beside measured."""
    table = _table("Kept by forward", "layer", pairs)
    parts = [{layer.path: layer for layer in found.layers} for pair in pairs for found in pair]
    for path in _outermost(pairs[0][0]):
        table.add_row(path, *(format_bytes(part[path].held_bytes) if path in part else "" for part in parts))
    return table


def reasons(pairs: Sequence[Pair]) -> list[str]:
    """What changed between the twins, in words, and what holds the peak of each."""
    (plain, plain_measured), (twin, twin_measured) = pairs
    peaks = f"{format_bytes(plain_measured.peak_bytes)} and {format_bytes(twin_measured.peak_bytes)}"
    return [
        *(reason.text for reason in cost.compare(plain, twin)),
        f"Measured, the peaks are {peaks}.",
        *(f"{name.capitalize()}: {found.why()[0].text}" for name, found in zip(TWINS, (plain, twin), strict=True)),
    ]


def _table(title: str, first: str, pairs: Sequence[Pair]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in list(TWINS)[: len(pairs)]:
        table.add_column(f"{name}\nforecast", justify="right")
        table.add_column(f"{name}\nmeasured", justify="right")
    return table


def _outermost(found: Cost) -> list[str]:
    """The modules that the model itself calls: a list of modules is never called, what stands in it is."""
    called: list[str] = []
    for layer in found.layers:
        if layer.path and layer.calls and not any(layer.path.startswith(f"{outer}.") for outer in called):
            called.append(layer.path)
    return called


def _error(forecast: Forecast, measured: Measurement) -> float:
    # Zero is added so that a rounded nothing has no minus sign.
    return round(forecast.peak_bytes / measured.peak_bytes - 1, 4) + 0.0
