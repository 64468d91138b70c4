"""A window on a signal that goes round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sash.errors import InputError
from sash.window._interval import Interval
from sash.window._window import Window


@dataclass(frozen=True, slots=True)
class Circular:
    """`window` with its padding filled from the signal's other end: it reads sample `i` modulo the length.

    Raises `InputError` for a ceil window.
    """

    window: Window
    """The window that goes round."""

    def __post_init__(self) -> None:
        if self.window.ceil:
            raise InputError(f"{self.window} keeps a partial window, and a circular signal has none; drop ceil.")

    @property
    def stride(self) -> int:
        """Samples from one output to the next."""
        return self.window.stride

    @property
    def offset(self) -> Fraction:
        """Centre of the first output's window, in samples."""
        return self.window.offset

    def outputs(self, length: int) -> int:
        """Outputs on `length` samples: as many as the window's."""
        return self.window.outputs(length)

    def reads(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Samples under the windows of the outputs [start, stop), gaps included.

        Without `length` the interval reaches beyond the ends; with it, one that wraps round is the whole signal,
        the least interval that holds it.
        """
        found = self.window.reads(start, stop)
        if length is None:
            return found
        wraps = found.length > 0 and (found.start < 0 or found.stop > length)
        return Interval(0, length) if wraps else found.clip(length)

    def writes(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Outputs whose window lies over any of the samples [start, stop), gaps included; with `length`, round the end too."""
        if length is None:
            return self.window.writes(start, stop)
        rounds = range(-(sum(self.window.pad) // length) - 1, sum(self.window.pad) // length + 2)
        found = [self.window.writes(start + turn * length, stop + turn * length).clip(self.outputs(length)) for turn in rounds]
        found = [part for part in found if part.length] or [Interval(0, 0)]
        return Interval(min(part.start for part in found), max(part.stop for part in found))

    def coverage(self, length: int) -> tuple[int, ...]:
        """How often each of `length` samples is read."""
        return self.spread((1,) * self.outputs(length), length)

    def spread(self, weights: Sequence[int], length: int) -> tuple[int, ...]:
        """For each of `length` samples, the sum of the weights of the outputs that read it, once a tap."""
        sums = [0] * length
        for output, weight in enumerate(weights):
            first = output * self.window.stride - self.window.pad[0]
            for sample in range(first, first + self.window.span, self.window.dilation):
                sums[sample % length] += weight
        return tuple(sums)
