"""Deconvolutions, held to `convolve`, to explicit matrices, and to the errors that they announce."""

import itertools
from functools import lru_cache

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash import arrays
from sash.arrays import _region as region
from sash.arrays._deconvolve import deconvolve
from sash.errors import InputError

BOUNDARIES = ("reflect", "mirror", "nearest", "wrap", "constant")


def gauss(sigma, axes=2):
    radius = int(np.ceil(8 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    return taps if axes == 1 else np.outer(taps, taps)


def off(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def blurred(signal, kernel, boundary, **told):
    return arrays.convolve(signal, kernel, boundary=boundary, tolerance=1e-13, **told)


@pytest.mark.parametrize("boundary", ["wrap", "reflect", "mirror"])
@pytest.mark.parametrize("shape", [(512, 512), (509, 300), (40, 1), (1, 33), (2, 3), (6, 5)])
def test_a_gaussian_of_sigma_1_is_undone_to_ten_digits(boundary, shape):
    signal = np.random.default_rng(0).random(shape)
    # Of kernels that reach round twice, scipy.ndimage reads what is beside the array.
    small = min(shape) < 17
    data = blurred(signal, gauss(1), boundary) if small else scipy.ndimage.convolve(signal, gauss(1), mode=boundary)
    assert off(deconvolve(data, gauss(1), boundary=boundary, noise=0), signal) <= 1e-10


@settings(max_examples=40)
@given(st.tuples(st.integers(1, 30), st.integers(1, 40)), st.tuples(st.integers(1, 9), st.integers(1, 60)), st.integers(0, 2**31))
def test_any_kernel_around_a_large_tap_is_undone_where_borders_wrap(shape, sides, seed):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(sides)
    kernel.flat[rng.integers(kernel.size)] += 2 * np.abs(kernel).sum()
    signal = rng.random(shape)
    found = deconvolve(blurred(signal, kernel, "wrap"), kernel, noise=0, method="inverse")
    np.testing.assert_allclose(found, signal, atol=1e-11)


@settings(max_examples=30)
@given(
    st.sampled_from(["reflect", "mirror"]),
    st.tuples(st.integers(1, 20), st.integers(1, 30)),
    st.tuples(st.integers(0, 4), st.integers(0, 40)),
    st.integers(0, 2**31),
)
def test_any_symmetric_kernel_is_undone_where_borders_mirror(boundary, shape, radii, seed):
    rng = np.random.default_rng(seed)
    quarter = rng.standard_normal((radii[0] + 1, radii[1] + 1))
    quarter[0, 0] += 10 * np.abs(quarter).sum()
    half = np.concatenate([quarter[:0:-1], quarter])
    kernel = np.concatenate([half[:, :0:-1], half], 1)
    signal = rng.random(shape)
    np.testing.assert_allclose(deconvolve(blurred(signal, kernel, boundary), kernel, boundary=boundary, noise=0), signal, atol=1e-11)


@pytest.mark.parametrize(("shape", "axes"), [((700,), (0,)), ((5, 40, 30), (0,)), ((5, 40, 30), (1,)), ((5, 40, 30), (-1,))])
@pytest.mark.parametrize("boundary", ["wrap", "reflect", "mirror"])
def test_a_kernel_of_one_axis_goes_along_one(shape, axes, boundary):
    kernel = np.array([0.1, 0.25, 1, 0.25, 0.1] if boundary != "wrap" else [0.1, 0.7, 3, -0.4])
    signal = np.random.default_rng(1).random(shape)
    data = blurred(signal, kernel, boundary, axes=axes)
    np.testing.assert_allclose(deconvolve(data, kernel, boundary=boundary, axes=axes, noise=0), signal, atol=1e-12)


def test_channels_and_planes_stay_apart():
    signal = np.random.default_rng(2).random((3, 20, 30, 3))
    data = blurred(signal, gauss(0.7), "reflect", axes=(1, 2))
    np.testing.assert_allclose(deconvolve(data, gauss(0.7), boundary="reflect", axes=(1, 2), noise=0), signal, atol=1e-11)


def test_the_inverse_is_that_of_the_matrix_and_its_condition():
    kernel = np.random.default_rng(3).random((3, 4)) + np.pad([[4.0]], ((1, 1), (1, 2)))
    data = np.random.default_rng(4).random((7, 8))
    matrix = operator((7, 8), kernel.tobytes(), kernel.shape, "wrap")
    np.testing.assert_allclose(deconvolve(data, kernel, noise=0).ravel(), np.linalg.solve(matrix, data.ravel()), atol=1e-12)
    assert deconvolve(data, kernel, plan_only=True).condition == pytest.approx(np.linalg.cond(matrix), rel=1e-9)


@lru_cache
def operator(shape, kernel, sides, boundary):
    """The convolution's matrix."""
    taps = np.frombuffer(kernel).reshape(sides)
    ones = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    return np.stack([blurred(one, taps, boundary).ravel() for one in ones], 1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("sides", [(3, 5), (4, 2), (15, 19), (1, 3)])
def test_the_adjoint_is_the_transposed_matrix(boundary, sides):
    kernel, data = np.random.default_rng(5).standard_normal(sides), np.random.default_rng(6).standard_normal((9, 8))
    wanted = operator((9, 8), kernel.tobytes(), sides, boundary).T @ data.ravel()
    np.testing.assert_allclose(deconvolve(data, kernel, boundary=boundary, adjoint=True).ravel(), wanted, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("shape", "sides"), [((1300, 900), (21, 8)), ((1, 5000), (3, 30)), ((900, 11), (40, 2)), ((1, 1), (3, 3))])
def test_inner_products_with_the_adjoint_are_those_with_the_convolution(boundary, shape, sides):
    rng = np.random.default_rng(7)
    kernel, first, second = rng.standard_normal(sides), rng.standard_normal(shape), rng.standard_normal(shape)
    ahead = np.vdot(blurred(first, kernel, boundary), second)
    back = np.vdot(first, deconvolve(second, kernel, boundary=boundary, adjoint=True))
    assert abs(ahead - back) <= 1e-12 * np.abs(kernel).sum() * np.linalg.norm(first) * np.linalg.norm(second)


def lucy(matrix, data, iterations):
    found, sizes = np.ones(len(data)), matrix.T @ np.ones(len(data))
    for _ in range(iterations):
        found = found * (matrix.T @ (data / (matrix @ found))) / sizes
    return found


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("sides", [(3, 5), (4, 3)])
def test_richardson_lucy_is_that_of_the_matrix(boundary, sides):
    kernel = np.random.default_rng(8).random(sides)
    matrix = operator((9, 8), kernel.tobytes(), sides, boundary)
    data = matrix @ np.random.default_rng(9).random(72) ** 3
    made = deconvolve(data.reshape(9, 8), kernel, boundary=boundary, method="richardson-lucy", iterations=20)
    np.testing.assert_allclose(made.ravel(), lucy(matrix, data, 20), rtol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_richardson_lucy_by_regions_and_phases_is_that_of_the_whole_plane(boundary, monkeypatch):
    kernel, shape = np.random.default_rng(10).random((3, 2)), (90, 110)
    data = blurred(np.random.default_rng(11).random(shape) ** 3, kernel, boundary)
    whole = deconvolve(data, kernel, boundary=boundary, method="richardson-lucy", iterations=7)
    monkeypatch.setattr(region, "_SIDE", 40)
    plan = deconvolve(data, kernel, boundary=boundary, method="richardson-lucy", iterations=7, plan_only=True)
    assert plan.passes == 3
    np.testing.assert_allclose(deconvolve(data, kernel, boundary=boundary, method="richardson-lucy", iterations=7), whole, rtol=1e-9)


def test_richardson_lucy_keeps_darkness_dark_and_the_light():
    data = np.zeros((40, 50))
    data[20, 30] = 5
    data = blurred(data, gauss(1.5), "wrap").clip(0)
    found = deconvolve(data, gauss(1.5), method="richardson-lucy", iterations=50)
    assert found.min() >= 0
    assert found.argmax() == 20 * 50 + 30
    np.testing.assert_allclose(found.sum(), data.sum(), rtol=1e-9)
    assert (deconvolve(np.zeros((9, 9)), gauss(1), method="richardson-lucy") == 0).all()


def signals():
    rng = np.random.default_rng(12)
    shape = (127, 131)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = 1
    pink = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / frequency, shape)
    discs = np.zeros(shape)
    for y, x, r in rng.uniform((0, 0, 3), (127, 131, 25), (30, 3)):
        discs[np.hypot(np.arange(127)[:, None] - y, np.arange(131) - x) < r] = rng.random()
    return {"white": rng.random(shape), "centred": rng.standard_normal(shape), "pink": 0.5 + 0.2 * pink / pink.std(), "discs": discs}


def kernels():
    rng = np.random.default_rng(13)
    disc = (np.hypot(*np.mgrid[-4:5, -4:5]) <= 4).astype(float)
    found = {f"gauss {sigma}": gauss(sigma) for sigma in (0.3, 0.6, 0.8, 1.0, 1.2, 1.5, 2.5)}
    found |= {f"box {side}": np.full((side, side), 1 / side**2) for side in (5, 11)}
    found |= {"random": rng.random((3, 5)), "signed": rng.standard_normal((5, 5)), "motion": np.eye(9)[:, ::-1] / 9}
    found["disc"] = disc / disc.sum()
    return found | {"sharpener": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0.0]]), "row": np.full((1, 5), 0.2)}


@pytest.mark.parametrize("kind", ["float64", "float32", "uint16", 1e-6, 1e-3, 1e-2])
def test_the_error_is_within_ten_times_of_the_announced_one(kind):
    rng, ratios = np.random.default_rng(14), {}
    for (told, kernel), (name, signal), boundary in itertools.product(kernels().items(), signals().items(), ("wrap", "reflect")):
        if boundary == "reflect" and told in ("random", "signed", "motion"):
            continue
        data, noise = blurred(signal, kernel, boundary), None
        if kind == "uint16":
            signal, data = 3000 * signal, np.round(3000 * data)
            if data.min() < 0:
                continue
        if isinstance(kind, float):
            noise = kind
            data = data + noise * rng.standard_normal(data.shape)
        else:
            data = data.astype(kind)
        for method in ("inverse", "wiener") if noise is not None else ("auto",):
            told_of = {"boundary": boundary, "noise": noise, "method": method}
            if told == "gauss 2.5" and method == "inverse":
                continue
            plan = deconvolve(data, kernel, plan_only=True, **told_of)
            found = deconvolve(data, kernel, dtype=np.float64 if kind == "uint16" else None, **told_of)
            ratios[told, name, boundary, method] = plan.error / off(found, signal)
    assert len(ratios) >= 55
    assert {case: ratio for case, ratio in ratios.items() if not 0.1 <= ratio <= 10} == {}


def test_noise_that_stands_out_where_the_kernel_passes_least_is_found():
    rng = np.random.default_rng(15)
    signal = signals()["pink"]
    for deviation in (1e-4, 1e-2):
        data = blurred(signal, gauss(1.2), "reflect") + deviation * rng.standard_normal(signal.shape)
        plan = deconvolve(data, gauss(1.2), boundary="reflect", plan_only=True)
        assert plan.method == "wiener"
        wanted = deconvolve(data, gauss(1.2), boundary="reflect", noise=deviation, plan_only=True)
        assert plan.error == pytest.approx(wanted.error, rel=0.2)
        assert 0.1 <= plan.error / off(deconvolve(data, gauss(1.2), boundary="reflect"), signal) <= 10


@pytest.mark.parametrize("method", ["auto", "inverse", "wiener"])
def test_where_noise_is_hidden_the_error_lies_between_two_that_are_told(method):
    hidden = 0
    for number, (name, signal) in enumerate(signals().items()):
        for sigma, noise, boundary in itertools.product((0.4, 1.2), (0, 1e-8, 1e-4), ("wrap", "mirror")):
            rng = np.random.default_rng(number)
            data = blurred(signal, gauss(sigma), boundary) + noise * rng.standard_normal(signal.shape)
            told = {"boundary": boundary, "method": method}
            try:
                plan = deconvolve(data, gauss(sigma), plan_only=True, **told)
            except InputError:
                # Signal that is like noise for all that the data tell: the message asks for the noise.
                continue
            least, most = plan.error_range
            assert least <= plan.error <= most
            found = off(deconvolve(data, gauss(sigma), **told), signal)
            assert least / 10 <= found <= 10 * most, (name, sigma, noise, boundary)
            if most > 10 * least:
                hidden += 1
                assert "state noise=" in str(plan)
                stated = deconvolve(data, gauss(sigma), plan_only=True, noise=max(noise, 1e-15), **told)
                assert stated.error_range == (stated.error, stated.error)
    assert hidden > 10


def test_wiener_is_nearer_than_the_inverse_and_the_data_where_there_is_noise():
    signal = signals()["discs"]
    data = blurred(signal, gauss(1.2), "wrap") + 0.01 * np.random.default_rng(16).standard_normal(signal.shape)
    found = deconvolve(data, gauss(1.2), noise=0.01)
    assert off(found, signal) < off(data, signal) < off(deconvolve(data, gauss(1.2), noise=0.01, method="inverse"), signal)


def test_wiener_is_the_best_linear_estimate_of_its_model():
    # White signal of variance 1 and noise of .25: the matrix's least squares with a ridge, which any other ridge is worse than.
    rng = np.random.default_rng(17)
    signal = rng.standard_normal((200, 210))
    data = blurred(signal, gauss(0.8), "wrap") + 0.5 * rng.standard_normal(signal.shape)
    passed = np.fft.fft2(np.roll(np.pad(gauss(0.8), ((0, 200 - 15), (0, 210 - 15))), (-7, -7), (0, 1)))
    ideal = np.fft.ifft2(np.fft.fft2(data) * passed.conj() / (np.abs(passed) ** 2 + 0.25)).real
    assert off(deconvolve(data, gauss(0.8), noise=0.5), signal) <= 1.01 * off(ideal, signal)


def test_above_the_condition_an_inverse_is_refused_and_wiener_taken():
    data = blurred(signals()["pink"], gauss(2.5), "wrap")
    for boundary in ("wrap", "reflect", "mirror"):
        with pytest.raises(InputError, match=r"condition is \d\.\de\+\d\d: its spectrum goes from .* at frequency .*method='wiener'"):
            deconvolve(data, gauss(2.5), boundary=boundary, method="inverse")
        plan = deconvolve(data, gauss(2.5), boundary=boundary, plan_only=True)
        assert plan.method == "wiener"
        assert "inverse: refused: condition" in str(plan)
    with pytest.raises(InputError, match="condition is"):
        deconvolve(data, np.array([[1.0, -1.0]]), method="inverse")


def test_borders_and_kernels_without_a_spectrum_are_refused_with_what_works():
    data = np.random.default_rng(18).random((20, 30))
    for boundary in ("nearest", "constant"):
        with pytest.raises(InputError, match=r"has no spectrum to invert; boundary 'wrap'.*richardson-lucy"):
            deconvolve(data, gauss(1), boundary=boundary)
    for kernel in (np.array([[1.0, 2, 3]]), np.array([[1.0], [2.0]]), np.eye(3)):
        for boundary in ("reflect", "mirror"):
            with pytest.raises(InputError, match=r"not symmetric along its (rows|columns).*boundary='wrap' takes any"):
                deconvolve(data, kernel, boundary=boundary)
    # As many taps, one of them nothing.
    even = np.array([[1.0, 4, 1, 0]])
    np.testing.assert_allclose(deconvolve(data, even, boundary="reflect"), deconvolve(data, even[:, :3], boundary="reflect"), atol=1e-13)


@pytest.mark.parametrize(
    ("kernel", "told", "message"),
    [
        (np.zeros((3, 3)), {}, "all of the kernel's taps are 0"),
        (np.ones((3, 3, 3)), {}, "kernels have one or two axes"),
        (np.ones((3, 3), complex), {}, "its taps are real numbers"),
        (np.array([[np.inf]]), {}, "NaN or infinite"),
        (np.ones((3, 3)), {"axes": (0,)}, "the kernel has 2 axes, and goes along axes"),
        (np.ones((3, 3)), {"method": "magic"}, "method is 'magic'; there are auto, inverse"),
        (np.ones((3, 3)), {"noise": -0.1}, r"noise is -0\.1; it is the standard deviation"),
        (np.ones((3, 3)), {"noise": float("nan")}, "noise is nan"),
        (np.ones((3, 3)), {"noise": "loud"}, "noise is 'loud'"),
        (np.ones((3, 3)), {"method": "richardson-lucy", "iterations": 0}, "iterations is 0; give a whole number from 1 on"),
        (np.ones((3, 3)), {"iterations": 3}, "iterations are those of method='richardson-lucy'"),
        (np.ones((3, 3)), {"method": "richardson-lucy", "noise": 1}, "noise is for 'inverse' and 'wiener'"),
        (np.ones((3, 3)), {"adjoint": True, "noise": 1}, "the adjoint is one operator"),
        (-np.ones((3, 3)), {"method": "richardson-lucy"}, r"the kernel has -1 at \(0, 0\)"),
        (np.ones((3, 3)), {"boundary": "round"}, "boundary is 'round'"),
        (np.ones((3, 3)), {"workers": 0}, "workers is 0"),
        (np.ones((3, 3)), {"dtype": complex}, "dtype is complex128; deconvolve writes"),
    ],
)
def test_what_cannot_be_meant_is_named(kernel, told, message):
    with pytest.raises(InputError, match=message):
        deconvolve(np.ones((20, 30)), kernel, **told)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("told", [{"noise": 0}, {"adjoint": True}, {"method": "richardson-lucy"}])
def test_numbers_that_would_spread_everywhere_are_named_by_the_first(bad, told):
    data = np.ones((3, 300, 280, 2), np.float32)
    data[2, 290, 3, 1] = data[1, 7, 5, 0] = bad
    with pytest.raises(InputError, match=rf"holds {bad} at \(1, 7, 5, 0\), which an inverse would spread"):
        deconvolve(data, gauss(0.5), axes=(1, 2), **told)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_numbers_without_squares_are_refused(size):
    with pytest.raises(InputError, match="whose squares float64 does not; scale it first"):
        deconvolve(np.random.default_rng(20).random((30, 30)) * size, gauss(1))


def test_richardson_lucy_takes_no_negative_data():
    data = np.ones((30, 30))
    data[3, 4] = -0.5
    with pytest.raises(InputError, match=r"holds -0\.5 at \(3, 4\), and Richardson–Lucy takes counts"):
        deconvolve(data, gauss(1), method="richardson-lucy")


@pytest.mark.parametrize("dtype", [bool, np.float16, np.complex64])
def test_types_that_are_not_taken_are_named(dtype):
    with pytest.raises(InputError, match=r"the source holds .*; deconvolve takes whole numbers, float32 and float64"):
        deconvolve(np.ones((9, 9), dtype), gauss(1))


def test_types_of_results_follow_the_source_or_what_was_asked_for():
    data = (np.random.default_rng(19).random((30, 40)) * 200).astype(np.uint8)
    kernel = np.array([[0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]])
    exact = deconvolve(data.astype(float), kernel, noise=0)
    for kind, wanted in ((np.uint8, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        made = deconvolve(data.astype(kind), kernel, noise=0)
        assert made.dtype == wanted
        np.testing.assert_allclose(made, exact, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(deconvolve(data, kernel, noise=0, dtype=np.uint8), np.rint(exact.clip(0, 255)))
    made = deconvolve(torch.from_numpy(data), kernel, noise=0)
    assert isinstance(made, torch.Tensor)
    out = np.empty((30, 40), np.float32)
    assert deconvolve(data, kernel, out, noise=0) is out
    np.testing.assert_array_equal(out, made.numpy())


def test_a_constant_is_found_again():
    assert np.abs(deconvolve(np.full((30, 40), 3.0), gauss(1)) - 3).max() < 1e-9
    assert (deconvolve(np.zeros((30, 40)), gauss(1)) == 0).all()
    with pytest.raises(InputError, match="condition is"):
        deconvolve(np.zeros((30, 40)), gauss(3), method="inverse")
