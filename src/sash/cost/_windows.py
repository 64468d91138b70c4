"""The windows that a torch layer slides, and how to write them."""

from __future__ import annotations

from typing import Any

from torch import nn

from sash.errors import InputError
from sash.window import Adaptive, Circular, Link, Transposed, Window

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TransposedConvolution = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_POOLS = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
_ADAPTIVE = tuple(pool for pools in _POOLS.values() for pool in pools[3:])
_PLAIN_POOLS = tuple(pool for pools in _POOLS.values() for pool in pools[:3])


def axes_of(module: nn.Module) -> int:
    """Axes that the layer's windows slide along; 0 for a layer without windows."""
    for axes, pools in _POOLS.items():
        if isinstance(module, (Convolution[axes - 1], TransposedConvolution[axes - 1], *pools)):
            return axes
    return 0


def windows_of(module: nn.Module) -> tuple[Link, ...]:
    """One window an axis; empty for a layer without windows, or with one that the algebra has no words for."""
    try:
        return tuple(_window(module, axis) for axis in range(axes_of(module)))
    except InputError:
        return ()


def spell(module: nn.Module) -> str:
    """The layer's windows in the words of `sash.walk`, as `conv 7x7/2 p3`; its class name where it has none."""
    links = windows_of(module)
    if not links:
        return type(module).__name__
    if all(isinstance(link, Adaptive) for link in links):
        return f"adaptive {_joined([link.count for link in links if isinstance(link, Adaptive)])}"
    windows = [link.window if isinstance(link, (Transposed, Circular)) else link for link in links]
    words = "conv" if isinstance(module, Convolution) else "transposed" if isinstance(module, TransposedConvolution) else "pool"
    plain = [window for window in windows if isinstance(window, Window)]
    text = f"{words} {'x'.join(str(window.size) for window in plain)}"
    strides = [window.stride for window in plain]
    if strides != [1] * len(strides) or words == "pool":
        text += f"/{_joined(strides)}"
    if any(window.pad != (0, 0) for window in plain):
        sides = [str(pad[0]) if pad[0] == pad[1] else f"{pad[0]}:{pad[1]}" for pad in (window.pad for window in plain)]
        text += f" p{_joined(sides)}"
    if any(window.dilation > 1 for window in plain):
        text += f" d{_joined([window.dilation for window in plain])}"
    return text + " ceil" * any(window.ceil for window in plain)


def _window(module: nn.Module, axis: int) -> Link:
    if isinstance(module, _ADAPTIVE):
        count = _entry(module.output_size, axis)
        return Window(1) if count is None else Adaptive(count)
    if isinstance(module, _PLAIN_POOLS):
        size = _entry(module.kernel_size, axis)
        stride = size if module.stride in (None, ()) else _entry(module.stride, axis)
        pad = _entry(getattr(module, "padding", 0), axis)
        return Window(size, stride, _entry(getattr(module, "dilation", 1), axis), (pad, pad), bool(module.ceil_mode))
    assert isinstance(module, (*Convolution, *TransposedConvolution))
    size, stride, dilation = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    side = 0 if isinstance(module.padding, str) else module.padding[axis]
    pad = Window.same(size, stride, dilation).pad if module.padding == "same" else (side, side)
    window = Window(size, stride, dilation, pad)
    if isinstance(module, TransposedConvolution):
        return Transposed(window, module.output_padding[axis])
    return Circular(window) if module.padding_mode == "circular" else window


def _entry(value: Any, axis: int) -> Any:
    return value[axis % len(value)] if isinstance(value, (tuple, list)) else value


def _joined(values: list) -> str:
    """One value for all axes where they agree."""
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
