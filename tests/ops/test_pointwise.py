"""Linear layers and 1×1 convolutions, one made of the other."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sash.errors import InputError
from sash.ops import conv_to_linear, linear_to_conv


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back_every_bit_of_the_weights_is_kept(axes, bias):
    linear = nn.Linear(5, 7, bias=bias)
    conv = linear_to_conv(linear, axes)
    assert type(conv) is (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    assert conv.weight.shape == (7, 5, *(1,) * axes)
    assert torch.equal(conv.weight.flatten(1), linear.weight)
    back = conv_to_linear(conv)
    for name, parameter in linear.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter)
    assert (back.in_features, back.out_features, repr(back)) == (5, 7, repr(linear))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_both_make_the_same_to_the_last_bit_where_sums_are_exact(axes):
    # Of small whole numbers every sum is exact, in whatever order the kernels add.
    linear = nn.Linear(40, 30)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randint(-9, 10, parameter.shape))
    x = torch.randint(-9, 10, (3, 40, *(4,) * axes)).float()
    expected = linear(x.movedim(1, -1)).movedim(-1, 1)
    assert torch.equal(linear_to_conv(linear, axes)(x), expected)
    assert torch.equal(conv_to_linear(linear_to_conv(linear, axes))(x.movedim(1, -1)).movedim(-1, 1), expected)


@pytest.mark.parametrize("features", [1, 3, 64, 1000])
def test_other_numbers_differ_by_the_rounding_that_is_stated(features):
    torch.manual_seed(0)
    linear, x = nn.Linear(features, 50), torch.randn(2, features, 9, 7)
    found, expected = linear_to_conv(linear)(x), linear(x.movedim(1, -1)).movedim(-1, 1)
    sums = torch.nn.functional.conv2d(x.abs(), linear.weight.abs()[..., None, None], linear.bias.abs())
    assert ((found - expected).abs() <= 2 * features * 2**-24 * sums).all()


def test_type_device_gradient_and_mode_stay_and_nothing_is_shared_or_drawn():
    linear = nn.Linear(2, 3, dtype=torch.bfloat16).eval()
    linear.bias.requires_grad_(False)
    state = torch.get_rng_state()
    conv = linear_to_conv(linear)
    back = conv_to_linear(conv)
    assert torch.equal(torch.get_rng_state(), state)
    for module in (conv, back):
        assert module.weight.dtype is torch.bfloat16
        assert (module.weight.requires_grad, module.bias.requires_grad, module.training) == (True, False, False)
    with torch.no_grad():
        conv.weight.zero_()
    assert linear.weight.count_nonzero() == back.weight.count_nonzero() == 6
    assert linear_to_conv(nn.Linear(2, 3, device="meta")).weight.is_meta
    with FakeTensorMode():
        assert linear_to_conv(nn.Linear(2, 3))(torch.empty(1, 2, 4, 4)).shape == (1, 3, 4, 4)


def test_padding_in_words_adds_nothing_to_one_tap():
    for word in ("same", "valid"):
        assert conv_to_linear(nn.Conv2d(2, 3, 1, padding=word)).weight.shape == (3, 2)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: linear_to_conv(nn.Linear(2, 3), 4), "axes is 4; a convolution has 1, 2 or 3"),
        (lambda: linear_to_conv(nn.ReLU()), "a ReLU was given; only an nn.Linear"),
        (lambda: linear_to_conv(nn.LazyLinear(3)), "has no weights yet; run it once first"),
        (lambda: conv_to_linear(nn.Linear(2, 3)), "a Linear was given; only an nn.Conv1d"),
        (lambda: conv_to_linear(nn.Conv2d(2, 3, 3)), "the convolution's window is 3x3; only a 1×1"),
        (lambda: conv_to_linear(nn.Conv2d(2, 3, 1, stride=2)), r"has stride \(2, 2\); a linear layer has none"),
        (lambda: conv_to_linear(nn.Conv2d(2, 3, 1, padding=1)), r"has padding \(1, 1\)"),
        (lambda: conv_to_linear(nn.Conv1d(2, 4, 1, groups=2)), "has 2 groups"),
        (lambda: conv_to_linear(nn.ConvTranspose1d(2, 4, 1)), "a ConvTranspose1d was given"),
    ],
)
def test_what_cannot_be_turned_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()
