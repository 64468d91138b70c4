"""`--workers`: a number of threads, or a Dask scheduler."""

import numpy as np
import pytest

from sash import arrays


@pytest.fixture
def scan(folder):
    pixels = np.random.default_rng(0).random((170, 190), dtype=np.float32)
    np.save(folder / "scan.npy", pixels)
    return pixels


def test_a_number_is_one_of_threads(sash, folder, scan):
    result = sash("blur", "scan.npy", "3", "smooth.npy", "--workers", "2")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(folder / "smooth.npy"), arrays.blur(scan, 3))


def test_an_address_is_one_of_a_scheduler(sash, folder, scan, monkeypatch):
    monkeypatch.setattr("sash.arrays._cluster.CONNECT_S", 0.5)
    for words in (("blur", "scan.npy", "3"), ("convolve", "scan.npy", "scan.npy"), ("stft", "scan.npy")):
        result = sash(*words, "out.npy", "--workers", "tcp://127.0.0.1:9")
        assert result.exit_code == 2, result.output
        assert "no Dask scheduler answers at tcp://127.0.0.1:9" in " ".join(result.stderr.split())
    for words in (("--components", "3"), ("--variance", "0.9", "--estimate")):
        result = sash("pca", "scan.npy", *words, "--workers", "tcp://127.0.0.1:9")
        assert result.exit_code == 2, result.output
        assert "no Dask scheduler answers at tcp://127.0.0.1:9" in " ".join(result.stderr.split())
    result = sash("blur", "scan.npy", "3", "out.npy", "--workers", "many")
    assert result.exit_code == 2
    assert "workers is 'many'; give a whole number of threads, or the address" in " ".join(result.stderr.split())
    assert not (folder / "out.npy").exists()
