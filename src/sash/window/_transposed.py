"""The adjoint of a window: it writes where the window reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sash.errors import InputError
from sash.window._interval import Interval
from sash.window._window import Window


@dataclass(frozen=True, slots=True)
class Transposed:
    """The adjoint of `window`, as in a transposed convolution: sample `i` is added to every output that output `i` of `window` would read.

    Raises `InputError` for a ceil window, and for an output pad that is not below the larger of stride and dilation.
    """

    window: Window
    """What it is the adjoint of; its pad is cut off the outputs."""
    output_pad: int = 0
    """Outputs added after the last: which of the lengths that `window` maps to the same length is meant."""

    def __post_init__(self) -> None:
        if self.window.ceil:
            raise InputError(f"{self.window} has no adjoint here: a ceil window cannot be transposed; drop ceil.")
        limit = max(self.window.stride, self.window.dilation)
        if not isinstance(self.output_pad, int) or not 0 <= self.output_pad < limit:
            raise InputError(
                f"A transposed window's output pad is from 0 up to {limit - 1} (below its stride or dilation), not {self.output_pad!r}."
            )

    @property
    def jump(self) -> Fraction:
        """Samples from one output to the next."""
        return Fraction(1, self.window.stride)

    @property
    def offset(self) -> Fraction:
        """Centre of the samples that the first output reads, were the signal without ends."""
        return -self.window.offset / self.window.stride

    def outputs(self, length: int) -> int:
        """Outputs on `length` samples; none on an empty signal."""
        if length < 1:
            return 0
        return max((length - 1) * self.window.stride + self.window.span - sum(self.window.pad) + self.output_pad, 0)

    def reads(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Samples that are written to any of the outputs [start, stop), gaps included; clipped to the signal where `length` is given."""
        found = self.window.writes(start, stop)
        return found if length is None else found.clip(length)

    def writes(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Outputs that the samples [start, stop) are written to, gaps included; only those that exist where `length` is given."""
        found = self.window.reads(start, stop)
        return found if length is None else found.clip(self.outputs(length))

    def coverage(self, length: int) -> tuple[int, ...]:
        """How many outputs each of `length` samples is written to."""
        return self.spread((1,) * self.outputs(length), length)

    def spread(self, weights: Sequence[int], length: int) -> tuple[int, ...]:
        """For each of `length` samples, the sum of the weights of the outputs it is written to, once a tap."""
        taps = [self.window.dilation * tap - self.window.pad[0] for tap in range(self.window.size)]
        return tuple(
            sum(weights[sample * self.window.stride + tap] for tap in taps if 0 <= sample * self.window.stride + tap < len(weights))
            for sample in range(length)
        )
