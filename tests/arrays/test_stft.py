"""Transforms of frames: against torch, scipy and their own laws, whatever the cut."""

import os
from dataclasses import replace
from math import floor, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import ShortTimeFFT, get_window

from sash.arrays._istft import istft
from sash.arrays._overlap import overlap_add
from sash.arrays._spectra import mel_bands
from sash.arrays._stft import stft
from sash.arrays._tasks import Cut
from sash.errors import DoesNotFit, InputError
from sash.window import Window

RNG = np.random.default_rng(0)
PADS = {"mirror": "reflect", "reflect": "symmetric", "nearest": "edge", "wrap": "wrap", "constant": "constant"}
WINDOWS = ["hann", "hamming", "blackman", "blackmanharris", "boxcar", "bartlett", "flattop", "cosine", ("kaiser", 8.6), ("gaussian", 20)]


def naive(signal, frame, hop, window="hann", centered=True, boundary="mirror"):
    """As the definition says, in float64."""
    side = frame // 2 if centered else 0
    padded = np.pad(signal.astype(np.float64), side, PADS[boundary]) if side else signal.astype(np.float64)
    taps = get_window(window, frame)
    count = (len(padded) - frame) // hop + 1
    return np.stack([np.fft.rfft(padded[at * hop : at * hop + frame] * taps) for at in range(count)], axis=-1)


def assert_close(found, expected, within):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= within * np.abs(expected).max()


@settings(max_examples=60)
@given(
    frame=st.integers(1, 70),
    hop=st.integers(1, 90),
    length=st.integers(1, 400),
    centered=st.booleans(),
    boundary=st.sampled_from(sorted(PADS)),
    window=st.sampled_from(["hann", "hamming", "boxcar"]),
)
def test_frames_are_those_of_the_definition(frame, hop, length, centered, boundary, window):
    signal = RNG.standard_normal(length)
    if not centered and length < frame:
        with pytest.raises(InputError, match="no frame lies on it"):
            stft(signal, frame, hop, window=window, centered=False)
        return
    found = stft(signal, frame, hop, window=window, centered=centered, boundary=boundary)
    assert found.dtype == np.complex128
    expected = naive(signal, frame, hop, window, centered, boundary)
    side = frame // 2 if centered else 0
    assert found.shape == expected.shape == (frame // 2 + 1, Window(frame, hop, pad=(side, side)).outputs(length))
    assert np.abs(found - expected).max(initial=0) <= 1e-12 * np.abs(signal).max() * frame


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-14), ("float32", 1e-6)])
def test_spectra_are_those_of_torch(centered, dtype, within):
    signal = RNG.standard_normal((2, 30_000)).astype(dtype)
    taps = torch.from_numpy(get_window("hann", 400).astype(dtype))
    expected = torch.stft(torch.from_numpy(signal), 512, 160, 400, window=taps, center=centered, return_complex=True).numpy()
    found = stft(signal, 400, 160, fft_size=512, centered=centered)
    assert found.dtype == expected.dtype
    assert_close(found, expected, within)
    assert found.strides[1] < found.strides[2]


@pytest.mark.parametrize(
    ("ours", "torchs"), [("mirror", "reflect"), ("nearest", "replicate"), ("wrap", "circular"), ("constant", "constant")]
)
def test_the_ends_go_on_as_torch_says_under_other_names(ours, torchs):
    signal = RNG.standard_normal(5000)
    taps = torch.hann_window(256, dtype=torch.float64)
    tensor = torch.from_numpy(signal)[None]
    expected = torch.stft(tensor, 256, 64, window=taps, center=True, pad_mode=torchs, return_complex=True).numpy()[0]
    assert_close(stft(signal, 256, boundary=ours), expected, 1e-14)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_are_those_of_scipy(window):
    signal = RNG.standard_normal(4000)
    taps = get_window(window, 256)
    peer = ShortTimeFFT(taps, 64, 1.0, phase_shift=None)
    found = stft(signal, 256, 64, window=window, boundary="constant")
    # scipy's frame 0 is centred on sample 0 as well; without a shift its phase is that of the frame's first sample.
    expected = peer.stft(signal, p0=0, p1=found.shape[1])
    assert_close(found, expected, 1e-12)
    assert np.array_equal(found, stft(signal, 256, 64, window=taps, boundary="constant"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "float16"])
@pytest.mark.parametrize("output", ["complex", "magnitude", "power", "db", "mel"])
def test_any_budget_and_number_of_workers_make_the_same_bits(dtype, output):
    signal = RNG.standard_normal((2, 70_000))
    signal = (signal * 5000).astype(dtype) if dtype == "int16" else signal.astype(dtype)
    options = {"output": output, "rate_hz": 8000, "mels": 40}
    whole = stft(signal, 256, 32, budget="1 GiB", workers=1, **options)
    with pytest.raises(DoesNotFit) as caught:
        stft(signal, 256, 32, budget=1, **options)
    least = caught.value.least_bytes
    plans = set()
    for budget, workers in (("1 GiB", 3), (least, 1), (2 * least - whole.nbytes, 2)):
        plan = stft(signal, 256, 32, budget=budget, workers=workers, plan_only=True, **options)
        plans.add((plan.tasks, plan.workers))
        assert np.array_equal(stft(signal, 256, 32, budget=budget, workers=workers, **options), whole)
    assert len(plans) > 1
    # Laid out otherwise, and over an array that only reads.
    out = np.empty(whole.shape, whole.dtype)
    signal.setflags(write=False)
    assert stft(signal, 256, 32, out, budget="64 MiB", **options) is out
    assert np.array_equal(out, whole)
    across = np.asfortranarray(signal.T)[::1]
    assert np.array_equal(stft(np.ascontiguousarray(across), 256, 32, axis=0, **options), whole)


def test_whole_numbers_are_shares_of_what_their_type_holds():
    samples = RNG.integers(-30_000, 30_000, 5000).astype(np.int16)
    assert np.array_equal(stft(samples, 512), stft((samples / 32768).astype(np.float32), 512))
    wide = samples.astype(np.int32) << 16
    assert np.array_equal(stft(wide, 512), stft(samples, 512))


def test_power_obeys_parseval():
    signal = RNG.standard_normal(8192)
    power = stft(signal, 512, 512, window="boxcar", centered=False, output="power")
    twice = np.full(257, 2.0)
    twice[[0, -1]] = 1
    assert np.allclose(twice @ power / 512, (signal.reshape(16, 512) ** 2).sum(1), rtol=1e-13)


@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-12), ("float32", 2e-6)])
def test_outputs_follow_from_the_spectra(dtype, within):
    signal = RNG.standard_normal(9000).astype(dtype)
    spectra = stft(signal, 512, 128)
    assert_close(stft(signal, 512, 128, output="magnitude"), np.abs(spectra), within)
    assert_close(stft(signal, 512, 128, output="power"), np.abs(spectra) ** 2, within)
    assert_close(stft(signal, 512, 128, output="db"), 10 * np.log10(np.abs(spectra).astype(np.float64) ** 2).astype(dtype), within)
    assert stft(signal, 512, 128, output="db").dtype == np.dtype(dtype)


def test_silence_is_minus_100_db_and_small_numbers_have_a_magnitude():
    assert np.array_equal(stft(np.zeros(2000), 256, output="db"), np.full((129, 32), -100.0))
    quiet = stft(np.full(2000, 1e-30, np.float32), 256, window="boxcar", output="magnitude")
    assert quiet[0, 4] == pytest.approx(256e-30, rel=1e-6)


def mel_by_hand(size, rate, mels, low, high):
    """Triangles of area 1 between points that are even in Slaney's mel, written from the definition."""

    def mel(hz):
        return hz / (200 / 3) if hz < 1000 else 15 + log(hz / 1000) * 27 / log(6.4)

    def hz(value):
        return value * 200 / 3 if value < 15 else 1000 * 6.4 ** ((value - 15) / 27)

    step = (mel(high) - mel(low)) / (mels + 1)
    points = [hz(mel(low) + step * number) for number in range(mels + 2)]
    table = np.zeros((mels, size // 2 + 1))
    for band in range(mels):
        left, middle, right = points[band : band + 3]
        for number in range(size // 2 + 1):
            at = number * rate / size
            rise = min((at - left) / (middle - left), (right - at) / (right - middle))
            table[band, number] = max(rise, 0) * 2 / (right - left)
    return table


@pytest.mark.parametrize(("mels", "low", "high"), [(40, 0.0, None), (64, 100.0, 7000.0), (1, 0.0, None)])
def test_mel_bands_are_slaneys(mels, low, high):
    signal = RNG.standard_normal(20_000)
    expected = mel_by_hand(1024, 16_000, mels, low, high or 8000.0) @ stft(signal, 1024, 256, output="power")
    found = stft(signal, 1024, 256, output="mel", rate_hz=16_000, mels=mels, low_hz=low, high_hz=high)
    assert_close(found, expected, 1e-12)
    # librosa.filters.mel(sr=22050, n_fft=2048)[0, 1], as its documentation prints it: 0.016.
    bands = mel_bands(2048, 22_050, 128, 0.0, None, np.dtype(np.float64))
    assert bands.weights[0] == pytest.approx(0.01618, abs=5e-5)
    assert bands.first[0] == 1


def test_what_is_no_number_stays_in_its_frames():
    signal = RNG.standard_normal(200_000).astype(np.float32)
    clean = stft(signal, 256, 100)
    signal[100_050] = np.nan
    found = stft(signal, 256, 100)
    touched = np.isnan(found).any(0)
    window = Window(256, 100, pad=(128, 128))
    assert tuple(np.flatnonzero(touched)) == tuple(range(*window.writes(100_050, 100_051, 200_000)))
    assert np.array_equal(found[:, ~touched], clean[:, ~touched])
    assert np.isnan(stft(signal, 256, 100, output="db")).any(0).sum() == touched.sum()


def test_a_hop_may_be_longer_than_the_frame():
    signal = RNG.standard_normal(5000)
    assert_close(stft(signal, 64, 1000, centered=False), naive(signal, 64, 1000, centered=False), 1e-13)


def test_a_tensor_comes_back_for_a_tensor_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    found = stft(torch.zeros(3000), 256)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.complex64
    assert torch.get_num_threads() == before


@settings(max_examples=60)
@given(
    frame=st.integers(2, 80),
    share=st.floats(0.05, 1.0),
    length=st.integers(1, 600),
    centered=st.booleans(),
    window=st.sampled_from(["hann", "hamming", "boxcar", "blackman"]),
    single=st.booleans(),
)
def test_the_inverse_gives_the_signal_or_says_why_not(frame, share, length, centered, window, single):
    hop = max(floor(frame * share), 1)
    signal = RNG.standard_normal((2, length)).astype(np.float32 if single else np.float64)
    if not centered and length < frame:
        return
    spectra = stft(signal, frame, hop, window=window, centered=centered)
    refused = ""
    try:
        found = istft(spectra, frame, hop, window=window, centered=centered, length=length)
    except InputError as error:
        refused, found = str(error), signal
    exact = overlap_add(window, frame, hop).holds
    assert ("there is no inverse" in refused) == (not exact)
    if exact and refused:
        assert "so the inverse would not be exact" in refused
        # All samples are covered between the middles of the first and the last frame.
        assert not centered or length > (spectra.shape[-1] - 1) * hop
        return
    assert found.dtype == signal.dtype
    # A rounding for each of a transform's steps, some eight, 32 times over where the windows add up to little.
    assert np.abs(found - signal).max() <= 8 * 32 * np.finfo(signal.dtype).eps * np.abs(signal).max()


@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-14), ("float32", 5e-7)])
@pytest.mark.parametrize("hop", [512, 300, 256, 64])
def test_the_inverse_is_exact_at_usual_hops(dtype, within, hop):
    signal = RNG.standard_normal((2, 400_000)).astype(dtype)
    spectra = stft(signal, 1024, hop)
    whole = istft(spectra, 1024, hop)
    assert whole.shape == (2, (spectra.shape[-1] - 1) * hop)
    assert_close(whole, signal[:, : whole.shape[1]], within)
    expected = torch.istft(torch.from_numpy(spectra), 1024, hop, window=torch.from_numpy(get_window("hann", 1024).astype(dtype))).numpy()
    assert_close(whole, expected, 2 * within)
    with pytest.raises(DoesNotFit) as caught:
        istft(spectra, 1024, hop, budget=1)
    assert istft(spectra, 1024, hop, budget=caught.value.least_bytes, plan_only=True).tasks > 4
    assert np.array_equal(istft(spectra, 1024, hop, budget=caught.value.least_bytes), whole)
    assert np.array_equal(istft(np.ascontiguousarray(spectra), 1024, hop, workers=1, budget="2 GiB"), whole)


def test_the_inverse_of_a_longer_transform_is_exact_too():
    signal = RNG.standard_normal(16_000)
    found = istft(stft(signal, 400, 160, fft_size=512), 400, 160, fft_size=512, length=16_000)
    assert_close(found, signal, 1e-14)


REFUSED = [
    ({"frame": 0}, "frame is 0; give a whole number of samples from 1 on"),
    ({"frame": 2.5}, r"frame is 2\.5"),
    ({"hop": 0}, "hop is 0"),
    ({"fft_size": 100}, "fft_size is 100, and the frame 256; fft_size=256 holds it"),
    ({"frame": 3000, "centered": False}, "the signal has 2000 samples, and a frame 3000: .* frame=2000 has one"),
    ({"window": "hanx"}, "window is 'hanx' .*nearest to it: hann"),
    ({"window": "kaiser"}, "'kaiser', 8.6"),
    ({"window": np.ones(3)}, r"the window has the shape \(3,\) of float64; a frame of 256 takes \(256,\)"),
    ({"window": np.zeros(256)}, "all zero"),
    ({"boundary": "symmetric"}, "boundary is 'symmetric'; there are reflect, mirror, nearest, wrap, constant"),
    ({"output": "phase"}, "output is 'phase'; there are complex, magnitude, power, db, mel"),
    ({"output": "mel"}, "give rate_hz, as rate_hz=44100"),
    ({"output": "mel", "rate_hz": 8000, "high_hz": 5000}, "they lie in 0 to 4000"),
    (
        {"output": "mel", "rate_hz": 8000, "mels": 200},
        "mel bands lie between two bins, which are 31.25 Hz apart; mels=[0-9]+ has none such",
    ),
    ({"output": "mel", "rate_hz": 8000, "mels": 0}, "mels is 0"),
    ({"rate_hz": -1}, "rate_hz is -1; give samples a second"),
    ({"axis": 1}, r"axis is 1, and the source \(2000,\) has axes 0"),
    ({"workers": 0}, "workers is 0"),
    ({"out": "spectra.tif"}, "has the suffix .tif; this writes .zarr, .npy, .png"),
    ({"out": "spectra.png"}, "complex numbers have no grey; say output='db'"),
    ({"out": np.empty(3)}, r"the output array has the shape \(3,\)"),
    ({"source": np.zeros((2, 2, 100))}, "give .samples,. or .channels, samples."),
    ({"source": np.zeros(100, np.uint8)}, "the source holds uint8"),
    ({"source": np.zeros(100, complex)}, "array.real and array.imag"),
    ({"source": np.zeros(0)}, "holds none"),
]


@pytest.mark.parametrize(("changed", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_named(changed, told):
    with pytest.raises(InputError, match=told):
        stft(**{"source": np.zeros(2000), "frame": 256, **changed})


REFUSED_INVERSE = [
    ({"hop": 256}, "the squared windows add up to 0 to 1: there is no inverse; hop 231 has one"),
    ({"hop": 300}, "there is no inverse; hop 231 has one"),
    ({"frame": 200}, "frames of 200 have spectra of .*101.* a frame of 256 would have made them"),
    ({"source": np.zeros((129, 5))}, "the source holds float64; the inverse takes complex spectra"),
    ({"centered": False}, "over sample 0 of .* add up to 0, .*centered=True, in stft and here"),
    ({"length": 5000}, r"over sample 29[0-9]+ of 5000 .*length=29[0-9]+ \(without length: 2880\) is"),
    ({"source": np.zeros((129, 1), complex)}, "tells no length"),
    ({"out": "sound.flac"}, "this writes .zarr, .npy, .wav"),
]


@pytest.mark.parametrize(("changed", "told"), REFUSED_INVERSE, ids=lambda value: str(value)[:40])
def test_what_cannot_be_inverted_is_named(changed, told):
    with pytest.raises(InputError, match=told):
        istft(**{"source": stft(RNG.standard_normal(2900), 256), "frame": 256, **changed})


def test_a_budget_that_is_too_small_is_told_with_the_least_that_does():
    signal = np.zeros(1_000_000, np.float32)
    with pytest.raises(DoesNotFit, match=r"holds .* MiB at least; the budget is 1\.00 MiB\. To a file, .* give `out`") as caught:
        stft(signal, 1024, 256, budget="1 MiB")
    least = caught.value.least_bytes
    assert stft(signal, 1024, 256, budget=least, plan_only=True).peak_bytes == least
    with pytest.raises(DoesNotFit):
        stft(signal, 1024, 256, budget=least - 1)
    with pytest.raises(DoesNotFit) as caught:
        istft(np.zeros((513, 3000), np.complex64), 1024, budget="1 MiB")
    assert istft(np.zeros((513, 3000), np.complex64), 1024, budget=caught.value.least_bytes).shape == (2999 * 256,)


def test_the_plan_says_what_will_be_done():
    plan = stft(np.zeros(480_000, np.float32), 2048, 512, budget="64 MiB", workers=2, plan_only=True)
    assert (plan.shape, plan.dtype, plan.passes) == ((1025, 938), "complex64", 1)
    assert plan.written_bytes == 1025 * 938 * 8
    assert plan.peak_bytes <= plan.budget_bytes == 64 << 20
    assert "real FFT of 2048" in str(plan)
    assert "hann of 2048" in str(plan)
    assert plan.to_json()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="asks which processors are there")
def test_workers_are_as_many_as_processors():
    plan = stft(np.zeros(4_800_000, np.float32), 2048, 512, budget="1 GiB", plan_only=True)
    assert plan.workers == len(os.sched_getaffinity(0))


def test_blocks_of_spectra_stay_where_they_are_a_small_part_of_what_is_held():
    plain = Cut(1, 64, 1, workers=2, peak_bytes=1 << 30)
    kept = plain.keeping(1 << 19, 2 << 30, False)
    assert kept.keeps
    # Nineteen more for each worker than without.
    assert kept.peak_bytes == plain.peak_bytes + 2 * 19 * (1 << 19)
    # In other processes they stay, and are counted, in any case.
    assert plain.keeping(1 << 19, 2 << 30, True) == plain
    assert plain.keeping(1 << 19, kept.peak_bytes - 1, False) == plain
    assert replace(plain, peak_bytes=16 << 20).keeping(1 << 19, 2 << 30, False).keeps is False
    assert plain.keeping(8 << 20, 2 << 30, False) == plain


def test_a_budget_that_has_no_room_for_blocks_that_stay_makes_the_same_bits():
    signal = np.random.default_rng(3).standard_normal(3_000_000, np.float32)
    ample = stft(signal, 1024, 256, budget="1 GiB", plan_only=True)
    tight = stft(signal, 1024, 256, budget=ample.peak_bytes - 1, plan_only=True)
    assert tight.peak_bytes < ample.peak_bytes
    np.testing.assert_array_equal(stft(signal, 1024, 256, budget="1 GiB"), stft(signal, 1024, 256, budget=ample.peak_bytes - 1))
