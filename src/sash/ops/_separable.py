"""The depthwise-separable convolution in bands: the map between its two convolutions is never held whole."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sash.errors import InputError
from sash.ops._separable_bands import (
    WHOLE_BYTES,
    WHOLE_BYTES_LAST,
    Band,
    Geometry,
    PaddingMode,
    Pads,
    band_of,
    bands,
    pad,
    read_geometry,
    reading,
)
from sash.ops._tensors import shown
from sash.units import format_shape

Norm = tuple[Tensor, Tensor]
Activation = Callable[[Tensor], Tensor]
Padding = int | str | tuple[int | tuple[int, int], ...]


def separable_conv(
    x: Float[Tensor, "*batch_channel_space"],
    depthwise: Float[Tensor, "middle one *window"],
    pointwise: Float[Tensor, "out inner *ones"],
    bias: Float[Tensor, " out"] | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, ...] = 1,
    padding_mode: PaddingMode = "zeros",
    depthwise_bias: Float[Tensor, " middle"] | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    out_norm: Norm | None = None,
    out_activation: Activation | None = None,
    lean: bool = False,
    band: Band | None = None,
) -> Float[Tensor, "*batch_out_space"]:
    """A convolution of each channel alone, then a 1×1 convolution across channels; one to three spatial axes, with or without a batch.

    The same as `pointwise(activation(depthwise(x) · scale + shift))`, then `out_norm` and `out_activation`, up to rounding. `padding` may
    be (before, after) for each axis. `norm` and `out_norm` are (scale, shift), one number a channel: a batch norm with frozen statistics,
    multiplied into the weights. Activations act on each number alone, without parameters of their own and without randomness.

    Works in bands of about 8 MiB of intermediate map and output (`band_of`; `band` overrules it). Memory beside the input and its like:
    forward the output and some four times a band; backward the input's gradient and some six times a band. Only the input and the weights
    are saved. Maps up to 20 MiB, channels-last 48 MiB, run whole and save the map between, for that is quicker; not so if `lean`. Under
    `torch.compile`, `torch.export` and `torch.jit.trace` the two convolutions run whole as well, so that the graph keeps its free sizes.

    Gradients of weights are summed over the bands in fp32 at least. The second derivative is computed without bands.
    Raises `InputError` where shapes do not go together, and in training for an activation with parameters that take a gradient.

    Source: F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017.
    """

    def windows() -> Geometry:
        return read_geometry(tuple(depthwise.shape[2:]), stride, padding, dilation, padding_mode)

    geometry = _check(x, depthwise, pointwise, bias, depthwise_bias, windows)
    depthwise, depthwise_bias = _folded(depthwise, depthwise_bias, norm, "norm")
    pointwise, bias = _folded(pointwise, bias, out_norm, "out_norm")
    batched = x.dim() == depthwise.dim()
    tensors = Operands(x if batched else x[None], depthwise, depthwise_bias, pointwise, bias)
    # Meta tensors have no autocast of their own.
    kind = "cpu" if x.is_meta else x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        # As autocast itself: float64 stays.
        tensors = Operands(*(one if one is None or one.dtype is torch.float64 else one.to(dtype) for one in tensors))  # pyright: ignore[reportArgumentType]
    _check_types(tensors)
    with torch.autocast(kind, enabled=False):
        y = _run(tensors, _Setting(geometry, activation, out_activation), lean, band)
    return y if batched else y[0]


class SeparableConv(nn.Module):
    """`separable_conv` as a layer, its parameters named as in two `nn.Conv` modules: `depthwise.weight`, `pointwise.bias` and so on.

    `axes` is the number of spatial axes; `multiplier` the maps that the depthwise convolution makes of each channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 3,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Any = 0,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: PaddingMode = "zeros",
        bias: bool = True,
        depthwise_bias: bool = True,
        multiplier: int = 1,
        activation: Activation | None = None,
        axes: int = 2,
    ) -> None:
        super().__init__()
        if axes not in CONVOLUTIONS:
            raise InputError(f"axes is {axes!r}; a separable convolution has 1, 2 or 3 spatial axes.")
        convolution, middle = CONVOLUTIONS[axes], in_channels * multiplier
        sizes: Any = kernel_size
        self.depthwise = convolution(in_channels, middle, sizes, groups=in_channels, bias=depthwise_bias)
        self.pointwise = convolution(middle, out_channels, 1, bias=bias)
        self.activation = activation
        self.settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}

    def forward(self, x: Float[Tensor, "*batch_channel_space"]) -> Float[Tensor, "*batch_out_space"]:
        first, second = self.depthwise, self.pointwise
        return separable_conv(
            x, first.weight, second.weight, second.bias, depthwise_bias=first.bias, activation=self.activation, **self.settings
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Operands(NamedTuple):
    """The tensors of a call, the input with a batch."""

    x: Tensor
    depthwise: Tensor
    depthwise_bias: Tensor | None
    pointwise: Tensor
    bias: Tensor | None

    @property
    def weights(self) -> tuple[Tensor | None, ...]:
        return self[1:]


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is fixed about a call beside its tensors."""

    geometry: Geometry
    between: Activation | None
    after: Activation | None


def _run(tensors: Operands, setting: _Setting, lean: bool, band: Band | None) -> Tensor:
    x, trained = tensors.x, torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if traced or not x.shape[0]:
        return _pair(tensors, setting.geometry.pads, setting)
    if trained:
        _check_activations(tensors, setting)
    if band is None:
        sides = setting.geometry.outputs(x.shape[2:])
        channels = tensors.depthwise.shape[0] + tensors.pointwise.shape[0]
        whole_bytes = 0 if lean else WHOLE_BYTES if _layout(x) is torch.contiguous_format else WHOLE_BYTES_LAST
        band = band_of(x.shape[0], channels, sides, x.element_size(), window=setting.geometry.windows[0], whole_bytes=whole_bytes)
        if band == Band(x.shape[0], sides[0]) and not (lean and trained):
            return _pair(tensors, setting.geometry.pads, setting)
    if not trained:
        return _forward(tensors, setting, band)
    return _Banded.apply(*tensors, setting, band)  # pyright: ignore[reportReturnType]


def _pair(tensors: Operands, pads: Pads, setting: _Setting) -> Tensor:
    """The two convolutions one after the other."""
    y = _mix(_slide(tensors, pads, setting), tensors.pointwise, tensors.bias)
    return y if setting.after is None else setting.after(y)


def _slide(tensors: Operands, pads: Pads, setting: _Setting) -> Tensor:
    """The map between the two convolutions."""
    geometry = setting.geometry
    x, kept = pad(tensors.x, pads, geometry.mode)
    weight, bias, groups = tensors.depthwise, tensors.depthwise_bias, x.shape[1]
    t = torch.convolution(x, weight, bias, geometry.stride, kept, geometry.dilation, False, [0], groups)
    return t if setting.between is None else setting.between(t)


def _mix(t: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    axes = t.dim() - 2
    return torch.convolution(t, weight, bias, [1] * axes, [0] * axes, [1] * axes, False, [0], 1)


def _forward(tensors: Operands, setting: _Setting, band: Band) -> Tensor:
    x = tensors.x
    sides = setting.geometry.outputs(x.shape[2:])
    out: Tensor | None = None
    for images, rows in bands(x.shape[0], sides[0], band):
        read = reading(setting.geometry, images, rows, x.shape[2], sides[0])
        y = _pair(tensors._replace(x=read.take(x)), read.pads, setting)
        if out is None:
            # By the band's result as well as by the input: the weights' layout, which a 1x1 weight does not show, has a say in it.
            layout = _layout(y) if _layout(x) is torch.contiguous_format else _layout(x)
            out = torch.empty((x.shape[0], y.shape[1], *sides), dtype=y.dtype, device=y.device, memory_format=layout)
        out[images, :, rows].copy_(y)
        del y
    assert out is not None
    return out


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last where a map can be nothing else."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    found = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if found and last is not None else torch.contiguous_format


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, setting, band = arguments
        ctx.save_for_backward(*tensors)
        ctx.setting, ctx.band = setting, band
        return _forward(Operands(*tensors), setting, band)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = Operands(*ctx.saved_tensors), ctx.needs_input_grad[:5]
        differentiate = _again if torch.is_grad_enabled() else _backward
        with torch.autocast("cpu" if tensors.x.is_meta else tensors.x.device.type, enabled=False):
            return *differentiate(tensors, needed, gradients[0], ctx.setting, ctx.band), None, None


def _again(tensors: Operands, needed: Sequence[bool], gradient: Tensor, setting: _Setting, band: Band) -> list[Tensor | None]:
    """The gradients, whole, such that they can be differentiated again."""
    return _gradients(_pair(tensors, setting.geometry.pads, setting), tensors, needed, gradient, create_graph=True)


def _backward(tensors: Operands, needed: Sequence[bool], gradient: Tensor, setting: _Setting, band: Band) -> list[Tensor | None]:
    """The gradients, summed over the bands."""
    x = tensors.x.detach()
    whole = torch.zeros_like(x) if needed[0] else None
    leaves = [None if one is None else one.detach().requires_grad_(needs) for one, needs in zip(tensors.weights, needed[1:], strict=True)]
    sums = [_zeros(one) if one is not None and one.requires_grad else None for one in leaves]
    for images, rows in bands(x.shape[0], gradient.shape[2], band):
        read = reading(setting.geometry, images, rows, x.shape[2], gradient.shape[2])
        operands = Operands(read.take(x).detach().requires_grad_(needed[0]), *leaves)  # pyright: ignore[reportArgumentType]
        slab, *found = _band_gradients(operands, needed, gradient[images, :, rows], read.pads, setting)
        for total, part in zip(sums, found, strict=True):
            if total is not None and part is not None:
                total.add_(part)
        if whole is not None and slab is not None:
            read.give(whole, slab)
        del operands, slab
    return [whole, *(None if total is None or one is None else total.to(one.dtype) for total, one in zip(sums, leaves, strict=True))]


def _band_gradients(tensors: Operands, needed: Sequence[bool], gradient: Tensor, pads: Pads, setting: _Setting) -> list[Tensor | None]:
    if setting.after is not None:
        with torch.enable_grad():
            y = _pair(tensors, pads, setting)
        return _gradients(y, tensors, needed, gradient)
    with torch.enable_grad():
        t = _slide(tensors, pads, setting)
    axes, weight, bias = t.dim() - 2, tensors.pointwise.detach(), tensors.bias
    # By hand, for the output itself is not wanted.
    sizes, wanted = None if bias is None else [weight.shape[0]], [any(needed[:3]), *needed[3:]]
    inner, *mixing = torch.ops.aten.convolution_backward(
        gradient, t.detach(), weight, sizes, [1] * axes, [0] * axes, [1] * axes, False, [0] * axes, 1, wanted
    )
    found = _gradients(t, tensors[:3], needed[:3], inner) if wanted[0] else [None] * 3
    return [*found, *mixing]


def _gradients(
    y: Tensor, tensors: Sequence[Tensor | None], needed: Sequence[bool], gradient: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of the tensors that need one."""
    wanted = [one for one, needs in zip(tensors, needed, strict=True) if needs and one is not None]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=create_graph))
    return [next(found) if needs else None for needs in needed]


def _zeros(weight: Tensor) -> Tensor:
    """Where the bands' gradients of a weight are summed: many small parts, so never in less than fp32."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=False)


def _folded(weight: Tensor, bias: Tensor | None, norm: Norm | None, name: str) -> tuple[Tensor, Tensor | None]:
    """A convolution's weight and bias with a scale and a shift per output channel multiplied in."""
    if norm is None:
        return weight, bias
    scale, shift = norm
    for part, found in (("scale", scale), ("shift", shift)):
        if found.shape != weight.shape[:1]:
            raise InputError(f"{name}'s {part} is {shown(found)}, and the map has {weight.shape[0]} channels; give one number a channel.")
    wide = scale.view(-1, *(1,) * (weight.dim() - 1))
    return weight * wide.to(weight.dtype), (shift if bias is None else shift + bias * scale).to(weight.dtype)


def _check(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor | None, depthwise_bias: Tensor | None, windows: Callable[[], Geometry]
) -> Geometry:
    """The geometry. Raises `InputError` for what does not go together."""
    axes = depthwise.dim() - 2
    if axes not in CONVOLUTIONS:
        raise InputError(f"the depthwise weight is {shown(depthwise)}; it has to be channels x 1 x window, with 1 to 3 axes of window.")
    if x.dim() not in (axes + 1, axes + 2):
        raise InputError(
            f"the input is {shown(x)}, and the depthwise weight {shown(depthwise)} slides along {axes} spatial axes; "
            f"it has to have {axes + 2} axes, or {axes + 1} without a batch."
        )
    channels, sides = x.shape[-axes - 1], tuple(x.shape[-axes:])
    middle, one = depthwise.shape[:2]
    if one != 1 or channels == 0 or middle == 0 or middle % channels:
        raise InputError(
            f"the depthwise weight is {shown(depthwise)}, and the input {shown(x)} has {channels} channels; "
            f"it has to be {max(channels, 1)} (or a multiple) x 1 x window."
        )
    if pointwise.shape[1:] != (middle, *(1,) * axes):
        wanted = format_shape(("out", middle, *(1,) * axes))
        raise InputError(f"the pointwise weight is {shown(pointwise)}; after {middle} depthwise channels it has to be {wanted}.")
    for name, found, count in (("bias", bias, pointwise.shape[0]), ("depthwise_bias", depthwise_bias, middle)):
        if found is not None and found.shape != (count,):
            raise InputError(f"{name} is {shown(found)}; it has to be {count} numbers, one an output channel.")
    geometry = windows()
    for axis, (window, side) in enumerate(zip(geometry.windows, sides, strict=True)):
        most = {"reflect": side - 1, "circular": side}.get(geometry.mode)
        if most is not None and max(window.pad) > most:
            raise InputError(
                f"{geometry.mode} padding {window.pad} was asked for on spatial axis {axis} of {side}; it reaches {most} at most."
            )
        if window.outputs(side) < 1:
            raise InputError(
                f"the input {shown(x)} is too small: spatial axis {axis} has {side} samples and {sum(window.pad)} of padding, "
                f"and the window spans {window.span}; pad by {window.span - side - sum(window.pad)} more."
            )
    return geometry


def _check_types(tensors: Operands) -> None:
    """Raises `InputError` unless the numbers are floating, of one type and on one device."""
    x = tensors.x
    for name, found in tensors._asdict().items():
        if found is None:
            continue
        if not found.is_floating_point():
            raise InputError(f"{_NAMES[name]} is of type {found.dtype}; it has to be floating.")
        if found.dtype is not x.dtype:
            raise InputError(f"{_NAMES[name]} is of type {found.dtype} and the input of {x.dtype}; make one the other's.")
        if found.device != x.device:
            raise InputError(f"{_NAMES[name]} is on {found.device} and the input on {x.device}; move one to the other's.")


_NAMES = {
    "x": "the input",
    "depthwise": "the depthwise weight",
    "depthwise_bias": "depthwise_bias",
    "pointwise": "the pointwise weight",
    "bias": "bias",
}


def _check_activations(tensors: Operands, setting: _Setting) -> None:
    """Raises `InputError` for an activation that would lose a gradient, or that is none."""
    for activation, weight in ((setting.between, tensors.depthwise), (setting.after, tensors.pointwise)):
        if activation is None:
            continue
        probe = torch.zeros((1, weight.shape[0], *(1,) * (weight.dim() - 2)), dtype=weight.dtype, device=weight.device)
        found = activation(probe)
        if found.requires_grad:
            raise InputError(f"the activation {activation!r} has parameters that take a gradient, which it would lose; apply it after.")
        if found.shape != probe.shape:
            raise InputError(f"the activation {activation!r} makes {shown(found)} of {shown(probe)}; it has to keep the shape.")
