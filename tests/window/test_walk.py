"""The walk: what it prints and what it says when it cannot."""

import json

import pytest

from sash.errors import InputError
from sash.window import walk

RESNET_STEM = "3x224x224 | conv 7/2 p3 64 | pool 3/2 p1 | conv 3/2 p1 128 | global | flatten | linear 1000"


def test_the_speech_network_of_the_paper_walks_from_40_to_14():
    found = walk("40 | conv 8 | pool 6/2 | flatten | linear 1000 | linear 1000")
    assert found.shapes == ((40,), (33,), (14,), (14,), (1000,), (1000,))


def test_the_table_shows_maps_reads_and_jumps():
    # The last of the 40 samples is read by no window: 39.
    assert str(walk("1x40 | conv 8 150 | pool 6/2 | flatten | linear 1000 | linear 1000")) == "\n".join(
        (
            "step          shape  values  receptive field  jump",
            "1x40           1x40      40                1     1",
            "conv 8 150   150x33   4,950                8     1",
            "pool 6/2     150x14   2,100               13     2",
            "flatten        2100   2,100               13     –",
            "linear 1000    1000   1,000               39     –",
            "linear 1000    1000   1,000               39     –",
        )
    )


def test_a_walk_in_two_dimensions_keeps_channels_first():
    found = walk(RESNET_STEM)
    assert found.shapes == ((3, 224, 224), (64, 112, 112), (64, 56, 56), (128, 28, 28), (128, 1, 1), (128,), (1000,))
    assert found.steps[2].receptive_field == (11, 11)
    assert found.steps[3].jump == (8, 8)
    assert found.steps[4].receptive_field == (224, 224)
    assert found.steps[4].jump is None


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1x40 | conv 3/2 8 p1", (8, 20)),
        ("1x40 | conv 3 d4 p4", (1, 40)),
        ("1x40 | conv 4 same", (1, 40)),
        ("1x40 | conv 4 d3 causal", (1, 40)),
        ("1x40 | conv 3 p1 circular", (1, 40)),
        ("1x40 | conv 3 p2:0", (1, 40)),
        ("1x40 | pool 3", (1, 13)),
        ("1x40 | pool 3 ceil", (1, 14)),
        ("1x40 | transposed 4/2 8 p1", (8, 80)),
        ("1x40 | transposed 3/2 p1 o1", (1, 80)),
        ("1x40 | adaptive 7", (1, 7)),
        ("40 | conv 3 16", (16, 38)),
        ("2x40x30 | conv 3x5/2x1 8 p1x2", (8, 20, 30)),
        ("2x40x30 | pool 2 p1:0x0:1", (2, 20, 15)),
        ("2x40x30 | adaptive 4x3", (2, 4, 3)),
        ("1x8x40x30 | conv 3 2 p1 | pool 2", (2, 4, 20, 15)),
    ],
)
def test_each_option_means_what_the_table_says(text, shape):
    assert walk(text).shapes[-1] == shape


def test_a_walk_goes_through_json_unchanged():
    found = walk("1x8 | transposed 4/2 p1 | flatten").to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["steps"][1] == {"step": "transposed 4/2 p1", "shape": [1, 16], "values": 16, "receptive_field": [2], "jump": [0.5]}
    assert found["steps"][2]["jump"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A walk starts with the shape of its input, as in '40 | conv 8 | pool 6/2', not ''."),
        ("-3 | conv 3", "Step 1, '-3' at column 1, is the input's shape: '-3' has the length '-3'"),
        ("8x3:int64", "the input is a shape without a batch"),
        ("40 | conf 8", "Step 2, 'conf 8': 'conf' at column 6 is no step; 'conv' is nearest, as in 'conv 3x3/2 64 p1 d2'."),
        ("40 | quux", "'quux' at column 6 is no step; one of: conv, pool, transposed, adaptive, global, flatten, linear."),
        ("40 | conv", "'conv' at column 6 needs a number, as in 'conv 3x3/2 64 p1 d2'."),
        ("40 | conv 8 |", "Step 3 at column 14 is empty; between two '|' stands one of:"),
        ("40 | conv 8 p1z", "'p1z' at column 13 is not understood here; 'conv' is written like 'conv 3x3/2 64 p1 d2'."),
        ("40 | conv 8 4 4", "'4' at column 15 is not understood here"),
        ("40 | pool 3 64", "'64' at column 13 is not understood here; 'pool' is written like 'pool 3/2 p1 ceil'."),
        ("40 | pool 3/0", "'3/0' at column 11 holds a 0"),
        ("40 | global 3", "'3' at column 13 is not understood here; 'global' is written like 'global'."),
        ("40 | conv 3 p1 same", "p, same and causal each set the pad; keep one of them."),
        ("40 | conv 3x3", "Step 2, 'conv 3x3' (column 6): has 2 entries, one an axis, where the signal has 1 (40)."),
        ("40 | transposed 2 o3", "output pad is from 0 up to 0"),
        ("40 | linear 10", "takes one row of values, 40 came; put 'flatten' (or 'global | flatten') before it."),
        ("40 | flatten | conv 3", "Step 3, 'conv 3' (column 16): slides over a signal, but the walk is flat (40 values) here"),
        (
            "40 | conv 8 | pool 50",
            "Step 3, 'pool 50' (column 15): a window of 50 samples does not fit on a length of 33; a size of 33 does, or p8:9.",
        ),
        ("1x9x5 | conv 3x7 p0x0:1", "does not fit on a width of 5 with its padding 6; a size of 6 does, or p0:2."),
        ("1x5 | conv 3 d4", "a window of 9 samples does not fit on a length of 5; a size of 2 does, or p2."),
        ("1x2 | transposed 3 p9", "its padding cuts all of the 4 outputs off its length; a pad of 1 on both sides leaves some."),
    ],
)
def test_an_error_names_the_token_its_place_and_what_works(text, message):
    with pytest.raises(InputError) as caught:
        walk(text)
    assert message in str(caught.value)


def test_the_pad_and_size_that_an_error_offers_do_work():
    assert walk("40 | conv 8 | pool 50 p8:9").shapes[-1] == (1,)
    assert walk("40 | conv 8 | pool 33").shapes[-1] == (1,)
    assert walk("1x9x5 | conv 3x7 p0x0:2").shapes[-1] == (1, 7, 1)
    assert walk("1x5 | conv 2 d4").shapes[-1] == (1, 1)
    assert walk("1x2 | transposed 3 p1").shapes[-1] == (1, 2)
