"""Seconds of one operator call: a roofline over this machine's rates."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sash.cost._calibration import STREAMS
from sash.cost._macs import operator_macs
from sash.cost._rates import Rates


class Bound(StrEnum):
    """What an operator waits for most."""

    ARITHMETIC = "arithmetic"
    MEMORY = "memory traffic"
    OVERHEAD = "overhead"


class Estimate(NamedTuple):
    """What one operator call takes."""

    seconds: float
    bound: Bound
    limit_s: float
    """What the machine's best rates would allow: the roofline's limit."""


def operator_seconds(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any, rates: Rates) -> Estimate:
    """Seconds of one call of an ATen operator below autograd, as a dispatch mode sees it, and what bounds them.

    Reads sizes, strides and types only: tensors may be real, meta or fake.
    """
    overhead = rates["operator.s"]
    if _is_view(func):
        return Estimate(overhead / 2, Bound.OVERHEAD, 0.0)
    tensors = list(_tensors((args, kwargs.values(), outputs)))
    moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    traffic = moved / _bandwidth(moved, rates)
    macs = operator_macs(func, args, kwargs, outputs)
    kind = "bf16" if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors) else "f32"
    name = "product"
    if "convolution" in str(func):
        groups, weight = (args[9], args[2]) if "backward" in str(func) else (args[8], args[1])
        name = "convolution.depthwise" if groups > 1 and weight.shape[1] == 1 else "convolution.dense"
    best = macs / rates[f"product.{kind}.macs_per_s"]
    arithmetic = macs / rates[f"{name}.{kind}.macs_per_s"]
    parts = {Bound.ARITHMETIC: arithmetic, Bound.MEMORY: traffic, Bound.OVERHEAD: overhead}
    bound = max(parts, key=parts.__getitem__)
    return Estimate(overhead + max(arithmetic, traffic), bound, max(best, moved / _bandwidth(STREAMS[0], rates)))


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def _bandwidth(size: int, rates: Rates) -> float:
    """Bytes a second over a working set of `size` bytes."""
    below, above = STREAMS[0], STREAMS[-1]
    if size <= below:
        return rates[f"stream.{below}.bytes_per_s"]
    for low, high in pairwise(STREAMS):
        if size <= high:
            share = log(size / low) / log(high / low)
            ends = rates[f"stream.{low}.bytes_per_s"], rates[f"stream.{high}.bytes_per_s"]
            return ends[0] ** (1 - share) * ends[1] ** share
    return rates[f"stream.{above}.bytes_per_s"]


def _tensors(value: Any):
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for item in value:
            yield from _tensors(item)
