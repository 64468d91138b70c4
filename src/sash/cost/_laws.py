"""The names of everything that a calibration measures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

STREAMS = (1 << 19, 1 << 21, 1 << 23, 1 << 25, 1 << 27)
"""Bytes of the working sets at which bandwidth is measured, from a core's cache to memory."""
KINDS = ("f32", "bf16")
ELEMENTWISE = (
    "add", "mul", "div", "sqrt", "rsqrt", "exp", "log", "tanh", "tanh_backward", "sigmoid", "sigmoid_backward", "erf", "pow", "gelu",
    "gelu_backward", "silu", "silu_backward", "relu", "threshold_backward", "hardtanh", "hardtanh_backward", "hardswish",
    "hardswish_backward", "hardsigmoid", "hardsigmoid_backward", "leaky_relu", "leaky_relu_backward", "elu", "elu_backward", "addcmul",
    "addcdiv", "lerp", "where", "gt", "bernoulli_", "softplus", "mish", "sin",
)  # fmt: skip
"""Elementwise operators that are measured one by one; the others go as add where they are cheap, as exp where they are not."""
FORMS = ("dense", "pointwise", "grouped", "depthwise", "transposed")


def _names(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(".".join(words) for words in product(*parts))


ROWED = (
    "reduce.inner", "softmax.inner", "softmax.outer", "softmax.backward.inner", "softmax.backward.outer", "layer_norm",
    "layer_norm.backward",
)  # fmt: skip
"""Laws of operators that go through a map row by row: each row has a start."""
SUMMED = (
    *_names(("convolution",), FORMS, ("forward", "data", "weights"), ("plain", "last"), KINDS),
    *_names(
        (
            "convolution.unfolded.dense",
            "convolution.unfolded.depthwise",
            "convolution.unfolded.shared",
            "product",
            "products",
            "vector",
            "attention.forward",
            "attention.backward",
        ),
        KINDS,
    ),
    *_names(("recurrent.forward", "recurrent.backward"), KINDS),
    "transform.f32",
    *_names(ROWED, KINDS),
)
"""Laws whose start, arithmetic and traffic add up."""
MAPPED = (
    *_names(("elementwise",), ELEMENTWISE, KINDS),
    *_names(("copy.straight", "copy.permuted", "copy.cast", "copy.join", "fill", "gather", "scatter", "scan"), KINDS),
    *_names(("reduce.outer", "spread.inner", "spread.outer", "group_norm", "group_norm.backward"), KINDS),
    *_names(("batch_norm.training", "batch_norm.inference", "batch_norm.backward"), ("plain", "last"), KINDS),
    *_names(("pool.max", "pool.mean", "pool.max.backward", "pool.mean.backward"), ("plain", "last"), KINDS),
    *_names(("resample.forward", "resample.backward"), ("plain", "last"), KINDS),
)
"""Laws whose arithmetic runs while the traffic flows: the longer of the two counts."""
SHARED, OWN = ("start_s", "call_s", "s_per_weight_byte"), ("s_per_byte", "s_per_item")
"""What a summed law is made of: parts that the three directions of a convolution share, and parts of each."""
NAMES = (
    "operator.s",
    "view.s",
    "module.s",
    "backward.s",
    "optimizer.s",
    "region.s",
    "fresh.s_per_byte",
    *(f"{way}.{size}.bytes_per_s" for way in ("stream", "kept") for size in STREAMS),
    *(f"best.{kind}.macs_per_s" for kind in KINDS),
    *(f"{law}.{part}" for law in SUMMED for part in (*SHARED, *OWN)),
    *(f"{law}.{part}" for law in MAPPED for part in ("call_s", "s_per_item")),
)
"""Every rate that a calibration finds; the last word of a name is its unit."""
