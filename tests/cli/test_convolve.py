"""`sash convolve` on files."""

import json

import numpy as np

from sash import arrays


def test_a_file_is_convolved_with_a_kernel_from_a_file(sash, folder):
    rng = np.random.default_rng(0)
    scan, kernel = rng.random((120, 150), dtype=np.float32), rng.random((31, 21))
    np.save(folder / "scan.npy", scan)
    np.save(folder / "kernel.npy", kernel)
    result = sash("convolve", "scan.npy", "kernel.npy", "out.npy", "--mode", "full", "--boundary", "wrap", "--correlate")
    assert result.exit_code == 0, result.output
    assert "wrote out.npy" in result.stdout
    wanted = arrays.convolve(scan, kernel, mode="full", boundary="wrap", correlate=True)
    np.testing.assert_allclose(np.load(folder / "out.npy"), wanted, atol=1e-4)
    result = sash("convolve", "scan.npy", "kernel.npy", "more.npy", "--plan", "--json")
    assert {method["name"] for method in json.loads(result.stdout)["methods"]} == {"separable", "fft"}
    assert not (folder / "more.npy").exists()
    result = sash("convolve", "scan.npy", "kernel.npy", "more.npy", "--mode", "most")
    assert result.exit_code == 2
    assert "mode is 'most'" in result.stderr


def test_the_rates_of_arrays_are_shown_and_deleted(sash, folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    result = sash("calibrate", "--arrays", "--show")
    assert result.exit_code == 0, result.output
    assert "f32.fft.1024.sample_s" in result.stdout
    monkeypatch.delenv("SASH_ARRAY_RATES")
    result = sash("calibrate", "--arrays", "--show")
    assert "run: sash calibrate --arrays" in result.stderr
    assert "nothing was kept" in sash("calibrate", "--arrays", "--delete").stderr


def test_a_volume_is_convolved_on_a_device_that_is_named(sash, folder):
    rng = np.random.default_rng(0)
    volume, kernel = rng.random((20, 30, 25)), rng.random((3, 5, 3))
    np.save(folder / "volume.npy", volume)
    np.save(folder / "kernel.npy", kernel)
    result = sash("convolve", "volume.npy", "kernel.npy", "out.npy", "--device", "cpu", "--method", "direct")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load(folder / "out.npy"), arrays.convolve(volume, kernel), atol=1e-12)
    result = sash("blur", "volume.npy", "2", "more.npy", "--device", "cpu", "--plan", "--json")
    assert json.loads(result.stdout)["device"] == "cpu"
    for verb in (("blur", "volume.npy", "2"), ("deconvolve", "volume.npy", "kernel.npy"), ("convolve", "volume.npy", "kernel.npy")):
        result = sash(*verb, "more.npy", "--device", "tpu")
        assert result.exit_code == 2
        assert "device is 'tpu'; there are 'cpu', 'cuda'" in result.stderr
    assert not (folder / "more.npy").exists()
