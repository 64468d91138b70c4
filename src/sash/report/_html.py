"""Forecasts, measurements, plans and largest sizes as one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sash.cost import Cost, Measurement
from sash.errors import InputError
from sash.plans import Largest, Plan
from sash.report import _fitted
from sash.report._page import page, replace
from sash.report._series import series
from sash.report._tables import Pair, fitted_section, head, model, overview, title

_POINTS = 1000
"""Points drawn of a timeline: more than a wide screen has columns for."""
_LARGEST = 6
"""Blocks listed at each point."""
_LAYERS = 2000
"""Rows of a page's layer tables, all together."""
_TALLEST = 4
"""Times the peak up to which a budget is drawn."""


def to_html(result: Cost | Plan | Largest, path: str | os.PathLike[str], measured: Measurement | None = None) -> None:
    """Write one HTML page that opens offline: figures, memory timeline, layers, reasons; beside `measured` where it is given.

    Of a plan or a largest size it also tells its levers and its figures against the budget, and draws the budget across the timeline.
    The page is about 5 MB, nearly all of it Plotly's script. It replaces `path` in one step, or not at all.
    Raises `InputError` where `path` cannot be written, `SashError` where plotly is not installed.
    """
    if isinstance(result, Cost):
        compare_to_html([(result, measured)], path)
    else:
        replace(Path(path), _page([_fitted.sides(result, measured)], result))


def compare_to_html(pairs: Sequence[Pair], path: str | os.PathLike[str]) -> None:
    """Write one HTML page for several workloads, each with the measurement it is held against or None.

    Two workloads get a column of ratios, second to first. Raises as `to_html`, and `InputError` where there is no pair.
    """
    if not pairs:
        raise InputError("A report needs at least one forecast or measurement; none was given.")
    replace(Path(path), _page(pairs))


def _page(pairs: Sequence[Pair], fitted: _fitted.Fitted | None = None) -> str:
    several = len(pairs) > 1
    drawn = [series(cost, measured.timeline if measured else None, _POINTS, _LARGEST) for cost, measured in pairs]
    peaks = [max(one.peak_bytes, max(one.timeline.levels, default=0)) for pair in pairs for one in pair if one]
    marks = _fitted.marks(fitted) if fitted else ()
    sections = [head(pairs, fitted), *([fitted_section(fitted, pairs[0][1])] if fitted else []), overview(pairs)]
    sections += [model(pair, index, several, _LAYERS // len(pairs)) for index, pair in enumerate(pairs)]
    data = {
        "models": drawn,
        "measured_peaks": [measured and measured.peak_bytes for _, measured in pairs],
        # A budget far above the run would press it into a line.
        "marks": [{"name": mark.name, "bytes": mark.bytes} for mark in marks if mark.bytes <= _TALLEST * max(peaks)],
        "top": max([*peaks, *(mark.bytes for mark in marks if mark.bytes <= _TALLEST * max(peaks))]),
    }
    return page(title(pairs), sections, data, "page.js")
