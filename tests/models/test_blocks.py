"""Blocks beside the residual ones, held to their sums written out and to torchvision's."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.models import gated_block, inverted_residual, mlpconv, separable_block


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 1), (4, 1, 2), (3, 2, 3), (1, 3, 1)])
def test_a_gated_block_is_its_convolution_written_out(size, stride, dilation, causal):
    torch.manual_seed(0)
    block = gated_block(3, 4, size, stride=stride, dilation=dilation, causal=causal).double()
    x = torch.randn(2, 3, 17, dtype=torch.float64)
    room = dilation * (size - 1)
    padded = F.pad(x, (room, 0) if causal else (room // 2, room - room // 2))
    both = F.conv1d(padded, block.convolution.weight, block.convolution.bias, stride, dilation=dilation)
    expected = both[:, :4].sigmoid() * both[:, 4:].tanh()
    found = block(x)
    assert found.shape == (2, 4, -(-17 // stride))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", [None, "project"])
def test_a_causal_gated_block_reads_nothing_that_comes_later(way):
    torch.manual_seed(0)
    block = gated_block(3, 4, 3, stride=2, dilation=2, causal=True, way=way)
    x = torch.randn(1, 3, 20, requires_grad=True)
    y = block(x)
    for step in range(y.shape[2]):
        (gradient,) = torch.autograd.grad(y[..., step].sum(), x, retain_graph=True)
        assert not gradient[..., 2 * step + 1 :].any()
        assert gradient[..., 2 * step].any()


@pytest.mark.parametrize(("way", "out", "stride"), [("crop", 3, 1), ("project", 5, 2), ("pool", 3, 2), (("pool", "pad"), 5, 2)])
def test_a_gated_block_adds_its_input_in_the_way_that_is_chosen(way, out, stride):
    torch.manual_seed(0)
    block = gated_block(3, out, 3, stride=stride, way=way)
    nn.init.zeros_(block.convolution.weight)
    nn.init.zeros_(block.convolution.bias)
    x = torch.randn(2, 3, 10)
    found = block(x)
    assert found.shape == (2, out, 10 // stride)
    if way == "crop":
        assert torch.equal(found, x)
    elif way == "project":
        torch.testing.assert_close(found, block.join.project(x))
    else:
        torch.testing.assert_close(found[:, :3], F.avg_pool1d(x, 2))
        assert not found[:, 3:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlpconv(3, (), 3), "widths=.*at least 1"),
        (lambda: gated_block(3, 4, 3, stride=0), "stride=0: a gated block has at least 1"),
        (lambda: gated_block(3, 4, 3, stride=2, way="crop")(torch.zeros(1, 3, 8)), "3.*4|channels"),
        (lambda: inverted_residual(8, 8, expand=0), "expand=0: an inverted residual has at least 1"),
    ],
)
def test_what_cannot_be_built_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
