"""The parts of the page that need no script: HTML text, every name in it escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version

from sash.cost import Category, Cost, Measurement
from sash.plans import Plan
from sash.report import _fitted
from sash.report._figures import Figure, LayerRow, at_peak, figures, layer_rows, sides, write_amount, write_error, write_shapes, write_share
from sash.units import format_bytes, format_count, format_seconds

Pair = tuple[Cost, Measurement | None]
"""A result, and the measurement it is held against."""

_CARDS = 3
"""Figures shown large where there is one model: the three peaks."""


def head(pairs: Sequence[Pair], fitted: _fitted.Fitted | None = None) -> str:
    """The page's head: the title, the setting, the versions."""
    kind = _fitted.kind(fitted) if fitted else _kind(pairs)
    return f"<header><p class='kicker'>sash {kind}</p><h1>{escape(title(pairs))}</h1>{_settings(pairs)}{_versions(pairs)}</header>"


def title(pairs: Sequence[Pair]) -> str:
    """The names of the models."""
    return " and ".join(cost.name for cost, _ in pairs)


def fitted_section(fitted: _fitted.Fitted, measured: Measurement | None) -> str:
    """What was fitted: in a sentence, its figures against the budget, its levers."""
    names = "".join(f"<th scope='col'>{escape(name)}</th>" for name in _fitted.columns(fitted, measured))
    rows = "".join(
        f"<tr><th scope='row'>{line.name}<span class='meaning'>{line.meaning}</span></th>{''.join(map(_number, line.cells))}</tr>"
        for line in _fitted.lines(fitted, measured)
    )
    figures = f"<table class='figures'><thead><tr><td></td>{names}</tr></thead><tbody>{rows}</tbody></table>"
    levers = ""
    if isinstance(fitted, Plan) and fitted.levers:
        heads = "".join(f"<th scope='col'>{name}</th>" for name in ("lever", "result", "what it does"))
        told = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{escape(exactness)}</td><td>{escape(does)}</td></tr>"
            for name, exactness, does in _fitted.levers(fitted)
        )
        table = f"<table class='levers'><thead><tr>{heads}</tr></thead><tbody>{told}</tbody></table>"
        levers = f"<h3>Levers</h3>{_scroll('Levers', table)}"
    kind = _fitted.kind(fitted).capitalize()
    words = f"<p>{escape(_fitted.summary(fitted, measured))}</p>"
    return f"<section class='fitted'><h2>{kind}</h2>{words}{_scroll('Against the budget', figures)}{levers}</section>"


def overview(pairs: Sequence[Pair]) -> str:
    """The figures of every pair side by side, and what holds each peak."""
    cards = _cards(*pairs[0]) if len(pairs) == 1 else ""
    peak = f"<h3>At the peak</h3>{_peak_bars(pairs)}{_scroll('What holds the peak', _category_table(pairs))}"
    tables = f"<div>{_scroll('Figures', _figure_table(pairs))}</div><div>{peak}</div>"
    return f"<section><h2>Figures</h2>{cards}<div class='{'beside' if cards else ''}'>{tables}</div></section>"


def model(pair: Pair, index: int, several: bool, rows: int) -> str:
    """One model's timeline, reasons, notes and layers; `rows` bounds the layer table."""
    cost, _ = pair
    name = escape(cost.name)
    heading = f"<h2>{name}</h2>" if several else ""
    parts = [heading, _timeline(cost, name, index), _reasons(pair), _layers(pair, name, index, rows)]
    return f"<section class='model'>{''.join(parts)}</section>"


def _kind(pairs: Sequence[Pair]) -> str:
    left, right = sides(*pairs[0])
    return "forecast and measurement" if left and right else "forecast" if left else "measurement"


def _settings(pairs: Sequence[Pair]) -> str:
    settings = [cost.setting for cost, _ in pairs]
    lines = settings[:1] if len(set(settings)) == 1 else [f"{cost.name}: {cost.setting}" for cost, _ in pairs]
    return "".join(f"<p class='setting'>{escape(line)}</p>" for line in lines)


def _versions(pairs: Sequence[Pair]) -> str:
    environments = dict.fromkeys(one.environment for pair in pairs for one in pair if one is not None)
    lines = []
    for one in environments:
        threads = f"{one.threads} thread{'' if one.threads == 1 else 's'}"
        lines.append(f"sash {version('sash')} · torch {one.torch} · Python {one.python} · {threads} · {one.machine}")
    return "".join(f"<p class='versions'>{escape(line)}</p>" for line in lines)


def _cards(cost: Cost, measured: Measurement | None) -> str:
    cards = []
    for row in figures(cost, measured)[:_CARDS]:
        value = row.forecast if row.forecast is not None else row.measured
        assert value is not None
        against = ""
        if row.forecast is not None and row.measured is not None:
            against = f"<p class='against'>measured {row.write(row.measured)}, error {write_error(row.error) or '–'}</p>"
        words = f"<p class='name'>{row.name}</p><p class='value'>{row.write(value)}</p>"
        cards.append(f"<div class='card'>{words}{against}<p class='meaning'>{row.meaning}</p></div>")
    return f"<div class='cards'>{''.join(cards)}</div>"


def _figure_table(pairs: Sequence[Pair]) -> str:
    several = len(pairs) > 1
    ratio = _has_ratio(pairs)
    columns = [_columns(pair) for pair in pairs]
    first = "<tr><td></td>" + "".join(
        f"<th scope='colgroup' colspan='{len(names)}'>{escape(cost.name)}</th>" for names, (cost, _) in zip(columns, pairs, strict=True)
    )
    first = first + ("<td></td>" if ratio else "") + "</tr>" if several else ""
    second = "".join(f"<th scope='col'>{name}</th>" for names in columns for name in names)
    second += f"<th scope='col'>{_ratio_name(pairs)}</th>" if ratio else ""
    by_name = [{row.name: row for row in figures(*pair)} for pair in pairs]
    order = sorted({name for rows in by_name for name in rows}, key=lambda name: min(_place(rows, name) for rows in by_name))
    lines = []
    for name in order:
        rows = [rows.get(name) for rows in by_name]
        known = next(row for row in rows if row)
        cells = "".join(_figure_cells(row, names) for row, names in zip(rows, columns, strict=True))
        if ratio:
            cells += _number(_ratio(*(None if row is None else _value(row) for row in rows)))
        # The cards over the table of a single model have said what the first figures mean.
        meaning = f"<span class='meaning'>{known.meaning}</span>" if several or len(lines) >= _CARDS else ""
        lines.append(f"<tr><th scope='row'>{name}{meaning}</th>{cells}</tr>")
    caption = "<caption>Error is (forecast − measured) / measured.</caption>" if any("error" in names for names in columns) else ""
    return f"<table class='figures'>{caption}<thead>{first}<tr><td></td>{second}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _columns(pair: Pair) -> list[str]:
    left, right = sides(*pair)
    return [name for name, side in (("forecast", left), ("measured", right), ("error", left and right)) if side]


def _place(rows: dict[str, Figure], name: str) -> int:
    return list(rows).index(name) if name in rows else len(rows)


def _figure_cells(row: Figure | None, names: list[str]) -> str:
    if row is None:
        return "<td></td>" * len(names)
    written = {
        "forecast": "" if row.forecast is None else row.write(row.forecast),
        "measured": "" if row.measured is None else row.write(row.measured),
        "error": write_error(row.error),
    }
    return "".join(_number(written[name]) for name in names)


def _value(row: Figure) -> float | None:
    return row.forecast if row.forecast is not None else row.measured


def _has_ratio(pairs: Sequence[Pair]) -> bool:
    return len(pairs) == 2


def _ratio_name(pairs: Sequence[Pair]) -> str:
    return f"{escape(pairs[1][0].name)} / {escape(pairs[0][0].name)}"


def _ratio(first: float | None, second: float | None) -> str:
    return f"{second / first:.2f} ×" if first and second is not None else ""


def _number(words: str) -> str:
    return f"<td class='number'>{words}</td>"


def _peak_bars(pairs: Sequence[Pair]) -> str:
    scale = max((sum(at_peak(cost).values()) for cost, _ in pairs), default=0) or 1
    bars = []
    for cost, _ in pairs:
        parts = "".join(
            f"<span class='part {slug(category)}' style='width:{100 * count / scale:.2f}%' title='{category} {format_bytes(count)}'></span>"
            for category, count in at_peak(cost).items()
        )
        label = f"<p class='bar-name'>{escape(cost.name)}</p>" if len(pairs) > 1 else ""
        bars.append(f"{label}<div class='bar' aria-hidden='true'>{parts}</div>")
    return "".join(bars)


def _category_table(pairs: Sequence[Pair]) -> str:
    held = [at_peak(cost) for cost, _ in pairs]
    totals = [sum(one.values()) or 1 for one in held]
    several = "".join(f"<th scope='col' colspan='2'>{escape(cost.name)}</th>" for cost, _ in pairs)
    ratio = _has_ratio(pairs)
    several += f"<th scope='col'>{_ratio_name(pairs)}</th>" if ratio else ""
    lines = []
    for category in (category for category in Category if any(category in one for one in held)):
        counts = [one.get(category, 0) for one in held]
        cells = "".join(
            _number(format_bytes(count)) + _number(write_share(count / total)) for count, total in zip(counts, totals, strict=True)
        )
        cells += _number(_ratio(*counts)) if ratio else ""
        lines.append(f"<tr><th scope='row'><i class='swatch {slug(category)}'></i>{category}</th>{cells}</tr>")
    row = f"<thead><tr><td></td>{several}</tr></thead>" if len(pairs) > 1 else ""
    return f"<table class='figures categories'>{row}<tbody>{''.join(lines)}</tbody></table>"


def slug(category: Category) -> str:
    """The category's class in the style sheet."""
    return category.name.lower()


def _timeline(cost: Cost, name: str, index: int) -> str:
    if not cost.timeline.moments:
        return "<h3>Memory over the step</h3><p>This result has no timeline.</p>"
    hint = (
        "Each point is one operator call, or the highest of several. Point at one, or press the arrow keys, to see what is alive;"
        " drag to zoom in, double-click to zoom out."
    )
    chart = (
        f"<div class='chart' tabindex='0' role='img' aria-label='Bytes alive over the operator calls of {name}' data-chart='{index}'></div>"
    )
    panel = "<div class='panel' aria-live='polite'></div>"
    absent = "<noscript><p>The timeline is drawn by the page's own script, which is switched off.</p></noscript>"
    figure = f"<div class='figure'>{chart}<div class='tip' hidden></div></div>"
    return f"<h3>Memory over the step</h3><p class='hint'>{hint}</p>{absent}{figure}{panel}"


def _reasons(pair: Pair) -> str:
    left, right = sides(*pair)
    reasons = [
        f"<li>{escape(reason.text)} <span class='number'>{write_amount(reason)}</span></li>" for reason in (left.reasons if left else ())
    ]
    notes = [f"<li>{escape(note)}</li>" for note in dict.fromkeys(note for side in (left, right) if side for note in side.notes)]
    first = f"<h3>Why</h3><ol class='reasons'>{''.join(reasons)}</ol>" if reasons else ""
    return first + (f"<h3>Notes</h3><ul class='notes'>{''.join(notes)}</ul>" if notes else "")


def _layers(pair: Pair, name: str, index: int, limit: int) -> str:
    cost, measured = pair
    left, right = sides(cost, measured)
    rows = layer_rows(cost, measured)
    if not rows:
        return ""
    kept = _largest(rows, limit)
    words = f"The {len(kept):,} largest of {len(rows):,} layers." if len(kept) < len(rows) else f"{len(rows):,} layers."
    both = bool(left and right)
    names = ["layer", "kind", "output", "calls"]
    names += ["at peak"] if left else []
    names += ["held, forecast", "held, measured"] if both else ["held"]
    names += ["highest in forward", "parameters", "MACs forward", "MACs backward"]
    timed = any(row.layer.forward_s or row.layer.backward_s for row in rows)
    names += ["time forward", "time backward"] if timed else []
    texts = {"layer", "kind", "output"}
    header = "".join(
        f"<th scope='col' aria-sort='{'ascending' if name == 'layer' else 'none'}'{'' if name in texts else ' class=number'}>"
        f"<button type='button'>{name}</button></th>"
        for name in names
    )
    top = max(row.layer.at_peak_bytes for row in rows) or 1
    lines = "".join(_layer(place, row, both, bool(left), timed, top, cost.name) for place, row in kept)
    search = (
        f"<label for='search-{index}'>Search</label><input id='search-{index}' type='search' placeholder='path or kind' autocomplete='off'>"
    )
    count = f"<output for='search-{index}'>{words}</output>"
    table = f"<table class='layers' id='layers-{index}'><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table>"
    hint = (
        "Held: by how much a layer's forward raised the level, the layers in it included."
        + " At peak: bytes it made itself that are alive at the peak." * bool(left)
        + " Time: seconds of its own operators, at this machine's rates." * timed
    )
    tools = f"<div class='tools'>{search}{count}</div>"
    return f"<h3>Layers</h3><p class='hint'>{hint}</p>{tools}{_scroll(f'Layers of {name}', table, 'tall')}"


def _largest(rows: tuple[LayerRow, ...], limit: int) -> list[tuple[int, LayerRow]]:
    places = sorted(range(len(rows)), key=lambda place: -max(rows[place].layer.at_peak_bytes, rows[place].layer.held_bytes))[:limit]
    return [(place, rows[place]) for place in sorted(places)]


def _layer(place: int, row: LayerRow, both: bool, forecast: bool, timed: bool, top: int, name: str) -> str:
    layer = row.layer
    around, _, last = layer.path.rpartition(".")
    # A long path may break after its dots.
    outer = escape(around).replace(".", ".<wbr>")
    path = f"<span class='around'>{outer}.<wbr></span>{escape(last)}" if around else escape(last or name)
    share = ""
    if forecast:
        words = format_bytes(layer.at_peak_bytes) if layer.at_peak_bytes else ""
        style = f"--share:{100 * layer.at_peak_bytes / top:.1f}%"
        share = f"<td class='number share' data-v='{layer.at_peak_bytes}' style='{style}'>{words}</td>"
    times = [(layer.forward_s, format_seconds(layer.forward_s)), (layer.backward_s, format_seconds(layer.backward_s))] if timed else []
    counts: Iterable[tuple[float | None, str]] = [
        (layer.held_bytes, format_bytes(layer.held_bytes)),
        *([(row.measured_held_bytes, format_bytes(row.measured_held_bytes or 0))] if both else []),
        (layer.forward_peak_bytes, format_bytes(layer.forward_peak_bytes)),
        (layer.params, format_count(layer.params)),
        (layer.macs, format_count(layer.macs)),
        (layer.macs_backward, format_count(layer.macs_backward)),
        *times,
    ]
    numbers = "".join(
        f"<td class='number' data-v='{-1 if value is None else value}'>{words if value else ''}</td>" for value, words in counts
    )
    shapes = escape(write_shapes(layer.outputs))
    calls = f"<td class='number' data-v='{layer.calls}'>{layer.calls}</td>"
    head = f"<th scope='row' data-v='{place}'>{path}</th><td>{escape(layer.kind)}</td><td class='shape' title='{shapes}'>{shapes}</td>"
    return f"<tr class='{'leaf' if layer.leaf else 'around'}'>{head}{calls}{share}{numbers}</tr>"


def _scroll(label: str, table: str, kind: str = "") -> str:
    return f"<div class='scroll {kind}' role='region' aria-label='{label}' tabindex='0'>{table}</div>"
