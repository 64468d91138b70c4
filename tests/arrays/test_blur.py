"""Blurs, held to scipy.ndimage with a Gaussian that is not cut off, whatever the border, the axes, the type and the budget."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sash import arrays
from sash.arrays import _gaussian as gaussian
from sash.arrays._ring import Ring, most_rows
from sash.errors import DoesNotFit, InputError

BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")
RNG = np.random.default_rng(0)


def exact(array, sigma, boundary="reflect", order=0, fill=0.0):
    return scipy.ndimage.gaussian_filter(array.astype(float), sigma, order, mode=boundary, cval=fill, truncate=gaussian.REACH)


def reach(array, fill=None):
    values = [array.min(), array.max(), *([fill] if fill is not None else [])]
    return float(max(values)) - float(min(values))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BOUNDARIES),
    st.tuples(st.integers(1, 70), st.integers(1, 90)),
    st.tuples(st.floats(0, 25), st.floats(0, 25)),
    st.sampled_from([1e-2, 1e-3, 1e-5, 1e-8, 1e-11]),
    st.sampled_from(["auto", "direct"]),
    st.integers(0, 2**31),
)
def test_a_blur_is_within_its_tolerance_of_the_exact_one(boundary, shape, sigma, tolerance, method, seed):
    array = np.random.default_rng(seed).random(shape)
    made = arrays.blur(array, sigma, boundary=boundary, tolerance=tolerance, method=method, fill=0.5)
    assert made.dtype == array.dtype
    assert np.abs(made - exact(array, sigma, boundary, fill=0.5)).max() <= tolerance * reach(array, 0.5) + 1e-14


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(BOUNDARIES), st.integers(0, 3), st.floats(0.6, 30), st.sampled_from([1e-3, 1e-7]), st.sampled_from(["auto", "direct"])
)
def test_derivatives_are_within_the_tolerance_times_the_size_of_their_taps(boundary, order, sigma, tolerance, method):
    array = RNG.standard_normal((50, 160))
    made = arrays.blur(array, (0, sigma), order=(0, order), boundary=boundary, tolerance=tolerance, method=method)
    wanted = scipy.ndimage.gaussian_filter1d(array, sigma, order=order, mode=boundary, truncate=gaussian.REACH)
    size = np.abs(gaussian.exact_taps(sigma, order)).sum()
    assert np.abs(made - wanted).max() <= tolerance * reach(array, 0.0) * size + 1e-13


@pytest.mark.parametrize("sigma", [0.5, 2, 7.3, 40])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("share", [5e-4, 5e-7])
def test_every_filter_is_as_far_from_the_gaussian_as_it_says(sigma, order, share):
    # A step between the largest and the least value, where the difference of the taps changes sign, is the worst input there is.
    wanted = gaussian.exact_taps(sigma, order)
    for found in gaussian.filters(sigma, order, share):
        assert found.error <= share
        if isinstance(found, gaussian.Direct):
            taps = np.pad(found.weights, len(wanted) // 2 - found.radius)
            assert gaussian.share_off(taps, wanted) == pytest.approx(found.error, abs=1e-15)
        else:
            worst = 0.0
            for phase in range(found.step):
                taps, before = gaussian.fine_taps(found, phase)
                whole = np.zeros(2 * max(before, len(taps), len(wanted)) + 1)
                middle = len(whole) // 2
                whole[middle - before : middle - before + len(taps)] += taps
                whole[middle - len(wanted) // 2 : middle + len(wanted) // 2 + 1] -= wanted
                worst = max(worst, whole[whole > 0].sum(), -whole[whole < 0].sum())
            assert worst / np.abs(wanted).sum() <= share * 1.02


def test_taps_of_derivatives_are_scipys():
    impulse = np.zeros(201)
    impulse[100] = 1
    for order in range(5):
        wanted = scipy.ndimage.gaussian_filter1d(impulse, 6.0, order=order, truncate=gaussian.REACH)
        taps = gaussian.exact_taps(6.0, order)
        # Correlation with an impulse turns the taps round.
        np.testing.assert_allclose(taps[::-1], wanted[100 - len(taps) // 2 : 100 + len(taps) // 2 + 1], atol=1e-15)


@pytest.mark.parametrize(
    ("axes", "sigma"), [((0,), 3), ((1,), 2), ((3,), 4), ((0, 2), 2), ((1, 2), (1, 3)), ((0, 1, 2, 3), 2), ((-1, 0), (1, 5))]
)
def test_any_axes_can_be_blurred(axes, sigma):
    array = RNG.random((6, 20, 30, 26))
    full = [0.0] * 4
    for axis, own in zip(axes, (sigma,) * len(axes) if isinstance(sigma, int) else sigma, strict=True):
        full[axis] = own
    made = arrays.blur(array, sigma, axes=axes, tolerance=1e-9)
    assert np.abs(made - exact(array, full)).max() <= 1e-9


@pytest.mark.parametrize("shape", [(40, 50, 3), (3, 40, 50, 4), (60, 1, 2)])
def test_channels_after_rows_and_columns_stay_apart(shape):
    array = RNG.random(shape, dtype=np.float32)
    axes = (len(shape) - 3, len(shape) - 2)
    sigma = [3.0 if axis in axes else 0.0 for axis in range(len(shape))]
    assert np.abs(arrays.blur(array, 3, axes=axes) - exact(array, sigma)).max() <= 1e-3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "int64", "float32", "float64"])
def test_whole_numbers_are_rounded_to_the_nearest(dtype):
    high = min(np.iinfo(dtype).max, 2**40) if np.dtype(dtype).kind in "iu" else 1
    array = (RNG.random((60, 70)) * high).astype(dtype)
    made = arrays.blur(array, 4, tolerance=1e-6)
    assert made.dtype == array.dtype
    half = 0.5 if np.dtype(dtype).kind in "iu" else 0.0
    assert np.abs(made.astype(float) - exact(array, 4)).max() <= half + 1e-6 * reach(array)


def test_rounding_keeps_within_the_type():
    array = np.full((20, 20), 255, np.uint8)
    assert (arrays.blur(array, 3) == 255).all()
    assert (arrays.blur(np.full((9, 9), 2**63 - 1, np.int64), 2) > 2**62).all()


def test_a_tensor_comes_back_as_one_and_layouts_do_not_matter():
    array = RNG.random((50, 60), dtype=np.float32)
    made = arrays.blur(torch.from_numpy(array), 2)
    assert isinstance(made, torch.Tensor)
    for other in (np.asfortranarray(array), array[::-1][::-1], array.astype(">f4"), np.repeat(array, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(arrays.blur(other, 2), made.numpy())


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(BOUNDARIES),
    st.sampled_from([0.8, 3, 14, 50]),
    st.sampled_from(["uint8", "float32", "float64"]),
    st.integers(1, 3),
    st.integers(600, 8000),
)
def test_any_budget_makes_the_same_bits_from_file_to_file(tmp_path_factory, boundary, sigma, dtype, workers, kilobytes):
    folder = tmp_path_factory.mktemp("blur")
    array = (np.random.default_rng(1).random((3, 211, 157)) * 200).astype(dtype)
    np.save(folder / "in.npy", array)
    settings_of = {"boundary": boundary, "fill": 7.0, "workers": workers}
    budget = kilobytes << 10
    try:
        plan = arrays.blur(folder / "in.npy", sigma, folder / "out.npy", budget=budget, plan_only=True, **settings_of)
    except DoesNotFit as refused:
        least = refused.least_bytes
        assert least > budget
        budget = least
        plan = arrays.blur(folder / "in.npy", sigma, folder / "out.npy", budget=budget, plan_only=True, **settings_of)
    made = arrays.blur(folder / "in.npy", sigma, folder / "out.npy", budget=budget, **settings_of)
    # The method is what a budget may change; each makes the same bits whatever it is.
    np.testing.assert_array_equal(np.load(made), arrays.blur(array, sigma, boundary=boundary, fill=7.0, method=plan.method))
    assert sorted(entry.name for entry in folder.iterdir()) == ["in.npy", "out.npy"]


@pytest.mark.parametrize("suffix", [".zarr", ".tif", ".png"])
def test_files_of_other_kinds_are_read_and_written(tmp_path, suffix):
    array = (RNG.random((300, 500)) * 255).astype(np.uint8)
    path = arrays.blur(array, 2, tmp_path / f"first{suffix}", budget="64 MiB")
    again = arrays.blur(path, 5, tmp_path / "second.npy", budget="64 MiB")
    np.testing.assert_array_equal(np.load(again), arrays.blur(arrays.blur(array, 2), 5))


def test_nan_and_infinity_stay_within_what_the_taps_reach():
    array = RNG.random((200, 220), dtype=np.float32)
    for bad in (np.nan, np.inf):
        array[90, 100] = bad
        for sigma in (2, 11):
            made = arrays.blur(array, sigma)
            told = ~np.isfinite(made)
            rows, columns = np.flatnonzero(told.any(1)), np.flatnonzero(told.any(0))
            assert told[90, 100]
            far = gaussian.REACH * sigma
            assert max(90 - rows[0], rows[-1] - 90, 100 - columns[0], columns[-1] - 100) <= far
            clean = array.copy()
            clean[90, 100] = 0.5
            np.testing.assert_array_equal(made[~told], arrays.blur(clean, sigma)[~told])


def test_a_plan_says_what_would_run_and_runs_nothing(tmp_path):
    plan = arrays.blur(np.zeros((2000, 3000), np.float32), 20, tmp_path / "out.npy", budget="4 MiB", plan_only=True)
    assert isinstance(plan, arrays.ArrayPlan)
    assert plan.method == "multirate"
    assert plan.peak_bytes <= plan.budget_bytes == 4 << 20
    assert "direct:" in str(plan)
    assert '"method": "multirate"' in plan.to_json()
    assert not list(tmp_path.iterdir())


def test_a_budget_too_small_is_refused_with_the_least_that_would_do():
    array = np.zeros((1000, 1000), np.float32)
    with pytest.raises(DoesNotFit, match=r"holds .* at least, at direct; the budget is 1\.00 MiB.*give `out`") as refused:
        arrays.blur(array, 2, budget="1 MiB")
    least = refused.value.least_bytes
    arrays.blur(array, 2, budget=least)
    with pytest.raises(DoesNotFit):
        arrays.blur(array, 2, budget=least - 1)


@pytest.mark.parametrize(
    ("settings_of", "message"),
    [
        ({"sigma": -1}, "sigma is -1 along axis 0; a standard deviation is 0 or more"),
        ({"sigma": float("nan")}, "sigma is nan along axis 0"),
        ({"sigma": (1, 2, 3)}, "sigma has 3 entries, and 2 axes are filtered along"),
        ({"sigma": 1, "axes": (0, 0)}, r"axes are \(0, 0\).* name each once"),
        ({"sigma": 1, "axes": (2,)}, "has axes 0 to 1"),
        ({"sigma": 1, "boundary": "mirrored"}, "boundary is 'mirrored'; there are reflect, mirror"),
        ({"sigma": 1, "tolerance": 0}, "tolerance is 0; it is a share of the input's range"),
        ({"sigma": 1, "order": 9}, "order is 9 along axis 0"),
        ({"sigma": 0, "order": 1}, "order is 1 along axis 0, where sigma is 0"),
        ({"sigma": 1, "method": "magic"}, "method is 'magic'; there are 'auto'"),
        ({"sigma": 1, "method": "multirate"}, "no sigma of 1 leaves samples out"),
        ({"sigma": 1, "workers": 0}, "workers is 0; give a whole number"),
        ({"sigma": 1, "dtype": complex}, "dtype is complex128; blur writes"),
        ({"sigma": 1, "fill": float("inf")}, "fill is inf; give a finite number"),
    ],
)
def test_what_cannot_be_meant_is_named(settings_of, message):
    with pytest.raises(InputError, match=message):
        arrays.blur(np.zeros((20, 30), np.float32), **settings_of)


@pytest.mark.parametrize("dtype", [bool, np.float16, np.complex64])
def test_types_that_are_not_blurred_are_named(dtype):
    with pytest.raises(InputError, match=r"the source holds .*; blur takes whole numbers, float32 and float64"):
        arrays.blur(np.zeros((20, 30), dtype), 1)


def test_an_output_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "out.npy").write_bytes(b"precious")
    with pytest.raises(InputError, match="is there already"):
        arrays.blur(np.zeros((20, 30)), 1, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
    arrays.blur(np.zeros((20, 30)), 1, tmp_path / "out.npy", overwrite=True)
    assert np.load(tmp_path / "out.npy").shape == (20, 30)


KILLED = """
import sys
from sash import arrays
arrays.blur(sys.argv[1], float(sys.argv[2]), sys.argv[3], budget=sys.argv[4], workers=2)
"""


def kill_when_begun(child, journal):
    while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.001)
    assert child.poll() is None, "the run ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize(("sigma", "budget"), [(3, "3 MB"), (30, "3 MB"), (30, "8 MB")], ids=["direct", "two rates", "two rates at once"])
def test_a_killed_run_is_taken_up_and_ends_with_the_same_bits(tmp_path, sigma, budget, reboot, monkeypatch):
    array = RNG.random((20000, 700), dtype=np.float32)
    np.save(tmp_path / "in.npy", array)
    out, journal = tmp_path / "out.npy", tmp_path / "out.npy.journal"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "in.npy"), str(sigma), str(out), budget])
    kill_when_begun(child, journal)
    assert not out.exists()
    if reboot:
        monkeypatch.setattr("sash.arrays._journal.boot", lambda: "another")
    arrays.blur(tmp_path / "in.npy", sigma, out, budget=budget, workers=2)
    np.testing.assert_array_equal(np.load(out), arrays.blur(array, sigma))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def test_a_source_that_changed_since_is_not_gone_on_with(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((20000, 700), np.float32))
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "in.npy"), "3", str(tmp_path / "out.npy"), "3 MB"])
    journal = tmp_path / "out.npy.journal"
    kill_when_begun(child, journal)
    np.save(tmp_path / "in.npy", np.ones((20000, 700), np.float32))
    with pytest.raises(InputError, match=r"other things changed: source"):
        arrays.blur(tmp_path / "in.npy", 3, tmp_path / "out.npy", budget="3 MB", workers=2)
    arrays.blur(tmp_path / "in.npy", 3, tmp_path / "out.npy", budget="3 MB", workers=2, restart=True)
    # Taps that are rounded to fp32 add up to 1 but for a rounding.
    assert np.abs(np.load(tmp_path / "out.npy") - 1).max() <= 5e-7


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=12), st.integers(1, 4), st.randoms())
def test_a_ring_reads_every_row_once_and_never_needs_more_room(runs, window, order):
    height = 42
    needs = [np.arange(start, min(start + count, height)) for start, count in sorted(runs)]
    assume(all(len(rows) for rows in needs))
    seen = np.zeros(height, int)

    def read(rows, into):
        seen[rows.start : rows.stop] += 1
        into[0, :, 0] = np.arange(*rows)

    ring = Ring(read, needs, height, window, 1, 1, np.dtype(float))
    assert ring.table.shape[1] == most_rows(needs, window)
    running, ended, oldest = [], set(), 0
    for task in range(len(needs)):
        while task - oldest >= window:
            one = running.pop(order.randrange(len(running)))
            ended.add(one)
            while oldest in ended:
                oldest += 1
            ring.ended(oldest - 1)
        np.testing.assert_array_equal(ring.table[0, ring.slots(task), 0], needs[task])
        running.append(task)
    wanted = np.unique(np.concatenate(needs))
    assert (seen[wanted] == 1).all()
    assert seen.sum() == len(wanted)


@pytest.mark.parametrize("sides", [(300, 900), (100, 1000)])
def test_tasks_that_lie_beyond_the_plane_are_the_fill(tmp_path, sides):
    array = RNG.random(sides)
    np.save(tmp_path / "in.npy", array)
    told = {"boundary": "constant", "method": "multirate", "tolerance": 1e-12}
    with pytest.raises(DoesNotFit) as caught:
        arrays.blur(tmp_path / "in.npy", 20, tmp_path / "out.npy", budget=1, **told)
    arrays.blur(tmp_path / "in.npy", 20, tmp_path / "out.npy", budget=caught.value.least_bytes, **told)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), arrays.blur(array, 20, **told))
