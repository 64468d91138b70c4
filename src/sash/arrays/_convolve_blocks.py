"""Ways of convolving by blocks: kernels of three axes, and any kernel on a device."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from sash.arrays._block_filters import Filter, Products, Taps
from sash.arrays._block_transforms import Transformed
from sash.arrays._blocks import BlockJob
from sash.arrays._outer_products import MOST_TERMS, outer_products_of

if TYPE_CHECKING:
    from sash.arrays._convolve import Asked

ROUNDING = {"float32": 6e-7, "float64": 2e-14}
"""What sums and transforms of up to three axes can be off by, of the largest sample times the sum of the kernel's absolute taps."""
MOST_TAPS = 1000
"""Taps from which on adding them one by one is not looked at."""


def block_ways(asked: Asked) -> Iterator[BlockJob]:
    """By sums of outer products, tap by tap, or by transforms: those that the method allows."""
    work, method = asked.work, asked.method
    kernel = asked.taps[(slice(None, None, -1),) * asked.taps.ndim] if asked.correlate else asked.taps
    sides = kernel.shape
    ahead = {"same": lambda taps: taps // 2, "valid": lambda taps: 0, "full": lambda taps: taps - 1}[asked.mode]
    more = {"same": lambda taps: 0, "valid": lambda taps: 1 - taps, "full": lambda taps: taps - 1}[asked.mode]
    sizes = tuple(asked.source.shape[axis] + more(taps) for axis, taps in zip(asked.axes, sides, strict=True))
    before = tuple(map(ahead, sides))
    turned = kernel[(slice(None, None, -1),) * kernel.ndim]
    rounding = ROUNDING[work.name]
    share = max(asked.tolerance - rounding, asked.tolerance / 2)
    if method in ("auto", "separable"):
        found = outer_products_of(turned, share, MOST_TERMS if method == "auto" else kernel.size)
        if found is not None:
            terms, off = found
            label = "separable" if len(terms) == 1 else f"separable, {len(terms)} outer products"
            yield _job(asked, "separable", label, Products(sizes, work, before, terms), off + rounding)
    if method == "direct" or (method == "auto" and kernel.size <= MOST_TAPS):
        yield _job(asked, "direct", f"direct, {prod(sides)} taps", Taps(sizes, work, before, np.ascontiguousarray(turned)), rounding)
    if method in ("auto", "fft"):
        yield _job(asked, "fft", "fft of blocks", Transformed(sizes, work, before, np.ascontiguousarray(kernel)), rounding)


def _job(asked: Asked, name: str, label: str, made: Filter, error: float) -> BlockJob:
    facts = asked.facts(label)
    return BlockJob(asked.told, name, label, made, asked.axes, asked.written, asked.boundary, float(asked.fill), error, facts)
