"""Channels-last: a convolution finds its channels side by side, and copies nothing into a layout of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sash.cost import Workload, forecast, map_tensors, measure
from sash.errors import ModelError
from sash.plans._lever import Exactness, Lever, pull

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_PLANES = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layout(Lever):
    """Inputs of four and five dimensions go in channels-last, and the layout carries on by itself from operator to operator.

    Outputs stay in it: their values are equal, their strides are not, and `.view()` of them may ask for `.reshape()`.
    """

    weights: bool = False
    """Also the convolutions' weights. A shared copy shares them: the original's then lie in that order too, their values the same."""
    lines: bool = False
    """Also 1-D convolutions, run as 2-D ones of height 1; torch has no channels-last of three dimensions."""
    name: ClassVar[str] = "layout"

    @property
    def exactness(self) -> Exactness:
        """Other kernels, which add in another order."""
        return Exactness.ROUNDING

    def describe(self) -> str:
        """What it does, in one line."""
        parts = ["inputs", *(["weights"] if self.weights else []), *(["1-D convolutions as 2-D ones"] if self.lines else [])]
        return f"layout: channels-last ({', '.join(parts)})"

    def on_model(self, model: nn.Module) -> nn.Module:
        """The model, with a hook that lays its inputs out; `weights` and `lines` change its convolutions too."""
        model.register_forward_pre_hook(_lay_out, with_kwargs=True)
        for module in model.modules():
            if self.weights and isinstance(module, _PLANES):
                module.weight.data = _last(module.weight.data)
            if self.lines:
                _run_as_plane(module)
        return model


class Conv1dAsPlane(nn.Conv1d):
    """A `Conv1d` that runs as a channels-last `conv2d` of height 1, with the same parameters."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or input.dim() != 3:
            return super()._conv_forward(input, weight, bias)
        plane = _last(input.unsqueeze(2))
        sides = ((1, *self.stride), (0, *self.padding), (1, *self.dilation))
        return F.conv2d(plane, weight.unsqueeze(2), bias, *sides, self.groups).squeeze(2)


class BatchNorm1dAsPlane(nn.BatchNorm1d):
    """A `BatchNorm1d` of a signal, run on a plane of height 1: in three dimensions torch has no fast kernel for this layout."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 3:
            return super().forward(input)
        return super().forward(input.unsqueeze(2)).squeeze(2)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            super()._check_input_dim(input)


def _run_as_plane(module: Any) -> None:
    # Only the classes themselves: what a subclass adds to forward would be lost.
    kind = {nn.Conv1d: Conv1dAsPlane, nn.BatchNorm1d: BatchNorm1dAsPlane}.get(type(module))
    if kind is not None:
        module.__class__ = kind


def propose(work: Workload, model: nn.Module) -> Layout | None:
    """The lever where the model has convolutions that it helps; whether it pays is for a forecast, or `faster_channels_last`, to say.

    Weights go with the inputs, or each call lays them out anew: training steps of ResNet-50, EfficientNet-B0 and a U-Net took 0.94 to 0.95
    of the time that they took with the inputs alone.

    1-D convolutions run as 2-D ones in inference only. On 2 AVX-512 cores (six layers, 64 to 256 channels, 4,096 to 16,384 steps) they
    took 0.59 to 0.87 of the time there, and 0.89 to 1.10 of it in training.
    """
    planes = any(isinstance(module, _PLANES) for module in model.modules())
    lines = not work.train and any(type(module) is nn.Conv1d for module in model.modules())
    return Layout(weights=planes, lines=lines) if planes or lines else None


def why_not(work: Workload, model: nn.Module | None = None) -> str | None:
    """What the step cannot do with tensors in channels-last, as `.view()` of one; None where it runs."""
    try:
        forecast(pull(work, [Layout()]))
    except ModelError as error:
        return f"The step does not run in channels-last (reshape() in place of view() would): {error}"
    return None


def faster_channels_last(work: Workload, lever: Layout | None = None) -> float:
    """How many times as fast a step runs with the lever, both measured: each in a process of its own, one after the other."""
    return measure(work).wall_s / measure(pull(work, [lever or Layout()])).wall_s


def _lay_out(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_tensors(_last, args), map_tensors(_last, kwargs)


def _last(tensor: Tensor) -> Tensor:
    wanted = tensor.dim() in _FORMATS and tensor.is_floating_point()
    return tensor.contiguous(memory_format=_FORMATS[tensor.dim()]) if wanted else tensor
