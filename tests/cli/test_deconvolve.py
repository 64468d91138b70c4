"""`sash deconvolve` on files."""

import json

import numpy as np
import pytest
import scipy.ndimage

from sash import arrays

GAUSS = np.exp(-0.5 * np.arange(-6, 7) ** 2)
KERNEL = np.outer(GAUSS, GAUSS) / GAUSS.sum() ** 2


@pytest.fixture
def run(sash):
    """Runs the verb: `run("in.npy", "kernel.npy", "out.npy")`."""
    return lambda *words: sash("deconvolve", *map(str, words))


@pytest.fixture
def sharp(folder):
    found = np.random.default_rng(0).random((70, 90))
    np.save(folder / "in.npy", scipy.ndimage.convolve(found, KERNEL, mode="reflect"))
    np.save(folder / "kernel.npy", KERNEL)
    return found


def test_a_blurred_file_becomes_what_it_was(run, folder, sharp):
    result = run("in.npy", "kernel.npy", "out.npy", "--boundary", "reflect", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "wrote out.npy" in result.stdout
    assert "condition 4.8e+03" in result.stderr
    np.testing.assert_allclose(np.load(folder / "out.npy"), sharp, atol=1e-10)


def test_the_plan_is_json_with_condition_and_errors_and_writes_nothing(run, folder, sharp):
    result = run("in.npy", "kernel.npy", "out.npy", "--boundary", "reflect", "--noise", "0.01", "--plan", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["schema"] == "sash.array-plan/1"
    assert found["method"] == "wiener"
    assert found["condition"] == pytest.approx(4.8e3, rel=0.02)
    errors = {method["name"]: method["error"] for method in found["methods"]}
    assert errors["wiener"] == found["error"] < errors["inverse"]
    assert errors["richardson-lucy"] is None
    assert not (folder / "out.npy").exists()


def test_the_adjoint_and_richardson_lucy_have_options_of_their_own(run, folder, sharp):
    assert run("in.npy", "kernel.npy", "adjoint.npy", "--adjoint", "--boundary", "nearest").exit_code == 0
    wanted = arrays.deconvolve(folder / "in.npy", KERNEL, adjoint=True, boundary="nearest")
    np.testing.assert_array_equal(np.load(folder / "adjoint.npy"), wanted)
    assert run("in.npy", "kernel.npy", "lucy.npy", "--method", "richardson-lucy", "--iterations", "3").exit_code == 0
    wanted = arrays.deconvolve(folder / "in.npy", KERNEL, method="richardson-lucy", iterations=3)
    np.testing.assert_array_equal(np.load(folder / "lucy.npy"), wanted)


def test_what_does_not_fit_ends_with_one_and_wrong_use_with_two(run, folder, sharp):
    assert run("in.npy", "kernel.npy", "out.npy", "--budget", "1 KB").exit_code == 1
    wide = np.exp(-0.5 * (np.arange(-20, 21) / 4) ** 2)
    np.save(folder / "wide.npy", np.outer(wide, wide) / wide.sum() ** 2)
    for words, message in (
        (("wide.npy", "out.npy", "--method", "inverse"), "above 1e+15 nothing is left"),
        (("kernel.npy", "out.npy", "--boundary", "constant"), "no spectrum to invert"),
        (("kernel.npy", "out.npy", "--noise", "-1"), "noise is -1.0"),
        (("kernel.npy", "out.txt"), "has the suffix .txt"),
        (("absent.npy", "out.npy"), "there is no file absent.npy"),
    ):
        result = run("in.npy", *words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert not list(folder.glob("out*"))
