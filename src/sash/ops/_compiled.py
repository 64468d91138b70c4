"""Kernels compiled by numba: where they run, and in how many threads."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

LEAST = 1 << 16
"""Numbers that a thread works on: fewer do not pay for starting it."""
TURNS = 8
"""Times that each thread comes back for more: boxes differ in size, and so do turns."""


def compiled(tensor: Tensor) -> bool:
    """Whether a compiled kernel does the work on this tensor."""
    return tensor.device.type == "cpu" and _has_numba()


def in_threads(work: Callable[[int, int], None], count: int, numbers: int, step: int | None = None) -> None:
    """Calls work(first, last) until all of `count` is done, `step` at a time, in as many threads as torch would use for so many numbers.

    These are threads of our own, for kernels that let go of the interpreter's lock. Not numba's: its layers end the process when two
    threads call at once, or after a fork.
    """
    threads = min(torch.get_num_threads(), numbers // LEAST)
    if threads <= 1:
        work(0, count)
        return
    step = step or math.ceil(count / (TURNS * threads))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda first: work(first, min(first + step, count)), range(0, count, step)):
            pass


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None
