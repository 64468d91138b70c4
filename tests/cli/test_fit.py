"""`sash fit` on a user's model, and its plan taken up by the other verbs."""

import json

import pytest

STEP = ("deep.py:Deep(width=16)", "--input", "4x3x32x32", "--train", "--optimizer", "sgd", "--loss", "my_model.py:total")
BUDGET = "3 MB"
"""Below the plain step's peak."""

DEEP = """
from torch import nn


class Deep(nn.Sequential):
    def __init__(self, width):
        blocks = [layer for _ in range(4) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())]
        super().__init__(nn.Conv2d(3, width, 3, padding=1), *blocks, nn.Conv2d(width, 2, 1))
"""


@pytest.fixture(autouse=True)
def deep(folder):
    (folder / "deep.py").write_text(DEEP)


@pytest.fixture
def plan(sash, folder):
    result = sash("fit", *STEP, "--budget", BUDGET, "--bit-identical", "--out", "plan.json", "--html", "plan.html")
    assert result.exit_code == 0, result.output
    return result


def test_a_plan_is_shown_and_written(sash, folder, plan):
    assert "planned" in plan.stdout
    assert "recompute" in plan.stdout
    assert "bit-identical" in plan.stdout
    assert "wrote plan.json" in plan.stderr
    assert "wrote plan.html" in plan.stderr
    found = json.loads((folder / "plan.json").read_text())
    assert found["budget_bytes"] == 3_000_000
    assert found["peak_bytes"] <= 3_000_000 < found["plain_peak_bytes"]
    assert [lever["lever"] for lever in found["levers"]][-1] == "recompute"
    assert "budget" in (folder / "plan.html").read_text()


def test_a_written_plan_is_forecast_as_it_was_planned(sash, folder, plan):
    planned = json.loads((folder / "plan.json").read_text())
    result = sash("forecast", *STEP, "--plan", "plan.json", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["peak_bytes"] == planned["peak_bytes"]


def test_a_written_plan_is_measured_within_its_budget(sash, folder, plan):
    result = sash("measure", *STEP, "--plan", "plan.json", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["peak_bytes"] <= 3_000_000


def test_a_plan_for_another_model_is_refused_with_what_differs(sash, folder, plan):
    wider = ("deep.py:Deep(width=48)", *STEP[1:])
    result = sash("forecast", *wider, "--plan", "plan.json")
    assert result.exit_code == 2
    assert "48x3x3x3" in result.stderr


def test_the_measured_run_stands_beside_the_plan(sash):
    result = sash("fit", *STEP, "--budget", BUDGET, "--measure")
    assert result.exit_code == 0, result.output
    assert "measured" in result.stdout


def test_json_is_the_plan_that_can_be_taken_up_again(sash):
    result = sash("fit", *STEP, "--budget", "1 GB", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["plan"] == 1
    assert found["levers"] == []


def test_what_does_not_fit_ends_with_one_and_the_least_that_does(sash):
    result = sash("fit", *STEP, "--budget", "100 KB")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "The least that can be kept is" in result.stderr


def test_levers_that_need_leave_are_given_it_by_name(sash):
    refused = sash("fit", *STEP, "--budget", BUDGET, "--allow", "microbach")
    assert refused.exit_code == 2
    assert "'microbatch' is the nearest" in refused.stderr
    allowed = sash("fit", *STEP, "--budget", BUDGET, "--allow", "microbatch", "--allow", "offload", "--json")
    assert allowed.exit_code == 0, allowed.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--budget", "6 gigs"), "'6 gigs' is not a number of bytes"),
        (("--budget", "0"), "the budget is 0 bytes"),
        (("--budget", "1 GB", "--out", "nowhere/plan.json"), "--out nowhere/plan.json: the folder"),
        (("--budget", "1 GB", "--out", "."), "as in plan.json"),
        (("--budget", "1 GB", "--html", "nowhere/plan.html"), "--html nowhere/plan.html: the folder"),
    ],
)
def test_wrong_use_ends_with_two(sash, words, told):
    result = sash("fit", *STEP, *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "--plan plan.json cannot be read"),
        ("{", "this is not JSON"),
        ('{"plan": 7}', "no plan of version 1"),
        ('{"plan": 1, "levers": 3}', "the plan's 'levers' is 3"),
        (b"\xff\xfe", "--plan plan.json cannot be read"),
    ],
)
def test_what_is_no_plan_is_refused(sash, folder, text, told):
    if text is not None:
        (folder / "plan.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = sash("forecast", *STEP, "--plan", "plan.json")
    assert result.exit_code == 2, result.output
    assert told in result.stderr
