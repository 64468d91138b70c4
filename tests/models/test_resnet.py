import pytest
import torch
from torch import nn

from sash.models import basic_block, bottleneck, resnet50


def weights(block: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Conv2d))


def test_blocks_have_the_weights_their_docstrings_say():
    assert weights(basic_block(64)) == 18 * 64**2
    assert 16 * weights(bottleneck(64)) == 17 * 64**2


def test_resnet_50_has_its_known_parameters():
    assert sum(parameter.numel() for parameter in resnet50().parameters()) == 25_557_032


@pytest.mark.parametrize("block", [basic_block(8), bottleneck(8), basic_block(8, 2, 4), bottleneck(8, 2, 2, 4)])
def test_a_block_adds_its_input_before_the_last_relu(block):
    block.eval()
    channels = block.residual[0].in_channels
    x = torch.randn(2, channels, 9, 7)
    expected = (block.residual(x) + block.shortcut(x)).relu()
    torch.testing.assert_close(block(x), expected)
    strided = channels == 4
    assert expected.shape == ((2, 8, 5, 4) if strided else (2, 8, 9, 7))


def test_a_strided_bottleneck_strides_its_3x3_convolution():
    strides = [layer.stride for layer in bottleneck(64, stride=2).residual if isinstance(layer, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_resnet_50_classifies_pictures():
    assert resnet50(classes=7).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)
