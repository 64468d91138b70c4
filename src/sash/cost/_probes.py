"""Small operator calls that a calibration times: for each law a few, from small to large, from many channels to few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sash.cost._laws import ELEMENTWISE

aten = torch.ops.aten
_TYPES = (torch.float32, torch.bfloat16)
_SIDES = (512, 16)
"""Sides of square maps: one that fills a core's cache, enough to share out and not to wait for memory; one that shows the start."""


class Probe(NamedTuple):
    """One operator call, its arguments made."""

    func: Any
    args: tuple
    kwargs: dict


def probe(func: Any, *args: Any, **kwargs: Any) -> Probe:
    """A call of an ATen operator."""
    return Probe(func, args, kwargs)


def elementwise(dtype: torch.dtype) -> Iterator[Probe]:
    """Each elementwise operator on a map in cache and on a small one: what it computes; what it waits for is measured apart."""
    overloads = {
        **dict.fromkeys(("add", "mul", "div"), "Tensor"),
        **dict.fromkeys(("lerp", "gt"), "Scalar"),
        "pow": "Tensor_Scalar",
        "where": "self",
        "bernoulli_": "float",
    }
    maps = {side: [torch.rand(side * side, dtype=dtype) + 0.5 for _ in range(3)] for side in _SIDES}
    for name, side in product(ELEMENTWISE, _SIDES):
        x, y, z = maps[side]
        arguments: dict[str, tuple] = {
            **dict.fromkeys(("add", "mul", "div", "tanh_backward", "sigmoid_backward", "gelu_backward", "silu_backward"), (x, y)),
            **dict.fromkeys(("hardswish_backward", "hardsigmoid_backward"), (x, y)),
            "pow": (x, 2.5), "threshold_backward": (x, y, 0), "hardtanh": (x, 0.0, 6.0), "hardtanh_backward": (x, y, 0.0, 6.0),
            "leaky_relu": (x, 0.1), "leaky_relu_backward": (x, y, 0.1, False), "elu_backward": (x, 1.0, 1.0, 1.0, False, y),
            "addcmul": (x, z, y), "addcdiv": (x, z, y), "lerp": (x, y, 0.1), "where": (x > 1, x, y), "gt": (x, 0.5),
            "bernoulli_": (z, 0.9),
        }  # fmt: skip
        yield probe(getattr(getattr(aten, name), overloads.get(name, "default")), *arguments.get(name, (x,)))


def maps(dtype: torch.dtype) -> Iterator[Probe]:
    """Copies, reductions, norms, pooling, resampling and gathering."""
    for side in _SIDES:

        def made(*shape: int, side: int = side) -> Tensor:
            return torch.rand(*(shape or (side, side)), dtype=dtype)

        other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
        eighth = side // 8
        yield probe(aten.clone.default, made())
        yield probe(aten.clone.default, made().t(), memory_format=torch.contiguous_format)
        heads = made(4, side // 4, 8, eighth).transpose(1, 2)
        yield probe(aten.clone.default, heads, memory_format=torch.contiguous_format)
        yield probe(aten._to_copy.default, made(), dtype=other)
        yield probe(aten.cat.default, [made(4, eighth, eighth, side // 2)] * 2, 1)
        yield probe(aten.zero_.default, made())
        indices = torch.randint(side, (side,))
        yield probe(aten.embedding.default, made(), indices)
        yield probe(aten.embedding_dense_backward.default, made(), indices, side, -1, False)
        yield probe(aten.cumsum.default, made(), 1)
        for axes in ([1], [0]):
            yield probe(aten.sum.dim_IntList, made(), axes)
            yield probe(aten.var.correction, made(), axes)
            yield probe(aten._softmax.default, made(), axes[0], False)
            yield probe(aten._softmax_backward_data.default, made(), made(), axes[0], dtype)
        yield from _rows(made(5350, 49) if side > 49 else made(side, 8))
        scale, flat = torch.ones(side, dtype=dtype), made()
        _, mean, rstd = aten.native_layer_norm(flat, [side], scale, scale, 1e-5)
        yield probe(aten.native_layer_norm.default, made(), [side], scale, scale, 1e-5)
        yield probe(aten.native_layer_norm_backward.default, made(), flat, [side], mean, rstd, scale, scale, [True, True, True])
        images = (4, 64, 32, 32) if side > 16 else (1, 4, 8, 8)
        yield from _grouped_norm(made(*images))
        for last in (False, True):
            yield from _images(made(*images), last)


def _rows(x: Tensor) -> Iterator[Probe]:
    """Operators that go row by row, on short rows."""
    length, scale = x.shape[1], torch.ones(x.shape[1], dtype=x.dtype)
    yield probe(aten.sum.dim_IntList, torch.rand_like(x), [1])
    yield probe(aten._softmax.default, torch.rand_like(x), 1, False)
    yield probe(aten._softmax_backward_data.default, torch.rand_like(x), torch.rand_like(x), 1, x.dtype)
    _, mean, rstd = aten.native_layer_norm(x, [length], scale, scale, 1e-5)
    yield probe(aten.native_layer_norm.default, torch.rand_like(x), [length], scale, scale, 1e-5)
    yield probe(aten.native_layer_norm_backward.default, torch.rand_like(x), x, [length], mean, rstd, scale, scale, [True, True, True])


def _grouped_norm(x: Tensor) -> Iterator[Probe]:
    batch, channels, *places = x.shape
    scale, groups = torch.ones(channels, dtype=x.dtype), channels // 4
    setting = (batch, channels, prod(places), groups)
    _, mean, rstd = aten.native_group_norm(x, scale, scale, *setting, 1e-5)
    yield probe(aten.native_group_norm.default, torch.rand_like(x), scale, scale, *setting, 1e-5)
    yield probe(aten.native_group_norm_backward.default, torch.rand_like(x), x, mean, rstd, scale, *setting, [True, True, True])


def _images(x: Tensor, last: bool) -> Iterator[Probe]:
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    channels, side = x.shape[1], x.shape[2]

    def other() -> Tensor:
        return torch.rand_like(x)  # of the same layout; each operator its own, or the last one's would lie in the cache

    scale, mean = torch.ones(channels), torch.zeros(channels)
    norm = (scale, scale, mean, scale)
    yield probe(aten.native_batch_norm.default, other(), *norm, True, 0.1, 1e-5)
    yield probe(aten.native_batch_norm.default, other(), *norm, False, 0.1, 1e-5)
    yield probe(aten.native_batch_norm_backward.default, other(), other(), scale, mean, scale, mean, scale, True, 1e-5, [True, True, True])
    pool = ([3, 3], [2, 2], [1, 1])
    pooled, indices = aten.max_pool2d_with_indices(x, *pool)
    yield probe(aten.max_pool2d_with_indices.default, other(), *pool)
    yield probe(aten.max_pool2d_with_indices_backward.default, pooled, x, *pool, [1, 1], False, indices)
    yield probe(aten.avg_pool2d.default, other(), *pool)
    yield probe(aten.avg_pool2d_backward.default, torch.rand_like(pooled), other(), *pool, False, True, None)
    yield probe(aten.upsample_bilinear2d.default, other(), [2 * side] * 2, False)
    yield probe(
        aten.upsample_bilinear2d_backward.default, aten.upsample_bilinear2d(x, [2 * side] * 2, False), [2 * side] * 2, list(x.shape), False
    )


_DENSE = (
    *((2, 16, 16, 8, 1), (2, 64, 64, 28, 1), (1, 256, 256, 14, 1), (2, 32, 32, 56, 1), (1, 384, 384, 7, 1), (4, 24, 24, 96, 1)),
    *((4, 3, 32, 64, 2), (2, 64, 128, 28, 2)),
)
_POINTWISE = (
    *((2, 32, 32, 1, 1), (2, 256, 64, 1, 1), (2, 32, 128, 56, 1), (2, 256, 256, 14, 1), (1, 512, 512, 7, 1), (4, 192, 32, 28, 1)),
    *((4, 32, 96, 80, 1), (2, 64, 128, 56, 2), (2, 1024, 1024, 7, 1)),
)
_DEPTHWISE = (
    *((2, 32, 32, 8, 1), (2, 96, 96, 56, 1), (1, 64, 64, 112, 1), (2, 480, 480, 14, 1), (4, 64, 64, 28, 1), (2, 960, 960, 7, 1)),
    *((4, 64, 64, 80, 1), (4, 96, 96, 40, 2)),
)
_GROUPED = ((2, 64, 64, 8, 1), (2, 64, 64, 56, 1), (2, 256, 256, 14, 1), (2, 384, 384, 10, 1), (2, 96, 96, 28, 2))
_TRANSPOSED = ((2, 16, 16, 8, 2), (2, 64, 32, 28, 2), (1, 256, 128, 14, 2), (1, 32, 32, 64, 2))
_MOST = 1 << 22
"""Elements of the largest of their operands, at most."""
_FORMS = {
    "dense": (_DENSE, 3),
    "pointwise": (_POINTWISE, 1),
    "depthwise": (_DEPTHWISE, 3),
    "grouped": (_GROUPED, 3),
    "transposed": (_TRANSPOSED, 2),
}


def convolutions(dtype: torch.dtype) -> Iterator[Probe]:
    """Each form in both layouts, forward and for each gradient."""
    # Copied from these, which is sooner done than to draw them. Equal numbers would not do: products of them take a few per cent less.
    values = torch.rand(_MOST, dtype=dtype)
    for form, (sizes, taps) in _FORMS.items():
        # One layout right after the other: which is faster, no other work on the machine is to decide.
        for size, format in ((size, format) for size in sizes for format in (torch.contiguous_format, torch.channels_last)):
            yield from _convolution(form, size, taps, partial(_made, values, format))
    yield from _unfolded(dtype)


def _made(values: Tensor, format: torch.memory_format, *shape: int) -> Tensor:
    return values[: prod(shape)].view(shape).clone(memory_format=format)


def _convolution(form: str, size: tuple[int, ...], taps: int, made: Callable[..., Tensor]) -> Iterator[Probe]:
    batch, inputs, outputs, side, stride = size
    groups = {"depthwise": inputs, "grouped": inputs // 16}.get(form, 1)
    transposed = form == "transposed"

    def operands() -> tuple[Tensor, Tensor]:
        shape = (inputs, outputs) if transposed else (outputs, inputs // groups)
        return made(batch, inputs, side, side), made(*shape, taps, taps)

    setting = ([stride] * 2, [taps // 2 if taps == 3 else 0] * 2, [1, 1], transposed, [0, 0], groups)
    yield probe(aten.convolution.default, *operands(), None, *setting)
    gradient = aten.convolution(*operands(), None, *setting)
    for mask in ([True, False, False], [False, True, False]):
        yield probe(aten.convolution_backward.default, gradient.clone(), *operands(), None, *setting, mask)


def _unfolded(dtype: torch.dtype) -> Iterator[Probe]:
    # Kernels that oneDNN has no own code for: on AVX-512 the weights of large depthwise windows, and widely dilated ones.
    for channels, side in ((240, 20), (480, 12), (960, 6), (120, 24), (24, 24), (24, 56), (72, 40)):
        x, weight = (torch.rand(*shape, dtype=dtype) for shape in ((2, channels, side, side), (channels, 1, 5, 5)))
        yield probe(
            aten.convolution_backward.default, x, x, weight, None, [1, 1], [2, 2], [1, 1], False, [0, 0], channels, [False, True, False]
        )
    for inputs, outputs, side in ((128, 64, 14), (512, 128, 12), (32, 32, 28), (64, 64, 40)):
        shapes = (1, inputs, side, side), (1, outputs, side, side), (outputs, inputs, 3, 3)
        x, y, weight = (torch.rand(*shape, dtype=dtype) for shape in shapes)
        for mask in ([True, False, False], [False, True, False]):
            yield probe(aten.convolution_backward.default, y, x, weight, None, [1, 1], [12, 12], [12, 12], False, [0, 0], 1, mask)


def products(dtype: torch.dtype) -> Iterator[Probe]:
    """Matrix products as linear layers make them: forward, and for both gradients; rows, contracted, columns."""

    def made(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=dtype)

    for rows, inner, columns in (
        *((64, 64, 64), (256, 512, 512), (784, 192, 768), (196, 768, 768), (1024, 512, 128)),
        *((4, 512, 512), (8, 1024, 1000), (2, 2048, 512)),
    ):
        yield probe(aten.mm.default, made(rows, inner), made(columns, inner).t())
        yield probe(aten.mm.default, made(rows, columns), made(columns, inner))
        yield probe(aten.mm.default, made(rows, columns).t(), made(rows, inner))
    for batch, rows, inner, columns in ((8, 16, 16, 16), (12, 128, 64, 128), (48, 49, 32, 49), (8, 196, 196, 64)):
        yield probe(aten.bmm.default, made(batch, rows, inner), made(batch, columns, inner).transpose(1, 2))
        yield probe(aten.bmm.default, made(batch, rows, inner), made(batch, inner, columns))


def sequences() -> Iterator[Probe]:
    """Attention, recurrent layers, transforms."""
    for dtype in _TYPES:
        for batch, heads, length, width in ((1, 2, 16, 32), (2, 4, 64, 32), (2, 6, 196, 64), (1, 8, 512, 64)):
            q, k, v = (torch.rand(batch, heads, length, width, dtype=dtype) for _ in range(3))
            out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
            yield probe(aten._scaled_dot_product_flash_attention_for_cpu.default, q, k, v)
            yield probe(aten._scaled_dot_product_flash_attention_for_cpu_backward.default, out, q, k, v, out, sums, 0.0, False)
    for length, batch, width in ((8, 4, 32), (32, 16, 128), (16, 32, 256)):
        x, state = torch.rand(length, batch, width), torch.zeros(batch, width)
        weights = [torch.rand(4 * width, width), torch.rand(4 * width, width), torch.rand(4 * width), torch.rand(4 * width)]
        setting = (False, [], 2, width, 1, True, False, False, True)
        yield probe(aten.mkldnn_rnn_layer.default, x, *weights, state, state, *setting)
        with torch.enable_grad():  # or it keeps no workspace
            y, hidden, cell, kept = aten.mkldnn_rnn_layer(x.requires_grad_(), *weights, state, state, *setting)
        yield probe(
            aten.mkldnn_rnn_layer_backward.default,
            x, *weights, state, state, y, hidden, cell, y, hidden, cell, False, 2, width, 1, True, True, False, [], False, kept,
        )  # fmt: skip
    for batch, side in ((8, 32), (8, 128), (2, 256)):
        yield probe(aten._fft_r2c.default, torch.rand(batch, side, side), [1, 2], 0, True)
        yield probe(aten._fft_c2c.default, torch.rand(batch, side, side, dtype=torch.complex64), [1, 2], 0, True)


def groups() -> Iterator[tuple[Callable[[], Iterator[Probe]], bool]]:
    """All, in groups that fit into memory at once; and whether a step finds their operands, as it does weights, out of the caches."""
    for dtype in _TYPES:
        yield partial(elementwise, dtype), False
        yield partial(maps, dtype), False
        yield partial(products, dtype), True
        yield partial(convolutions, dtype), True
    yield sequences, True
