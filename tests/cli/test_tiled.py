"""`sash tiled` on a user's model."""

import json

import numpy as np
import pytest
import torch


@pytest.fixture
def scan(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 70, 90), dtype=np.uint8)
    np.save(folder / "scan.npy", pixels)
    return pixels


def test_an_image_goes_from_file_to_file(sash, folder, scan):
    torch.manual_seed(0)
    result = sash("tiled", "my_model.py:Net", "scan.npy", "scores.npy", "--budget", "200 KB")
    assert result.exit_code == 0, result.output
    assert "wrote scores.npy" in result.stdout
    assert "tiles of" in result.stderr
    assert np.load(folder / "scores.npy").shape == (1, 2, 70, 90)


def test_the_plan_alone_writes_nothing(sash, folder, scan):
    result = sash("tiled", "my_model.py:Net", "scan.npy", "scores.npy", "--budget", "200 KB", "--plan-only", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == "sash.tiled/1"
    assert found["peak_bytes"] <= 200_000
    assert found["tiles"] > 1
    assert not (folder / "scores.npy").exists()


def test_what_does_not_fit_ends_with_one(sash, folder, scan):
    result = sash("tiled", "my_model.py:Net", "scan.npy", "scores.npy", "--budget", "1 KB")
    assert result.exit_code == 1
    assert "leanest tile" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("my_model.py:Net", "scam.npy", "out.npy", "--budget", "1 MB"), "scan.npy"),
        (("my_model.py:Net", "scan.npy", "out.png", "--budget", "1 MB"), "out.npy"),
        (("my_model.py:Net", "scan.npy", "out.npy", "--budget", "much"), "much"),
        (("my_model.py:Tokens", "scan.npy", "out.npy", "--budget", "1 MB"), "embed"),
    ],
)
def test_wrong_use_ends_with_two(sash, folder, scan, words, told):
    result = sash("tiled", *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert not (folder / "out.npy").exists()


def test_an_interrupted_command_is_taken_up(sash, folder, scan, monkeypatch):
    from sash.plans._tile_files import BoxFile

    write, made = BoxFile.write, []

    def counted(self, box, part):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(box)
        write(self, box, part)

    words = ("tiled", "my_model.py:Net", "scan.npy", "out.npy", "--budget", "150 KB")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(BoxFile, "write", counted)
        result = sash(*words)
    assert result.exit_code != 0
    assert "goes on from out.npy.partial" in result.stderr
    assert not (folder / "out.npy").exists()
    torch.manual_seed(0)  # the model's weights are drawn when it is made: others would be refused
    result = sash(*words)
    assert result.exit_code == 0, result.output
    assert (folder / "out.npy").exists()
    assert not (folder / "out.npy.partial").exists()
