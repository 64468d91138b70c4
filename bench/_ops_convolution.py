"""Rows of gates, joins, adjoints, sections, heads and inverses, beside the same written out in torch (numpy for the inverse)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from _ops_row import Row
from torch import Tensor, nn
from torch.nn import functional as F

from sash.ops import conv_adjoint, convolutional_head, gated, invert_conv, join, limited_sharing_conv, linear_to_conv

PROJECTION = torch.randn(128, 64, 1, generator=torch.Generator().manual_seed(1))
FILTERS = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(2)) / 17
SQUARE = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3)) / 6 + torch.eye(4)[..., None, None] * torch.eye(3)[1].outer(
    torch.eye(3)[1]
)
torch.manual_seed(4)
LINEAR = nn.Linear(256, 256)
POINTWISE = linear_to_conv(LINEAR)
HEAD = nn.Sequential(nn.Flatten(), nn.Linear(64 * 49, 256), nn.ReLU(), nn.Linear(256, 10))
WIDE_HEAD = convolutional_head(HEAD, 64, 7)


def made(*shape: int, seed: int = 0, gradient: bool = True) -> Tensor:
    """Normal numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(gradient)


def pair() -> tuple[Tensor, ...]:
    return made(8, 64, 16384), made(8, 64, 16384, seed=1)


def halves() -> tuple[Tensor, ...]:
    return (made(8, 128, 16384),)


def small_halves() -> tuple[Tensor, ...]:
    return (made(8, 128, 1024),)


def gated_halves(x: Tensor) -> Tensor:
    return gated(x)


def gated_pair(a: Tensor, b: Tensor) -> Tensor:
    return gated(a, b)


def plain_gate(a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(a) * torch.tanh(b)


def plain_halves(x: Tensor) -> Tensor:
    return plain_gate(*x.chunk(2, 1))


def skip_and_branch() -> tuple[Tensor, ...]:
    return made(8, 64, 16384), made(8, 128, 8190, seed=1)


def joined(x: Tensor, y: Tensor) -> Tensor:
    return join(x, y, ("project", "crop"), weight=PROJECTION, stride=2)


def plain_join(x: Tensor, y: Tensor) -> Tensor:
    return F.conv1d(x, PROJECTION, stride=2)[..., 1:-1] + y


def gradient_of_output() -> tuple[Tensor, ...]:
    return (made(8, 64, 64, 64),)


def adjoint(y: Tensor) -> Tensor:
    return conv_adjoint(y, FILTERS, 128, stride=2, padding=1)


def transposed(y: Tensor) -> Tensor:
    return F.conv_transpose2d(y, FILTERS, stride=2, padding=1, output_padding=1)


def round_adjoint(y: Tensor) -> Tensor:
    return conv_adjoint(y.detach(), FILTERS, 128, stride=2, padding=1, padding_mode="circular")


def round_backward(y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = torch.zeros(8, 32, 128, 128, requires_grad=True)
        image = F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), FILTERS, stride=2)
    return torch.autograd.grad(image, x, y.detach())[0]


def spectra() -> tuple[Tensor, ...]:
    return made(256, 45, 40), made(14, 84, 45, 8, seed=1), made(14, 84, seed=2)


def sections(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return limited_sharing_conv(x, weight, bias, pool=6, shift=2)


def sections_as_groups(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    parts = x.unfold(2, 13, 2).transpose(1, 2).reshape(256, 14 * 45, 13)
    outputs = F.conv1d(parts, weight.reshape(14 * 84, 45, 8), bias.reshape(-1), groups=14)
    return F.max_pool1d(outputs, 6).view(256, 14, 84).transpose(1, 2)


def maps() -> tuple[Tensor, ...]:
    return (made(8, 256, 56, 56),)


def linear(x: Tensor) -> Tensor:
    return LINEAR(x.movedim(1, -1)).movedim(-1, 1)


def features() -> tuple[Tensor, ...]:
    return (made(1, 64, 24, 24, gradient=False),)


def head_on_crops(x: Tensor) -> Tensor:
    crops = x.unfold(2, 7, 1).unfold(3, 7, 1).movedim(1, 3).flatten(0, 2)
    return HEAD(crops).view(1, 18, 18, 10).movedim(-1, 1)


def outputs() -> tuple[Tensor, ...]:
    x = made(16, 4, 64, 64, gradient=False)
    return (F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), SQUARE),)


def inverted(y: Tensor) -> Tensor:
    return invert_conv(y, SQUARE).tensor


@functools.cache
def placed() -> np.ndarray:
    """The window on the whole map, its middle at the origin."""
    whole = np.zeros((4, 4, 64, 64))
    whole[:, :, :3, :3] = SQUARE.numpy()
    return np.roll(whole, (-1, -1), (2, 3))


def inverted_by_numpy(y: Tensor) -> Tensor:
    spectrum = np.fft.rfft2(placed()).conj().transpose(2, 3, 0, 1)
    np.linalg.svd(spectrum, compute_uv=False)
    wanted = np.fft.rfft2(y.double().numpy()).transpose(2, 3, 1, 0)
    found = np.linalg.solve(spectrum, wanted).transpose(3, 2, 0, 1)
    return torch.from_numpy(np.fft.irfft2(found, s=(64, 64))).float()


WRITTEN_OUT = "written out"
ROWS: tuple[Row, ...] = (
    Row("gated, two maps of 8x64x16384", pair, gated_pair, {WRITTEN_OUT: plain_gate}, peak_aim=1.0),
    Row("gated, halves of 8x128x16384", halves, gated_halves, {WRITTEN_OUT: plain_halves}, peak_aim=1.0),
    Row("gated, halves of 8x128x1024", small_halves, gated_halves, {WRITTEN_OUT: plain_halves}, peak_aim=1.0),
    Row("join, 8x64x16384 projected and cropped to 8x128x8190", skip_and_branch, joined, {WRITTEN_OUT: plain_join}),
    Row("conv_adjoint, 8x64x64x64 to 8x32x128x128, zeros", gradient_of_output, adjoint, {"conv_transpose2d": transposed}),
    Row("conv_adjoint, the same, circular", gradient_of_output, round_adjoint, {"autograd": round_backward}, backward=False),
    Row("limited_sharing_conv, 256x45x40, 14 sections of 84 maps", spectra, sections, {"grouped convolution": sections_as_groups}),
    Row("linear_to_conv, 256 to 256 features at 8x56x56", maps, POINTWISE, {"linear": linear}),
    Row("convolutional_head, 7x7x64 on 24x24", features, WIDE_HEAD, {"head on every crop": head_on_crops}, backward=False, aim=1.0),
    Row("invert_conv, 16x4x64x64, 3x3 circular, float64", outputs, inverted, {"numpy": inverted_by_numpy}, backward=False),
)
