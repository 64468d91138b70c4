"""Multiply-accumulates of whole models against published figures and against torch's own counter of flops."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sash.cost._macs import operator_macs
from sash.models import resnet50, unet


class Counter(TorchDispatchMode):
    """Adds up the MACs of every operator that runs under it."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.macs += operator_macs(func, args, kwargs or {}, outputs)
        return outputs


def test_resnet_50_needs_its_published_4_09_billion():
    # torchvision's documentation gives 4.09 G for 224 × 224; by hand from table 1 of the paper, strided as v1.5: 4 089 184 256.
    with FakeTensorMode(), Counter() as counter:
        resnet50().eval()(torch.empty(1, 3, 224, 224))
    assert counter.macs == 4_089_184_256


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (resnet50, (2, 3, 64, 64)),
        (lambda: nn.Sequential(nn.Conv1d(4, 8, 5, stride=2, dilation=2), nn.ReLU(), nn.Conv1d(8, 4, 3)), (2, 4, 64)),
        (lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, 3, stride=2), nn.ReLU(), nn.Conv3d(6, 2, 2)), (2, 4, 4, 5, 6)),
        (lambda: nn.MultiheadAttention(16, 4, batch_first=True), (2, 10, 16)),
    ],
    ids=["resnet50", "conv1d", "conv3d", "attention"],
)
def test_ungrouped_models_agree_with_torch_in_forward_and_backward(make, shape):
    # Grouped transposed convolutions are left out: torch's counter is wrong there. Training statistics too: it does not count them.
    model = make().eval()
    x = torch.randn(shape, requires_grad=True)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)

    def step():
        output = model(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.sum().backward()

    with Counter() as counter:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    norms = sum(norm_elements(model, x))
    assert 2 * (counter.macs - norms) == flops.get_total_flops()


def norm_elements(model: nn.Module, x: torch.Tensor) -> list[int]:
    """Elements that each batch norm sees: what its weight's gradient sums, and what torch does not count."""
    seen: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    if hooks:
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("kind", "first"), [("plain", 9 * 3 * 64), ("separable", 9 * 3 + 3 * 64)])
def test_the_u_nets_first_convolution_counts_its_taps_at_every_pixel(kind, first):
    model = unet(kind)
    with FakeTensorMode(allow_non_fake_inputs=True), Counter() as counter:
        model.enter[0](torch.empty(1, 3, 32, 32))
    assert counter.macs == first * 32 * 32
