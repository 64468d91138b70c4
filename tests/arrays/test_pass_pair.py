"""Two passes at once: the bits of one after the other, nothing read before it is made, and taken up where they stopped."""

import time

import numpy as np
import pytest

from sash import arrays
from sash.arrays import _job, _pass_pair
from sash.arrays._pass_pair import Between
from sash.arrays._pass_run import PassTask
from sash.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def paired(monkeypatch):
    """How often two passes were cut to run at once."""
    found, cut_pair = [], _job.cut_pair

    def counted(*asked):
        cuts = cut_pair(*asked)
        found.extend([cuts] if cuts is not None else [])
        return cuts

    monkeypatch.setattr(_job, "cut_pair", counted)
    return found


@pytest.fixture
def small_tasks(monkeypatch):
    """Many tasks of few rows, as a large picture has them."""
    monkeypatch.setattr(_pass_pair, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(_pass_pair, "LEAST_BYTES", 1 << 10)
    monkeypatch.setattr(_pass_pair, "LEAST_NUMBERS", 1 << 10)


@pytest.mark.parametrize("boundary", ["reflect", "wrap", "constant"])
@pytest.mark.parametrize("shape", [(900, 400), (3, 500, 210), (2, 3, 300, 70)])
@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_two_passes_at_once_make_the_bits_of_one_after_the_other(tmp_path, paired, small_tasks, boundary, shape, suffix):
    array = RNG.random(shape, np.float32)
    np.save(tmp_path / "in.npy", array)
    told = {"boundary": boundary, "fill": 2.0, "method": "multirate", "dtype": np.uint16, "workers": 3}
    out = arrays.blur(tmp_path / "in.npy", 14, tmp_path / f"out{suffix}", budget="64 MiB", **told)
    assert paired
    whole = arrays.blur(array, 14, **told)
    np.testing.assert_array_equal(arrays.blur(out, 0) if suffix == ".zarr" else np.load(out), whole)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", f"out{suffix}"]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_nothing_is_read_before_it_is_made(tmp_path, monkeypatch, paired, small_tasks, workers):
    put, begin = Between._put, Between.__init__

    def empty(self, *given):
        begin(self, *given)
        self.numbers.fill(np.nan)

    def late(self, box, part):
        time.sleep(0.002 * (box[0].start % 3))
        put(self, box, part)

    monkeypatch.setattr(Between, "__init__", empty)
    monkeypatch.setattr(Between, "_put", late)
    array = RNG.random((2, 900, 150))
    made = arrays.blur(np.asarray(array), 9, tmp_path / "out.npy", method="multirate", workers=workers, budget="64 MiB")
    assert paired
    np.testing.assert_array_equal(np.load(made), arrays.blur(array, 9, method="multirate"))


@pytest.mark.parametrize("after", [3, 17, 40])
def test_passes_that_were_interrupted_do_only_what_is_left(tmp_path, monkeypatch, paired, small_tasks, after):
    np.save(tmp_path / "in.npy", RNG.random((1200, 300), np.float32))
    call, run = PassTask.__call__, []

    def counted(self):
        if len(run) == after:
            raise InputError("interrupted")
        call(self)
        run.append(self.number)

    def blurred():
        arrays.blur(tmp_path / "in.npy", 9, tmp_path / "out.npy", method="multirate", workers=1, budget="64 MiB")

    monkeypatch.setattr(PassTask, "__call__", counted)
    with pytest.raises(InputError, match="interrupted"):
        blurred()
    assert paired
    first = list(run)
    after = -1
    blurred()
    assert sorted(run) == list(range(len(run)))
    assert run[: len(first)] == first
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), arrays.blur(np.load(tmp_path / "in.npy"), 9, method="multirate"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def test_the_second_pass_begins_before_the_first_has_ended(tmp_path, monkeypatch, paired, small_tasks):
    np.save(tmp_path / "in.npy", RNG.random((1500, 300), np.float32))
    call, order = PassTask.__call__, []

    def noted(self):
        order.append(self.made.stage.shape)
        call(self)

    monkeypatch.setattr(PassTask, "__call__", noted)
    arrays.blur(tmp_path / "in.npy", 9, tmp_path / "out.npy", method="multirate", workers=1, budget="64 MiB")
    assert paired
    # Rows that lie under the first outputs' taps, and a few more, are enough.
    assert order.index((1500, 300)) < len(order) / 3


def test_an_array_in_memory_is_read_where_it_lies(tmp_path, monkeypatch, paired, small_tasks):
    rings = []
    monkeypatch.setattr("sash.arrays._pass.Ring", lambda *given: rings.append(given))
    array = RNG.random((900, 400), np.float32)
    made = arrays.blur(array, 14, tmp_path / "out.npy", method="multirate", workers=2, budget="64 MiB")
    assert paired
    assert not rings
    np.testing.assert_array_equal(np.load(made), arrays.blur(array, 14, method="multirate"))


def test_a_line_is_not_read_as_a_whole_to_be_written_at_once(tmp_path, paired):
    np.save(tmp_path / "in.npy", RNG.random(400_000, np.float32))
    arrays.blur(tmp_path / "in.npy", 50, tmp_path / "out.npy", method="multirate", workers=2, budget="64 MiB")
    assert not paired
