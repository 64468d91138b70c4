"""Transforms from file to file: formats, pictures, memory, and runs that were killed."""

import json
import signal as signals
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import zarr
from PIL import Image

from sash.arrays._istft import istft
from sash.arrays._spectrogram import HEIGHT, WIDTH
from sash.arrays._stft import stft
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def sound(tmp_path):
    """Two channels of int16 in a WAV file, and their samples."""
    samples = RNG.integers(-20_000, 20_000, (2, 50_000)).astype(np.int16)
    soundfile.write(tmp_path / "sound.wav", samples.T, 16_000, subtype="PCM_16")
    return tmp_path / "sound.wav", samples


@pytest.mark.parametrize("suffix", [".zarr", ".npy"])
@pytest.mark.parametrize("output", ["complex", "db", "mel"])
def test_a_file_holds_what_an_array_would(tmp_path, sound, suffix, output):
    path, samples = sound
    out = tmp_path / f"spectra{suffix}"
    options = {"output": output, "mels": 40}
    assert stft(path, 512, 128, out, budget="24 MiB", workers=2, **options) == out
    found = zarr.open_array(out, mode="r")[...] if suffix == ".zarr" else np.load(out)
    assert np.array_equal(found, stft(samples, 512, 128, rate_hz=16_000, **options))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, out.name])
    with pytest.raises(InputError, match="is there already; say overwrite=True"):
        stft(path, 512, 128, out, **options)
    assert stft(path, 512, 256, out, overwrite=True, **options) == out


@pytest.mark.parametrize("source", ["a.flac", "a.npy", "a.zarr", "fortran.npy", "columns.npy"])
def test_any_source_makes_the_same_spectra(tmp_path, source):
    samples = RNG.integers(-20_000, 20_000, (2, 60_000)).astype(np.int16)
    path, axis = tmp_path / source, -1
    if source == "a.flac":
        soundfile.write(path, samples.T, 16_000)
    elif source == "a.zarr":
        zarr.create_array(path, data=samples, chunks=(2, 7000))
    else:
        axis = 0 if source == "columns.npy" else -1
        np.save(path, np.asfortranarray(samples) if source == "fortran.npy" else samples if axis else np.ascontiguousarray(samples.T))
    for boundary in ("mirror", "wrap"):
        found = stft(path, 1024, 300, boundary=boundary, axis=axis, budget="16 MiB")
        assert np.array_equal(found, stft(samples, 1024, 300, boundary=boundary))


def test_sound_goes_to_spectra_and_back_from_file_to_file(tmp_path, sound):
    path, samples = sound
    spectra, again = tmp_path / "spectra.zarr", tmp_path / "again.wav"
    stft(path, 512, 128, spectra)
    assert istft(spectra, 512, 128, again, length=50_000, rate_hz=16_000) == again
    found, rate = soundfile.read(again, dtype="float32")
    assert rate == 16_000
    assert np.abs(found.T - samples / 32768).max() <= 1e-6
    for suffix in (".npy", ".zarr"):
        out = istft(spectra, 512, 128, tmp_path / f"again{suffix}", length=50_000, budget="20 MiB")
        held = zarr.open_array(out, mode="r")[...] if suffix == ".zarr" else np.load(out)
        assert np.array_equal(held, found.T)


def test_a_picture_shows_time_across_and_low_frequencies_at_the_bottom(tmp_path):
    time = np.arange(80_000) / 8000
    # A tone that starts at 0 Hz and rises to 4000.
    rising = np.sin(2 * np.pi * 200 * time**2).astype(np.float32)
    for output in ("db", "power", "magnitude"):
        stft(rising, 256, 64, tmp_path / f"{output}.png", output=output)
    picture = np.asarray(Image.open(tmp_path / "db.png"))
    assert (picture.shape, picture.dtype) == ((129, 1251), np.uint8)
    assert (picture.max(), picture.min()) == (255, 0)
    loudest = 128 - picture.argmax(0)
    assert np.abs(loudest[50:-50] - np.arange(50, 1201) * 64 / 8000 * 400 / 31.25).max() <= 2
    for output in ("power", "magnitude"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{output}.png")), picture)
    expected = stft(rising, 256, 64, output="db")[::-1]
    assert np.abs(picture - (expected - expected.max() + 80).clip(0) * 255 / 80).max() <= 0.51


def test_a_long_picture_keeps_the_loudest_under_each_pixel(tmp_path):
    clicks = np.zeros(WIDTH * 50, np.float32)
    clicks[100_003] = 1
    path = tmp_path / "clicks.png"
    stft(np.stack([clicks, 0 * clicks]), 64, 4, path, output="db", budget="40 MiB", workers=2)
    picture = np.asarray(Image.open(path))
    assert picture.shape == (66, WIDTH)
    assert picture[:33].max() == 255
    assert tuple(np.flatnonzero(picture.max(0))) == (1999, 2000)
    assert not picture[33:].any()
    stft(clicks, 4 * HEIGHT, 4 * HEIGHT, tmp_path / "tall.png", output="mel", mels=8, rate_hz=8000)
    stft(clicks, 4 * HEIGHT, 4 * HEIGHT, tmp_path / "high.png", output="db")
    assert np.asarray(Image.open(tmp_path / "high.png")).shape == (HEIGHT, 13)


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("sash.arrays._spectrogram.Picture.drawn", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stft(np.zeros(5000), 256, 64, tmp_path / "a.png", output="db")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import numpy as np
from threading import Lock
from sash.arrays._journal import Journal
from sash.arrays._stft import stft
from sash.arrays._istft import istft

noted, done, lock = [], Journal.done, Lock()

def kill(self, number):
    with lock:
        done(self, number)
        noted.append(number)
        if len(noted) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

Journal.done = kill
source, out, inverse = sys.argv[1:]
if inverse == "stft":
    stft(source, 512, 64, out, budget="24 MiB", workers=2)
else:
    istft(source, 512, 64, out, budget="16 MiB", workers=2)
"""


@pytest.mark.parametrize("suffix", [".zarr", ".npy"])
@pytest.mark.parametrize("transform", [stft, istft])
def test_a_killed_run_is_gone_on_with_and_ends_with_the_same_bits(tmp_path, suffix, transform, monkeypatch):
    source, out = tmp_path / "source.npy", tmp_path / f"out{suffix}"
    samples = RNG.standard_normal(500_000).astype(np.float32)
    np.save(source, samples if transform is stft else stft(samples, 512, 64))
    options = {"budget": "24 MiB" if transform is stft else "16 MiB", "workers": 2}
    assert transform(source, 512, 64, out, plan_only=True, **options).tasks > 5
    run = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out), transform.__name__], capture_output=True, text=True)
    assert run.returncode == -signals.SIGKILL, run.stderr
    assert not out.exists()
    left = out.with_name(f"{out.name}.partial")
    assert left.exists()
    # A run of another kind does not go on with it.
    with pytest.raises(InputError, match=r"was left by an interrupted run, and since then other things changed: .*window"):
        transform(source, 512, 64, out, window="hamming", **options)
    noted = [json.loads(line) for line in out.with_name(f"{out.name}.journal").read_text().splitlines()[1:]]
    assert sum(isinstance(line, int) for line in noted) == 3
    made = []
    name = "_task" if transform is stft else "synthesize"
    module = sys.modules[transform.__module__]
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: (made.append(given[-1]), original(*given)))
    assert transform(source, 512, 64, out, **options) == out
    assert len(made) == transform(source, 512, 64, out, plan_only=True, **options).tasks - 3
    monkeypatch.undo()
    other = transform(source, 512, 64, tmp_path / f"other{suffix}", **options)
    if suffix == ".npy":
        assert out.read_bytes() == other.read_bytes()
    else:
        # zarr may leave an unfinished chunk of the killed run under a name of its own.
        files = [file.relative_to(out) for file in sorted(out.rglob("*")) if file.is_file() and file.suffix != ".partial"]
        assert [(out / file).read_bytes() for file in files] == [(other / file).read_bytes() for file in files]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([source.name, out.name, other.name])


def test_restart_begins_anew(tmp_path, sound):
    path, samples = sound
    out = tmp_path / "a.npy"
    (tmp_path / "a.npy.partial").write_bytes(b"left")
    (tmp_path / "a.npy.journal").write_text('{"schema": 1}\n0\n')
    with pytest.raises(InputError, match="restart=True"):
        stft(path, 512, 128, out)
    stft(path, 512, 128, out, restart=True)
    assert np.array_equal(np.load(out), stft(samples, 512, 128))


def test_a_file_that_does_not_fit_is_told_before_anything_is_written(tmp_path, sound):
    with pytest.raises(DoesNotFit, match=r"stft of 50000 samples, hann of 512 holds .* MiB at least; the budget is 1\.00 MiB\.$") as caught:
        stft(sound[0], 512, 128, tmp_path / "a.zarr", budget="1 MiB")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sound.wav"]
    least = caught.value.least_bytes
    stft(sound[0], 512, 128, tmp_path / "a.zarr", budget=least)
    assert np.array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[...], stft(sound[1], 512, 128))


def test_progress_is_shown_where_it_is_asked_for(capsys):
    stft(np.zeros(50_000), 512, progress=True)
    assert "stft of 50000 samples" in capsys.readouterr().err
    stft(np.zeros(50_000), 512)
    assert not capsys.readouterr().err


MEASURED = """
import sys
import numpy as np
from sash.arrays._stft import stft
from sash.arrays._istft import istft

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

source, out, budget, kind = sys.argv[1:]
run, options = (istft, {}) if kind == "istft" else (stft, {"output": kind})
small = np.ones((513, 9), np.complex64) if run is istft else np.ones(5000, np.float32)
run(small, 1024, out=out.replace("out", "small"), overwrite=True, **options)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
plan = run(source, 1024, 256, out, budget=budget, workers=2, plan_only=True, **options)
run(source, 1024, 256, out, budget=budget, workers=2, **options)
print(plan.peak_bytes, status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts")
@pytest.mark.parametrize(("kind", "name"), [("complex", "out.zarr"), ("complex", "out.npy"), ("db", "out.npy"), ("istft", "out.npy")])
def test_a_run_holds_no_more_than_its_plan_says(tmp_path, kind, name):
    source = tmp_path / "source.npy"
    samples = RNG.standard_normal(3_000_000).astype(np.float32)
    np.save(source, stft(samples, 1024, 256) if kind == "istft" else samples)
    command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path / name), "64 MiB", kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    forecast, measured = map(int, run.stdout.split())
    assert forecast <= 64 << 20
    # Beside what the plan counts, the interpreter grows by some of its own.
    assert measured <= forecast + (6 << 20)
    # Blocks that glibc may keep are counted at their most, and need not be kept by both threads.
    assert measured >= forecast / 3
