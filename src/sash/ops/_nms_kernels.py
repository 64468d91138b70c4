"""Non-maximum suppression on the CPU, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit


# NumPy's division, not Python's: boxes without area have 0 / 0, which is above no threshold and no error.
@njit(nogil=True, cache=True, error_model="numpy")
def keep(lines, ends, threshold, kept):
    """Whether each box stays, best first: what overlaps one that stays by more than the threshold goes, up to the end of its group."""
    x1, y1, x2, y2 = lines
    none = lines.dtype.type(0)
    areas = np.maximum(x2 - x1, none) * np.maximum(y2 - y1, none)
    gone = np.zeros(len(x1), np.bool_)
    for i in range(len(x1)):
        if gone[i]:
            continue
        kept[i] = True
        left, top, right, bottom, area = x1[i], y1[i], x2[i], y2[i], areas[i]
        for j in range(i + 1, ends[i]):
            width = max(min(right, x2[j]) - max(left, x1[j]), none)
            height = max(min(bottom, y2[j]) - max(top, y1[j]), none)
            inner = width * height
            gone[j] |= inner / (area + areas[j] - inner) > threshold
