"""The calibrating process: `python -m sash.cost._calibration THREADS` prints this machine's rates as JSON.

Every figure is the median of a few repeats of one small piece of work. Source of the method: S. Williams, A. Waterman, D. Patterson,
"Roofline: an insightful visual performance model for multicore architectures", CACM 52 (4), 2009.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch.nn import functional as F

KINDS = {"f32": torch.float32, "bf16": torch.bfloat16}
STREAMS = (1 << 17, 1 << 20, 1 << 23, 1 << 26)
"""Bytes of the working sets at which bandwidth is measured: in a core's cache, in the shared one, between, in memory."""
_REPEATS = 5
_LEAST_S = 0.002
"""A repeat is as many calls as take at least this long."""

Found = Iterator[tuple[str, float]]


def rates() -> dict[str, float]:
    """Every rate of this machine, by name."""
    with torch.no_grad():
        return dict(chain(_overheads(), _streams(), _products(), _convolutions()))


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of one call."""
    started = time.perf_counter()
    work()
    work()
    once = (time.perf_counter() - started) / 2
    calls = max(1, int(_LEAST_S / max(once, 1e-9)))
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        taken.append((time.perf_counter() - started) / calls)
    return statistics.median(taken)


def _overheads() -> Found:
    small = torch.ones(16)
    yield "operator.s", seconds(lambda: torch.add(small, small))


def _streams() -> Found:
    for size in STREAMS:
        source = torch.ones(size // 8)
        out = torch.empty_like(source)
        yield f"stream.{size}.bytes_per_s", size / seconds(lambda source=source, out=out: torch.mul(source, 2.0, out=out))
    fresh, held = torch.ones(16 << 20), torch.ones(16 << 20)
    # Above 32 MiB every block is mapped on its own: its pages are made when they are first written.
    extra = seconds(lambda: torch.mul(fresh, 2.0)) - seconds(lambda: torch.mul(fresh, 2.0, out=held))
    yield "fresh.s_per_byte", max(extra, 1e-6) / held.nbytes


def _products() -> Found:
    for name, dtype in KINDS.items():
        left, right = torch.ones(768, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        yield f"product.{name}.macs_per_s", 768**3 / seconds(lambda left=left, right=right: left @ right)


def _convolutions() -> Found:
    for name, dtype in KINDS.items():
        x, weight = torch.ones(1, 64, 64, 64, dtype=dtype), torch.ones(64, 64, 3, 3, dtype=dtype)
        yield f"convolution.dense.{name}.macs_per_s", 64**4 * 9 / seconds(lambda x=x, w=weight: F.conv2d(x, w, padding=1))
        weight = torch.ones(64, 1, 3, 3, dtype=dtype)
        yield f"convolution.depthwise.{name}.macs_per_s", 64**3 * 9 / seconds(lambda x=x, w=weight: F.conv2d(x, w, padding=1, groups=64))


NAMES = (
    "operator.s",
    *(f"stream.{size}.bytes_per_s" for size in STREAMS),
    "fresh.s_per_byte",
    *(f"product.{kind}.macs_per_s" for kind in KINDS),
    *(f"convolution.{form}.{kind}.macs_per_s" for kind in KINDS for form in ("dense", "depthwise")),
)
"""Every rate that a calibration finds."""


def main() -> None:
    """Measure, and print."""
    started = time.perf_counter()
    torch.set_num_threads(int(sys.argv[1]))
    values = rates()
    print(json.dumps({"values": values, "made_s": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
