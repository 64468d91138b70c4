import pytest
import torch

import sash
from sash.errors import InputError
from sash.models import FAMILIES, SeparableConv, plain_conv, unet

KINDS = ("plain", "separable", "fused")


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "classes", "count"), [("plain", 1, 17_267_393), ("plain", 21, 17_268_693), ("separable", 1, 1_983_583)])
def test_the_u_net_has_its_known_parameters(kind, classes, count):
    assert parameters(unet(kind, classes=classes)) == count


def test_a_separable_convolution_has_the_parameters_its_docstring_says():
    assert parameters(plain_conv(24, 40)) == 9 * 24 * 40 + 40
    assert parameters(SeparableConv(24, 40)) == 10 * 24 + 24 * 40 + 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(32, 48), (21, 35)])
def test_scores_have_the_size_of_the_picture(kind, sides):
    model = unet(kind, in_channels=2, classes=5, width=4, depth=3)
    assert model(torch.randn(2, 2, *sides)).shape == (2, 5, *sides)


def test_every_parameter_gets_a_gradient():
    model = unet("separable", width=4, depth=2)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_each_side_is_halved_once_a_level():
    seen = []
    model = unet(width=2, depth=4)
    for down in model.down:
        down.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 64, 96))
    assert seen == [(4, 32, 48), (8, 16, 24), (16, 8, 12), (16, 4, 6)]


@pytest.mark.parametrize(("settings", "message"), [({"kind": "wide"}, "'wide' is not a kind"), ({"depth": 0}, "depth=0")])
def test_what_cannot_be_built_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        unet(**settings)


@pytest.mark.parametrize("kind", ["separable", "fused"])
def test_the_command_line_knows_both_separable_kinds(kind):
    with torch.device("meta"):
        assert parameters(FAMILIES[f"unet-{kind}"]()) == 1_983_583


def test_the_fused_kind_takes_the_separable_ones_weights_and_gives_its_scores_and_gradients():
    torch.manual_seed(0)
    separable, fused = (unet(kind, width=4, depth=2).double() for kind in ("separable", "fused"))
    fused.load_state_dict(separable.state_dict())
    x = torch.randn(2, 3, 17, 24, dtype=torch.float64)
    expected, found = separable(x), fused(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(expected, [*separable.parameters()], towards),
        torch.autograd.grad(found, [*fused.parameters()], towards),
        strict=True,
    ):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_the_fused_kind_trains_in_less_memory_than_the_separable_one():
    peaks = {kind: sash.forecast(sash.Workload(unet(kind, width=16, depth=2), "1x3x512x512", train=True)).peak_bytes for kind in KINDS}
    # What is left are the inputs of convolutions and norms, which both kinds save.
    assert peaks["fused"] < 0.85 * peaks["separable"]
    assert peaks["plain"] < peaks["separable"]
