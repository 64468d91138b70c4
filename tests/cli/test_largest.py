"""`sash largest` on a user's model."""

import json

import pytest

STEP = ("my_model.py:Net", "--input", "2x3x16x16", "--train", "--optimizer", "sgd", "--loss", "my_model.py:total")


def test_the_largest_batch_is_found_and_proven(sash, folder):
    result = sash("largest", *STEP, "--budget", "2 MB", "--html", "largest.html")
    assert result.exit_code == 0, result.output
    assert "The largest batch that fits is" in result.stdout
    assert "measured" in result.stdout
    assert "Largest batch" in (folder / "largest.html").read_text()


def test_a_side_is_found_without_a_run(sash):
    result = sash("largest", *STEP, "--budget", "2 MB", "--vary", "side", "--no-prove", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == "sash.largest/1"
    assert found["vary"] == "side"
    assert found["peak_bytes"] <= 2_000_000 < found["next_peak_bytes"]
    assert found["measured_peak_bytes"] is None


def test_what_does_not_fit_ends_with_one_and_the_least_that_does(sash):
    result = sash("largest", *STEP, "--budget", "1 KB")
    assert result.exit_code == 1
    assert "batch 1, the least that it takes" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--budget", "6 gigs"), "'6 gigs' is not a number of bytes"),
        (("--budget", "0"), "the budget is 0 bytes"),
        (("--budget", "1 GB", "--vary", "bath"), "'batch' is the nearest"),
    ],
)
def test_wrong_use_ends_with_two(sash, words, told):
    result = sash("largest", *STEP, *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
