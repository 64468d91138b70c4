"""The separable convolution in bands, held to the two convolutions it stands for."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import Band, SeparableConv, _separable_bands, band_of, separable_conv
from sash.window import Window

MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ACTIVATIONS = {"none": None, "tanh": torch.tanh, "relu": F.relu, "in place": lambda x: x.relu_(), "gelu": F.gelu}


def torchs(x, depthwise, pointwise, bias=None, *, stride=1, pads=(), dilation=1, mode="zeros", depthwise_bias=None, **rest):
    """The two convolutions as torch has them, with what stands between them."""
    flat = [side for pair in reversed(pads) for side in pair]
    x = F.pad(x, flat, "constant" if mode == "zeros" else mode) if any(flat) else x
    convolve = CONVOLVE[depthwise.dim() - 2]
    t = convolve(x, depthwise, depthwise_bias, stride, 0, dilation, x.shape[1])
    t = (rest.get("activation") or (lambda y: y))(scaled(t, rest.get("norm")))
    return (rest.get("out_activation") or (lambda y: y))(scaled(convolve(t, pointwise, bias), rest.get("out_norm")))


def scaled(t, norm):
    if norm is None:
        return t
    scale, shift = (part.view(-1, *(1,) * (t.dim() - 2)) for part in norm)
    return t * scale + shift


@st.composite
def problems(draw):
    """Inputs, settings and a band of a call; every size small, so that most bands lie on a border."""
    axes = draw(st.integers(1, 3))
    several = st.integers(1, 3)
    size, stride, dilation = (tuple(draw(several) for _ in range(axes)) for _ in range(3))
    spans = [gap * (taps - 1) + 1 for taps, gap in zip(size, dilation, strict=True)]
    sides = [draw(st.integers(max(span - 2, 1), span + 7 - axes)) for span in spans]
    mode = draw(st.sampled_from(MODES))
    most = {"zeros": 4, "replicate": 4, "reflect": min(sides) - 1, "circular": min(sides)}[mode]
    pads = [(draw(st.integers(0, min(most, 4))), draw(st.integers(0, min(most, 4)))) for _ in range(axes)]
    if mode == "zeros" or all(sum(pad) + side >= span for pad, side, span in zip(pads, sides, spans, strict=True)):
        pads = [(before, max(after, span - side - before)) for (before, after), side, span in zip(pads, sides, spans, strict=True)]
    else:
        sides = [max(side, span) for side, span in zip(sides, spans, strict=True)]
    images, channels, multiplier, out = (draw(several) for _ in range(4))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    middle = channels * multiplier
    tensors = {
        "x": made(images, channels, *sides),
        "depthwise": made(middle, 1, *size),
        "pointwise": made(out, middle, *(1,) * axes),
        "bias": made(out) if draw(st.booleans()) else None,
        "depthwise_bias": made(middle) if draw(st.booleans()) else None,
    }
    if axes > 1 and draw(st.booleans()):
        tensors["x"] = tensors["x"].to(memory_format=LAYOUTS[axes + 2])
    norm = (made(middle), made(middle)) if draw(st.booleans()) else None
    out_norm = (made(out), made(out)) if draw(st.booleans()) else None
    between, after = (ACTIVATIONS[draw(st.sampled_from(list(ACTIVATIONS)))] for _ in range(2))
    rest = {"norm": norm, "activation": between, "out_norm": out_norm, "out_activation": after, "stride": stride, "dilation": dilation}
    return tensors, pads, mode, rest, Band(draw(several), draw(st.integers(1, 5)))


def made(*shape):
    return torch.randn(shape, dtype=torch.float64)


def leaves(tensors, rest):
    found = [one for one in tensors.values() if one is not None]
    return found + [part for name in ("norm", "out_norm") for part in rest.get(name) or ()]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=70)
@given(problems())
def test_bands_make_what_the_two_convolutions_make(problem):
    tensors, pads, mode, rest, band = problem
    expected = torchs(**tensors, pads=pads, mode=mode, **rest)
    assert_close(separable_conv(**tensors, padding=tuple(pads), padding_mode=mode, band=band, **rest), expected)
    assert_close(separable_conv(**tensors, padding=tuple(pads), padding_mode=mode, **rest), expected)


@settings(max_examples=70)
@given(problems(), st.data())
def test_bands_have_the_gradients_of_the_two_convolutions(problem, data):
    tensors, pads, mode, rest, band = problem
    wanted = [one.requires_grad_() for one in leaves(tensors, rest) if data.draw(st.booleans())]
    if not wanted:
        return
    expected = torchs(**tensors, pads=pads, mode=mode, **rest)
    found = separable_conv(**tensors, padding=tuple(pads), padding_mode=mode, band=band, **rest)
    towards = torch.randn_like(expected)
    reference = torch.autograd.grad(expected, wanted, towards)
    for one, other in zip(torch.autograd.grad(found, wanted, towards), reference, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_pass_torchs_own_check(mode):
    inputs = [made(1, 1, 5, 3), made(2, 1, 3, 2), made(2, 2, 1, 1), made(2), made(2)]

    def call(x, depthwise, pointwise, bias, depthwise_bias):
        words = {"depthwise_bias": depthwise_bias, "padding": 1, "padding_mode": mode, "stride": (2, 1), "activation": torch.tanh}
        return separable_conv(x, depthwise, pointwise, bias, band=Band(1, 2), **words)

    for one in inputs:
        one.requires_grad_()
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 1), ((0, 1), (2, 0)), [[0, 1], [2, 0]]])
def test_padding_reads_as_in_torchs_layers_or_as_pairs(padding):
    x, depthwise, pointwise = made(2, 3, 9, 8), made(3, 1, 4, 3), made(2, 3, 1, 1)
    pads = {"same": ((1, 2), (1, 1)), "valid": ((0, 0), (0, 0)), 1: ((1, 1), (1, 1)), (2, 1): ((2, 2), (1, 1))}.get(
        str(padding) if isinstance(padding, list) else padding, padding
    )
    found = separable_conv(x, depthwise, pointwise, padding=padding, band=Band(1, 2))
    assert_close(found, torchs(x, depthwise, pointwise, pads=pads))
    if padding == "same":
        assert found.shape[2:] == x.shape[2:]


def test_an_input_without_a_batch_gives_an_output_without_one():
    x, depthwise, pointwise = made(3, 9), made(3, 1, 3), made(4, 3, 1)
    found = separable_conv(x, depthwise, pointwise, band=Band(1, 2))
    assert found.shape == (4, 7)
    assert_close(found, separable_conv(x[None], depthwise, pointwise)[0])


def test_an_empty_batch_stays_empty():
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = separable_conv(x, torch.zeros(3, 1, 3, 3), torch.zeros(5, 3, 1, 1), band=Band(1, 2))
    assert y.shape == (0, 5, 6, 6)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("last", [True, False])
def test_the_output_and_the_gradient_are_laid_out_as_torch_does(axes, last):
    layout = LAYOUTS[axes + 2] if last else torch.contiguous_format
    x = torch.randn(2, 8, *(6,) * axes).to(memory_format=layout).requires_grad_()
    depthwise, pointwise = torch.randn(8, 1, *(3,) * axes), torch.randn(4, 8, *(1,) * axes)
    y = separable_conv(x, depthwise, pointwise, band=Band(1, 2))
    assert y.stride() == torchs(x, depthwise, pointwise).stride()
    y.sum().backward()
    assert x.grad.stride() == x.stride()


def test_weights_laid_out_channels_last_give_an_output_channels_last():
    model = SeparableConv(8, 4, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6)
    first, second = model.depthwise, model.pointwise
    expected = second(F.conv2d(x, first.weight, first.bias, padding=1, groups=8))
    found = separable_conv(x, first.weight, second.weight, second.bias, padding=1, depthwise_bias=first.bias, band=Band(1, 2))
    assert found.stride() == expected.stride()


def test_bf16_sums_gradients_of_weights_in_fp32():
    torch.manual_seed(0)
    exact = [made(1, 4, 64, 32), made(4, 1, 3, 3) / 3, made(4, 4, 1, 1) / 2]
    low = [one.to(torch.bfloat16).requires_grad_() for one in exact]
    exact = [one.detach().double().requires_grad_() for one in low]
    towards = torch.randn(1, 4, 64, 32).to(torch.bfloat16)
    y = separable_conv(*low, padding=1, band=Band(1, 1))
    assert y.dtype is torch.bfloat16
    y.backward(towards)
    torchs(*exact, pads=((1, 1), (1, 1))).backward(towards.double())
    for one, other in zip(low, exact, strict=True):
        assert one.grad.dtype is torch.bfloat16
        # Three roundings to 8 bits; a sum of 64 bands in bf16 would be off by percents.
        assert (one.grad.double() - other.grad).abs().max() < 0.01 * other.grad.abs().max()


def test_autocast_runs_it_in_the_low_type_and_keeps_gradients_in_fp32():
    model, x = SeparableConv(4, 8, padding=1), torch.randn(2, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        banded = separable_conv(x, model.depthwise.weight, model.pointwise.weight, padding=1, band=Band(1, 3))
    assert y.dtype is banded.dtype is torch.bfloat16
    banded.float().sum().backward()
    assert model.depthwise.weight.grad.dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert separable_conv(made(1, 1, 4), made(1, 1, 3), made(1, 1, 1)).dtype is torch.float64


def test_fake_tensors_and_meta_tensors_give_the_shape():
    for context in (FakeTensorMode(), torch.device("meta")):
        with context:
            x, depthwise, pointwise = torch.empty(2, 3, 40, 30, requires_grad=True), torch.empty(6, 1, 3, 5), torch.empty(7, 6, 1, 1)
            y = separable_conv(x, depthwise, pointwise, padding=1, padding_mode="reflect", stride=2, band=Band(1, 4))
            assert y.shape == (2, 7, 20, 14)
            y.sum().backward()
            assert x.grad.shape == x.shape


def test_export_keeps_the_sides_free():
    model = SeparableConv(3, 5, padding=1)
    side = torch.export.Dim("side", min=8, max=4096)
    graph = torch.export.export(model, (torch.randn(1, 3, 64, 64),), dynamic_shapes=({2: side},)).module()
    x = torch.randn(1, 3, 33, 64)
    torch.testing.assert_close(graph(x), model(x))


def test_the_forecast_of_a_banded_step_is_what_is_measured():
    model = SeparableConv(32, 32, padding=1)
    work = sash.Workload(nn.Sequential(model), "1x32x512x256", train=True)
    forecast, measured = sash.forecast(work), sash.measure(work)
    assert measured.peak_bytes <= forecast.peak_bytes * 1.005
    assert forecast.peak_bytes <= measured.peak_bytes * 1.005


def test_the_peak_on_a_large_map_is_below_that_of_the_two_convolutions():
    shape, one_map = "1x64x512x512", 64 * 512 * 512 * 4
    for train in (False, True):
        plain = sash.forecast(sash.Workload(nn.Sequential(pair()), shape, train=train))
        fused = sash.forecast(sash.Workload(nn.Sequential(Fused(False)), shape, train=train))
        assert fused.peak_bytes < plain.peak_bytes - one_map


def test_lean_keeps_no_map_between_on_small_ones_either():
    one_map = 64 * 128 * 128 * 4

    def peak(block, blocks):
        return sash.forecast(sash.Workload(nn.Sequential(*(block() for _ in range(blocks))), "1x64x128x128", train=True)).peak_bytes

    assert peak(pair, 10) - peak(pair, 6) >= 8 * one_map
    assert peak(lambda: Fused(True), 10) - peak(lambda: Fused(True), 6) < 4.1 * one_map


def pair():
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1))


class Fused(nn.Module):
    def __init__(self, lean):
        super().__init__()
        self.layer, self.lean = SeparableConv(64, 64, padding=1), lean

    def forward(self, x):
        first, second = self.layer.depthwise, self.layer.pointwise
        return separable_conv(x, first.weight, second.weight, second.bias, padding=1, depthwise_bias=first.bias, lean=self.lean)


def test_lean_saves_the_input_and_the_weights_only():
    saved = []
    x, depthwise, pointwise = torch.randn(1, 2, 8, 8, requires_grad=True), torch.randn(2, 1, 3, 3), torch.randn(3, 2, 1, 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        separable_conv(x, depthwise, pointwise, lean=True)
    assert [tuple(one.shape) for one in saved] == [(1, 2, 8, 8), (2, 1, 3, 3), (3, 2, 1, 1)]


@given(st.integers(1, 40), st.integers(1, 600), st.lists(st.integers(1, 600), min_size=1, max_size=3), st.integers(1, 9))
def test_bands_cover_the_output_once_and_keep_their_size(images, channels, sides, taps):
    window = Window(taps)
    band = band_of(images, channels, sides, 4, window=window)
    pieces = list(_separable_bands.bands(images, sides[0], band))
    assert sum((i.stop - i.start) * (r.stop - r.start) for i, r in pieces) == images * sides[0]
    assert all(one.stop == other.start or other.start == 0 for (_, one), (_, other) in pairwise(pieces))
    total = images * channels * math.prod(sides) * 4
    if band == Band(images, sides[0]):
        assert total <= _separable_bands.WHOLE_BYTES or (images == 1 and sides[0] <= max(taps - 1, 1))
    else:
        assert len(pieces) > 1
        per_row = channels * math.prod(sides[1:]) * 4
        assert band.images == 1 or band.rows == sides[0]
        limit = max(_separable_bands.BAND_BYTES, total / _separable_bands.MOST_BANDS)
        assert band.images * band.rows * per_row <= max(limit, per_row * max(taps - 1, 1))


def test_small_maps_run_whole_and_large_ones_in_rows():
    assert band_of(1, 512, (64, 64), 4) == Band(1, 64)
    assert band_of(1, 192, (256, 256), 4) == Band(1, 37)
    assert band_of(64, 128, (56, 56), 4) == Band(5, 56)


WEIGHT, MIXING = torch.zeros(6, 1, 3, 3), torch.zeros(4, 6, 1, 1)


@pytest.mark.parametrize(
    ("x", "depthwise", "pointwise", "settings", "message"),
    [
        ((1, 5, 8, 8), WEIGHT, MIXING, {}, "6x1x3x3, and the input 1x5x8x8 has 5 channels; it has to be 5"),
        ((1, 3, 8, 8), WEIGHT.mT.expand(6, 2, 3, 3), MIXING, {}, "6x2x3x3"),
        ((1, 6, 8, 8), WEIGHT, torch.zeros(4, 5, 1, 1), {}, "4x5x1x1; after 6 depthwise channels it has to be outx6x1x1"),
        ((1, 6, 8, 8), WEIGHT, torch.zeros(4, 6, 3, 3), {}, "has to be outx6x1x1"),
        ((6, 8), WEIGHT, MIXING, {}, "the input is 6x8, .* it has to have 4 axes, or 3 without a batch"),
        ((1, 6, 8, 8), torch.zeros(6, 1), MIXING, {}, "6x1; it has to be channels x 1 x window"),
        ((1, 6, 2, 8), WEIGHT, MIXING, {}, "spatial axis 0 has 2 samples .* spans 3; pad by 1 more"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"bias": torch.zeros(5)}, "bias is 5; it has to be 4 numbers"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"depthwise_bias": torch.zeros(4)}, "depthwise_bias is 4; it has to be 6 numbers"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"norm": (torch.ones(4), torch.ones(6))}, "norm's scale is 4, and the map has 6 channels"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"out_norm": (torch.ones(4), torch.ones(6))}, "out_norm's shift is 6, and the map has 4"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding_mode": "mirror"}, "'mirror'; it may be 'zeros', 'reflect'"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding": "full"}, "'full'; as a word it may be"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding": "same", "stride": 2}, "stride 1 only"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding": (1, 1, 1)}, "3 entries, and the depthwise weight has 2 spatial axes"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"stride": 0}, "stride is a whole number from 1"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding": 8, "padding_mode": "reflect"}, r"reflect padding \(8, 8\) .* axis 0 of 8; it reaches 7"),
        ((1, 6, 8, 8), WEIGHT, MIXING, {"padding": 9, "padding_mode": "circular"}, "it reaches 8 at most"),
    ],
)
def test_what_does_not_go_together_is_named(x, depthwise, pointwise, settings, message):
    with pytest.raises(InputError, match=message):
        separable_conv(torch.zeros(x), depthwise, pointwise, **settings)


def test_whole_numbers_and_mixed_types_are_named():
    x, depthwise, pointwise = torch.zeros(1, 2, 4), torch.zeros(2, 1, 3), torch.zeros(2, 2, 1)
    with pytest.raises(InputError, match=r"the input is of type torch.int64; it has to be floating"):
        separable_conv(x.long(), depthwise, pointwise)
    with pytest.raises(InputError, match=r"the pointwise weight is of type torch.float64 and the input of torch.float32"):
        separable_conv(x, depthwise, pointwise.double())
    with pytest.raises(InputError, match=r"bias is on meta and the input on cpu"):
        separable_conv(x, depthwise, pointwise, torch.zeros(2, device="meta"))


@pytest.mark.parametrize(("images", "rows"), [(0, 1), (1, 0), (1, 1.5)])
def test_a_band_of_nothing_is_refused(images, rows):
    with pytest.raises(InputError, match="at least 1 of each"):
        Band(images, rows)


def test_an_activation_that_would_lose_a_gradient_is_refused():
    x, depthwise, pointwise = torch.zeros(1, 2, 4, requires_grad=True), torch.zeros(2, 1, 3), torch.zeros(2, 2, 1)
    for name in ("activation", "out_activation"):
        with pytest.raises(InputError, match=r"PReLU.* has parameters"):
            separable_conv(x, depthwise, pointwise, **{name: nn.PReLU()})
    with pytest.raises(InputError, match="has to keep the shape"):
        separable_conv(x, depthwise, pointwise, activation=lambda y: y.sum(1))
    with torch.no_grad():
        separable_conv(x, depthwise, pointwise, activation=nn.PReLU())


def test_the_layer_has_the_parameters_of_two_convolutions_and_makes_the_same():
    layer = SeparableConv(4, 6, (3, 5), padding=(1, 2), stride=2, multiplier=2, activation=torch.tanh).double()
    assert list(layer.state_dict()) == ["depthwise.weight", "depthwise.bias", "pointwise.weight", "pointwise.bias"]
    x, pads = made(2, 4, 9, 9), ((1, 1), (2, 2))
    first, second = layer.depthwise, layer.pointwise
    words = {"stride": 2, "depthwise_bias": first.bias, "activation": torch.tanh}
    assert_close(layer(x), torchs(x, first.weight, second.weight, second.bias, pads=pads, **words))
    with pytest.raises(InputError, match="axes is 4"):
        SeparableConv(4, 6, axes=4)
