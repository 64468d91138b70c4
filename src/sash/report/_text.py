"""A result in the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sash.cost import Cost, LayerCost, Measurement
from sash.plans import Largest, Plan, TilePlan
from sash.report import _fitted
from sash.report._figures import LayerRow, at_peak, figures, layer_rows, sides, write_amount, write_error, write_shapes, write_share
from sash.units import format_bytes, format_count, format_seconds

_BAR_CELLS = 36
_EIGHTHS = " ▏▎▍▌▋▊▉"
_WIDE = 100
"""Columns of the terminal from which the layer table has room for kinds and shapes."""


@dataclass(frozen=True, slots=True)
class _Report:
    """What `text` returns: rich asks it for its parts when the width is known."""

    cost: Cost
    measured: Measurement | None
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        left, right = sides(self.cost, self.measured)
        words = "forecast and measurement" if left and right else "forecast" if left else "measurement"
        yield Text.assemble((_plain(self.cost.name), "bold"), f"  {words}")
        yield Text(_plain(self.cost.setting), style="dim")
        yield ""
        yield _figure_table(self.cost, self.measured)
        if self.cost.timeline.moments:
            yield ""
            yield _peak(self.cost)
        if self.cost.layers:
            yield ""
            yield _layer_table(self.cost, self.measured, self.rows, wide=options.max_width >= _WIDE)
        if left and left.reasons:
            yield ""
            yield _numbered("Why", [f"{reason.text} ({write_amount(reason)})" for reason in left.reasons])
        notes = [*self.cost.notes, *(note for note in (right.notes if right else ()) if note not in self.cost.notes)]
        if notes:
            yield ""
            yield _numbered("Notes", notes)


@dataclass(frozen=True, slots=True)
class _FittedReport:
    """What `text` returns for a plan or a largest size."""

    fitted: _fitted.Fitted
    measured: Measurement | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        cost, measured = _fitted.sides(self.fitted, self.measured)
        yield Text.assemble((_plain(cost.name), "bold"), f"  {_fitted.kind(self.fitted)}")
        yield Text(_plain(cost.setting), style="dim")
        yield ""
        yield Text(_plain(_fitted.summary(self.fitted, measured)))
        yield ""
        yield _fitted_table(self.fitted, measured)
        if isinstance(self.fitted, Plan) and self.fitted.levers:
            yield ""
            yield _lever_table(self.fitted)
        if cost.timeline.moments:
            yield ""
            yield _peak(cost)
        if cost.notes:
            yield ""
            yield _numbered("Notes", list(cost.notes))


Result = Cost | Plan | Largest | TilePlan
"""What can be shown."""


def text(result: Result, measured: Measurement | None = None, rows: int = 20) -> RenderableType:
    """A result for `rich.print`: the figures, what holds the peak, the largest layers, the reasons.

    With `measured`, each forecast figure stands beside the measured one and their relative error,
    (forecast - measured) / measured. The layer table has at most `rows` rows: the layers with the most bytes at the peak
    (in a measurement, that hold the most), under the modules they are in. Of a plan: its levers, and the planned run beside the
    plain one; of a largest size: its figures beside those of the next; of tiles: one line.
    """
    if isinstance(result, TilePlan):
        return Text(str(result))
    return _Report(result, measured, rows) if isinstance(result, Cost) else _FittedReport(result, measured)


def plain_text(result: Result, measured: Measurement | None = None, rows: int = 20) -> str:
    """The same report as a string without colour codes, 120 columns wide."""
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None, force_terminal=False, force_jupyter=False, emoji=False, legacy_windows=False)
    console.print(text(result, measured, rows))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _plain(untrusted: str) -> str:
    # A module may be registered under any name, terminal control codes included.
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in untrusted)


def _figure_table(cost: Cost, measured: Measurement | None) -> Table:
    left, right = sides(cost, measured)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(left and right), header_style="dim")
    table.add_column("", no_wrap=True)
    if left:
        table.add_column("forecast", justify="right", no_wrap=True)
    if right:
        table.add_column("measured", justify="right", no_wrap=True)
    if left and right:
        table.add_column("error", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for row in figures(cost, measured):
        cells = ["" if value is None else row.write(value) for value, side in ((row.forecast, left), (row.measured, right)) if side]
        errors = [write_error(row.error)] if left and right else []
        table.add_row(row.name, *cells, *errors, row.meaning, style="bold" if row.name == "peak" else "")
    return table


def _fitted_table(fitted: _fitted.Fitted, measured: Measurement | None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for name in _fitted.columns(fitted, measured):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for line in _fitted.lines(fitted, measured):
        table.add_row(line.name, *line.cells, line.meaning, style="bold" if line.name == "peak" else "")
    return table


def _lever_table(plan: Plan) -> Group:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, exactness, does in _fitted.levers(plan):
        table.add_row(name, exactness, Text(_plain(does)))
    return Group(Text("Levers", style="bold"), table)


def _peak(cost: Cost) -> Group:
    timeline = cost.timeline
    moment = timeline.moments[timeline.peak_moment]
    place = f"{_plain(moment.module) or 'the model itself'}, {_plain(moment.operator)}"
    head = f"  {moment.phase}: {place} (operator call {timeline.peak_moment + 1:,} of {len(timeline.moments):,})"
    held = at_peak(cost)
    total = sum(held.values()) or 1
    bars = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    bars.add_column(no_wrap=True)
    bars.add_column(justify="right", no_wrap=True)
    bars.add_column(justify="right", no_wrap=True)
    bars.add_column(no_wrap=True, style="cyan")
    for category, count in held.items():
        bars.add_row(category, format_bytes(count), write_share(count / total), _bar(count / total))
    return Group(Text.assemble(("At the peak", "bold"), head), bars)


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * _BAR_CELLS * 8), 8)
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")) or "▏"


def _layer_table(cost: Cost, measured: Measurement | None, limit: int, wide: bool) -> RenderableType:
    left, right = sides(cost, measured)
    rows = layer_rows(cost, measured)
    chosen = _largest(rows, limit, (lambda layer: layer.at_peak_bytes) if left else (lambda layer: layer.held_bytes))
    shown = [row for row in rows if row.layer.path in chosen]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("layer", overflow="ellipsis", no_wrap=True, ratio=None)
    if wide:
        table.add_column("kind", overflow="ellipsis", no_wrap=True, max_width=20)
        table.add_column("output", overflow="ellipsis", no_wrap=True, max_width=22)
    timed = any(row.layer.forward_s or row.layer.backward_s for row in rows)
    for name in ("params", "MACs", *(["time"] if timed else []), "held"):
        table.add_column(name, justify="right", no_wrap=True)
    if left and right:
        table.add_column("measured", justify="right", no_wrap=True)
    if left:
        table.add_column("at peak", justify="right", no_wrap=True)
    for row, name in zip(shown, _tree([row.layer.path for row in shown]), strict=True):
        layer = row.layer
        cells: list[str | Text] = [Text(_plain(name) if layer.path else _plain(cost.name))]
        if wide:
            cells += [Text(_plain(layer.kind)), write_shapes(layer.outputs)]
        cells += [format_count(layer.params) if layer.params else "", format_count(layer.macs) if layer.macs else ""]
        if timed:
            taken = layer.forward_s + layer.backward_s
            cells.append(format_seconds(taken) if taken else "")
        cells += [format_bytes(layer.held_bytes)]
        if left and right:
            cells.append("" if row.measured_held_bytes is None else format_bytes(row.measured_held_bytes))
        if left:
            cells.append(format_bytes(layer.at_peak_bytes) if layer.at_peak_bytes else "")
        table.add_row(*cells, style="" if layer.leaf else "dim")
    words = f"  the {len(shown)} largest of {len(rows):,}" if len(shown) < len(rows) else ""
    return Group(Text.assemble(("Layers", "bold"), (words, "dim")), Padding(table, (0, 0, 0, 0)))


def _largest(rows: tuple[LayerRow, ...], limit: int, size: Callable[[LayerCost], int]) -> set[str]:
    """Paths of the largest layers and of the modules where their paths part, at most `limit` in all."""
    known = {row.layer.path for row in rows}
    chosen: set[str] = set()
    shown = {""} & known
    for row in sorted(rows, key=lambda row: -size(row.layer)):
        wanted = _with_branches(chosen | {row.layer.path}, known)
        if len(wanted) > limit:
            break
        chosen.add(row.layer.path)
        shown = wanted
    return shown


def _with_branches(paths: set[str], known: set[str]) -> set[str]:
    children: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            children.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return paths | {path for path, below in children.items() if len(below) > 1 and path in known} | ({""} & known)


def _tree(paths: list[str]) -> list[str]:
    """Each path under the nearest path before it that contains it: indented, without that path's part."""
    around: list[str] = []
    names = []
    for path in paths:
        while around and around[-1] and not path.startswith(around[-1] + "."):
            around.pop()
        parent = around[-1] if around else ""
        names.append("  " * len(around) + (path[len(parent) + 1 :] if parent else path))
        around.append(path)
    return names


def _numbered(title: str, lines: list[str]) -> Group:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column()
    for index, line in enumerate(lines, 1):
        table.add_row(f"{index}.", Text(_plain(line)))
    return Group(Text(title, style="bold"), table)
