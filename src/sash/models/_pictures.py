"""What classifiers of pictures share: a chain of layers that knows what it takes, and counts that are checked."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections import OrderedDict
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sash.errors import InputError


class PictureNet(nn.Sequential):
    """Layers one after the other, for pictures of `in_channels` channels with sides of at least `least_side`."""

    def __init__(self, layers: list[nn.Module] | OrderedDict[str, nn.Module], in_channels: int, least_side: int = 1) -> None:
        super().__init__(layers if isinstance(layers, OrderedDict) else OrderedDict((str(i), layer) for i, layer in enumerate(layers)))
        self.in_channels, self.least_side = in_channels, least_side

    def __getitem__(self, idx: Any) -> Any:
        # A part of the network is a chain like any other: it takes what reaches it, not pictures.
        return nn.Sequential(OrderedDict(self.named_children()))[idx]

    def forward(self, input: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Scores of the classes. Raises `InputError` for other channels, and for sides too short."""
        shape = input.shape
        if len(shape) != 4 or shape[1] != self.in_channels or min(shape[2:]) < self.least_side:
            least = f", both sides at least {self.least_side}" if self.least_side > 1 else ""
            raise InputError(f"the input is {'x'.join(map(str, shape))}; it has to be batch x {self.in_channels} x height x width{least}.")
        return super().forward(input)


def check_counts(what: str, **counts: int) -> None:
    """Raises `InputError` for a count that is no whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{name}={count!r}: {what} has at least 1.")


def start_for_relu(model: nn.Module) -> None:
    """Draws weights so that maps keep their scale through ReLUs, and sets biases to 0.

    Torch's own start shrinks them by some √6 a layer, which a deep chain without normalisation does not recover from.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015, equation 10.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
