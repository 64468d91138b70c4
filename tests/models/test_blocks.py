"""Blocks beside the residual ones, held to their sums written out and to torchvision's."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.models import inverted_residual, mlpconv, separable_block


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def torchvision():
    bench = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, bench)
    try:
        yield importlib.import_module("_torchvision").torchvision
    finally:
        sys.path.remove(bench)


def test_an_mlpconv_is_a_small_network_applied_at_every_position():
    torch.manual_seed(0)
    block = mlpconv(3, (8, 6, 4), 5).double()
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    found = block(x)
    assert found.shape == (2, 4, 9, 7)
    windows = F.unfold(x, 5, padding=2).transpose(1, 2)
    layers = [layer for layer in block if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        windows = F.linear(windows, layer.weight.flatten(1), layer.bias).relu()
    torch.testing.assert_close(found, windows.transpose(1, 2).unflatten(2, (9, 7)), rtol=1e-12, atol=1e-12)
    assert mlpconv(3, (8,), 3, stride=2)(x.float()).shape == (2, 8, 5, 4)


def test_a_separable_block_has_the_weights_its_docstring_says():
    block = separable_block(6, 10, stride=2)
    assert count(block) == 9 * 6 + 6 * 10 + 2 * (6 + 10)
    assert block(torch.randn(2, 6, 9, 8)).shape == (2, 10, 5, 4)


@pytest.mark.parametrize(("before", "after", "stride", "expand"), [(8, 8, 1, 6), (8, 8, 2, 6), (8, 12, 1, 6), (8, 8, 1, 1), (8, 4, 2, 1)])
def test_an_inverted_residual_with_torchvisions_weights_is_torchvisions(torchvision, before, after, stride, expand):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenetv2.InvertedResidual(before, after, stride, expand).double()
    ours = inverted_residual(before, after, stride, expand).double()
    weights = theirs.state_dict().values()
    assert [value.shape for value in ours.state_dict().values()] == [value.shape for value in weights]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    x = torch.randn(2, before, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_an_inverted_residual_adds_its_input_only_where_nothing_changes():
    x = torch.randn(1, 8, 6, 6)
    for block in (inverted_residual(8, 8), inverted_residual(8, 8, stride=2), inverted_residual(8, 9)):
        nn.init.zeros_(block.residual[-1].weight)
        assert torch.equal(block(x), x) == block.adds
        assert block(x).any() == block.adds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlpconv(3, (), 3), "widths=.*at least 1"),
        (lambda: inverted_residual(8, 8, expand=0), "expand=0: an inverted residual has at least 1"),
    ],
)
def test_what_cannot_be_built_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
