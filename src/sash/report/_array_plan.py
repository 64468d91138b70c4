"""An array job before it runs, as one page: what it holds against its budget, how it is cut, what was weighed."""

from __future__ import annotations

import os
from html import escape
from importlib.metadata import version
from math import isnan, prod
from pathlib import Path
from typing import TYPE_CHECKING

from sash.report._page import page, replace
from sash.units import format_bytes, format_seconds, format_shape

if TYPE_CHECKING:
    # Types alone: the folder needs numba.
    from sash.arrays import ArrayPlan

_WIDE, _HIGH = 720, 420
"""Of the drawing, at most."""
_LEAST = 1.5
"""Pixels of a tile's side from which on lines between tiles are seen."""
_MOST_CHANNELS = 16


def plan_to_html(plan: ArrayPlan, path: str | os.PathLike[str]) -> None:
    """Write one HTML page that opens offline; it replaces `path` in one step, or not at all.

    Raises `InputError` where `path` cannot be written.
    """
    head = f"<header><p class='kicker'>sash plan</p><h1>{escape(plan.operation)}</h1><p class='setting'>{escape(plan.method)}</p>"
    sections = [f"{head}<p class='versions'>sash {version('sash')}</p></header>", _figures(plan), _drawing(plan), _methods(plan)]
    replace(Path(path), page(plan.operation, sections))


def _figures(plan: ArrayPlan) -> str:
    share = min(plan.peak_bytes / plan.budget_bytes, 1)
    cards = (
        ("peak", format_bytes(plan.peak_bytes), f"of a budget of {format_bytes(plan.budget_bytes)}, {plan.workers} side by side"),
        ("reads", format_bytes(plan.read_bytes), f"of the input; writes {format_bytes(plan.written_bytes)}"),
        ("time", "–" if plan.wall_s is None else format_seconds(plan.wall_s), "by this machine's rates"),
        ("error", _error(plan.error), "at most: of the input's range, or a component's residual"),
    )
    made = (
        f"<div class='card'><p class='name'>{name}</p><p class='value'>{value}</p><p class='meaning'>{meaning}</p></div>"
        for name, value, meaning in cards
    )
    bar = f"<div class='bar'><div class='part parameter' style='width:{share:.1%}'></div></div>"
    return f"<section><h2>Figures</h2><div class='cards'>{''.join(made)}</div><p class='bar-name'>peak of the budget</p>{bar}</section>"


def _error(error: float) -> str:
    return "told after" if isnan(error) else f"{error:.1e}"


def _drawing(plan: ArrayPlan) -> str:
    """A plane of the output with its tasks, where all of them are alike."""
    told = (
        f"{plan.tasks:,} tasks of up to {format_shape(plan.task_shape)}, planes, rows and columns; {format_shape(plan.shape)} {plan.dtype}."
    )
    found = _plane(plan)
    if found is None:
        return f"<section><h2>Tasks</h2><p>{told}</p></section>"
    rows, columns = found
    scale = min(_WIDE / columns, _HIGH / rows)
    width, height = max(columns * scale, 2), max(rows * scale, 2)
    across, down = plan.task_shape[2] * scale, plan.task_shape[1] * scale
    lines = ""
    if min(across, down) >= _LEAST:
        tile = f"<rect width='{across:.3f}' height='{down:.3f}' fill='none' stroke='var(--accent)' stroke-width='1'/>"
        lines = (
            f"<defs><pattern id='tasks' width='{across:.3f}' height='{down:.3f}' patternUnits='userSpaceOnUse'>{tile}</pattern></defs>"
            f"<rect width='{width:.1f}' height='{height:.1f}' fill='url(#tasks)'/>"
        )
    first = f"<rect width='{min(across, width):.1f}' height='{min(down, height):.1f}' fill='var(--gradient)' opacity='0.6'/>"
    edge = f"<rect width='{width:.1f}' height='{height:.1f}' fill='var(--sheet)' stroke='var(--quiet)'/>"
    box = f"-1 -1 {width + 2:.1f} {height + 2:.1f}"
    label = f"{plan.tasks} tasks on a plane of {rows} × {columns}"
    image = (
        f"<svg viewBox='{box}' width='{width + 2:.0f}' role='img' aria-label='{label}' style='max-width:100%'>{edge}{first}{lines}</svg>"
    )
    words = f"{told} Drawn is a plane of {rows:,} × {columns:,}; the first task is filled."
    return f"<section><h2>Tasks</h2><p class='hint'>{words}</p>{image}</section>"


def _plane(plan: ArrayPlan) -> tuple[int, int] | None:
    """Rows and columns that tasks lie on side by side; None where no two axes account for as many tasks as there are."""
    shape = (1,) * max(2 - len(plan.shape), 0) + plan.shape
    planes = [(shape[-2:], prod(shape[:-2]))]
    if len(shape) > 2 and shape[-1] <= _MOST_CHANNELS:
        planes.append((shape[-3:-1], prod(shape[:-3]) * shape[-1]))
    for (rows, columns), many in planes:
        cut = zip((many, rows, columns), plan.task_shape, strict=False)
        if len(plan.task_shape) == 3 and prod(-(-length // part) for length, part in cut) == plan.tasks:
            return rows, columns
    return None


def _methods(plan: ArrayPlan) -> str:
    heads = "".join(f"<th scope='col'{kind}>{name}</th>" for name, kind in (("method", ""), *_NUMBERS, ("verdict", "")))
    lines = []
    for method in plan.methods:
        numbers = (
            "" if method.peak_bytes is None else format_bytes(method.peak_bytes),
            "" if method.wall_s is None else format_seconds(method.wall_s),
            _error(method.error),
        )
        cells = "".join(f"<td class='number'>{value}</td>" for value in numbers)
        lines.append(f"<tr><th scope='row'>{escape(method.name)}</th>{cells}<td>{escape(method.verdict)}</td></tr>")
    table = f"<table class='said'><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        "<section><h2>Ways that were weighed</h2>"
        f"<div class='scroll' role='region' aria-label='Ways that were weighed' tabindex='0'>{table}</div></section>"
    )


_NUMBERS = (("holds at least", " class=number"), ("time", " class=number"), ("error", " class=number"))
