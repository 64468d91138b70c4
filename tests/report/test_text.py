"""The terminal report: its words are pinned, its width and its rows bounded, and names cannot drive the terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sash.report import plain_text, text

GOLDEN = Path(__file__).with_name("golden.txt")


def shown(renderable, width, colour=None):
    out = io.StringIO()
    Console(file=out, width=width, color_system=colour, force_terminal=bool(colour), legacy_windows=False).print(renderable)
    return out.getvalue()


def layer_lines(report):
    lines = report.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Layers"))
    return lines[start + 2 : lines.index("", start)]


def test_the_report_reads_as_it_did(forecast, measurement):
    assert plain_text(forecast, measurement, rows=8) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_printing_a_result_gives_the_plain_report(forecast, measurement):
    assert str(forecast) == plain_text(forecast)
    assert str(measurement) == plain_text(measurement)
    assert "\x1b" not in str(forecast)
    assert max(map(len, str(forecast).splitlines())) <= 120


def test_a_coloured_terminal_shows_the_same_words(forecast):
    assert "\x1b[" in shown(forecast, 120, "truecolor")
    assert [line.rstrip() for line in shown(forecast, 120).splitlines()] == plain_text(forecast).splitlines()


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
def test_the_layer_table_keeps_to_its_rows(forecast, rows):
    assert 1 <= len(layer_lines(plain_text(forecast, rows=rows))) <= rows


def test_all_layers_show_where_there_is_room(forecast):
    report = plain_text(forecast, rows=10_000)
    assert len(layer_lines(report)) == len(forecast.layers)
    assert "largest of" not in report


def test_the_largest_layer_at_the_peak_is_listed_under_its_module(forecast):
    largest = max(forecast.layers, key=lambda layer: layer.at_peak_bytes)
    lines = layer_lines(plain_text(forecast, rows=4))
    assert any(line.split()[0].split(".")[-1] == largest.path.split(".")[-1] and line.startswith("  ") for line in lines)


def test_a_layer_shows_its_time_where_there_is_one(forecast):
    timed = plain_text(forecast, rows=8)
    assert "   time" in timed
    assert "97 ms" in timed
    untimed = replace(forecast, layers=tuple(replace(layer, forward_s=0.0, backward_s=0.0) for layer in forecast.layers), wall_s=0.0)
    assert "   time" not in plain_text(untimed, rows=8)
    assert "time of a step" not in plain_text(untimed, rows=8)


def test_a_narrow_terminal_keeps_every_number(forecast, measurement):
    report = shown(text(forecast, measurement), 80)
    assert max(map(len, report.splitlines())) <= 80
    assert "Conv2d" not in report
    assert "48.0 MiB" in report


def test_names_are_words_and_neither_markup_nor_control_codes(forecast):
    first, *rest = forecast.layers
    named = replace(forecast, name="[bold]\x1b[31mNet\x07", layers=(replace(first, kind="[red]K\x1b"), *rest))
    report = plain_text(named)
    assert "[bold]\N{REPLACEMENT CHARACTER}[31mNet\N{REPLACEMENT CHARACTER}" in report
    assert "[red]K\N{REPLACEMENT CHARACTER}" in report
    assert "\x1b" not in report


def test_a_measurement_alone_has_no_forecast_column(measurement):
    report = plain_text(measurement)
    assert report.startswith("UNet  measurement")
    assert "forecast" not in report
    assert "time of a step" in report


def test_a_mapped_measurement_stands_beside_the_mapped_forecast(forecast, measurement):
    report = plain_text(forecast, replace(measurement, allocator="mapped", process_bytes=forecast.mapped_bytes))
    (line,) = [line for line in report.splitlines() if line.startswith("process, mapped")]
    assert " 0 % " in line


def test_a_result_without_timeline_or_layers_still_reports(forecast):
    bare = replace(forecast, layers=(), timeline=replace(forecast.timeline, moments=(), blocks=()))
    assert "At the peak" not in plain_text(bare)
    assert "peak" in plain_text(bare)
