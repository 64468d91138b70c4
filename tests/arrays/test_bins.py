"""What bins are, and whether frames add up again."""

import numpy as np
import pytest
from scipy.signal import check_COLA, get_window

from sash.arrays._bins import explain_bins
from sash.arrays._overlap import overlap_add
from sash.errors import InputError


def test_bin_3_of_1024_at_44100_hz_is_129_hz_and_a_frame_23_ms():
    table = explain_bins(1024, 44_100)
    assert round(table.hz(3), 1) == 129.2
    assert table.bin(129.2) == 3
    assert round(table.frame_ms, 1) == 23.2
    assert (table.bins, table.hop, round(table.bin_hz, 2)) == (513, 256, 43.07)
    assert table.ms(4) == table.frame_ms
    told = str(table)
    assert "1024 samples, 23.22 ms at 44100 Hz" in told
    assert "     3      129.2    7.74 ms" in told
    assert "main lobe 4 bins, 172.3 Hz" in told


@pytest.mark.parametrize(
    ("window", "lobe", "half", "side", "noise"),
    [
        # Harris 1978, table 1, and the main lobes of the continuous windows.
        ("boxcar", 2, 0.89, -13.3, 1.00),
        ("hann", 4, 1.44, -31.5, 1.50),
        ("hamming", 4, 1.30, -42.7, 1.36),
        ("blackman", 6, 1.64, -58.1, 1.73),
        ("blackmanharris", 8, 1.90, -92.0, 2.00),
        ("bartlett", 4, 1.28, -26.5, 1.33),
        ("flattop", 10, 3.72, -93.0, 3.77),
    ],
)
def test_windows_resolve_what_harris_says(window, lobe, half, side, noise):
    table = explain_bins(1024, 1024.0, window=window)
    assert table.main_lobe_bins == pytest.approx(lobe, abs=0.1)
    assert table.half_power_bins == pytest.approx(half, abs=0.006)
    assert table.side_lobe_db == pytest.approx(side, abs=0.15)
    assert table.noise_bins == pytest.approx(noise, abs=0.006)
    assert table.main_lobe_hz == table.main_lobe_bins


def test_a_window_without_side_lobes_has_none():
    table = explain_bins(1024, 1024.0, window=("gaussian", 7))
    assert table.main_lobe_bins == 1024
    assert table.side_lobe_db == -np.inf


@pytest.mark.parametrize("frame", [1, 2, 3, 5, 8])
def test_the_shortest_frames_are_explained_too(frame):
    assert str(explain_bins(frame, 8000.0)).startswith(f"frame     {frame} samples")


def test_what_has_no_bin_is_named():
    with pytest.raises(InputError, match="30000 Hz has no bin; at 44100 samples a second they reach from 0 to 22050 Hz"):
        explain_bins(1024, 44_100).bin(30_000)
    with pytest.raises(InputError, match="rate_hz is 0"):
        explain_bins(1024, 0)
    with pytest.raises(InputError, match="frame is -1"):
        explain_bins(-1, 44_100)


@pytest.mark.parametrize("window", ["hann", "hamming", "boxcar", "blackman", "bartlett", ("kaiser", 8.6)], ids=str)
@pytest.mark.parametrize("hop", [1, 64, 100, 128, 200, 250, 256])
def test_frames_add_up_where_scipy_says_so(window, hop):
    found = overlap_add(window, 256, hop)
    assert found.constant == check_COLA(get_window(window, 256), 256, 256 - hop, tol=1e-8)
    sums = np.zeros(4096)
    for at in range(0, 4096 - 256, hop):
        sums[at : at + 256] += get_window(window, 256) ** 2
    assert (found.least, found.most) == pytest.approx((sums[1024:2048].min(), sums[1024:2048].max()))
    assert found.holds == (found.least >= 1e-3 * found.most)
    assert overlap_add(window, 256, found.nearest_hop).holds
    assert found.nearest_hop == hop if found.holds else found.nearest_hop < hop


def test_a_hop_without_an_inverse_names_one_that_has_one():
    found = overlap_add("hann", 1024, 1024)
    assert not found.holds
    assert not overlap_add("hann", 1024, found.nearest_hop + 1).holds
    assert "there is no inverse; hop 926 has one" in str(found)
    assert "add up to 1.5: the inverse is exact" in str(overlap_add("hann", 1024, 256))
