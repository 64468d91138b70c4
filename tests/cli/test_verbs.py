"""The verbs on a user's model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sash.cli._workload import find_model, read_inputs
from sash.cost import ModelSource

IMAGE = "1x3x16x16"


def test_walk_prints_every_shape(sash):
    result = sash("walk", "40 | conv 8 | pool 6/2 | flatten | linear 1000")
    assert result.exit_code == 0
    assert result.stderr == ""
    for length in ("40", "33", "14", "1000"):
        assert length in result.stdout


def test_walk_prints_json(sash):
    assert json.loads(sash("walk", "40 | conv 8", "--json").stdout)


def test_forecast_prints_a_table(sash):
    result = sash("forecast", "my_model.py:Net", "--input", IMAGE, "--train", "--optimizer", "adamw", "--loss", "my_model.py:total")
    assert result.exit_code == 0, result.output
    assert "first" in result.stdout


def test_json_is_all_that_stands_on_stdout(sash):
    result = sash("forecast", "my_model.py:Chatty", "--input", IMAGE, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"].startswith("sash.forecast/")
    assert "forward was here" in result.stderr


def test_a_wider_model_is_forecast_larger(sash):
    small, large = (json.loads(sash("forecast", f"my_model.py:Net(width={width})", "--input", IMAGE, "--json").stdout) for width in (8, 64))
    assert small["params"] < large["params"]


def test_measure_prints_forecast_and_measurement(sash):
    result = sash("measure", "my_model.py:Net", "--input", IMAGE, "--train", "--optimizer", "sgd", "--loss", "my_model.py:total")
    assert result.exit_code == 0, result.output
    assert "measured" in result.stdout.lower()


def test_measure_runs_what_cannot_be_forecast(sash):
    result = sash("measure", "my_model.py:Branching", "--input", IMAGE, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["schema"].startswith("sash.measurement/")
    assert "no forecast" in result.stderr


def test_html_is_written(sash, folder):
    result = sash("forecast", "my_model.py:Net", "--input", IMAGE, "--html", "out.html")
    assert result.exit_code == 0, result.output
    assert "my_model" in (folder / "out.html").read_text() or "Net" in (folder / "out.html").read_text()
    assert "wrote out.html" in result.stderr


def test_a_built_in_family_needs_no_file(sash):
    result = sash("forecast", "unet-separable", "--input", "1x3x32x32", "--json")
    assert result.exit_code == 0, result.output


def test_a_family_takes_arguments():
    assert isinstance(find_model("unet"), ModelSource)
    narrow, wide = (find_model(f"unet(width={width})").load() for width in (8, 16))
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters())


def test_a_picture_becomes_a_batch_of_one(folder):
    Image.fromarray(np.full((5, 7, 4), 255, np.uint8)).save(folder / "white.png")
    (value,) = read_inputs(["white.png"]).values()
    assert value.shape == (1, 3, 5, 7)
    assert value.dtype == torch.float32
    assert value.max() == 1


def test_an_array_is_read_as_it_is(folder):
    np.save(folder / "tokens.npy", np.arange(6).reshape(2, 3))
    found = read_inputs(["2x3", "ids=tokens.npy", "4"])
    assert list(found) == [0, "ids", 1]
    assert torch.equal(found["ids"], torch.arange(6).reshape(2, 3))


def test_a_picture_can_be_forecast(sash, folder):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "black.png")
    assert sash("forecast", "my_model.py:Net", "--input", "black.png").exit_code == 0


@pytest.mark.parametrize("verb", ["forecast", "measure"])
def test_the_help_says_that_the_file_is_run(sash, verb):
    text = " ".join(sash(verb, "--help").stdout.split())
    assert "your own code and is run as such" in text
