"""Small models that no library ships: the shapes off the beaten path that a forecast must not be surprised by."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Plain U-Net: max pooling down, transposed convolutions up, skips joined by channels."""

    def __init__(self, width: int = 32, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList([_double_conv(a, b) for a, b in zip([3, *widths], widths, strict=False)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * a, a, 2, stride=2) for a in reversed(widths[:-1])])
        self.merge = nn.ModuleList([_double_conv(2 * a, a) for a in reversed(widths[:-1])])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class InstanceUNet(nn.Module):
    """U-shaped net with instance norm, leaky ReLU and bilinear upsampling."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList([self._block(a, b, 1 if b == width else 2) for a, b in zip([3, *widths], widths, strict=False)])
        self.up = nn.ModuleList([self._block(3 * a, a, 1) for a in reversed(widths[:-1])])
        self.head = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.head(x)


class TCN(nn.Module):
    """Residual stack of dilated causal convolutions, padded on the left."""

    def __init__(self, inputs: int = 16, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, width, 1)
        self.convs = nn.ModuleList([nn.Conv1d(width, width, 3, dilation=2**block) for block in range(blocks)])
        self.mixes = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(blocks)])
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv1d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block, (conv, mix) in enumerate(zip(self.convs, self.mixes, strict=True)):
            padded = F.pad(x, (2 * 2**block, 0))
            x = x + mix(self.dropout(F.gelu(conv(padded))))
        return self.head(x)


class Tagger(nn.Module):
    """Embedding, bidirectional LSTM (or GRU), one score for each class and step."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU] = nn.LSTM, words: int = 5000, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.cell = cell(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(tokens))[0])


class LongSignalNet(nn.Module):
    """1-D CNN on tens of thousands of samples: wide first windows, then pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs, size, stride in zip([1, *widths], widths, [64, 9, 9, 9, 9], [4, 1, 1, 1, 1], strict=False):
            layers += [
                nn.Conv1d(inputs, outputs, size, stride=stride, padding=size // 2),
                nn.BatchNorm1d(outputs),
                nn.ReLU(),
                nn.MaxPool1d(2),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(-1))


class CircularNet(nn.Module):
    """1-D convolutions with circular padding, log-sum-exp pooling over the ring."""

    def __init__(self, width: int = 48, layers: int = 5) -> None:
        super().__init__()
        widths = [4] + [width] * layers
        self.convs = nn.ModuleList([nn.Conv1d(a, b, 7, padding=3, padding_mode="circular") for a, b in pairwise(widths)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.head(torch.logsumexp(x, -1))


class SpectralNet(nn.Module):
    """Layers that multiply the lowest frequencies by learned complex weights, beside a 1x1 convolution."""

    def __init__(self, width: int = 32, modes: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv2d(3, width, 1)
        self.weights = nn.ParameterList([torch.randn(width, width, modes, modes, dtype=torch.cfloat) / width for _ in range(layers)])
        self.mixes = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(layers)])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, modes = self.lift(x), self.modes
        for weight, mix in zip(self.weights, self.mixes, strict=True):
            spectrum = torch.fft.rfft2(x)
            kept = torch.zeros_like(spectrum)
            kept[:, :, :modes, :modes] = torch.einsum("bihw,iohw->bohw", spectrum[:, :, :modes, :modes], weight)
            x = F.gelu(torch.fft.irfft2(kept, s=x.shape[-2:]) + mix(x))
        return self.head(x)


class VolumeNet(nn.Module):
    """3-D residual convolutions with batch norm and pooling."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.convs = nn.ModuleList([nn.Conv3d(a, b, 3, padding=1, bias=False) for a, b in zip([1, *widths], widths, strict=False)])
        self.norms = nn.ModuleList([nn.BatchNorm3d(b) for b in widths])
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool3d(F.relu(norm(conv(x))), 2)
        return self.head(x.mean((2, 3, 4)))


class SqueezeExciteNet(nn.Module):
    """Inverted residuals with depthwise convolutions and squeeze-and-excite gates."""

    def __init__(self, width: int = 24, expand: int = 6, blocks: int = 3) -> None:
        super().__init__()
        inner = width * expand
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.opens = nn.ModuleList([nn.Conv2d(width, inner, 1) for _ in range(blocks)])
        self.depths = nn.ModuleList([nn.Conv2d(inner, inner, 5, padding=2, groups=inner) for _ in range(blocks)])
        self.squeezes = nn.ModuleList([nn.Conv2d(inner, width // 4, 1) for _ in range(blocks)])
        self.excites = nn.ModuleList([nn.Conv2d(width // 4, inner, 1) for _ in range(blocks)])
        self.closes = nn.ModuleList([nn.Conv2d(inner, width, 1) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for opened, depth, squeeze, excite, close in zip(self.opens, self.depths, self.squeezes, self.excites, self.closes, strict=True):
            inner = F.hardswish(depth(F.hardswish(opened(x))))
            gate = torch.sigmoid(excite(F.relu(squeeze(inner.mean((2, 3), keepdim=True)))))
            x = x + close(inner * gate)
        return x


class Decoder(nn.Module):
    """Latent vector to image through strided transposed convolutions."""

    def __init__(self, latent: int = 128, width: int = 256) -> None:
        super().__init__()
        self.first = nn.Linear(latent, width * 64)
        widths = [width, width // 2, width // 4, width // 8]
        self.ups = nn.ModuleList([nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)])
        self.last = nn.ConvTranspose2d(widths[-1], 3, 5, stride=2, padding=2, output_padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).unflatten(1, (-1, 8, 8))
        for up in self.ups:
            x = F.elu(up(x))
        return torch.tanh(self.last(x))


class DiffusionBlock(nn.Module):
    """Group-norm residual blocks conditioned on time, with spatial attention: the inside of a diffusion U-Net."""

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2 * blocks)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * blocks)])
        self.attend_norm = nn.GroupNorm(8, width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.stem(x)
        shift = self.time(time)[:, :, None, None]
        for first in range(0, len(self.convs), 2):
            inner = self.convs[first](F.silu(self.norms[first](x))) + shift
            x = x + self.convs[first + 1](F.silu(self.norms[first + 1](inner)))
        tokens = self.attend_norm(x).flatten(2).transpose(1, 2)
        x = x + self.attend(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, x.shape[-2:])
        return self.head(x)


class Perceptron(nn.Module):
    """Linear layers alone: the case that can be checked by hand."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(512, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
