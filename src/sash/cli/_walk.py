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
    """Walk a shape through convolutions and poolings.

    The text starts with the input, 40 (a length), 1x40 (channels, length) or 3x224x224; then come steps, with | between:

    \b
    conv 8, conv 7/2 64 p3     window[/stride], channels, padding
    pool 6/2, pool 3/2 p1 ceil stride as long as the window unless written
    transposed 4/2 64 p1 o1    transposed convolution; o is the output padding
    adaptive 7                 that many outputs, whatever the length
    global, flatten            one output an axis; every value in one row
    linear 1000                that many outputs

    p1 pads both sides, p2:1 before and after, d2 dilates; same, causal and circular pad a conv. 3x5 has one entry an axis.
    """
    walked = walk_through(text)
    if as_json:
        show_json(json.dumps(walked.to_dict(), indent=2))
    else:
        show(str(walked))
