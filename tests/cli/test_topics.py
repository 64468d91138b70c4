"""`sash topics` from file to file."""

import json

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr

from sash.arrays import topics


@pytest.fixture
def docs(folder):
    rng = np.random.default_rng(0)
    made = np.zeros((2, 30))
    made[0, :15], made[1, 15:] = 1 / 15, 1 / 15
    counts = np.array([rng.multinomial(40, made[number % 2]) for number in range(120)])
    scipy.io.mmwrite(folder / "docs.mtx", scipy.sparse.csr_array(counts))
    (folder / "docs.vocab.txt").write_text("".join(f"{'ab'[number // 15]}{number}\n" for number in range(30)))
    return counts


def test_topics_are_printed_and_written_with_a_report(sash, folder, docs):
    result = sash("topics", "docs.mtx", "--topics", "2", "--out", "topics.zarr", "--html", "page.html", "--passes", "3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 topics of 120 rows × 30 columns")
    assert "wrote topics.zarr" in result.stderr
    assert zarr.open_group(folder / "topics.zarr", mode="r")["documents"].shape == (120, 2)
    assert "docs.mtx" in (folder / "page.html").read_text(encoding="utf-8")


def test_json_tells_what_the_function_returns(sash, docs):
    found = json.loads(sash("topics", "docs.mtx", "--topics", "2", "--passes", "2", "--json").stdout)
    expected = json.loads(topics("docs.mtx", 2, passes=2).to_json())
    assert {**found, "wall_s": 0} == {**expected, "wall_s": 0}


def test_the_plan_runs_nothing(sash, folder, docs):
    result = sash("topics", "docs.mtx", "--topics", "2", "--out", "topics.zarr", "--plan")
    assert "online variational Bayes" in result.stdout
    assert not (folder / "topics.zarr").exists()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--weights", "tfidf"], 2, "give the counts"),
        (["--topics", "0"], 2, "topics is 0"),
        (["--names", "missing.txt"], 2, "missing.txt cannot be read"),
        (["--budget", "10 KiB"], 1, "takes a budget of"),
        (["--html", "nowhere/page.html"], 2, "does not exist"),
    ],
)
def test_wrong_use_is_one_message_and_an_exit_code(sash, docs, options, code, told):
    result = sash("topics", "docs.mtx", *options)
    assert result.exit_code == code
    assert told in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
