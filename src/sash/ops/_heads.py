"""The head of a trained classifier as convolutions, so that it takes maps of any size."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from sash.errors import InputError
from sash.ops._pointwise import conv_of
from sash.units import format_shape

AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
LARGEST: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
ADAPTIVE: dict[type, dict[int, Any]] = {
    nn.AdaptiveAvgPool1d: AVERAGE,
    nn.AdaptiveAvgPool2d: AVERAGE,
    nn.AdaptiveAvgPool3d: AVERAGE,
    nn.AdaptiveMaxPool1d: LARGEST,
    nn.AdaptiveMaxPool2d: LARGEST,
    nn.AdaptiveMaxPool3d: LARGEST,
}
EACH_NUMBER = (
    *(nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Tanhshrink, nn.Threshold),
)
"""Layers that treat every number by itself, whatever the shape around it."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolutional_head(head: nn.Sequential, channels: int, size: int | Sequence[int]) -> nn.Sequential:
    """The head as convolutions: on any map, for each place of a crop of `size`, what the head makes of that crop.

    `head` takes maps of `channels` and of `size`, the spatial sides it was trained on (one number: a square of two axes), and is made of
    pooling to a fixed size, flattening, linear layers, 1×1 convolutions, batch norms, softmax over the classes, and layers that act on
    each number by itself. A map of sides n gives scores of sides n - size + 1. Names of layers, types, devices, `requires_grad` and
    training mode stay; the weights are copies, equal to the last bit.

    Sums may be added in another order: each linear layer is within 2 · features · 2⁻²⁴ · Σ |weight · input| in fp32. A crop is one of the
    head's input: where earlier layers pad, they see zeros around an image crop, and its surroundings in a larger image.
    Raises `InputError`, with the layer's name, for a layer that cannot be moved over a map.

    Source: J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015, section 3.1.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in AVERAGE or any(side < 1 for side in sides):
        raise InputError(f"size is {size}; give 1 to 3 sides, each at least 1.")
    found, state = _converted(head, _Crop(channels, sides, (1,) * len(sides)), "")
    if state.flat and state.places > 1:
        raise InputError(
            f"the head ends in {state.channels}x{format_shape(state.sides)} features without a linear layer; leave the flattening out."
        )
    return found


def convolutional_classifier(model: nn.Sequential, shape: Sequence[int]) -> nn.Sequential:
    """The classifier with its head as convolutions, to run on images of any size: scores for each place, in steps of the features' stride.

    `shape` is (channels, *sides) of one image that it was trained on. The head begins with the first of the model's children that flattens
    or pools to a fixed size, and is converted by `convolutional_head`, which see; all other layers are copied. Nothing is run but shapes.
    Raises `InputError` where there is no head.
    """
    named = list(model.named_children())
    first = next((place for place, (_, child) in enumerate(named) if _begins_head(child)), None)
    if first is None:
        raise InputError(
            "none of the model's children flattens or pools to a fixed size: there is no head to convert; give the parts as one "
            "nn.Sequential, as nn.Sequential(model.features, model.avgpool, nn.Flatten(), model.classifier)."
        )
    features, head = (nn.Sequential(OrderedDict(part)) for part in (named[:first], named[first:]))
    channels, *sides = _shape_of(features, tuple(shape))
    converted = convolutional_head(head, channels, sides)
    return _sequence(OrderedDict([*copy.deepcopy(features).named_children(), *converted.named_children()]), model.training)


@dataclass(frozen=True, slots=True)
class _Crop:
    """What a layer of the head sees of a crop, and where in the larger map."""

    channels: int
    sides: tuple[int, ...]
    """Samples along each axis."""
    gaps: tuple[int, ...]
    """From one sample of the crop to the next, in the larger map."""
    flat: bool = False
    """Whether the head has flattened it."""

    @property
    def places(self) -> int:
        return math.prod(self.sides)


def _converted(head: nn.Sequential, crop: _Crop, path: str) -> tuple[nn.Sequential, _Crop]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in head.named_children():
        where = f"{path}{name}"
        if type(layer) is nn.Sequential:
            layers[name], crop = _converted(layer, crop, f"{where}.")
        else:
            layers[name], crop = _layer(layer, crop, where)
    return _sequence(layers, head.training), crop


def _sequence(layers: OrderedDict[str, nn.Module], training: bool) -> nn.Sequential:
    """The layers, each in its own mode."""
    found = nn.Sequential(layers)
    found.training = training
    return found


def _layer(layer: nn.Module, crop: _Crop, path: str) -> tuple[nn.Module, _Crop]:
    """The layer as it works on a map, and what is left of the crop after it."""
    kind = f"{path} ({type(layer).__name__})"
    if isinstance(layer, nn.Flatten):
        if (layer.start_dim, layer.end_dim) not in ((1, -1), (1, len(crop.sides) + 1)):
            raise InputError(f"{kind} flattens axes {layer.start_dim} to {layer.end_dim}; a head flattens from 1 to the last.")
        return nn.Identity().train(layer.training), replace(crop, flat=True)
    if isinstance(layer, nn.Linear):
        return _linear(layer, crop, kind)
    if type(layer) in ADAPTIVE:
        return _pool(layer, crop, kind)
    if isinstance(layer, EACH_NUMBER):
        return copy.deepcopy(layer), crop
    if crop.flat and crop.places > 1:
        raise InputError(f"{kind} stands between the flattening and the first linear layer, where it cannot be moved over a map.")
    if isinstance(layer, (nn.Softmax, nn.LogSoftmax)) and layer.dim in (1, -1 if crop.flat else 1):
        return type(layer)(dim=1).train(layer.training), crop
    if isinstance(layer, nn.BatchNorm1d) and crop.flat:
        # The same weights, statistics and settings; the kinds differ only in the ranks that they let through.
        norm = BATCH_NORM[len(crop.sides)](layer.num_features, device="meta")
        norm.__dict__.update(copy.deepcopy(layer).__dict__)
        return norm, crop
    if isinstance(layer, BATCH_NORM[len(crop.sides)]) and not crop.flat:
        return copy.deepcopy(layer), crop
    if isinstance(layer, CONVOLUTIONS) and not crop.flat and _is_pointwise(layer):
        return copy.deepcopy(layer), replace(crop, channels=layer.out_channels)
    raise InputError(
        f"{kind} cannot be moved over a map. A head is made of pooling to a fixed size, nn.Flatten, nn.Linear, 1×1 convolutions, "
        "batch norms, softmax over the classes, and activations; what comes before belongs to the features."
    )


def _linear(layer: nn.Linear, crop: _Crop, kind: str) -> tuple[nn.Module, _Crop]:
    if not crop.flat:
        raise InputError(f"{kind} comes before any nn.Flatten: it would act along the map's last axis; put nn.Flatten before it.")
    if layer.in_features != crop.channels * crop.places:
        raise InputError(
            f"{kind} takes {layer.in_features} features, and {crop.channels} channels of {format_shape(crop.sides)} are "
            f"{crop.channels * crop.places}; give the channels and the size that the head was trained on."
        )
    conv = conv_of(layer, (crop.channels,), crop.sides, crop.gaps)
    return conv, _Crop(layer.out_features, (1,) * len(crop.sides), (1,) * len(crop.sides), flat=True)


def _pool(layer: Any, crop: _Crop, kind: str) -> tuple[nn.Module, _Crop]:
    """Pooling to a fixed number of bins, as pooling by windows one sample apart; the bins' own distance is left to what comes next."""
    asked = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * len(crop.sides)
    wanted = tuple(side if count is None else count for count, side in zip(asked, crop.sides, strict=True))
    if wanted == crop.sides:
        return nn.Identity().train(layer.training), crop
    told = f"{kind} makes {format_shape(wanted)} of {format_shape(crop.sides)}"
    if crop.flat:
        raise InputError(f"{told} after the flattening; put it before.")
    if any(gap > 1 for gap in crop.gaps):
        raise InputError(f"{told} after another pooling; pool once.")
    if any(side % count for side, count in zip(crop.sides, wanted, strict=True)):
        raise InputError(f"{told}, in bins of unequal size, which no window has; give a size that is a multiple of {format_shape(wanted)}.")
    bins = tuple(side // count for side, count in zip(crop.sides, wanted, strict=True))
    window = ADAPTIVE[type(layer)][len(crop.sides)](bins, stride=1)
    # One bin left has no neighbour to be far from.
    gaps = tuple(1 if count == 1 else width for count, width in zip(wanted, bins, strict=True))
    return window.train(layer.training), replace(crop, sides=wanted, gaps=gaps)


def _is_pointwise(layer: Any) -> bool:
    padded = not isinstance(layer.padding, str) and any(layer.padding)
    return all(step == 1 for step in (*layer.kernel_size, *layer.stride)) and not padded


def _begins_head(child: nn.Module) -> bool:
    parts: Callable[[nn.Module], Any] = nn.Module.modules if type(child) is nn.Sequential else lambda one: (one,)
    return any(isinstance(part, (nn.Flatten, *ADAPTIVE)) for part in parts(child))


def _shape_of(features: nn.Sequential, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the features make of one image, found on the meta device: no weight is copied, nothing computed."""
    if not len(features):
        return shape
    values = {name: tensor.to("meta") for name, tensor in (*features.named_parameters(), *features.named_buffers())}
    kind = next((one.dtype for one in values.values() if one.is_floating_point()), torch.float32)
    with torch.no_grad():
        # Two images: batch norm in training mode would refuse one that leaves a single position.
        found = functional_call(features, values, (torch.empty((2, *shape), dtype=kind, device="meta"),))
    return tuple(found.shape[1:])
