"""The demo, on a picture of a few pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from sash.cli._demo import crop, sample_photo
from sash.cli._workload import read_file
from sash.errors import InputError


def test_the_demo_forecasts_measures_and_explains_both_twins(sash, folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / "noise.png")
    result = sash("demo", "--photo", "noise.png", "--side", "64", "--html", "out.html")
    assert result.exit_code == 0, result.output
    for words in ("17.3 M", "1.98 M", "up.3", "Parameters shrank 8.7 times", "saved for backward grew"):
        assert words in result.stdout
    assert "64 x 64 pixels" in result.stderr
    assert (folder / "out.html").stat().st_size > 1_000_000


def test_the_photograph_is_one():
    image = read_file(sample_photo())
    assert image.shape[1] == 3
    assert min(image.shape[2:]) > 400
    assert image.std() > 0.1


@pytest.mark.parametrize(
    ("height", "width", "side", "kept"), [(600, 512, 352, (352, 352)), (100, 70, 352, (96, 64)), (17, 900, 64, (16, 64))]
)
def test_what_is_cut_out_is_a_multiple_of_16_and_in_the_middle(height, width, side, kept):
    image = torch.arange(float(height))[:, None].expand(1, 3, height, width)
    cut = crop(image, side)
    assert cut.shape == (1, 3, *kept)
    assert abs(float(cut.mean()) - (height - 1) / 2) <= 1


def test_a_picture_of_a_few_pixels_is_refused():
    with pytest.raises(InputError, match="needs 16 each way"):
        crop(torch.zeros(1, 3, 10, 100), 352)
