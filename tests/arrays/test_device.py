"""Array jobs through torch: the same numbers as compiled code makes, on the processor, and on a GPU where there is one."""

import json
import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sash import arrays
from sash.arrays._block_filters import Products, Rated, Taps
from sash.arrays._block_transforms import Transformed
from sash.arrays._gaussian import filters
from sash.arrays._stage import Coarse
from sash.errors import DoesNotFit, InputError
from sash.window import Interval

RNG = np.random.default_rng(0)
DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")
on_each_device = pytest.mark.parametrize("device", DEVICES)


@on_each_device
@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 60)),
    st.sampled_from([0.3, 0.9, 2.5, 7.0]),
    st.sampled_from(BOUNDARIES),
    st.sampled_from([1e-3, 1e-5, 1e-9]),
    st.sampled_from(["direct", "auto"]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2),
)
def test_a_blur_is_scipys(device, shape, sigma, boundary, tolerance, method, dtype, order):
    array = np.random.default_rng(1).random(shape).astype(dtype)
    # Of derivatives scipy goes on with the fill value itself after the first axis, where the border's samples have been filtered too.
    fill = 0.0 if order else 0.4
    told = {"boundary": boundary, "tolerance": tolerance, "method": method, "fill": fill, "order": order}
    made = arrays.blur(array, sigma, device=device, **told)
    assert made.dtype == dtype
    kernel = np.zeros(401)
    kernel[200] = 1
    size = np.abs(scipy.ndimage.gaussian_filter1d(kernel, sigma, order=order, truncate=10)).sum() ** 2
    wanted = scipy.ndimage.gaussian_filter(array.astype(float), sigma, order, mode=boundary, cval=fill, truncate=10)
    # Numbers are stored in the source's type.
    assert np.abs(made - wanted).max() <= (tolerance + np.finfo(dtype).eps) * max(size, 1e-9)


@on_each_device
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_samples_left_out_by_blocks_are_those_left_out_by_passes(device, boundary):
    array = RNG.random((230, 190))
    told = {"boundary": boundary, "method": "multirate", "fill": 0.3}
    made = arrays.blur(array, (9, 21), device=device, budget="12 MiB", **told)
    wanted = scipy.ndimage.gaussian_filter(array, (9, 21), mode=boundary, cval=0.3, truncate=9)
    assert np.abs(made - wanted).max() <= 1e-3


@on_each_device
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2), (3,), (0, 2)])
def test_any_axes_are_blurred_along(device, axes):
    array = RNG.random((5, 40, 30, 3))
    told = {"axes": axes, "order": [1] + [0] * (len(axes) - 1), "tolerance": 1e-7}
    np.testing.assert_allclose(arrays.blur(array, 1.5, device=device, **told), arrays.blur(array, 1.5, **told), atol=1e-7)


@on_each_device
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 60)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from(["same", "valid", "full"]),
    st.sampled_from(BOUNDARIES),
    st.sampled_from(["auto", "separable", "direct", "fft"]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64, np.uint8]),
)
def test_a_convolution_is_the_compiled_ones(device, shape, sides, mode, boundary, method, correlate, dtype):
    array, kernel = (RNG.random(shape) * 200).astype(dtype), RNG.standard_normal(sides)
    if mode == "valid":
        kernel = kernel[: shape[0], : shape[1]]
    told = {"mode": mode, "boundary": boundary, "correlate": correlate, "fill": 3.0}
    made = arrays.convolve(array, kernel, device=device, method=method, **told)
    wanted = arrays.convolve(array.astype(float), kernel, **told)
    assert made.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.abs(made - wanted).max() <= 1e-6 * 200 * np.abs(kernel).sum()


@on_each_device
def test_kernels_of_one_and_three_axes_are_convolved_with(device):
    array = RNG.random((6, 20, 22))
    for kernel in (RNG.random(5), RNG.random((3, 5, 4))):
        for method in ("separable", "fft"):
            told = {"boundary": "mirror", "method": method}
            np.testing.assert_allclose(
                arrays.convolve(array, kernel, device=device, **told), arrays.convolve(array, kernel, **told), atol=1e-12
            )


@on_each_device
def test_nan_and_infinity_reach_what_sums_of_products_reach(device):
    array, kernel = RNG.random((2, 60, 70)), RNG.standard_normal((7, 9))
    kernel[2, 3] = 0
    array[0, 30, 40], array[1, 10, 12], array[1, 11, 60], array[1, 50, 20] = np.nan, np.inf, -np.inf, np.inf
    wanted = arrays.convolve(array, kernel, method="fft")
    assert np.isnan(wanted).any()
    assert np.isinf(wanted).any()
    np.testing.assert_allclose(arrays.convolve(array, kernel, method="fft", device=device), wanted, atol=1e-12)


@on_each_device
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_whole_numbers_are_rounded_and_kept_in_range(device, dtype):
    limits = np.iinfo(dtype)
    array = RNG.integers(limits.min, limits.max, (40, 50), dtype, endpoint=True)
    wanted = arrays.convolve(array, [[-1.0, 3.0, -1.0]], dtype=dtype)
    np.testing.assert_array_equal(arrays.convolve(array, [[-1.0, 3.0, -1.0]], dtype=dtype, device=device), wanted)


@on_each_device
@pytest.mark.parametrize("output", ["complex", "magnitude", "power", "db", "mel"])
@pytest.mark.parametrize("told", [{}, {"centered": False}, {"boundary": "wrap"}, {"boundary": "constant", "fft_size": 600}])
def test_spectra_are_the_compiled_ones(device, output, told):
    for dtype in (np.float32, np.float64, np.int16):
        sound = (RNG.standard_normal((2, 9001)) * 3000).astype(dtype)
        made = partial(arrays.stft, sound, 512, 128, output=output, rate_hz=16000, mels=40, **told)
        wanted, found = made(), made(device=device)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        # Of the largest; decibels of what is next to nothing have no digits in common.
        sound_ones = np.abs(wanted) > -60 if output == "db" else np.ones(wanted.shape, bool)
        assert np.abs(found - wanted)[sound_ones].max() <= 3e-6 * np.abs(wanted).max()


@on_each_device
def test_a_signal_comes_back_from_its_spectra(device):
    sound = RNG.standard_normal((2, 20011))
    spectra = arrays.stft(sound, 512, 128, device=device)
    back = arrays.istft(spectra, 512, 128, length=20011, device=device, budget="16 MiB")
    np.testing.assert_allclose(back, sound, atol=1e-13)
    made = arrays.istft(spectra.astype(np.complex64), 500, 100, fft_size=512, device=device)
    np.testing.assert_allclose(made, arrays.istft(spectra.astype(np.complex64), 500, 100, fft_size=512), atol=1e-5)


@on_each_device
@pytest.mark.parametrize("boundary", ["wrap", "reflect", "mirror"])
@pytest.mark.parametrize(("shape", "axes"), [((61, 70), None), ((3, 40, 51), None), ((40, 51, 3), (0, 1)), ((7, 60), (0,)), ((300,), (0,))])
def test_a_deconvolution_is_the_compiled_one(device, boundary, shape, axes):
    bell = np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2) / 2
    kernel = bell if axes == (0,) else np.outer(bell, bell)
    blurred = arrays.convolve(RNG.random(shape), kernel, boundary=boundary, axes=axes)
    for told in ({}, {"method": "wiener", "noise": 1e-3}, {"method": "richardson-lucy", "iterations": 4}, {"adjoint": True}):
        wanted = arrays.deconvolve(blurred, kernel, boundary=boundary, axes=axes, **told)
        made = arrays.deconvolve(blurred, kernel, boundary=boundary, axes=axes, device=device, **told)
        np.testing.assert_allclose(made, wanted, atol=1e-10)


@on_each_device
@pytest.mark.parametrize("boundary", ["nearest", "constant"])
def test_other_borders_have_an_adjoint_there_too(device, boundary):
    data, kernel = RNG.random((70, 60)), RNG.random((41, 5))
    for told in ({"adjoint": True}, {"method": "richardson-lucy", "iterations": 3}):
        wanted = arrays.deconvolve(data, kernel, boundary=boundary, **told)
        np.testing.assert_allclose(arrays.deconvolve(data, kernel, boundary=boundary, device=device, **told), wanted, rtol=1e-9)


@on_each_device
def test_a_tensor_on_a_device_gives_a_tensor_there(device):
    image = torch.rand(60, 70, dtype=torch.float64, device=device)
    sound = torch.rand(4000, device=device)
    told = {"device": device} if device == "cpu" else {}
    spectra = arrays.stft(sound, 256, **told)
    made = [
        arrays.blur(image, 2, **told),
        arrays.convolve(image, torch.ones(3, 3), **told),
        arrays.deconvolve(image, [[0.1, 1.0, 0.1]], noise=0.1, **told),
        spectra,
        arrays.istft(spectra, 256, **told),
    ]
    for one in made:
        assert isinstance(one, torch.Tensor)
        assert one.device == image.device
    np.testing.assert_allclose(made[0].cpu(), arrays.blur(image.cpu().numpy(), 2), atol=1e-3)
    # The tensor itself stays as it was, whole numbers asked for or not.
    before = image.clone()
    arrays.blur(image, 0, dtype=np.uint8, device=device)
    assert torch.equal(image, before)


@on_each_device
@pytest.mark.parametrize("suffix", ["npy", "zarr", "tif"])
def test_files_stream_through_a_device(tmp_path, device, suffix):
    array = (RNG.random((3, 500, 400)) * 255).astype(np.uint8)
    np.save(tmp_path / "in.npy", array)
    made = arrays.blur(tmp_path / "in.npy", 3, tmp_path / f"out.{suffix}", device=device, budget="32 MiB")
    found = arrays.blur(made, 0)
    wanted = scipy.ndimage.gaussian_filter(array.astype(float), (0, 3, 3), truncate=9)
    assert found.dtype == np.uint8
    # The tolerance is a thousandth of the range, and whole numbers are the nearest.
    assert np.abs(found - wanted).max() <= 0.5 + 0.255
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.npy", f"out.{suffix}"])


@on_each_device
def test_the_least_budget_runs(device):
    sound, image = RNG.standard_normal(200_000), RNG.random((300, 310))
    spectra = arrays.stft(sound, 512)
    for job in (
        partial(arrays.blur, image, 5, method="direct"),
        partial(arrays.convolve, image, RNG.random((31, 17))),
        partial(arrays.deconvolve, image, np.array([[0.2, 1.0, 0.2]]), noise=0.1),
        partial(arrays.stft, sound, 512),
        partial(arrays.istft, spectra, 512),
    ):
        with pytest.raises(DoesNotFit) as refused:
            job(budget="100 kB", device=device)
        made = job(budget=refused.value.least_bytes, device=device)
        # Blocks of other sizes are transformed otherwise.
        np.testing.assert_allclose(made, job(device=device), atol=1e-9 * np.abs(made).max())


@on_each_device
def test_the_plan_tells_the_device(device):
    place = str(torch.device(device, 0)) if device == "cuda" else device
    for plan in (
        arrays.blur(np.zeros((30, 40)), 2, device=device, plan_only=True),
        arrays.convolve(np.zeros((30, 40)), np.ones((3, 3)), device=torch.device(device), plan_only=True),
        arrays.deconvolve(np.ones((30, 40)), [[1.0]], device=device, plan_only=True),
        arrays.stft(np.zeros(4000), 256, device=device, plan_only=True),
        arrays.istft(np.zeros((129, 30), complex), 256, device=device, plan_only=True),
    ):
        assert plan.device == place
        assert f"device    {place}, by torch" in str(plan)
        assert json.loads(plan.to_json())["device"] == place
    assert arrays.blur(np.zeros((30, 40)), 2, plan_only=True).device is None


class _Live(TorchDispatchMode):
    """Bytes of tensors that are there at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((made, args, kwargs)):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, place, nbytes):
        self._known.discard(place)
        self.now -= nbytes


@pytest.mark.parametrize(
    "made",
    [
        Products((200, 210), np.dtype(np.float32), (4, 4), ((np.ones(9), np.ones(9)), (np.ones(9), np.arange(9.0)))),
        Products((30, 40, 50), np.dtype(np.float64), (4, 4, 4), ((np.ones(40), np.ones(9), np.ones(9)),)),
        Taps((200, 210), np.dtype(np.float32), (1, 1), np.ones((3, 3))),
        Rated(tuple(Coarse.of(400, next(iter(filters(3.0, 0, 1e-3)))) for _ in range(2)), np.dtype(np.float32)),
        Rated(tuple(Coarse.of(700, list(filters(20.0, 0, 1e-3))[2]) for _ in range(2)), np.dtype(np.float32)),
        Transformed((300, 280), np.dtype(np.float32), (4, 4), np.ones((31, 41))),
        Transformed((50, 60, 70), np.dtype(np.float64), (4, 4, 4), np.ones((9, 9, 9))),
    ],
    ids=lambda made: f"{type(made).__name__} {len(made.sizes)}",
)
def test_a_filters_memory_is_what_was_told(made):
    made = made.fitted(made.sizes, torch.device("cpu"))
    made.prepare(torch.device("cpu"))
    parts = tuple(Interval(0, size) for size in made.sizes)
    near = torch.rand(2, *(part.length for part in made.reads(parts)), dtype=torch.float32 if made.dtype == np.float32 else torch.float64)
    told = made.run_bytes(2, made.sizes) + made.held_bytes
    for bad in (False, True):
        if bad:
            near[0].view(-1)[7] = torch.nan
        with _Live() as seen:
            made.run(near, parts)
        # Small index and tap tensors come on top; a transform back in several axes holds a spectrum more than is seen from outside.
        assert seen.most <= told + 64 * 1024
        assert bad or told <= 1.75 * seen.most


def test_a_process_grows_by_no_more_than_was_planned(tmp_path):
    np.save(tmp_path / "in.npy", RNG.random((96, 160, 160)).astype(np.float32))
    code = """
import re, sys, numpy as np, torch
from sash import arrays
def read(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
source, out = sys.argv[1:]
kernel = np.random.default_rng(0).random((9, 9, 9))
jobs = [lambda **told: arrays.convolve(source, kernel, out, device="cpu", budget="40 MiB", overwrite=True, **told),
        lambda **told: arrays.blur(source, 12, out, device="cpu", budget="40 MiB", overwrite=True, **told)]
for job in jobs:
    planned = job(plan_only=True).peak_bytes
    open("/proc/self/clear_refs", "w").write("5")
    before = read("VmRSS")
    job()
    print(planned, read("VmHWM") - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "in.npy", tmp_path / "out.npy"], capture_output=True, text=True, check=True
    )
    for line in ran.stdout.splitlines():
        planned, grown = map(int, line.split())
        assert grown <= planned <= 40 << 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there_is_named():
    for device in ("cuda", "cuda:3", torch.device("cuda")):
        with pytest.raises(
            InputError, match=r"finds no such device here; device=None runs compiled code on the processor, and device='cpu'"
        ):
            arrays.blur(np.zeros((30, 40)), 2, device=device)


@pytest.mark.parametrize(
    ("source", "told", "message"),
    [
        (np.zeros((30, 40)), {"device": "gpu"}, r"device is 'gpu'; there are 'cpu', 'cuda', and one of several as 'cuda:0'"),
        (np.zeros((30, 40)), {"device": "mps"}, r"device is 'mps'; array jobs run on 'cpu' and 'cuda'"),
        (np.zeros((30, 40)), {"device": 2.5}, r"device is 2.5; there are"),
        (np.zeros((30, 40)), {"device": "cpu", "workers": "tcp://127.0.0.1:1"}, "is an array in this process's memory, .* save it as .npy"),
        (torch.zeros(30, 40), {"device": "cpu", "workers": "tcp://127.0.0.1:1"}, "is an array in this process's memory"),
        (np.zeros((30, 40)), {"device": "gpu", "workers": "tcp://127.0.0.1:1"}, r"device is 'gpu'; there are"),
        (torch.zeros(30, 40, requires_grad=True), {"device": "cpu"}, r"requires a gradient.*give tensor.detach\(\)"),
        (torch.zeros(30, 40, dtype=torch.bfloat16), {"device": "cpu"}, r"is no numpy array.*give tensor.float\(\)"),
        (torch.zeros(30, 40).to_sparse(), {"device": "cpu"}, r"give tensor.float\(\), dense"),
        (torch.zeros(30, 40, device="meta"), {}, "the tensor is on meta"),
        (torch.zeros(0, 40), {"device": "cpu"}, "so it holds none"),
    ],
)
def test_what_cannot_be_meant_is_named(source, told, message):
    with pytest.raises(InputError, match=message):
        arrays.blur(source, 2, **told)
