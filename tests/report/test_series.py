"""Thinning a timeline for a page loses no peak and lists the right blocks."""

import json
import re
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sash.cost import Block, Category, Moment, Phase, Timeline
from sash.report import to_html
from sash.report._series import highest, largest_alive, runs, series


@st.composite
def timelines(draw):
    count = draw(st.integers(1, 40))
    moments = tuple(Moment(draw(st.sampled_from(Phase)), "", "") for _ in range(count))
    lives = st.tuples(st.integers(0, 99), st.integers(0, count - 1), st.integers(1, count))
    blocks = [Block(size, Category.SAVED, "", "", born, born + length) for size, born, length in draw(st.lists(lives, max_size=30))]
    return Timeline(moments, tuple(blocks))


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(1, 30))
def test_the_first_highest_level_is_among_few_points(levels, points):
    drawn = highest(levels, points)
    assert len(drawn) <= points
    assert drawn == sorted(set(drawn))
    if levels:
        assert levels.index(max(levels)) in drawn
    if len(levels) <= points:
        assert drawn == list(range(len(levels)))


@given(timelines(), st.integers(1, 5))
def test_the_largest_blocks_are_those_that_the_timeline_finds(timeline, count):
    every = range(len(timeline.moments))
    for moment, found in zip(every, largest_alive(timeline, every, count), strict=True):
        expected = [block.bytes for block in timeline.alive(moment)[:count]]
        assert [timeline.blocks[index].bytes for index in found] == expected


@given(timelines())
def test_the_phases_cover_the_timeline_in_turn(timeline):
    found = runs(timeline)
    assert [start for _, start, _ in found] == [0, *(stop for _, _, stop in found)][:-1]
    assert found[-1][2] == len(timeline.moments)
    assert all(timeline.moments[index].phase is phase for phase, start, stop in found for index in range(start, stop))


def test_categories_stack_up_to_the_level(forecast):
    found = series(forecast, None, 50, 3)
    stacked = [sum(values) for values in zip(*(level["bytes"] for level in found["levels"]), strict=True)]
    assert stacked == found["total"]
    assert max(found["total"]) == found["total"][found["peak"]] == max(forecast.timeline.levels)


def test_a_measured_timeline_is_stretched_phase_by_phase(forecast, measurement):
    found = series(forecast, measurement.timeline, 10_000, 3)["measured"]
    # The made-up measurement has each moment twice, so its levels fall on whole and half moments.
    assert found["x"] == [index / 2 for index in range(len(measurement.timeline.moments))]
    assert found["bytes"] == list(measurement.timeline.levels)


def test_other_phases_are_stretched_as_a_whole(forecast):
    moments = (Moment(Phase.FORWARD, "", ""),) * 4
    found = series(forecast, Timeline(moments, (Block(7, Category.OBSERVED, "", "", 1, 2),)), 100, 3)["measured"]
    assert found["x"] == pytest.approx([index * len(forecast.timeline.moments) / 4 for index in range(4)], abs=0.01)
    assert found["bytes"] == [0, 7, 0, 0]


def test_a_long_timeline_fits_a_page_with_its_spike(long_forecast, tmp_path):
    to_html(long_forecast, tmp_path / "long.html")
    page = (tmp_path / "long.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="series">(.*?)</script>', page)
    model = json.loads(data)["models"][0]
    assert model["x"][model["peak"]] == 31_415
    assert model["total"][model["peak"]] == max(long_forecast.timeline.levels) > 10**9
    assert len(data) < 1_500_000
    # Everything but Plotly's own script.
    assert len(page) - max(map(len, re.findall(r"<script>(.*?)</script>", page, re.DOTALL))) < 1_500_000


def test_levels_are_running_sums(long_forecast):
    change = [0] * (len(long_forecast.timeline.moments) + 1)
    for block in long_forecast.timeline.blocks:
        change[block.born] += block.bytes
        change[block.died] -= block.bytes
    assert list(accumulate(change[:-1])) == list(long_forecast.timeline.levels)
