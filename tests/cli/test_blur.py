"""`sash blur` on files."""

import json

import numpy as np
import pytest

from sash import arrays


@pytest.fixture
def scan(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (170, 190), dtype=np.uint8)
    np.save(folder / "scan.npy", pixels)
    return pixels


def test_a_file_is_blurred_into_another_kind(sash, folder, scan):
    result = sash("blur", "scan.npy", "3", "smooth.tif", "--budget", "8 MiB", "--boundary", "mirror")
    assert result.exit_code == 0, result.output
    assert "wrote smooth.tif" in result.stdout
    assert "blur of 170x190 uint8 by sigma 3: direct" in result.stderr
    again = arrays.blur(folder / "smooth.tif", 0)
    np.testing.assert_array_equal(again, arrays.blur(scan, 3, boundary="mirror"))


def test_the_plan_alone_writes_nothing(sash, folder, scan):
    result = sash("blur", "scan.npy", "2,9", "smooth.npy", "--plan", "--json", "--order", "0,1")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == "sash.array-plan/1"
    assert found["out"] is None
    assert {method["name"] for method in found["methods"]} == {"direct", "multirate"}
    assert not (folder / "smooth.npy").exists()


def test_what_does_not_fit_ends_with_one_and_wrong_use_with_two(sash, folder, scan):
    assert sash("blur", "scan.npy", "3", "smooth.npy", "--budget", "1 KB").exit_code == 1
    for words, message in (
        (("three", "smooth.npy"), "SIGMA is 'three'"),
        (("3", "smooth.npy", "--boundary", "round"), "boundary is 'round'"),
        (("3", "smooth.npy", "--axes", "a"), "--axes is 'a'"),
        (("3", "smooth.txt"), "has the suffix .txt"),
        (("3", "missing/smooth.npy"), "there is no folder"),
    ):
        result = sash("blur", "scan.npy", *words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert sash("blur", "absent.npy", "3", "smooth.npy").exit_code == 2
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith("smooth")] == []
