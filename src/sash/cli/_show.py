"""What every verb shares: results on stdout, all else on stderr, one message for an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sash.errors import DoesNotFit, InputError, MeasureError, SashError

DID_NOT_FIT, WRONG_USE, OWN_FAULT = 1, 2, 70
"""Exit codes; 70 is the system's own for an internal fault, so that no caller reads one as "does not fit"."""


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, with errors as one message and an exit code; `--debug` lets the traceback through."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except typer.Exit:
            raise
        except SashError as error:
            if kwargs.get("debug"):
                raise
            say(f"sash: {error}")
            raise typer.Exit(DID_NOT_FIT if isinstance(error, (DoesNotFit, MeasureError)) else WRONG_USE) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            say(f"sash: a fault of sash itself: {type(error).__name__}: {error}")
            say("Run it again with --debug for the traceback, and report it.")
            raise typer.Exit(OWN_FAULT) from None

    return run


def say(text: str) -> None:
    """A line on stderr, as it is."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def show(result: RenderableType) -> None:
    """A result on stdout: as wide as the terminal, or 120 columns in a file."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(result)


def show_json(text: str) -> None:
    """JSON on stdout, nothing else."""
    sys.stdout.write(text.rstrip("\n") + "\n")


@contextmanager
def working(doing: str) -> Iterator[None]:
    """A spinner with the seconds on stderr, in a terminal; what the user's code prints goes to stderr, away from the result."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(doing)
        yield


def check_writable(path: Path | None, option: str = "--html", example: str = "report.html") -> None:
    """Raises `InputError` where a file could not be written, before the work rather than after it."""
    if path is None:
        return
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist; make it, or write to {path.name}.")
    if path.is_dir():
        raise InputError(f"{option} {path}: that is a folder; name a file, as in {path / example}.")
