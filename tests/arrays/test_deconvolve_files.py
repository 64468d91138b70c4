"""Deconvolutions from file to file: any budget, any workers, killed and taken up, and what they hold."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sash import arrays
from sash.arrays import _deconvolve_plan as plans
from sash.arrays import _region as region
from sash.arrays._deconvolve import deconvolve
from sash.arrays._diagonal import Line, Spectrum
from sash.arrays._store import open_source
from sash.errors import DoesNotFit, InputError
from sash.window import Interval

GAUSS = np.exp(-0.5 * np.arange(-6, 7) ** 2)
KERNEL = np.outer(GAUSS, GAUSS) / GAUSS.sum() ** 2
LOOSE = np.random.default_rng(0).random((4, 6)) + np.pad([[9.0]], ((0, 3), (0, 5)))
WAYS = [
    (KERNEL, {}),
    (KERNEL, {"boundary": "reflect", "noise": 0.01}),
    (LOOSE, {"noise": 0}),
    (LOOSE, {"boundary": "nearest", "adjoint": True}),
    (KERNEL, {"boundary": "constant", "method": "richardson-lucy", "iterations": 4}),
    (GAUSS[4:9], {"axes": (1,), "noise": 0.1}),
    (GAUSS[4:9], {"axes": (2,), "noise": 0.1}),
]


def numbers(path):
    source = open_source(path)
    found = np.empty(source.shape, source.dtype)
    source.read(tuple(Interval(0, length) for length in source.shape), found)
    source.close()
    return found


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif"])
def test_budget_workers_and_files_do_not_change_a_bit(tmp_path, monkeypatch, way, suffix):
    kernel, told = WAYS[way]
    data = np.random.default_rng(1).random((2, 150, 167), dtype=np.float32)
    np.save(tmp_path / "in.npy", data)
    wanted = deconvolve(data, kernel, workers=1, **told)
    # Everything between phases through files.
    monkeypatch.setattr(plans, "MOST_BETWEEN", 0)
    for workers, budget in ((1, 0), (2, 0), (3, 512 << 20)):
        try:
            made = deconvolve(
                tmp_path / "in.npy", kernel, tmp_path / f"out{suffix}", budget=budget, workers=workers, overwrite=True, **told
            )
        except DoesNotFit as refused:
            with pytest.raises(DoesNotFit):
                deconvolve(data, kernel, tmp_path / "no.npy", budget=1000, workers=workers, **told)
            least = refused.least_bytes
            made = deconvolve(tmp_path / "in.npy", kernel, tmp_path / f"out{suffix}", budget=least, workers=workers, overwrite=True, **told)
        np.testing.assert_array_equal(numbers(made), wanted)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", f"out{suffix}"]


@pytest.mark.parametrize("boundary", ["wrap", "mirror"])
def test_a_spectrum_has_the_same_bits_whichever_columns_are_asked_for(boundary):
    taps = np.random.default_rng(0).random((9, 9))
    taps = taps if boundary == "wrap" else taps + taps[::-1] + taps[:, ::-1] + taps[::-1, ::-1]
    along = Line.of(900, boundary, True)
    spectrum = Spectrum(taps, (Line.of(1000, boundary, False), along))
    whole = spectrum.block(Interval(0, along.bins))
    for wide in (1, 7, 65, 104, 300):
        parts = [spectrum.block(Interval(left, min(left + wide, along.bins))) for left in range(0, along.bins, wide)]
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_the_least_budget_runs_and_less_does_not():
    data = np.random.default_rng(2).random((900, 800))
    with pytest.raises(DoesNotFit, match=r"deconvolution of 900x800 .* holds .* at least; the budget is 1\.00 MiB.*give `out`") as refused:
        deconvolve(data, KERNEL, budget="1 MiB", noise=0)
    least = refused.value.least_bytes
    deconvolve(data, KERNEL, budget=least, noise=0)
    with pytest.raises(DoesNotFit):
        deconvolve(data, KERNEL, budget=least - 1, noise=0)


KILLED = """
import sys, json
import numpy as np
from sash.arrays import _deconvolve_plan as plans
from sash.arrays import _region as region
from sash.arrays._deconvolve import deconvolve
from sash.arrays._diagonal import Line, Spectrum
plans.MOST_BETWEEN, region._SIDE = 0, 256
deconvolve(sys.argv[1], np.load(sys.argv[2]), sys.argv[3], workers=2, **json.loads(sys.argv[4]))
"""


def begun(folder, told):
    words = [str(folder / "in.npy"), str(folder / "kernel.npy"), str(folder / "out.npy"), json.dumps(told)]
    return subprocess.Popen([sys.executable, "-c", KILLED, *words])


def noted(journal):
    return sum(line.isdigit() for line in journal.read_bytes().split(b"\n")) if journal.exists() else 0


def kill_after(child, journal, tasks):
    while child.poll() is None and noted(journal) < tasks:
        time.sleep(0.001)
    assert child.poll() is None, "the run ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize(
    ("told", "after"),
    [
        ({"budget": "12 MB", "noise": 0}, (2, 14)),
        ({"budget": "40 MB", "method": "richardson-lucy", "iterations": 6}, (40,)),
        ({"budget": "40 MB", "adjoint": True, "boundary": "mirror"}, (3,)),
    ],
)
def test_a_killed_run_is_taken_up_where_it_was_and_ends_with_the_same_bits(tmp_path, monkeypatch, told, after, reboot):
    data = np.random.default_rng(3).random((900, 800), dtype=np.float32)
    np.save(tmp_path / "in.npy", data)
    np.save(tmp_path / "kernel.npy", KERNEL)
    journal = tmp_path / "out.npy.journal"
    for tasks in after:
        kill_after(begun(tmp_path, told), journal, tasks)
        assert not (tmp_path / "out.npy").exists()
    assert noted(journal) >= after[-1]
    if reboot:
        monkeypatch.setattr("sash.arrays._journal.boot", lambda: "another")
    monkeypatch.setattr(plans, "MOST_BETWEEN", 0)
    monkeypatch.setattr(region, "_SIDE", 256)
    deconvolve(tmp_path / "in.npy", KERNEL, tmp_path / "out.npy", workers=2, **told)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), deconvolve(data, KERNEL, **{**told, "budget": "512 MiB"}))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "kernel.npy", "out.npy"]


def test_what_changed_since_an_interruption_is_named_and_a_restart_begins_anew(tmp_path, monkeypatch):
    told = {"budget": "20 MB", "noise": 0.5}
    np.save(tmp_path / "in.npy", np.ones((900, 800), np.float32))
    np.save(tmp_path / "kernel.npy", KERNEL)
    kill_after(begun(tmp_path, told), tmp_path / "out.npy.journal", 4)
    monkeypatch.setattr(plans, "MOST_BETWEEN", 0)
    with pytest.raises(InputError, match="other things changed: kernel"):
        deconvolve(tmp_path / "in.npy", np.ones((1, 2)) + KERNEL[:1, :2], tmp_path / "out.npy", workers=2, **told)
    np.save(tmp_path / "in.npy", np.full((900, 800), 2, np.float32))
    with pytest.raises(InputError, match=r"other things changed: .*source \(mtime_ns\)"):
        deconvolve(tmp_path / "in.npy", KERNEL, tmp_path / "out.npy", workers=2, **told)
    deconvolve(tmp_path / "in.npy", KERNEL, tmp_path / "out.npy", workers=2, restart=True, **told)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), 2, rtol=1e-6)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "kernel.npy", "out.npy"]


def test_a_failed_run_leaves_nothing_under_the_outputs_name(tmp_path):
    data = np.ones((300, 300), np.float32)
    data[200, 3] = np.nan
    with pytest.raises(InputError, match="holds nan"):
        deconvolve(data, KERNEL, tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.npy").write_bytes(b"precious")
    with pytest.raises(InputError, match="is there already"):
        deconvolve(np.ones((300, 300)), KERNEL, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == b"precious"


MEASURED = """
import ctypes, sys, json
import numpy as np
from sash.arrays._deconvolve import deconvolve
from sash.arrays._diagonal import Line, Spectrum

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

source, kernel, out, told = sys.argv[1], np.load(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
# What libraries load at first is theirs, not the job's.
deconvolve(np.random.default_rng(4).random((90, 80), dtype=np.float32), kernel, out, overwrite=True, **told)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS:")
plan = deconvolve(source, kernel, out, plan_only=True, **told)
deconvolve(source, kernel, out, overwrite=True, **told)
print(json.dumps([plan.peak_bytes, status("VmHWM:") - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's account of a process")
@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        (KERNEL, {"noise": 0, "budget": "24 MB"}),
        (KERNEL, {"noise": 0, "budget": "512 MB", "boundary": "reflect"}),
        (LOOSE, {"noise": 0.01, "budget": "64 MB"}),
        (KERNEL, {"boundary": "nearest", "method": "richardson-lucy", "iterations": 3, "budget": "60 MB"}),
    ],
)
def test_a_process_grows_by_no_more_than_the_plan_and_not_much_less(tmp_path, kernel, told):
    np.save(tmp_path / "in.npy", np.random.default_rng(4).random((1500, 1400), dtype=np.float32))
    np.save(tmp_path / "kernel.npy", kernel)
    words = [str(tmp_path / "in.npy"), str(tmp_path / "kernel.npy"), str(tmp_path / "out.npy"), json.dumps(told)]
    most = 0
    # Threads that wait for a processor hold less at once: the most of three runs counts, where the first does not reach it.
    for _ in range(3):
        (tmp_path / "out.npy").unlink(missing_ok=True)
        ended = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True)
        peak, grown = json.loads(ended.stdout)
        assert grown <= peak
        most = max(most, grown)
        if peak <= 1.4 * most:
            return
    raise AssertionError(f"the plan says {peak} bytes, and the process grew by {most} at most")


def test_pictures_and_sound_are_read(tmp_path):
    picture = (np.random.default_rng(5).random((40, 50, 3)) * 255).astype(np.uint8)
    kernel = np.array([[0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]])
    path = arrays.convolve(picture, kernel, tmp_path / "soft.png", axes=(0, 1), boundary="wrap", dtype=np.uint8)
    found = deconvolve(path, kernel, tmp_path / "sharp.png", axes=(0, 1), dtype=np.uint8)
    assert np.abs(numbers(found).astype(int) - picture).mean() < 1
