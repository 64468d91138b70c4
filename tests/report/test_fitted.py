"""Plans and largest sizes as text, JSON and a page."""

import json
from dataclasses import replace

import pytest

from sash.plans import TilePlan
from sash.report import plain_text, to_html, to_json
from sash.units import format_bytes


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_plan_shows_the_planned_run_beside_the_plain_one(plan):
    text = plain_text(plan)
    assert text.splitlines()[0].split() == ["UNet", "plan"]
    assert "2 levers; the result is equal up to rounding. Time of a step, by forecast: +10 %." in text
    assert format_bytes(plan.plain_peak_bytes) in row(text, "peak")
    assert format_bytes(plan.forecast.peak_bytes) in row(text, "peak")
    assert format_bytes(plan.budget_bytes) in row(text, "budget")
    assert format_bytes(plan.budget_bytes - plan.forecast.peak_bytes) in row(text, "headroom")
    assert row(text, "time of a step").split()[4:8] == ["2.00", "s", "2.20", "s"]
    assert "+10 %" in row(text, "extra time")
    assert row(text, "recompute").split()[1] == "bit-identical"
    assert "3.00 MiB not saved for backward" in row(text, "recompute")
    assert "channels-last (inputs)" in row(text, "layout")
    assert "layout: " not in text  # its name stands before it already
    assert str(plan) == text


def test_a_measured_plan_has_a_column_for_it(plan, measurement):
    text = plain_text(plan, measurement)
    assert format_bytes(measurement.peak_bytes) in row(text, "peak")
    assert "1.84 s" in row(text, "time of a step")
    assert "over the budget" not in text


def test_a_measured_peak_over_the_budget_is_told(plan, found, measurement):
    for fitted in (plan, found):
        over = replace(measurement, peak_bytes=fitted.budget_bytes + 2048)
        assert "The measured peak is over the budget by 2.00 KiB." in " ".join(plain_text(fitted, over).split())


def test_a_plan_without_levers_says_that_it_fits_as_it_is(plan):
    text = plain_text(replace(plan, levers=()))
    assert "It fits as it is: no lever is pulled." in text
    assert "Levers" not in text


def test_a_largest_size_stands_beside_the_next(found):
    text = plain_text(found)
    assert "The largest batch that fits is 6,000 (6000x3x32x32). It goes by 8. Found in 1.50 s by 4 forecasts." in text
    assert "batch 6,008" in text
    assert format_bytes(found.next_peak_bytes) in row(text, "peak")
    assert row(text, "headroom").split()[3].startswith("-")
    refused = plain_text(replace(found, next_peak_bytes=None, limit="6,008 is not taken"))
    assert "The model does not take 6,008: 6,008 is not taken" in refused


def test_control_codes_in_names_are_not_printed(plan):
    hostile = replace(plan, forecast=replace(plan.forecast, name="\x1b[31mNet"))
    assert "\x1b" not in plain_text(hostile)


def test_tiles_are_one_line():
    tiles = TilePlan((64, 64), ((8, 8), (8, 8)), (1, 1), 9, 0, 2**20, 0.25)
    assert plain_text(tiles) == str(tiles)


def test_json_is_what_reads_back(plan, found):
    assert json.loads(to_json(plan))["plan"] == 1
    assert json.loads(to_json(found))["schema"] == "sash.largest/1"


@pytest.fixture
def page(tmp_path):
    def page(fitted, measured=None):
        to_html(fitted, tmp_path / "page.html", measured)
        return (tmp_path / "page.html").read_text()

    return page


def marks(page: str) -> list[str]:
    data = page.split('id="series">', 1)[1].split("</script>", 1)[0]
    return [mark["name"] for mark in json.loads(data)["marks"]]


def test_the_page_has_the_levers_the_budget_and_the_plain_peak(page, plan, measurement):
    text = page(plan, measurement)
    assert "<h2>Plan</h2>" in text
    assert "<th scope='row'>recompute</th><td>bit-identical</td>" in text
    assert marks(text) == ["budget", "plain peak"]


def test_a_budget_far_above_the_run_is_not_drawn(page, plan):
    assert marks(page(replace(plan, budget_bytes=100 * plan.budget_bytes, levers=()))) == []


def test_the_page_of_a_largest_size_names_it(page, found):
    text = page(found)
    assert "<h2>Largest batch</h2>" in text
    assert marks(text) == ["budget"]


def test_markup_in_a_reason_to_stop_is_escaped(page, found):
    text = page(replace(found, next_peak_bytes=None, limit="<img src=x onerror=alert(1)>"))
    assert "<img src=x" not in text
