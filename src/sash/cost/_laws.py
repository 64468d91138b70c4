"""The names of everything that a calibration measures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from sash.cost._time_maps import ELEMENTWISE

STREAMS = (1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25, 1 << 27)
"""Bytes of the working sets at which bandwidth is measured, from a core's cache to memory."""
KINDS = ("f32", "bf16")
FORMS = ("dense", "pointwise", "grouped", "depthwise", "transposed")


def _names(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(".".join(words) for words in product(*parts))


SUMMED = (
    *_names(("convolution",), FORMS, ("forward", "data", "weights"), ("plain", "last"), KINDS),
    *_names(
        (
            "convolution.unfolded.dense",
            "convolution.unfolded.depthwise",
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
)
"""Laws whose start, arithmetic and traffic add up."""
MAPPED = (
    *_names(("elementwise",), ELEMENTWISE, KINDS),
    *_names(("copy.straight", "copy.permuted", "copy.cast", "copy.join", "fill", "gather", "scatter", "scan"), KINDS),
    *_names(("reduce.inner", "reduce.outer", "spread.inner", "spread.outer", "softmax.inner", "softmax.outer"), KINDS),
    *_names(("softmax.backward.inner", "softmax.backward.outer", "layer_norm", "layer_norm.backward"), KINDS),
    *_names(("group_norm", "group_norm.backward"), KINDS),
    *_names(("batch_norm.training", "batch_norm.inference", "batch_norm.backward"), ("plain", "last"), KINDS),
    *_names(("pool.max", "pool.mean", "pool.max.backward", "pool.mean.backward"), ("plain", "last"), KINDS),
    *_names(("resample.forward", "resample.backward"), ("plain", "last"), KINDS),
)
"""Laws whose arithmetic runs while the traffic flows: the longer of the two counts."""
PARTS = ("call_s", "s_per_item", "s_per_byte", "s_per_weight_byte")
"""What a summed law is made of."""
NAMES = (
    "operator.s",
    "view.s",
    "module.s",
    "backward.s",
    "optimizer.s",
    "region.s",
    "fresh.s_per_byte",
    *(f"stream.{size}.bytes_per_s" for size in STREAMS),
    *(f"best.{kind}.macs_per_s" for kind in KINDS),
    *(f"{law}.{part}" for law in SUMMED for part in PARTS),
    *(f"{law}.s_per_item" for law in MAPPED),
)
"""Every rate that a calibration finds; the last word of a name is its unit."""
