"""One window along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sash.errors import InputError
from sash.window._interval import Interval, ceil_div


@dataclass(frozen=True, slots=True)
class Window:
    """A window sliding along one axis; every length is in samples of that axis.

    Output `i` reads the samples `i·stride + t·dilation - pad[0]` for every tap `t` of `size`.
    Raises `InputError` where a length is not a whole number, size, stride or dilation is below 1, or a pad is negative.
    """

    size: int
    """Taps read per output."""
    stride: int = 1
    """Samples from one output to the next."""
    dilation: int = 1
    """Samples from one tap to the next."""
    pad: tuple[int, int] = (0, 0)
    """Virtual samples before and after the signal."""
    ceil: bool = False
    """Keep a last partial window; one that would start in the padding after the signal is dropped all the same (torch's rule)."""

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("stride", self.stride), ("dilation", self.dilation)):
            if not _is_length(value) or value < 1:
                raise InputError(f"A window's {name} is a whole number from 1 on, not {value!r}.")
        if not isinstance(self.pad, (tuple, list)) or len(self.pad) != 2 or not all(_is_length(side) and side >= 0 for side in self.pad):
            raise InputError(
                f"A window's pad is (before, after), two whole numbers from 0 on, not {self.pad!r}; the same on both sides is pad=(1, 1)."
            )
        object.__setattr__(self, "pad", tuple(self.pad))

    @classmethod
    def causal(cls, size: int, stride: int = 1, dilation: int = 1) -> Window:
        """The window padded before the signal only: no output reads a sample later than its own."""
        return cls(size, stride, dilation, (dilation * (size - 1), 0))

    @classmethod
    def same(cls, size: int, stride: int = 1, dilation: int = 1) -> Window:
        """The window padded on both sides, the odd sample after: at stride 1 the length stays (torch's `padding="same"`)."""
        total = dilation * (size - 1)
        return cls(size, stride, dilation, (total // 2, total - total // 2))

    @property
    def span(self) -> int:
        """Samples under one window, gaps included."""
        return self.dilation * (self.size - 1) + 1

    @property
    def offset(self) -> Fraction:
        """Centre of the first output's window, in samples: 0 is the first sample's own centre."""
        return Fraction(self.span - 1, 2) - self.pad[0]

    def outputs(self, length: int) -> int:
        """Outputs on `length` samples; a last partial window is dropped, unless `ceil`."""
        room = length + sum(self.pad) - self.span
        if not self.ceil:
            return max(room // self.stride + 1, 0)
        count = ceil_div(room, self.stride) + 1
        return max(count - ((count - 1) * self.stride >= length + self.pad[0]), 0)

    def reads(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Samples under the windows of the outputs [start, stop), gaps included.

        Without `length` the interval reaches into the padding (below 0, beyond the end); with it, it is clipped to the signal.
        """
        first = start * self.stride - self.pad[0]
        found = Interval(first, first + (stop - start - 1) * self.stride + self.span if stop > start else first)
        return found if length is None else found.clip(length)

    def writes(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Outputs whose window lies over any of the samples [start, stop), gaps included: the interval projected forward.

        Without `length` they are counted as if the signal had no ends; with it, only outputs that exist are returned.
        """
        first = ceil_div(start + self.pad[0] - self.span + 1, self.stride)
        found = Interval(first, max((stop - 1 + self.pad[0]) // self.stride + 1, first) if stop > start else first)
        return found if length is None else found.clip(self.outputs(length))

    def then(self, second: Window) -> Window:
        """The one window that `second` sees through this one: spans add up, strides multiply.

        It lies over the same samples as the two in turn. Taps that do not form an even comb become every sample of the span.
        Raises `InputError` where either keeps partial windows (`ceil`): only a `Chain` follows those.
        """
        if self.ceil or second.ceil:
            raise InputError(f"{self} then {second}: ceil windows have no composite; Chain([first, second]) follows them.")
        span = self.span + self.stride * (second.span - 1)
        step = self.stride * second.dilation
        if self.size == 1 and second.size > 1:
            size, dilation = second.size, step
        elif second.size == 1 or (step % self.dilation == 0 and step <= self.dilation * self.size):
            size, dilation = (span - 1) // self.dilation + 1, self.dilation
        else:
            size, dilation = span, 1
        pad = (self.pad[0] + self.stride * second.pad[0], self.pad[1] + self.stride * second.pad[1])
        return Window(size, self.stride * second.stride, dilation, pad)

    def coverage(self, length: int) -> tuple[int, ...]:
        """How often each of `length` samples is read."""
        return self.spread((1,) * self.outputs(length), length)

    def spread(self, weights: Sequence[int], length: int) -> tuple[int, ...]:
        """For each of `length` samples, the sum of the weights of the outputs that read it, once a tap: the adjoint of a window of ones."""
        sums = [0] * length
        for output, weight in enumerate(weights):
            first = output * self.stride - self.pad[0]
            for sample in range(first, first + self.span, self.dilation):
                if 0 <= sample < length:
                    sums[sample] += weight
        return tuple(sums)


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
