"""JSON: nothing is lost on the way out and back, and what cannot be read is named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sash.cost import Block, Category, Environment, Forecast, LayerCost, Moment, Phase, Reason, Timeline
from sash.errors import InputError
from sash.report import from_json, to_json

names = st.text()
counts = st.integers(min_value=-(2**80), max_value=2**80)
times = st.floats(allow_nan=False, allow_infinity=False)
shapes = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)


def tuples(strategy):
    return st.lists(strategy, max_size=3).map(tuple)


@st.composite
def timelines(draw):
    moments = draw(tuples(st.builds(Moment, st.sampled_from(Phase), names, names)))
    lives = st.lists(st.integers(0, len(moments)), min_size=2, max_size=2).map(sorted)
    blocks = [
        Block(draw(counts), draw(st.sampled_from(Category)), draw(names), draw(names), *draw(lives), draw(names), draw(shapes))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return Timeline(moments, tuple(blocks))


forecasts = st.builds(
    Forecast,
    *(names, names),
    *(counts,) * 7,
    tuples(st.builds(LayerCost, names, names, st.booleans(), counts, tuples(shapes), *(counts,) * 7)),
    timelines(),
    st.builds(Environment, names, names, counts, names),
    tuples(names),
    *(counts, counts),
    tuples(st.builds(Reason, names, counts, tuples(names))),
    times,
)


@given(forecasts)
def test_a_forecast_comes_back_equal_from_its_json(forecast):
    assert from_json(to_json(forecast)) == forecast


def test_whole_results_come_back_equal_and_of_their_own_type(forecast, measurement):
    for result in (forecast, measurement):
        found = from_json(to_json(result))
        assert found == result
        assert type(found) is type(result)
        assert type(found.peak_bytes) is int
        assert type(found.timeline.blocks[0].category) is Category


def test_the_schema_stands_first_and_carries_a_version(forecast, measurement):
    assert forecast.to_json().startswith('{"schema": "sash.forecast/1", "name": "UNet"')
    assert measurement.to_json().startswith('{"schema": "sash.measurement/1"')


def changed(forecast, **fields):
    return json.dumps(json.loads(to_json(forecast)) | fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"peak_bytes": "3"}, 'peak_bytes is "3"; expected a whole number.'),
        ({"peak_bytes": 3.0}, "peak_bytes is 3.0; expected a whole number."),
        ({"peak_bytes": True}, "peak_bytes is true; expected a whole number."),
        ({"name": None}, "name is null; expected a text."),
        ({"forecast_s": "fast"}, 'forecast_s is "fast"; expected a number.'),
        ({"notes": "one"}, 'notes is "one"; expected a list.'),
        ({"notes": ["one", 2]}, "notes[1] is 2; expected a text."),
        ({"environment": 5}, "environment is 5; expected an object."),
        ({"environment": {"torch": "2"}}, "environment.python is missing."),
        ({"colour": 1}, "colour is not a field of a Forecast."),
        (
            {"schema": "sash.forecast/9"},
            "schema is 'sash.forecast/9'; this version of sash reads 'sash.forecast/1' and 'sash.measurement/1'.",
        ),
        ({"timeline": {"moments": [{"phase": "sleep", "module": "", "operator": ""}], "blocks": []}}, "timeline.moments[0].phase is"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(forecast, fields, told):
    with pytest.raises(InputError) as raised:
        from_json(changed(forecast, **fields))
    assert told in str(raised.value)


def test_a_result_of_a_version_without_times_is_read(forecast):
    older = json.loads(to_json(forecast))
    del older["wall_s"]
    for moment in older["timeline"]["moments"]:
        del moment["seconds"]
    for layer in older["layers"]:
        del layer["forward_s"], layer["backward_s"]
    found = from_json(json.dumps(older))
    assert (found.wall_s, found.layers[1].forward_s, found.timeline.moments[0].seconds) == (0.0, 0.0, 0.0)
    assert found.peak_bytes == forecast.peak_bytes


@pytest.mark.parametrize("text", ["", "{", "[1]", "NaN", '{"schema": ["sash.forecast/1"]}', "[" * 100_000])
def test_what_is_no_result_is_refused(text):
    with pytest.raises(InputError):
        from_json(text)


def test_a_number_that_is_not_finite_is_refused(forecast):
    with pytest.raises(InputError, match="Infinity is not a JSON number"):
        from_json(to_json(forecast).replace(f'"forecast_s": {forecast.forecast_s}', '"forecast_s": Infinity'))
    with pytest.raises(InputError, match="forecast_s is Infinity; expected a number"):
        from_json(to_json(forecast).replace(f'"forecast_s": {forecast.forecast_s}', '"forecast_s": 1e999'))


def test_a_block_outside_the_timeline_is_refused(forecast):
    timeline = forecast.timeline
    late = replace(timeline.blocks[0], born=len(timeline.moments) + 1, died=len(timeline.moments) + 2)
    with pytest.raises(InputError, match=r"timeline.blocks\[0\] lives from"):
        from_json(to_json(replace(forecast, timeline=Timeline(timeline.moments, (late,)))))
