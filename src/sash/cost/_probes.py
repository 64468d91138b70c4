"""Small operator calls that a calibration times: for each law a few, from small to large, from many channels to few."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sash.cost._time_maps import ELEMENTWISE

aten = torch.ops.aten
_TYPES = (torch.float32, torch.bfloat16)
_MANY = 1 << 18
"""Elements of a map in a core's cache: enough to share out, few enough not to wait for memory."""


class Probe(NamedTuple):
    """One operator call, its arguments made."""

    func: Any
    args: tuple
    kwargs: dict


def probe(func: Any, *args: Any, **kwargs: Any) -> Probe:
    """A call of an ATen operator."""
    return Probe(func, args, kwargs)


def elementwise() -> Iterator[Probe]:
    """Each elementwise operator once for each type, on a map in cache."""
    for dtype in _TYPES:
        x, y = (torch.rand(_MANY, dtype=dtype) + 0.5 for _ in range(2))
        flags = x > 1
        binary = (x, y)
        arguments: dict[str, tuple] = {
            "add": binary, "mul": binary, "div": binary, "pow": (x, 2.5), "tanh_backward": binary, "sigmoid_backward": binary,
            "gelu_backward": binary, "silu_backward": binary, "threshold_backward": (x, y, 0), "hardtanh": (x, 0.0, 6.0),
            "hardtanh_backward": (x, y, 0.0, 6.0), "hardswish_backward": binary, "hardsigmoid_backward": binary,
            "leaky_relu": (x, 0.1), "leaky_relu_backward": (x, y, 0.1, False), "elu_backward": (x, 1.0, 1.0, 1.0, False, y),
            "addcmul": (x, x, y), "addcdiv": (x, x, y), "lerp": (x, y, 0.1), "where": (flags, x, y), "gt": (x, 0.5),
            "bernoulli_": (y.clone(), 0.9),
        }  # fmt: skip
        overloads = {
            **dict.fromkeys(("add", "mul", "div"), "Tensor"),
            **dict.fromkeys(("lerp", "gt"), "Scalar"),
            "pow": "Tensor_Scalar",
            "where": "self",
            "bernoulli_": "float",
        }
        for name in ELEMENTWISE:
            yield probe(getattr(getattr(aten, name), overloads.get(name, "default")), *arguments.get(name, (x,)))


def maps() -> Iterator[Probe]:
    """Copies, reductions, norms, pooling, resampling and gathering."""
    for dtype in _TYPES:
        flat = torch.rand(512, 512, dtype=dtype)
        other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
        yield probe(aten.clone.default, flat)
        yield probe(aten.clone.default, flat.t(), memory_format=torch.contiguous_format)
        yield probe(aten.clone.default, flat.view(4, 128, 8, 64).transpose(1, 2), memory_format=torch.contiguous_format)
        yield probe(aten._to_copy.default, flat, dtype=other)
        yield probe(aten.cat.default, [flat.view(4, 64, 32, 32), flat.view(4, 64, 32, 32)], 1)
        yield probe(aten.zero_.default, flat.clone())
        indices = torch.randint(512, (512,))
        yield probe(aten.embedding.default, flat, indices)
        yield probe(aten.embedding_dense_backward.default, flat, indices, 512, -1, False)
        yield probe(aten.cumsum.default, flat, 1)
        for axes in ([1], [0]):
            yield probe(aten.sum.dim_IntList, flat, axes)
            yield probe(aten.var.correction, flat, axes)
            yield probe(aten._softmax.default, flat, axes[0], False)
            yield probe(aten._softmax_backward_data.default, flat, flat, axes[0], dtype)
        scale = torch.ones(512, dtype=dtype)
        _, mean, rstd = aten.native_layer_norm(flat, [512], scale, scale, 1e-5)
        yield probe(aten.native_layer_norm.default, flat, [512], scale, scale, 1e-5)
        yield probe(aten.native_layer_norm_backward.default, flat, flat, [512], mean, rstd, scale, scale, [True, True, True])
        yield from _grouped_norm(flat.view(4, 64, 32, 32))
        for last in (False, True):
            yield from _images(torch.rand(4, 64, 32, 32, dtype=dtype), last)


def _grouped_norm(x: Tensor) -> Iterator[Probe]:
    scale = torch.ones(64, dtype=x.dtype)
    _, mean, rstd = aten.native_group_norm(x, scale, scale, 4, 64, 1024, 8, 1e-5)
    yield probe(aten.native_group_norm.default, x, scale, scale, 4, 64, 1024, 8, 1e-5)
    yield probe(aten.native_group_norm_backward.default, x, x, mean, rstd, scale, 4, 64, 1024, 8, [True, True, True])


def _images(x: Tensor, last: bool) -> Iterator[Probe]:
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    scale, mean = torch.ones(64), torch.zeros(64)
    norm = (x, scale, scale, mean, scale)
    yield probe(aten.native_batch_norm.default, *norm, True, 0.1, 1e-5)
    yield probe(aten.native_batch_norm.default, *norm, False, 0.1, 1e-5)
    yield probe(aten.native_batch_norm_backward.default, x, x, scale, mean, scale, mean, scale, True, 1e-5, [True, True, True])
    pool = ([3, 3], [2, 2], [1, 1])
    pooled, indices = aten.max_pool2d_with_indices(x, *pool)
    yield probe(aten.max_pool2d_with_indices.default, x, *pool)
    yield probe(aten.max_pool2d_with_indices_backward.default, pooled, x, *pool, [1, 1], False, indices)
    yield probe(aten.avg_pool2d.default, x, *pool)
    yield probe(aten.avg_pool2d_backward.default, pooled, x, *pool, False, True, None)
    yield probe(aten.upsample_bilinear2d.default, x, [64, 64], False)
    yield probe(aten.upsample_bilinear2d_backward.default, aten.upsample_bilinear2d(x, [64, 64], False), [64, 64], list(x.shape), False)


_DENSE = ((2, 16, 16, 8), (2, 64, 64, 28), (1, 256, 256, 14), (2, 32, 32, 56), (1, 384, 384, 7))
_POINTWISE = ((2, 32, 32, 1), (2, 256, 64, 1), (2, 32, 128, 56), (2, 256, 256, 14), (1, 512, 512, 7), (4, 192, 32, 28))
_DEPTHWISE = ((2, 32, 32, 8), (2, 96, 96, 56), (2, 480, 480, 14), (4, 64, 64, 28), (2, 960, 960, 7))
_GROUPED = ((2, 64, 64, 8), (2, 64, 64, 56), (2, 256, 256, 14), (2, 384, 384, 10))
_TRANSPOSED = ((2, 16, 16, 8), (2, 64, 32, 28), (1, 256, 128, 14))
_FORMS = {
    "dense": (_DENSE, 3),
    "pointwise": (_POINTWISE, 1),
    "depthwise": (_DEPTHWISE, 3),
    "grouped": (_GROUPED, 3),
    "transposed": (_TRANSPOSED, 2),
}


def convolutions() -> Iterator[Probe]:
    """Each form forward and for each gradient, in both layouts and types; batch, channels in and out, side."""
    for (form, (sizes, taps)), last, dtype in product(_FORMS.items(), (False, True), _TYPES):
        for batch, inputs, outputs, side in sizes:
            groups = {"depthwise": inputs, "grouped": inputs // 16}.get(form, 1)
            transposed = form == "transposed"
            x = torch.rand(batch, inputs, side, side, dtype=dtype)
            shape = (inputs, outputs) if transposed else (outputs, inputs // groups)
            weight = torch.rand(*shape, taps, taps, dtype=dtype)
            if last:
                x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
            setting = ([2, 2] if transposed else [1, 1], [taps // 2 if taps == 3 else 0] * 2, [1, 1], transposed, [0, 0], groups)
            yield probe(aten.convolution.default, x, weight, None, *setting)
            gradient = aten.convolution(x, weight, None, *setting)
            for mask in ([True, False, False], [False, True, False]):
                yield probe(aten.convolution_backward.default, gradient, x, weight, None, *setting, mask)
    yield from _unfolded()


def _unfolded() -> Iterator[Probe]:
    # Kernels that oneDNN has no own code for: on AVX-512 the weights of large depthwise windows, and widely dilated ones.
    for channels, side in ((120, 24), (480, 12), (960, 6)):
        x, weight = torch.rand(2, channels, side, side), torch.rand(channels, 1, 5, 5)
        yield probe(
            aten.convolution_backward.default, x, x, weight, None, [1, 1], [2, 2], [1, 1], False, [0, 0], channels, [False, True, False]
        )
    for inputs, outputs, side in ((128, 64, 14), (256, 128, 12), (32, 32, 28)):
        x, y, weight = torch.rand(1, inputs, side, side), torch.rand(1, outputs, side, side), torch.rand(outputs, inputs, 3, 3)
        for mask in ([True, False, False], [False, True, False]):
            yield probe(aten.convolution_backward.default, y, x, weight, None, [1, 1], [12, 12], [12, 12], False, [0, 0], 1, mask)


def products() -> Iterator[Probe]:
    """Matrix products as linear layers make them: forward, and for both gradients; rows, contracted, columns."""
    for dtype in _TYPES:
        for rows, inner, columns in ((64, 64, 64), (256, 512, 512), (784, 192, 768), (196, 768, 768), (1024, 512, 128)):
            x, weight, y = (torch.rand(*shape, dtype=dtype) for shape in ((rows, inner), (columns, inner), (rows, columns)))
            yield probe(aten.mm.default, x, weight.t())
            yield probe(aten.mm.default, y, weight)
            yield probe(aten.mm.default, y.t(), x)
        for rows, inner, columns in ((4, 512, 512), (8, 1024, 1000), (2, 2048, 512)):
            x, weight, y = (torch.rand(*shape, dtype=dtype) for shape in ((rows, inner), (columns, inner), (rows, columns)))
            yield probe(aten.mm.default, x, weight.t())
            yield probe(aten.mm.default, y, weight)
            yield probe(aten.mm.default, y.t(), x)
        for batch, rows, inner, columns in ((8, 16, 16, 16), (12, 128, 64, 128), (48, 49, 32, 49), (8, 196, 196, 64)):
            left, right = torch.rand(batch, rows, inner, dtype=dtype), torch.rand(batch, columns, inner, dtype=dtype)
            yield probe(aten.bmm.default, left, right.transpose(1, 2))
            yield probe(aten.bmm.default, left, right.transpose(1, 2).contiguous())


def sequences() -> Iterator[Probe]:
    """Attention, recurrent layers, transforms."""
    for dtype in _TYPES:
        for batch, heads, length, width in ((2, 4, 64, 32), (2, 6, 196, 64), (1, 8, 512, 64)):
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


def everything() -> Iterator[Probe]:
    """All of them."""
    yield from elementwise()
    yield from maps()
    yield from convolutions()
    yield from products()
    yield from sequences()
