"""The training steps that bench/fit.py fits: sizes for which activations, and not weights, are most of the peak."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import _models as own
import torch
from _probe import _work
from _step import tensors_in
from _workloads import Inputs, Row, adamw, hf, image, momentum, signal, tm, tokens, tv
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.models import unet

WORDS = 8000


@dataclass(frozen=True)
class Labels:
    """Cross-entropy of the first output against classes dealt out in turn; `axis` is where the classes are, 1 or -1.

    The mean of the outputs would be no test of gradients: batch norm sends almost none of a constant one through.
    """

    axis: int = 1

    def __call__(self, outputs: Any) -> Tensor:
        scores = next(tensors_in(outputs))
        if self.axis == -1:
            scores = scores.flatten(0, -2)
        sizes = (len(scores), *scores.shape[2:])
        labels = torch.arange(scores.numel() // scores.shape[1], device=scores.device) % scores.shape[1]
        return F.cross_entropy(scores, labels.view(sizes))


class CausalBlock(nn.Module):
    """Two dilated convolutions padded on the left, each with ReLU and dropout, and the input added.

    Source: S. Bai, J. Z. Kolter, V. Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling", 2018, figure 1b; without weight normalisation.
    """

    def __init__(self, width: int, dilation: int, size: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.pad = ((size - 1) * dilation, 0)
        self.convs = nn.ModuleList([nn.Conv1d(width, width, size, dilation=dilation) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for conv in self.convs:
            inner = self.dropout(F.relu(conv(F.pad(inner, self.pad))))
        return F.relu(x + inner)


def tcn(inputs: int = 16, width: int = 64, blocks: int = 7, classes: int = 10) -> nn.Module:
    """Causal blocks of doubling dilation, one score for each class and step."""
    body = [CausalBlock(width, 2**block) for block in range(blocks)]
    return nn.Sequential(nn.Conv1d(inputs, width, 1), *body, nn.Conv1d(width, classes, 1))


class SignalTransformer(nn.Module):
    """Convolutions over a long 1-D signal down to 1/128 of its steps, then a transformer over what is left: 60 000 steps are 469 tokens."""

    def __init__(self, width: int = 32, layers: int = 4, classes: int = 5) -> None:
        super().__init__()
        body = own.LongSignalNet(width).body
        self.front = nn.Sequential(*(body[first : first + 4] for first in range(0, len(body), 4)))
        layer = nn.TransformerEncoderLayer(4 * width, 4, 16 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.front(x).transpose(1, 2)).mean(1))


@dataclass(frozen=True)
class Fitted:
    """A step to fit, and what its author would call a block."""

    row: Row
    blocks: str
    """A pattern of module paths, for `torch.utils.checkpoint` around each."""
    axis: int = 1
    """Where the outputs' classes are."""

    @property
    def loss(self) -> Labels:
        return Labels(self.axis)

    def make(self) -> tuple[nn.Module, Inputs]:
        """The model in training mode, and its inputs; the same numbers every time."""
        return self.row.make()

    def work(self) -> sash.Workload:
        """The step as sash takes it."""
        return replace(_work(self.row, *self.make()), loss=self.loss)

    def paths(self, model: nn.Module) -> list[str]:
        """The model's blocks."""
        return [path for path, _ in model.named_modules() if re.fullmatch(rf"(model\.)?({self.blocks})", path)]


def _step(
    library: str, name: str, factory: Callable[[], nn.Module], inputs: Callable[[], Inputs], optimizer: Any, blocks: str, axis: int = 1
) -> Fitted:
    return Fitted(Row(name, factory, inputs, True, optimizer, library=library), blocks, axis)


bert = hf(
    "BertForMaskedLM", "BertConfig", hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_hidden_layers=6, vocab_size=WORDS
)  # fmt: skip
vit = tm("vit_small_patch16_224", pos_drop_rate=0.1, proj_drop_rate=0.1)
dropping: Any = functools.partial(nn.LSTM, dropout=0.3)
tagger = functools.partial(own.Tagger, dropping, width=256)
stages = r"features\.[1357]\.\d+"

FITTED: dict[str, Fitted] = {
    one.row.name: one
    for one in (
        _step("torchvision", "resnet50", tv("resnet50"), image(8, 160), momentum, r"layer\d\.\d+"),
        _step("own", "unet", functools.partial(unet, classes=2), image(1, 256), momentum, r"enter|(down|up)\.\d+"),
        _step("own", "unet-separable", functools.partial(unet, "separable", classes=2), image(1, 256), momentum, r"enter|(down|up)\.\d+"),
        _step("torchvision", "convnext_tiny", tv("convnext_tiny"), image(8, 192), adamw, stages),
        _step("torchvision", "efficientnet_b0", tv("efficientnet_b0"), image(6, 192), momentum, r"features\.[1-7]\.\d+"),
        _step("torchvision", "densenet121", tv("densenet121"), image(4, 192), momentum, r"features\.denseblock\d\.denselayer\d+"),
        _step("timm", "vit_small", vit, image(4, 224), adamw, r"blocks\.\d+"),
        _step("torchvision", "swin_t", tv("swin_t"), image(6, 224), adamw, stages),
        _step("own", "tcn", tcn, signal(4, 16, 8192), adamw, r"[1-7]"),
        _step("own", "signal60k", SignalTransformer, signal(4, 1, 60000), adamw, r"front\.\d+|encoder\.layers\.\d+"),
        _step("own", "lstm", tagger, lambda: (torch.randint(5000, (32, 160)),), adamw, "cell", -1),
        _step("transformers", "bert", bert, tokens(8, 128, WORDS), adamw, r"bert\.encoder\.layer\.\d+", -1),
    )
}
"""Every step, by name."""
QUICK = ("unet-separable", "tcn", "bert")
