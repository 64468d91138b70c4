"""Jobs on a Dask cluster: the bits of local threads, whatever is lost on the way, and clear words where it cannot be."""

import os
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from typer.testing import CliRunner

from sash import arrays
from sash.arrays import _cluster
from sash.arrays._cluster import connected
from sash.arrays._cluster_shared import Fixed
from sash.arrays._journal import Journal
from sash.arrays._store import open_sink
from sash.arrays._tasks import single_threaded
from sash.cli import app
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def lone():
    """A scheduler without workers, that gives a task up when its worker dies."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as made,
        Client(made) as client,
    ):
        yield client


@pytest.fixture
def picture(tmp_path):
    np.save(tmp_path / "in.npy", RNG.random((700, 400), dtype=np.float32))
    return tmp_path / "in.npy"


@pytest.fixture
def worker(lone):
    """A worker in a process of its own, which nobody starts again."""
    words = [sys.executable, "-m", "dask", "worker", lone.scheduler.address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        lone.wait_for_workers(1, timeout=60)
        yield process
        process.kill()


def held(path):
    return zarr.open_array(path, mode="r")[...] if path.suffix == ".zarr" else np.load(path)


def after(monkeypatch, count, do):
    """Once so many tasks are noted, something happens."""
    noted, done = [], Journal.done

    def note(self, number):
        done(self, number)
        noted.append(number)
        if len(noted) == count:
            do()

    monkeypatch.setattr(Journal, "done", note)
    return noted


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize(
    "job",
    [
        lambda source, out, **told: arrays.blur(source, 2, out, boundary="wrap", **told),
        lambda source, out, **told: arrays.blur(source, 30, out, dtype=np.float64, **told),
        lambda source, out, **told: arrays.blur(source, 3, out, axes=(0,), **told),
        lambda source, out, **told: arrays.convolve(source, np.outer([1, 2, 1], [1, 0, -1]), out, **told),
        lambda source, out, **told: arrays.convolve(source, RNG_KERNEL, out, method="fft", mode="full", **told),
        lambda source, out, **told: arrays.blur(source, 3, out, device="cpu", **told | {"budget": "48 MiB"}),
        lambda source, out, **told: arrays.convolve(source, RNG_KERNEL, out, device="cpu", **told | {"budget": "48 MiB"}),
    ],
    ids=["direct", "multirate", "axis", "separable", "fft", "blur on a device", "convolution on a device"],
)
def test_a_cluster_makes_the_bits_of_threads(tmp_path, picture, address, job, suffix):
    told = {"budget": "16 MiB"}
    plans = [job(picture, tmp_path / f"b{suffix}", workers=workers, plan_only=True, **told) for workers in (2, address)]
    assert plans[0].method == plans[1].method
    expected = job(picture, tmp_path / f"a{suffix}", workers=2, **told)
    found = job(picture, tmp_path / f"b{suffix}", workers=address, **told)
    np.testing.assert_array_equal(held(found), held(expected))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.npy", expected.name, found.name])


RNG_KERNEL = np.random.default_rng(1).random((23, 31))
BELL = np.outer(*[np.exp(-0.5 * (np.arange(-4, 5) / 1.2) ** 2) / 3] * 2)
UNEVEN = BELL + 0.3 * np.eye(9)[::-1] * np.arange(9)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("method", ["separable", "direct", "fft"])
def test_kernels_of_three_axes_have_the_bits_of_threads(tmp_path, address, suffix, method):
    np.save(tmp_path / "in.npy", RNG.random((40, 90, 100), dtype=np.float32))
    kernel = np.multiply.outer(BELL, [1, 2, 1]) if method == "separable" else np.random.default_rng(1).random((3, 4, 5))
    told = {"method": method, "budget": "64 MiB"}
    plans = [arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", workers=w, plan_only=True, **told) for w in (2, address)]
    assert plans[1].peak_bytes > plans[0].peak_bytes
    assert "on 2 Dask workers" in plans[1].operation
    made = [
        arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / f"{at}{suffix}", workers=w, **told) for at, w in enumerate((2, address))
    ]
    np.testing.assert_array_equal(held(made[1]), held(made[0]))


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize(
    ("shape", "kernel", "told"),
    [
        ((900, 700), UNEVEN, {"method": "inverse", "budget": "16 MiB"}),
        ((900, 700), BELL, {"method": "wiener", "noise": 0.01, "boundary": "mirror", "budget": "24 MiB"}),
        ((7, 150, 140), BELL, {"method": "wiener", "noise": 0.01}),
        ((7, 150, 140), BELL[4], {"boundary": "reflect", "noise": 1e-6}),
        ((900, 700), UNEVEN, {"method": "richardson-lucy", "iterations": 3, "boundary": "nearest"}),
        ((900, 700), UNEVEN, {"adjoint": True, "boundary": "constant"}),
        ((900, 700), BELL, {"noise": 0.01, "boundary": "reflect", "budget": "32 MiB", "device": "cpu"}),
        ((900, 700), UNEVEN, {"method": "richardson-lucy", "iterations": 3, "device": "cpu"}),
    ],
    ids=["inverse", "wiener", "stack", "lines", "richardson-lucy", "adjoint", "wiener on a device", "richardson-lucy on a device"],
)
def test_a_deconvolution_has_the_bits_of_threads(tmp_path, address, suffix, shape, kernel, told):
    if suffix == ".zarr":
        told = {**told, "budget": "160 MiB"}
    np.save(tmp_path / "in.npy", RNG.random(shape))
    made = [
        arrays.deconvolve(tmp_path / "in.npy", kernel, tmp_path / f"{at}{suffix}", workers=workers, **told)
        for at, workers in enumerate((2, address))
    ]
    np.testing.assert_array_equal(held(made[1]), held(made[0]))
    # What lay between phases is gone.
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.npy", f"0{suffix}", f"1{suffix}"])


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_transforms_and_their_inverse_have_the_bits_of_threads(tmp_path, address, suffix, device):
    np.save(tmp_path / "in.npy", RNG.standard_normal((2, 150_000)).astype(np.float32))
    made, told = {}, {"device": device}
    for name, workers in (("threads", 2), ("dask", address)):
        told["workers"] = workers
        spectra = arrays.stft(tmp_path / "in.npy", 512, 128, tmp_path / f"{name}{suffix}", budget="32 MiB", **told)
        decibels = arrays.stft(tmp_path / "in.npy", 512, 128, tmp_path / f"db-{name}{suffix}", output="db", **told)
        signal = arrays.istft(spectra, 512, 128, str(tmp_path / f"signal-{name}{suffix}"), budget="48 MiB", **told)
        made[name] = [held(one) for one in (spectra, decibels, signal)]
    for ours, theirs in zip(made["dask"], made["threads"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_names_are_those_of_this_process_whatever_folder_workers_are_in(tmp_path, picture, address, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(arrays.blur("in.npy", 30, "out.npy", workers=address)) == "out.npy"
    np.testing.assert_array_equal(np.load("out.npy"), arrays.blur(np.load("in.npy"), 30))


def test_a_plan_counts_what_all_workers_hold(tmp_path, picture, address):
    plan = arrays.blur(picture, 2, tmp_path / "out.npy", workers=address, plan_only=True)
    assert plan.workers == 2
    assert "on 2 Dask workers" in str(plan)
    # No task reads what another has read: rows under both are held twice.
    assert plan.peak_bytes > arrays.blur(picture, 2, tmp_path / "out.npy", workers=2, plan_only=True).peak_bytes
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npy"]


def grown(reset):
    """Bytes that this process has, and has had at most since the last reset."""
    from pathlib import Path

    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")]


@pytest.mark.parametrize(
    ("shape", "job", "budget"),
    [
        ((6000, 1500), lambda source, out, **told: arrays.blur(source, 2, out, **told), 12),
        ((6000, 1500), lambda source, out, **told: arrays.blur(source, 40, out, **told), 12),
        ((2500, 1500), lambda source, out, **told: arrays.deconvolve(source, UNEVEN, out, noise=0.1, **told), 24),
        ((1500, 1500), lambda source, out, **told: arrays.deconvolve(source, UNEVEN, out, adjoint=True, **told), 48),
        ((90, 200, 200), lambda source, out, **told: arrays.convolve(source, np.ones((5, 6, 7)), out, method="fft", **told), 64),
    ],
    ids=["blur", "two passes", "phases", "regions", "blocks"],
)
def test_workers_keep_to_the_budget(tmp_path, cluster, address, shape, job, budget):
    np.save(tmp_path / "in.npy", RNG.random(shape, dtype=np.float32))
    run = lambda: job(tmp_path / "in.npy", tmp_path / "out.npy", workers=address, budget=budget << 20, overwrite=True)  # noqa: E731
    run()
    before = cluster.run(grown, True)
    run()
    most = sum(after[1] - before[worker][0] for worker, after in cluster.run(grown, False).items())
    # Python's own objects come and go beside it.
    assert most <= (budget << 20) + (4 << 20)


def test_the_least_budget_of_a_cluster_runs_and_threads_need_less(tmp_path, address):
    np.save(tmp_path / "volume.npy", RNG.random((20, 60, 70)))
    np.save(tmp_path / "in.npy", RNG.random((300, 200)))
    kernel = RNG_KERNEL[:3, :12].reshape(3, 4, 3)
    jobs = [
        lambda **told: arrays.convolve(tmp_path / "volume.npy", kernel, tmp_path / "out.npy", method="fft", **told),
        lambda **told: arrays.deconvolve(tmp_path / "in.npy", UNEVEN, tmp_path / "out.npy", adjoint=True, **told),
        lambda **told: arrays.deconvolve(tmp_path / "in.npy", BELL, tmp_path / "out.npy", noise=0.1, device="cpu", **told),
    ]
    for job in jobs:
        least = []
        for workers in (2, address):
            with pytest.raises(DoesNotFit) as refused:
                job(budget="100 kB", workers=workers)
            least.append(refused.value.least_bytes)
        assert "on 2 Dask workers" in str(refused.value)
        assert least[0] < least[1]
        found = np.load(job(budget=least[1], workers=address))
        np.testing.assert_array_equal(found, np.load(job(budget=least[1], workers=2, overwrite=True)))
        (tmp_path / "out.npy").unlink()


@pytest.mark.parametrize(
    "job",
    [
        lambda source, out=None, **told: arrays.blur(source, 2, out, **told | ({} if out is None else {"budget": "2 MB"})),
        lambda source, out=None, **told: arrays.deconvolve(source, UNEVEN, out, noise=0.1, **told),
    ],
    ids=["blur", "deconvolve"],
)
def test_a_worker_that_is_killed_half_way_changes_nothing(tmp_path, picture, cluster, address, monkeypatch, job):
    pids = cluster.run(os.getpid)
    noted = after(monkeypatch, 3, lambda: os.kill(next(iter(pids.values())), signal.SIGKILL))
    made = job(picture, tmp_path / "out.npy", workers=address)
    assert len(noted) > 3
    np.testing.assert_array_equal(np.load(made), job(np.load(picture)))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "out.npy"]
    # The nanny starts another one.
    cluster.wait_for_workers(2, timeout=60)


def test_when_all_workers_are_gone_the_run_ends_and_threads_go_on_with_it(tmp_path, picture, lone, worker, monkeypatch):
    monkeypatch.setattr(_cluster, "PATIENCE_S", 0.5)
    monkeypatch.setattr(_cluster, "_LOOK_S", 0.2)
    lone.cluster.scheduler.allowed_failures = 3
    tasks = lone.cluster.scheduler.tasks

    def kill():
        # When the next task has ended too: it is on the disk, though nobody is left to ask.
        while any(one.state == "processing" for one in list(tasks.values())):
            time.sleep(0.01)
        worker.kill()
        worker.wait()

    noted = after(monkeypatch, 1, kill)
    told = {"budget": "64 MB", "overwrite": False}
    np.save(picture, RNG.random((3000, 2000), dtype=np.float32))
    with pytest.raises(InputError, match=r"blur of 3000x2000 .*: all workers of tcp://.* are gone. What is done is noted"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=lone.scheduler.address, **told)
    assert not (tmp_path / "out.npy").exists()
    before = len(noted)
    assert before == 2
    made = arrays.blur(picture, 2, tmp_path / "out.npy", workers=1, **told)
    assert len(noted) == arrays.blur(picture, 2, tmp_path / "b.npy", workers=1, plan_only=True, **told).tasks
    np.testing.assert_array_equal(np.load(made), arrays.blur(np.load(picture), 2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "out.npy"]


ABORTS = """
import os

def divide():
    return 1 / 0

def tasks(kind, sink):
    return [{"abort": os.abort, "divide": divide}[kind]] * 3
"""


def test_a_task_that_kills_its_worker_is_told_with_the_worker(tmp_path, lone, worker, monkeypatch):
    sink, tasks = helper(tmp_path, lone, monkeypatch, "abort")
    with (
        connected(lone.scheduler.address) as found,
        pytest.raises(InputError, match=r"1 workers of tcp://.* died over one task, the last tcp"),
    ):
        found.run("work", Fixed(sink, tasks, single_threaded), range(3), 1, lambda number: None)
    sink.abandon()


def test_an_error_in_a_task_arrives_as_it_is(tmp_path, picture, cluster, address, monkeypatch):
    sink, tasks = helper(tmp_path, cluster, monkeypatch, "divide")
    with connected(address) as found, pytest.raises(ZeroDivisionError, match="division by zero"):
        found.run("work", Fixed(sink, tasks, single_threaded), range(3), 2, lambda number: None)
    sink.abandon()
    # So many tasks that workers cannot have read all of it by then.
    np.save(picture, RNG.random((6000, 1000), dtype=np.float32))
    after(monkeypatch, 2, lambda: os.truncate(picture, 1000))
    with pytest.raises(InputError, match=r"in.npy changed while it was read: it had .* bytes and has 1000"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=address, budget="6 MB")
    assert not (tmp_path / "out.npy").exists()


def helper(tmp_path, client, monkeypatch, kind):
    """Something to write to, and tasks of a module that workers see."""
    from functools import partial

    (tmp_path / "harm.py").write_text(ABORTS)
    monkeypatch.syspath_prepend(tmp_path)
    client.run(lambda folder: sys.path.insert(0, folder), str(tmp_path))
    import harm  # pyright: ignore[reportMissingImports]

    return open_sink(tmp_path / "harm.npy", (3,), np.float32), partial(harm.tasks, kind)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("sigma", [2, 30])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, picture, cluster, address, suffix, sigma, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    np.save(picture, RNG.random((3000, 1000), dtype=np.float32))
    told = {"workers": address, "budget": "6 MB" if suffix == ".npy" else "16 MiB"}
    out = tmp_path / f"out{suffix}"
    noted = after(monkeypatch, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        arrays.blur(picture, sigma, out, **told)
    assert not out.exists()
    assert out.with_name(f"{out.name}.journal").exists()
    # Nobody writes any more: the file could be taken away at once.
    assert set(cluster.run(lambda: sum(one._at_work for one in sys.modules["sash.arrays._cluster_shared"]._ALL)).values()) == {0}
    made = arrays.blur(picture, sigma, out, **told)
    assert len(noted) == arrays.blur(picture, sigma, tmp_path / f"b{suffix}", plan_only=True, **told).tasks
    np.testing.assert_array_equal(held(made), arrays.blur(np.load(picture), sigma))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.npy", out.name])


@pytest.mark.parametrize("after_tasks", [3, 17])
def test_a_deconvolution_goes_on_where_it_was_interrupted(tmp_path, cluster, address, monkeypatch, after_tasks):
    def interrupt():
        raise KeyboardInterrupt

    np.save(tmp_path / "in.npy", RNG.random((1000, 900)))
    told = {"workers": address, "budget": "12 MiB", "noise": 0.1}
    noted = after(monkeypatch, after_tasks, interrupt)
    with pytest.raises(KeyboardInterrupt):
        arrays.deconvolve(tmp_path / "in.npy", UNEVEN, tmp_path / "out.npy", **told)
    assert set(cluster.run(lambda: sum(one._at_work for one in sys.modules["sash.arrays._cluster_shared"]._ALL)).values()) == {0}
    # In the first phase, and in the next, which reads what that made.
    assert (tmp_path / "out.npy.between-0.npy").exists() == (after_tasks > 3)
    made = arrays.deconvolve(tmp_path / "in.npy", UNEVEN, tmp_path / "out.npy", **told)
    assert len(noted) == arrays.deconvolve(tmp_path / "in.npy", UNEVEN, tmp_path / "b.npy", plan_only=True, **told).tasks
    np.testing.assert_array_equal(np.load(made), arrays.deconvolve(np.load(tmp_path / "in.npy"), UNEVEN, noise=0.1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def test_a_run_that_threads_cut_otherwise_is_not_gone_on_with(tmp_path, picture, address, monkeypatch):
    after(monkeypatch, 2, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=1)
    with pytest.raises(InputError, match="other things changed: cuts"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=address)


def test_without_a_scheduler_or_workers_the_commands_that_start_them_are_named(tmp_path, picture, lone, monkeypatch):
    monkeypatch.setattr(_cluster, "CONNECT_S", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 s .*dask scheduler; .*dask worker"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match=r"at tcp://.* has no workers\. Start one on each machine with: dask worker tcp://"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=lone.scheduler.address)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npy"]


def test_workers_that_see_other_files_or_have_other_versions_are_named(tmp_path, picture, address, monkeypatch):
    # As if what is read were elsewhere on the workers.
    elsewhere = (str(tmp_path).encode(), str(tmp_path)[:-1].encode() + b"_")
    original = _cluster.pickled
    monkeypatch.setattr(_cluster, "pickled", lambda value: original(value).replace(*elsewhere))
    with pytest.raises(InputError, match=r"the worker tcp://.* does not see the same files: .*in.npy.* Mount .* under the same names"):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=address)
    monkeypatch.undo()
    ours = _cluster._versions()
    monkeypatch.setattr(_cluster, "_versions", lambda: {**ours, "numpy": "1.0"})
    with pytest.raises(
        InputError, match=r"the worker tcp://.* has numpy .*, not 1\.0, so its bits may differ; install the same versions there"
    ):
        arrays.blur(picture, 2, tmp_path / "out.npy", workers=address)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="workers have such a device here")
def test_a_device_that_a_worker_has_not_is_named_with_it(tmp_path, picture, address):
    for job in (
        lambda out: arrays.blur(picture, 2, out, workers=address, device="cuda"),
        lambda out: arrays.deconvolve(picture, BELL, out, workers=address, device="cuda:0", noise=0.1),
        lambda out: arrays.stft(picture, 64, out=out, workers=address, device="cuda"),
    ):
        with pytest.raises(InputError, match=r"the worker tcp://.*: device is 'cuda.*, and torch .* finds no such device here"):
            job(tmp_path / "out.npy")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npy"]


def test_the_command_runs_on_a_cluster(tmp_path, picture, address):
    np.save(tmp_path / "kernel.npy", BELL)
    told = ["deconvolve", *(str(tmp_path / name) for name in ("in.npy", "kernel.npy", "out.npy")), "--noise", "0.1", "--workers", address]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), arrays.deconvolve(np.load(picture), BELL, noise=0.1))


@pytest.mark.parametrize(
    ("source", "out", "workers", "message"),
    [
        (np.zeros((20, 30)), "out.npy", "tcp://127.0.0.1:9", "the source is an array in this process's memory.* save it as .npy or .zarr"),
        ("in.npy", None, "tcp://127.0.0.1:9", "write to a file; give `out`"),
        ("in.npy", "out.png", "tcp://127.0.0.1:9", r"out.png has the suffix .png; the workers of tcp://127.0.0.1:9 write .npy, .zarr"),
        ("in.npy", "out.npy", "four", "workers is 'four'; give a whole number of threads, or the address of a Dask scheduler"),
        ("in.npy", "out.npy", "4", "workers is '4'; give a whole number"),
    ],
)
def test_what_a_cluster_cannot_do_is_said_before_it_is_asked(picture, monkeypatch, source, out, workers, message):
    monkeypatch.chdir(picture.parent)
    with pytest.raises(InputError, match=message):
        arrays.blur(source, 2, out, workers=workers)
    assert [entry.name for entry in picture.parent.iterdir()] == ["in.npy"]
