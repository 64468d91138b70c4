"""What a job holds: counted before it runs, from shapes alone, and kept."""

import gc
import sys
import tracemalloc
from contextlib import closing, contextmanager

import numpy as np
import pytest
import soundfile

from sash import arrays
from sash.arrays._store import open_sink, open_source
from sash.arrays._store_source import Source
from sash.errors import DoesNotFit
from sash.window import Interval

traced = pytest.mark.skipif(
    sys.platform != "linux", reason="allocations are counted by tracemalloc, which zlib's and zarr's own escape elsewhere"
)
MIB = 1 << 20
KERNEL = np.outer([1, 4, 1], [1, 3, 1]) / 30


@contextmanager
def watched():
    """The most that Python and numpy held meanwhile, beside what was there."""
    found = []
    gc.collect()
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def sparse(path, shape, dtype=np.float32):
    """A file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).str})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return path


@traced
@pytest.mark.parametrize("boundary", ["reflect", "mirror", "nearest", "wrap", "constant"])
def test_planning_a_very_wide_line_holds_next_to_nothing(tmp_path, boundary):
    line = sparse(tmp_path / "in.npy", (100_000_000,))
    told = {"boundary": boundary, "plan_only": True, "workers": 2, "budget": "4 MiB"}
    for job in (
        lambda out: arrays.blur(line, 3.0, out, **told),
        lambda out: arrays.blur(line, 40.0, out, **told),
        lambda out: arrays.convolve(line, np.ones(9), out, **told),
    ):
        with watched() as held:
            plan = job(tmp_path / "out.npy")
        assert plan.peak_bytes <= 4 * MIB
        # One array of places of the width would be 800 MB.
        assert held[0] <= MIB


@traced
@pytest.mark.parametrize("shape", [(6_000_000,), (3, 1_000_000)])
def test_a_wide_line_is_blurred_in_what_was_planned(tmp_path, shape):
    line = sparse(tmp_path / "in.npy", shape)
    told = {"axes": (-1,), "workers": 2, "budget": "6 MiB", "method": "direct"}
    arrays.blur(sparse(tmp_path / "few.npy", (*shape[:-1], 5000)), 5.0, tmp_path / "tiny.npy", **told)
    plan = arrays.blur(line, 5.0, tmp_path / "out.npy", plan_only=True, **told)
    with watched() as held:
        arrays.blur(line, 5.0, tmp_path / "out.npy", **told)
    assert held[0] <= plan.peak_bytes <= 6 * MIB


@traced
@pytest.mark.parametrize("name", ["in.wav", "in.flac"])
def test_sound_is_blurred_in_what_was_planned(tmp_path, name):
    sound = (np.random.default_rng(0).standard_normal(1_500_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / name, sound, 48_000, subtype="PCM_16")
    told = {"boundary": "wrap", "workers": 2, "budget": "5 MiB"}
    plan = arrays.blur(tmp_path / name, 9.0, tmp_path / "out.npy", plan_only=True, **told)
    soundfile.write(tmp_path / f"tiny-{name}", sound[:5000], 48_000, subtype="PCM_16")
    arrays.blur(tmp_path / f"tiny-{name}", 9.0, tmp_path / "tiny.npy", **told)
    with watched() as held:
        arrays.blur(tmp_path / name, 9.0, tmp_path / "out.npy", **told)
    assert held[0] <= plan.peak_bytes <= 5 * MIB
    whole = arrays.blur(sound, 9.0, boundary="wrap")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)


@pytest.mark.parametrize(
    "told",
    [
        {"boundary": "wrap"},
        {"boundary": "reflect", "method": "wiener", "noise": 0.1},
        {"boundary": "mirror", "method": "inverse"},
        {"boundary": "constant", "method": "richardson-lucy", "iterations": 2},
        {"boundary": "nearest", "adjoint": True},
    ],
    ids=lambda told: told.get("method", "adjoint" if told.get("adjoint") else "auto"),
)
def test_deconvolution_is_refused_before_it_reads(tmp_path, monkeypatch, told):
    data = np.random.default_rng(1).random((600, 500)).astype(np.float32)
    np.save(tmp_path / "in.npy", data)
    kernel = KERNEL
    with monkeypatch.context() as blind:
        blind.setattr(Source, "read", lambda source, box, into: pytest.fail("data were read"))
        # The kernel is an array, which is read as one.
        blind.setattr("sash.arrays._deconvolve.kernel_taps", lambda taps: taps)
        with pytest.raises(DoesNotFit) as refused:
            arrays.deconvolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget="100 KiB", workers=2, **told)
    least = refused.value.least_bytes
    with pytest.raises(DoesNotFit):
        arrays.deconvolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget=least - 1, workers=2, **told)
    plan = arrays.deconvolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget=least, workers=2, plan_only=True, **told)
    assert plan.peak_bytes == least
    arrays.deconvolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget=least, workers=2, **told)
    large = arrays.deconvolve(data, kernel, workers=1, **told)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), large)


@traced
def test_what_zarr_read_goes_with_its_last_owner(tmp_path):
    array = np.random.default_rng(2).random((1024, 1024))
    sink = open_sink(tmp_path / "a.zarr", array.shape, array.dtype, chunks=(512, 512), shards=(512, 512))
    sink.write((Interval(0, 1024), Interval(0, 1024)), array)
    box = Interval(0, 1024), Interval(0, 512)
    into = np.empty((1024, 512))
    with closing(open_source(sink.finish())) as source:
        source.read(box, into)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                source.read(box, into)
            left = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()
    # A chunk is 2 MiB, encoded or not.
    assert left < MIB / 4
    np.testing.assert_array_equal(into, array[:, :512])


@traced
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("side", [1024, 2048], ids=["one chunk", "chunks in a shard"])
def test_a_shard_of_small_numbers_is_written_in_what_is_said(tmp_path, dtype, side):
    # zarr would compare chunks with zeros, in five bytes a number.
    array = np.random.default_rng(3).integers(0, 200, (side, 1024)).astype(dtype)
    sink = open_sink(tmp_path / "a.zarr", array.shape, array.dtype, shards=(side, 1024))
    box = Interval(0, side), Interval(0, 1024)
    sink.write(box, array)
    with watched() as held:
        sink.write(box, array)
    assert held[0] <= sink.scratch_bytes(box)
    sink.finish()
