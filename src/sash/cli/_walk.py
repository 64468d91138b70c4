"""`sash walk`: shapes through a chain of windows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sash.cli._show import guarded, show, show_json
from sash.window import walk as walk_through


@guarded
def walk(
    text: Annotated[str, typer.Argument(help='Start and windows, as in "40 | conv 8 | pool 6/2 | flatten | linear 1000".')],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Walk a shape through convolutions and poolings."""
    walked = walk_through(text)
    if as_json:
        show_json(json.dumps(walked.to_dict(), indent=2))
    else:
        show(str(walked))
