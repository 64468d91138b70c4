"""A run whose output is a file: noted at once, on the disk meanwhile, marked only when it is, and refused clearly."""

import errno
import json
import os
import sys
import tracemalloc
from pathlib import Path
from threading import Event
from time import sleep

import numpy as np
import pytest

from sash.arrays import _filed, _journal, _store_raw, _store_zarr
from sash.arrays._filed import filed
from sash.arrays._store import open_sink
from sash.errors import InputError
from sash.window import Interval

TASKS = 6


def opened_at(path):
    return lambda again: open_sink(path, (TASKS, 4), np.float32, resume=again, chunks=(1, 4), shards=(1, 4))


def task(sink, number):
    sink.write((Interval(number, number + 1), Interval(0, 4)), np.full((1, 4), number, np.float32))


def lines(path):
    return [json.loads(line) for line in path.with_name(f"{path.name}.journal").read_text().splitlines()][1:]


def interrupted(path, count):
    """A run that ends after some tasks, as one that is killed: nothing is settled."""
    with filed(path, {}, opened_at(path), False) as run:
        for number in range(count):
            task(run.sink, number)
            run._journal.done(number)


@pytest.fixture(params=["a.npy", "a.zarr", "a.tif"])
def path(tmp_path, request):
    return tmp_path / request.param


def test_a_task_is_noted_before_the_disk_has_it_and_marked_once_it_has(tmp_path, monkeypatch):
    path, may, begun = tmp_path / "a.npy", Event(), Event()

    def slow(file):
        begun.set()
        assert may.wait(20)
        os.fsync(file)

    monkeypatch.setattr(_store_raw, "_synced", slow)
    with filed(path, {}, opened_at(path), False) as run, run.notes() as note:
        task(run.sink, 0)
        note(0)
        assert begun.wait(20)
        note(1)
        assert lines(path)[1:] == [0, 1]
        may.set()
    assert lines(path)[1:] == [0, 1, {"durable": 1}, {"durable": 2}]


def test_what_an_earlier_boot_did_not_mark_is_done_again(path, monkeypatch):
    interrupted(path, 3)
    with filed(path, {}, opened_at(path), False) as run:
        assert run.done == {0, 1, 2}
    monkeypatch.setattr(_journal, "boot", lambda: "another")
    with filed(path, {}, opened_at(path), False) as run:
        assert run.again
        assert run.done == set()
        with run.notes() as note:
            for number in range(TASKS):
                task(run.sink, number)
                note(number)
        assert lines(path)[-1] == {"durable": TASKS}
        assert run.finish() == path
    assert sorted(path.parent.iterdir()) == [path]


def test_when_notes_end_well_all_of_them_outlast_the_machine(path, monkeypatch):
    with filed(path, {}, opened_at(path), False) as run, run.notes() as note:
        for number in range(4):
            task(run.sink, number)
            note(number)
    monkeypatch.setattr(_journal, "boot", lambda: "another")
    with filed(path, {}, opened_at(path), False) as run:
        assert run.done == {0, 1, 2, 3}


@pytest.mark.parametrize(("code", "told"), [(errno.ENOSPC, r"takes .* free\. Make room there"), (errno.EIO, r"cannot be written .*disk")])
def test_a_disk_that_refuses_ends_the_run_and_nothing_since_the_mark_counts(tmp_path, monkeypatch, code, told):
    path, calls = tmp_path / "a.npy", []

    def refused(file):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_store_raw, "_synced", refused)
    monkeypatch.setattr(_filed, "EVERY_S", 0)

    def run_on():
        with filed(path, {}, opened_at(path), False) as run, run.notes() as note:
            for number in range(1000):
                task(run.sink, number % TASKS)
                note(number)
                while not calls:
                    sleep(0.001)
        raise AssertionError("the disk's refusal went unnoticed")

    with pytest.raises(InputError, match=told):
        run_on()
    found = lines(path)
    assert found[-1] == {"lost": True}
    marks = [line["durable"] for line in found if "durable" in (line if isinstance(line, dict) else ())]
    assert len(marks) == 1
    monkeypatch.setattr(_store_raw, "_synced", os.fsync)
    with filed(path, {}, opened_at(path), False) as run:
        assert run.done == set(range(marks[0]))


def test_a_refusal_at_the_very_end_leaves_no_output(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"

    def refused(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_filed._Behind, "_run", lambda self: None)
    monkeypatch.setattr(_store_raw, "_synced", refused)

    def run_whole():
        with filed(path, {}, opened_at(path), False) as run, run.notes() as note:
            task(run.sink, 0)
            note(0)

    with pytest.raises(InputError, match=r"a\.npy\.partial cannot be written \(Input/output error\): is the disk sound"):
        run_whole()
    assert not path.exists()
    assert {"durable": 1} not in lines(path)
    monkeypatch.undo()
    with filed(path, {}, opened_at(path), False) as run:
        assert run.done == set()


def test_shards_of_other_processes_are_made_to_outlast_the_machine(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.zarr", []
    sink = open_sink(path, (8, 8), np.float32, chunks=(4, 8), shards=(4, 8))
    other = open_sink(path, (8, 8), np.float32, resume=True)
    monkeypatch.setattr("sash.arrays._store_zarr.sync", lambda place: synced.append(str(place)))
    other.write((Interval(0, 4), Interval(0, 8)), np.ones((4, 8), np.float32))
    sink.flush()
    root = str(tmp_path / "a.zarr.partial")
    assert f"{root}/c/0/0" in synced
    # A folder comes after what is in it.
    assert synced.index(f"{root}/c/0/0") < synced.index(f"{root}/c/0") < synced.index(f"{root}/c") < synced.index(root)


def test_shards_that_are_on_the_disk_are_not_synced_again(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(_store_zarr, "sync", lambda place: synced.append(Path(place).name))
    monkeypatch.setattr(_store_zarr, "_STEP_NS", 10**7)
    sink = opened_at(tmp_path / "a.zarr")(False)
    for number in range(1, 5):
        synced.clear()
        task(sink, number)
        sleep(0.03)
        sink.flush()
        # The newest of before may have changed at the same tick of the file system's clock; and folders have a new name in them.
        assert {str(number)} <= set(synced) <= {str(number), str(number - 1), "0", "c", "a.zarr.partial", "zarr.json"}


@pytest.mark.skipif(sys.platform != "linux", reason="files are listed by the C library")
def test_to_make_many_shards_outlast_the_machine_takes_no_more_memory_than_few(tmp_path, monkeypatch):
    monkeypatch.setattr(_store_zarr, "sync", lambda place: None)
    sink = opened_at(tmp_path / "a.zarr")(False)
    folder = tmp_path / "a.zarr.partial" / "c" / "0"
    folder.mkdir(parents=True)
    held = []
    for count in (50, 2000):
        for number in range(count):
            (folder / f"{number}").touch()
        tracemalloc.start()
        sink.flush()
        sink.flush()
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] <= held[0] + 4096
