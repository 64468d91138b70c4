"""Non-maximum suppression on the CPU, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def keep(x1, y1, x2, y2, areas, ends, threshold, kept):
    """Whether each box stays, best first: what overlaps one that stays by more than the threshold goes, up to the end of its group."""
    count = len(x1)
    gone = np.zeros(count, np.int32)
    none = areas.dtype.type(0)
    for i in range(count):
        if gone[i]:
            continue
        kept[i] = True
        left, top, right, bottom, area = x1[i], y1[i], x2[i], y2[i], areas[i]
        # No branch: the compiler then does many boxes at once.
        for j in range(i + 1, ends[i]):
            width = max(min(right, x2[j]) - max(left, x1[j]), none)
            height = max(min(bottom, y2[j]) - max(top, y1[j]), none)
            inner = width * height
            # Without area 0 / 0, which is above no threshold.
            gone[j] |= inner / (area + areas[j] - inner) > threshold
