"""Kernels of three axes, held to scipy.ndimage and scipy.signal, whatever the border, the method, the type and the budget."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash import arrays
from sash.errors import DoesNotFit, InputError

RNG = np.random.default_rng(0)
BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")
METHODS = ("auto", "separable", "direct", "fft")


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(["same", "valid", "full"]),
    st.sampled_from(METHODS),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**31),
)
def test_a_convolution_is_scipys(shape, sides, mode, method, correlate, dtype, seed):
    rng = np.random.default_rng(seed)
    array, kernel = rng.standard_normal(shape).astype(dtype), rng.standard_normal(sides)
    if mode == "valid":
        kernel = kernel[: shape[0], : shape[1], : shape[2]]
    made = arrays.convolve(array, kernel, mode=mode, method=method, correlate=correlate)
    turned = kernel[::-1, ::-1, ::-1] if correlate else kernel
    wanted = scipy.signal.convolve(array.astype(float), turned, "full" if mode == "same" else mode, method="direct")
    if mode == "same":
        # scipy.signal centres on the smaller of the two where the kernel is the larger; here it is always the source.
        wanted = wanted[tuple(slice((side - 1) // 2, (side - 1) // 2 + size) for side, size in zip(kernel.shape, shape, strict=True))]
    assert made.shape == wanted.shape
    assert made.dtype == dtype
    assert np.abs(made - wanted).max() <= 1e-6 * np.abs(array).max() * np.abs(kernel).sum()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("method", ["separable", "direct", "fft"])
@pytest.mark.parametrize("sides", [(3, 5, 7), (1, 1, 9), (5, 1, 1), (21, 3, 25)])
def test_borders_are_those_of_ndimage(boundary, method, sides):
    array, kernel = RNG.random((12, 18, 14)), RNG.random(sides)
    told = {"boundary": boundary, "method": method, "fill": 0.7}
    wanted = scipy.ndimage.convolve(array, kernel, mode=boundary, cval=0.7)
    np.testing.assert_allclose(arrays.convolve(array, kernel, **told), wanted, atol=1e-13 * kernel.size)
    wanted = scipy.ndimage.correlate(array, kernel, mode=boundary, cval=0.7)
    np.testing.assert_allclose(arrays.convolve(array, kernel, correlate=True, **told), wanted, atol=1e-13 * kernel.size)


def test_volumes_and_channels_stay_apart():
    array, kernel = RNG.random((2, 10, 11, 12, 3)), RNG.random((3, 3, 5))
    made = arrays.convolve(array, kernel, axes=(1, 2, 3), boundary="mirror")
    for volume in range(2):
        for channel in range(3):
            wanted = scipy.ndimage.convolve(array[volume, ..., channel], kernel, mode="mirror")
            np.testing.assert_allclose(made[volume, ..., channel], wanted, atol=1e-12)


def test_whole_numbers_come_in_and_go_out():
    array = RNG.integers(0, 256, (9, 20, 21), dtype=np.uint8)
    kernel = np.ones((3, 3, 3)) / 27
    wanted = scipy.ndimage.convolve(array.astype(float), kernel, mode="reflect")
    made = arrays.convolve(array, kernel, boundary="reflect", dtype=np.uint8)
    assert made.dtype == np.uint8
    # Sums of 27 whole numbers by 27 are never halfway between two.
    np.testing.assert_array_equal(made, np.rint(wanted))
    assert arrays.convolve(array, kernel).dtype == np.float32


def test_outer_products_are_found_where_there_are_some():
    bell = np.exp(-(np.linspace(-2, 2, 9) ** 2))
    once = np.einsum("i,j,k->ijk", bell, bell, bell)
    twice = once + np.einsum("i,j,k->ijk", np.arange(9.0), np.ones(9), bell)
    array = np.zeros((128, 128, 128), np.float32)
    assert arrays.convolve(array, once, plan_only=True).method == "separable"
    assert arrays.convolve(array, twice, method="separable", plan_only=True).method == "separable, 2 outer products"
    assert arrays.convolve(array, RNG.random((15, 15, 15)), plan_only=True).method.startswith("fft")
    assert arrays.convolve(array, scipy.ndimage.generate_binary_structure(3, 1), plan_only=True).method.startswith(("direct", "separable"))


@pytest.mark.parametrize("method", ["separable", "direct", "fft"])
@pytest.mark.parametrize("suffix", ["npy", "zarr", "tif"])
def test_the_least_budget_runs_and_makes_the_same_numbers(tmp_path, method, suffix):
    array, kernel = RNG.random((40, 130, 120)).astype(np.float32), np.einsum("i,j,k->ijk", *RNG.random((3, 7)))
    np.save(tmp_path / "in.npy", array)
    told = {"boundary": "wrap", "method": method}
    with pytest.raises(DoesNotFit) as refused:
        arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / f"out.{suffix}", budget="1 MiB", **told)
    made = arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / f"out.{suffix}", budget=refused.value.least_bytes, **told)
    wanted = scipy.ndimage.convolve(array.astype(float), kernel, mode="wrap")
    found = np.empty(array.shape, np.float32)
    opened = arrays.convolve(made, np.ones((1, 1, 1)), found)
    assert np.abs(opened - wanted).max() <= 1e-6 * kernel.sum()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.npy", f"out.{suffix}"])


def test_nan_and_infinity_reach_what_sums_of_products_reach():
    array, kernel = RNG.random((20, 21, 22)), RNG.standard_normal((3, 5, 3))
    kernel[1, 2, 1] = 0
    array[5, 5, 5], array[15, 15, 15], array[15, 15, 17], array[2, 18, 3] = np.nan, np.inf, -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        wanted = scipy.signal.convolve(array, kernel, "same", method="direct")
    for method in ("direct", "fft"):
        np.testing.assert_allclose(arrays.convolve(array, kernel, method=method), wanted, atol=1e-12)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from sash.arrays._blocks import PlannedBlocks

    array, kernel = RNG.random((60, 90, 90)).astype(np.float32), RNG.random((9, 9, 9))
    np.save(tmp_path / "in.npy", array)
    whole = arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / "whole.npy", budget="14 MiB", workers=1)
    task, count = PlannedBlocks._task, [0]

    def failing(self, *given):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        task(self, *given)

    monkeypatch.setattr(PlannedBlocks, "_task", failing)
    with pytest.raises(KeyboardInterrupt):
        arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget="14 MiB", workers=1)
    assert not (tmp_path / "out.npy").exists()
    done = count[0] - 1
    count[0] = 100
    made = arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / "out.npy", budget="14 MiB", workers=1)
    tasks = arrays.convolve(tmp_path / "in.npy", kernel, tmp_path / "plan.npy", budget="14 MiB", workers=1, plan_only=True).tasks
    assert count[0] - 100 == tasks - done
    np.testing.assert_array_equal(np.load(made), np.load(whole))


def test_a_tensor_gives_a_tensor():
    volume = torch.rand(10, 11, 12)
    made = arrays.convolve(volume, torch.ones(3, 3, 3) / 27, boundary="nearest")
    assert isinstance(made, torch.Tensor)
    wanted = scipy.ndimage.uniform_filter(volume.numpy().astype(float), 3, mode="nearest")
    np.testing.assert_allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "told", "message"),
    [
        ((20, 30), np.ones((3, 3, 3)), {}, "the kernel has 3 axes, and goes along axes"),
        ((20, 30, 10), np.ones((3, 3, 3)), {"axes": (0, 1)}, "the kernel has 3 axes, and goes along axes"),
        ((5, 20, 30, 40), np.ones((3, 3, 3)), {"axes": (0, 1, 3)}, "give as many, neighbours in order"),
        ((5, 20, 30, 40), np.ones((3, 3, 3)), {"axes": (0, 1, 2)}, "last or before channels"),
        ((5, 20, 30), np.ones((9, 3, 3)), {"mode": "valid"}, "has 9 taps along axis 0 of 5; no output is valid"),
        ((5, 20, 30), np.ones((3, 3, 3, 3)), {}, "kernels have one to three axes here"),
        ((5, 20, 30), np.ones((3, 3, 3)), {"workers": "tcp://127.0.0.1:1"}, "is an array in this process's memory, .* save it as .npy"),
        ((5, 20, 30), np.ones((3, 3)), {"method": "direct"}, "method 'direct' adds up taps one by one"),
    ],
)
def test_what_cannot_be_meant_is_named(shape, kernel, told, message):
    with pytest.raises(InputError, match=message):
        arrays.convolve(np.zeros(shape), kernel, **told)
