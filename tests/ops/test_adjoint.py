"""The adjoint of a convolution, held to the inner product that defines it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import conv_adjoint

MODES = ("zeros", "reflect", "replicate", "circular")
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def made(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolved(x, weight, *, pads, mode, **settings):
    flat = [side for pair in reversed(pads) for side in pair]
    x = F.pad(x, flat, "constant" if mode == "zeros" else mode)
    return CONVOLVE[weight.dim() - 2](x, weight, None, **settings)


@st.composite
def layers(draw):
    """An input's shape, a weight's, and how it slides."""
    axes = draw(st.integers(1, 3))
    few = st.integers(1, 3)
    taps, stride, dilation = (tuple(draw(few) for _ in range(axes)) for _ in range(3))
    spans = [gap * (count - 1) + 1 for count, gap in zip(taps, dilation, strict=True)]
    sides = [draw(st.integers(span, span + 6)) for span in spans]
    mode = draw(st.sampled_from(MODES))
    most = {"zeros": 4, "replicate": 4, "reflect": min(sides) - 1, "circular": min(sides)}[mode]
    pads = tuple((draw(st.integers(0, min(most, 4))), draw(st.integers(0, min(most, 4)))) for _ in range(axes))
    groups, inner, outer = draw(few), draw(few), draw(few)
    weight = made(groups * outer, inner, *taps, seed=1)
    return (draw(few), groups * inner, *sides), weight, pads, mode, {"stride": stride, "dilation": dilation, "groups": groups}


@settings(max_examples=150)
@given(layers())
def test_the_inner_products_agree_for_any_window_padding_and_group(layer):
    shape, weight, pads, mode, rest = layer
    x = made(*shape)
    image = convolved(x, weight, pads=pads, mode=mode, **rest)
    y = made(*image.shape, seed=2)
    found = conv_adjoint(y, weight, shape[2:], padding=pads, padding_mode=mode, **rest)
    assert found.shape == x.shape
    scale = image.norm() * y.norm() + x.norm() * found.norm()
    assert ((image * y).sum() - (x * found).sum()).abs() <= 1e-12 * scale
    torch.testing.assert_close(conv_adjoint(y[0], weight, shape[2:], padding=pads, padding_mode=mode, **rest), found[0])


@settings(max_examples=60)
@given(layers())
def test_it_is_what_backward_does_to_a_gradient(layer):
    shape, weight, pads, mode, rest = layer
    x = made(*shape).requires_grad_()
    image = convolved(x, weight, pads=pads, mode=mode, **rest)
    y = made(*image.shape, seed=2)
    (expected,) = torch.autograd.grad(image, x, y)
    found = conv_adjoint(y, weight, shape[2:], padding=pads, padding_mode=mode, **rest)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_size_says_which_of_the_inputs_with_that_many_outputs_is_meant():
    y, weight = made(1, 2, 4), made(2, 3, 3)
    for size in (8, 9, 10):
        extra = F.conv_transpose1d(y, weight, stride=3, padding=2, output_padding=size - 8)
        assert torch.equal(conv_adjoint(y, weight, size, stride=3, padding=2), extra)


@pytest.mark.parametrize("mode", MODES)
def test_the_layer_itself_agrees(mode):
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode=mode, bias=False).double()
    x, y = made(2, 4, 8, 9), made(2, 6, 4, 5, seed=1)
    found = conv_adjoint(y, layer.weight, (8, 9), stride=2, padding=1, groups=2, padding_mode=mode)
    torch.testing.assert_close((layer(x) * y).sum(), (x * found).sum(), rtol=1e-12, atol=1e-12)


def test_padding_in_words_is_read():
    x, weight, y = made(1, 2, 7), made(3, 2, 4), made(1, 3, 7, seed=1)
    image = F.conv1d(F.pad(x, (1, 2)), weight)
    torch.testing.assert_close((image * y).sum(), (x * conv_adjoint(y, weight, 7, padding="same")).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_are_right(mode):
    y, weight = made(1, 2, 4).requires_grad_(), made(2, 1, 3).requires_grad_()

    def call(y, weight):
        return conv_adjoint(y, weight, 8, stride=2, padding=1, padding_mode=mode)

    assert torch.autograd.gradcheck(call, (y, weight))
    assert torch.autograd.gradgradcheck(call, (y, weight))


class Adjoint(nn.Module):
    """The adjoint of a padded convolution."""

    def __init__(self, mode):
        super().__init__()
        self.weight, self.mode = nn.Parameter(torch.randn(4, 3, 3, 3)), mode

    def forward(self, y):
        return conv_adjoint(y, self.weight, (64, 63), stride=2, padding=1, padding_mode=self.mode)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_empty_batches_autocast_export_and_tensors_without_values(mode):
    model, y = Adjoint(mode), torch.randn(2, 4, 32, 32)
    assert model(y[:0]).shape == (0, 3, 64, 63)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(y)
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), model(y), rtol=0.05, atol=0.2)
    batch = ({0: torch.export.Dim("batch")},)
    torch.testing.assert_close(torch.export.export(model, (torch.randn(3, 4, 32, 32),), dynamic_shapes=batch).module()(y), model(y))
    for context in (FakeTensorMode(), torch.device("meta")):
        with context:
            assert Adjoint(mode)(torch.empty(2, 4, 32, 32)).shape == (2, 3, 64, 63)


def test_the_forecast_of_a_training_step_is_what_is_measured():
    work = sash.Workload(Adjoint("circular"), "16x4x32x32", train=True)
    forecast, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert abs(forecast - measured) <= 0.005 * measured


WEIGHT = torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, 12, stride=2, padding=1),
            "y is 1x4x5x5, and an input of 12 samples on spatial axis 0 gives 6 outputs; sizes that give 5: from 9 to 10",
        ),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, (7, 8)), "an input of 8 samples on spatial axis 1 gives 6 .* give 5: 7"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 0, 5), WEIGHT, (2, 7)), "no input gives none"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, (7,)), r"size is \(7,\), 1 entries, and the weight has 2 spatial axes"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5).long(), WEIGHT, 7), "y is of type torch.int64; it has to be floating"),
        (lambda: conv_adjoint(torch.zeros(1, 3, 5, 5), WEIGHT, 7), "y is 1x3x5x5, and the weight 4x3x3x3 makes 4 channels"),
        (lambda: conv_adjoint(torch.zeros(5, 5), WEIGHT, 7), "y is 5x5"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, 7, groups=3), "groups is 3, and the weight 4x3x3x3 has 4 output channels"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5), WEIGHT[0], 7), "y is 1x4x5, and the weight 3x3x3 makes 3"),
        (lambda: conv_adjoint(torch.zeros(4), torch.zeros(4), 7), "the weight is 4; it has to be out x channel x window"),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT.to("meta"), 7), "y is on cpu and the weight on meta"),
        (
            lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, 3, padding=3, padding_mode="reflect"),
            r"reflect padding \(3, 3\) was asked for on an axis of 3; it reaches 2 at most",
        ),
        (lambda: conv_adjoint(torch.zeros(1, 4, 5, 5), WEIGHT, 7, padding_mode="wrap"), "padding_mode is 'wrap'"),
    ],
)
def test_what_does_not_go_together_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()
