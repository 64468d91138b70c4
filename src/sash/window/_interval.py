"""A stretch of samples or outputs."""

from __future__ import annotations

from typing import NamedTuple


class Interval(NamedTuple):
    """Samples from `start` up to, and without, `stop`; empty where stop ≤ start. Compares equal to the plain pair."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Samples in it."""
        return max(self.stop - self.start, 0)

    def clip(self, length: int) -> Interval:
        """The part that lies on a signal of `length` samples; empty, and on the signal, where there is none."""
        start = min(max(self.start, 0), length)
        return Interval(start, min(max(self.stop, start), length))


def ceil_div(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)
