"""Limited weight sharing, held to a loop over sections and to full weight sharing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import LimitedSharingConv, limited_sharing_conv


def made(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(x, weight, bias, pool, shift):
    """Section after section, map after map, as the paper writes it."""
    sections, maps, _, size = weight.shape
    units = torch.empty(x.shape[0], maps, sections, dtype=x.dtype)
    for section in range(sections):
        for unit in range(maps):
            places = [section * shift + place for place in range(pool)]
            sums = [(x[:, :, place : place + size] * weight[section, unit]).sum((1, 2)) for place in places]
            units[:, unit, section] = torch.stack(sums).amax(0) + (0 if bias is None else bias[section, unit])
    return units


@given(st.data())
def test_every_section_has_the_largest_output_of_its_own_filters(data):
    few = st.integers(1, 4)
    batch, channels, maps, sections, size, pool, shift, spare = (data.draw(few) for _ in range(8))
    bands = size + pool - 1 + (sections - 1) * shift + min(spare, shift) - 1
    x, weight = made(batch, channels, bands), made(sections, maps, channels, size, seed=1)
    bias = made(sections, maps, seed=2) if data.draw(st.booleans()) else None
    found = limited_sharing_conv(x, weight, bias, pool=pool, shift=shift)
    torch.testing.assert_close(found, by_loop(x, weight, bias, pool, shift), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(limited_sharing_conv(x[0], weight, bias, pool=pool, shift=shift), found[0])


@pytest.mark.parametrize(("size", "pool", "shift"), [(8, 6, 2), (5, 3, 3), (3, 2, 5), (1, 1, 1)])
@pytest.mark.parametrize("activation", [torch.sigmoid, torch.relu])
def test_with_tied_filters_it_is_full_weight_sharing_and_max_pooling_to_the_last_bit(size, pool, shift, activation):
    # Of small whole numbers every sum is exact, in whatever order the kernels add; so are ties, which are many.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (3, 2, 40), generator=generator).float()
    filters, offsets = (torch.randint(-4, 5, shape, generator=generator).float() for shape in ((7, 2, size), (7,)))
    leaves = [x.requires_grad_(), filters.requires_grad_(), offsets.requires_grad_()]
    full = F.max_pool1d(activation(F.conv1d(x, filters, offsets)), pool, shift)
    tied = filters.expand(full.shape[2], -1, -1, -1), offsets.expand(full.shape[2], -1)
    limited = activation(limited_sharing_conv(x, *tied, pool=pool, shift=shift))
    assert torch.equal(limited, full)
    if activation is torch.relu:
        towards = torch.randint(-4, 5, full.shape, generator=generator).float()
        found, expected = (torch.autograd.grad(y, leaves, towards) for y in (limited, full))
        # Below zero ReLU stops the gradient either way: pooled before or after.
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_the_speech_network_of_the_paper_has_fourteen_sections_on_forty_bands():
    layer = LimitedSharingConv(45, 84, 8, bands=40, pool=6, shift=2)
    assert layer.weight.shape == (14, 84, 45, 8)
    assert layer(torch.randn(3, 45, 40)).shape == (3, 84, 14)
    assert LimitedSharingConv(2, 3, 4, bands=9, pool=2, shift=1, bias=False).bias is None


def test_weights_are_drawn_as_torchs_convolution_draws_them():
    torch.manual_seed(0)
    layer, plain = LimitedSharingConv(9, 500, 5, bands=20, pool=2, shift=2), nn.Conv1d(9, 4000, 5)
    for parameter, other in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
        assert parameter.abs().max() <= 1 / 45**0.5
        torch.testing.assert_close(parameter.std(), other.std(), rtol=0.02, atol=0)


def test_the_gradients_are_right():
    x, weight, bias = made(2, 2, 9).requires_grad_(), made(3, 2, 2, 2, seed=1).requires_grad_(), made(3, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: limited_sharing_conv(*given, pool=3, shift=2), (x, weight, bias))


def test_empty_batches_and_tensors_without_values_pass_through():
    layer = LimitedSharingConv(2, 3, 4, bands=9, pool=2, shift=2)
    x = torch.zeros(0, 2, 9, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 3, 3), (0, 2, 9))
    for context in (FakeTensorMode(), torch.device("meta")):
        with context:
            assert LimitedSharingConv(2, 3, 4, bands=9, pool=2, shift=2)(torch.empty(5, 2, 9)).shape == (5, 3, 3)


def test_autocast_and_export_know_it():
    layer, x = LimitedSharingConv(2, 3, 4, bands=9, pool=2, shift=2), torch.randn(4, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)
    graph = torch.export.export(layer, (torch.randn(5, 2, 9),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(graph(x), layer(x))


def test_the_forecast_of_a_training_step_is_what_is_measured():
    work = sash.Workload(LimitedSharingConv(45, 84, 8, bands=40, pool=6, shift=2), "64x45x40", train=True)
    forecast, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert abs(forecast - measured) <= 0.005 * measured


WEIGHT = torch.zeros(3, 4, 2, 5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: limited_sharing_conv(torch.zeros(1, 2, 9), WEIGHT, pool=3, shift=2),
            "3 sections, and 9 bands have room for 2 of 3 outputs of a filter of 5, 2 apart; 11 bands have room for 3",
        ),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 13), WEIGHT, pool=3, shift=2), "13 bands have room for 4"),
        (lambda: limited_sharing_conv(torch.zeros(1, 3, 11), WEIGHT, pool=3, shift=2), "1x3x11.* reads 2 channels; .* batch x 2 x band"),
        (lambda: limited_sharing_conv(torch.zeros(11), WEIGHT, pool=3, shift=2), "the input is 11"),
        (
            lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT[0], pool=3, shift=2),
            "the weight is 4x2x5; it has to be section",
        ),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT[:0], pool=3, shift=2), "the weight is 0x4x2x5; .* each at least 1"),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT, torch.zeros(4), pool=3, shift=2), "bias is 4; it has to be 3x4"),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT.to("meta"), pool=3, shift=2), "on cpu and the weight on meta"),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT, pool=3, shift=0), "shift is 0; it is a whole number from 1 on"),
        (lambda: limited_sharing_conv(torch.zeros(1, 2, 11), WEIGHT, pool=1.5, shift=2), "pool is 1.5"),
        (
            lambda: LimitedSharingConv(2, 4, 5, bands=6, pool=3, shift=2),
            "3 outputs of a filter of 5 reads 7 bands, and there are 6; give fewer",
        ),
    ],
)
def test_what_does_not_go_together_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()
