"""What lies beyond the ends of a signal: the five rules of `scipy.ndimage`."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sash.errors import InputError
from sash.window import Interval

Boundary = Literal["reflect", "mirror", "nearest", "wrap", "constant"]
"""reflect: b a | a b c | c b; mirror: c b | a b c | b a; nearest: a a | a b c | c c; wrap: b c | a b c | a b; constant: a fill value."""

FILL = -1
"""Place of a sample that has the fill value."""


def checked_boundary(boundary: str) -> Boundary:
    """The same name; raises `InputError` for one that is none of the five."""
    if boundary not in get_args(Boundary):
        raise InputError(f"boundary is {boundary!r}; there are {', '.join(get_args(Boundary))}.")
    return boundary  # pyright: ignore[reportReturnType]


def places(part: Interval, length: int, boundary: Boundary) -> np.ndarray:
    """Which sample of a signal of `length` stands at each place of a part that may reach beyond it."""
    found = np.arange(part.start, part.stop, dtype=np.int64)
    if part.start >= 0 and part.stop <= length:
        return found
    if boundary == "nearest" or (length == 1 and boundary != "constant"):
        return found.clip(0, length - 1)
    if boundary == "wrap":
        return found % length
    if boundary == "reflect":
        found %= 2 * length
        return np.minimum(found, 2 * length - 1 - found)
    if boundary == "mirror":
        found %= 2 * length - 2
        return np.minimum(found, 2 * length - 2 - found)
    return np.where((found >= 0) & (found < length), found, FILL)
