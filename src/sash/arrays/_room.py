"""Arrays that a thread keeps from one task to the next."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from threading import local

import numpy as np


def plain(nbytes: int) -> np.ndarray:
    """Memory as numpy takes it."""
    return np.empty(nbytes, np.uint8)


def aligned(nbytes: int) -> np.ndarray:
    """Memory as torch takes it: it begins at multiples of 64 bytes, which decides how, and to which last bits, MKL transforms."""
    import torch

    return torch.empty(nbytes, dtype=torch.uint8).numpy()


class Room(local):
    """New memory takes the system as long as a short filter, and the C library does not put freed arrays of several sizes together."""

    def __init__(self, fresh: Callable[[int], np.ndarray]) -> None:
        self._fresh = fresh
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of that shape, of whatever numbers; its memory is that of the last one of the name."""
        nbytes = prod(shape) * dtype.itemsize
        if name not in self._kept or self._kept[name].nbytes < nbytes:
            self._kept.pop(name, None)
            self._kept[name] = self._fresh(nbytes)
        return self._kept[name][:nbytes].view(dtype).reshape(shape)
