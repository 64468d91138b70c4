"""Convolutions, held to scipy.signal and scipy.ndimage, whatever the kernel, the border, the method and the budget."""

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


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 70)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["same", "valid", "full"]),
    st.sampled_from(["auto", "separable", "fft"]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**31),
)
def test_a_convolution_is_scipys(shape, sides, mode, method, correlate, dtype, seed):
    rng = np.random.default_rng(seed)
    array, kernel = rng.standard_normal(shape).astype(dtype), rng.standard_normal(sides)
    if mode == "valid":
        kernel = kernel[: shape[0], : shape[1]]
    made = arrays.convolve(array, kernel, mode=mode, method=method, correlate=correlate)
    turned = kernel[::-1, ::-1] if correlate else kernel
    wanted = scipy.signal.convolve(array.astype(float), turned, mode, method="direct")
    if mode == "same":
        # scipy.signal centres on the smaller of the two where the kernel is the larger; here it is always the source.
        whole = scipy.signal.convolve(array.astype(float), turned, "full", method="direct")
        first = [(side - 1) // 2 for side in kernel.shape]
        wanted = whole[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
    assert made.shape == wanted.shape
    assert np.abs(made - wanted).max() <= 1e-6 * np.abs(array).max() * np.abs(kernel).sum()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("method", ["separable", "fft"])
@pytest.mark.parametrize("sides", [(9, 13), (1, 7), (61, 3), (101, 91)])
def test_borders_are_those_of_ndimage(boundary, method, sides):
    array, kernel = RNG.random((50, 64)), RNG.random(sides)
    told = {"boundary": boundary, "method": method, "fill": 0.7}
    wanted = scipy.ndimage.convolve(array, kernel, mode=boundary, cval=0.7)
    np.testing.assert_allclose(arrays.convolve(array, kernel, **told), wanted, atol=1e-11 * kernel.size)
    wanted = scipy.ndimage.correlate(array, kernel, mode=boundary, cval=0.7)
    np.testing.assert_allclose(arrays.convolve(array, kernel, correlate=True, **told), wanted, atol=1e-11 * kernel.size)


@pytest.mark.parametrize(("shape", "axes"), [((500,), None), ((4, 30, 500), None), ((4, 300, 20), (1,)), ((4, 300, 20), (0,))])
def test_a_kernel_of_one_axis_goes_along_one(shape, axes):
    array, kernel = RNG.random(shape), RNG.random(11)
    axis = -1 if axes is None else axes[0]
    wanted = scipy.ndimage.convolve1d(array, kernel, axis, mode="mirror")
    for method in ("separable", "fft"):
        np.testing.assert_allclose(arrays.convolve(array, kernel, axes=axes, boundary="mirror", method=method), wanted, atol=1e-12)


def test_channels_and_planes_stay_apart():
    array, kernel = RNG.random((5, 40, 50, 3)), RNG.random((7, 4))
    made = arrays.convolve(array, kernel, axes=(1, 2), mode="full")
    for plane in range(5):
        for channel in range(3):
            wanted = scipy.signal.convolve(array[plane, :, :, channel], kernel, "full")
            np.testing.assert_allclose(made[plane, :, :, channel], wanted, atol=1e-12)


def test_as_few_outer_products_are_taken_as_the_tolerance_allows():
    rank_two = np.outer(RNG.random(31), RNG.random(31)) + np.outer(RNG.random(31), RNG.random(31))
    array = RNG.random((200, 210))
    assert arrays.convolve(array, np.ones((31, 31)), method="separable", plan_only=True).method == "separable"
    assert arrays.convolve(array, rank_two, method="separable", plan_only=True).method == "separable, 2 outer products"
    plan = arrays.convolve(array, rank_two + 1e-5 * RNG.random((31, 31)), method="separable", tolerance=1e-3, plan_only=True)
    assert plan.method == "separable, 2 outer products"
    assert 0 < plan.error <= 1e-3


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(BOUNDARIES), st.sampled_from(["separable", "fft"]), st.sampled_from(["same", "full", "valid"]), st.integers(1, 3))
def test_any_budget_is_kept_to_the_least_and_makes_the_same_numbers(tmp_path_factory, boundary, method, mode, workers):
    folder = tmp_path_factory.mktemp("convolve")
    array, kernel = np.random.default_rng(1).random((2, 401, 357)).astype(np.float32), np.random.default_rng(2).random((31, 17))
    np.save(folder / "in.npy", array)
    told = {"boundary": boundary, "method": method, "mode": mode, "workers": workers}
    with pytest.raises(DoesNotFit) as refused:
        arrays.convolve(folder / "in.npy", kernel, folder / "out.npy", budget="100 kB", **told)
    least = refused.value.least_bytes
    made = arrays.convolve(folder / "in.npy", kernel, folder / "out.npy", budget=least, **told)
    wanted = arrays.convolve(array, kernel, boundary=boundary, method=method, mode=mode)
    if method == "separable":
        np.testing.assert_array_equal(np.load(made), wanted)
    else:
        np.testing.assert_allclose(np.load(made), wanted, atol=1e-6 * kernel.sum())
    assert sorted(entry.name for entry in folder.iterdir()) == ["in.npy", "out.npy"]


def test_nan_and_infinity_reach_what_sums_of_products_reach():
    array, kernel = RNG.random((60, 70)), RNG.standard_normal((7, 9))
    kernel[2, 3] = 0
    array[30, 40], array[10, 12], array[11, 60], array[50, 20] = np.nan, np.inf, -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        wanted = scipy.signal.convolve(array, kernel, "same", method="direct")
    np.testing.assert_allclose(arrays.convolve(array, kernel, method="fft"), wanted, atol=1e-12)


def test_whole_numbers_become_floating_ones_unless_said():
    array = (RNG.random((30, 40)) * 255).astype(np.uint8)
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    wanted = scipy.ndimage.convolve(array.astype(int), kernel, mode="constant")
    made = arrays.convolve(array, kernel)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted, atol=1e-3)
    np.testing.assert_array_equal(arrays.convolve(array, kernel, dtype=np.int16), wanted)
    np.testing.assert_array_equal(arrays.convolve(array, kernel, dtype=np.uint8), wanted.clip(0, 255))


def test_torchs_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    arrays.convolve(RNG.random((100, 100)), RNG.random((30, 30)), method="fft")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("kernel", "told", "message"),
    [
        (np.ones((3, 3, 3)), {}, "the kernel has 3 axes, and goes along axes"),
        (np.ones((3, 3)), {"mode": "all"}, "mode is 'all'; there are same, valid, full"),
        (np.ones((3, 3)), {"method": "magic"}, "method is 'magic'"),
        (np.ones((3, 3)), {"axes": (0,)}, "the kernel has 2 axes, and goes along axes"),
        (np.ones((31, 3)), {"mode": "valid"}, "has 31 taps along axis 0 of 20; no output is valid"),
        (np.array([[np.nan]]), {}, "taps that are NaN or infinite"),
        (np.ones((3, 3), complex), {}, "its taps are real numbers"),
        (np.ones((3, 3)), {"tolerance": 2}, "tolerance is 2; it is a share"),
        (np.ones((3, 3)), {"boundary": "none"}, "boundary is 'none'"),
        (np.ones((3, 3)), {"fill": np.nan}, "fill is nan"),
    ],
)
def test_what_cannot_be_meant_is_named(kernel, told, message):
    with pytest.raises(InputError, match=message):
        arrays.convolve(np.zeros((20, 30)), kernel, **told)
