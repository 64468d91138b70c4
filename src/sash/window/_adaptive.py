"""Windows that follow the signal's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sash.errors import InputError
from sash.window._interval import Interval, ceil_div


@dataclass(frozen=True, slots=True)
class Adaptive:
    """`count` windows that share a signal of any length n: output `i` reads [floor(i·n/count), ceil((i+1)·n/count)).

    Raises `InputError` where count is not a whole number from 1 on.
    """

    count: int
    """Outputs, whatever the length."""

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1:
            raise InputError(f"An adaptive window's count is a whole number from 1 on, not {self.count!r}.")

    def outputs(self, length: int) -> int:
        """`count`; none on an empty signal."""
        return self.count if length > 0 else 0

    def reads(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Samples that the outputs [start, stop) read. Raises `InputError` without `length`: they depend on it."""
        known = self._known(length)
        if stop <= start:
            return Interval(start * known // self.count, start * known // self.count)
        return Interval(start * known // self.count, ceil_div(stop * known, self.count)).clip(known)

    def writes(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Outputs that read any of the samples [start, stop). Raises `InputError` without `length`: they depend on it."""
        known = self._known(length)
        on = Interval(start, stop).clip(known)
        if not on.length:
            return Interval(0, 0)
        # Output i reads sample x where i·n < (x+1)·count and (i+1)·n > x·count.
        return Interval(on.start * self.count // known, ceil_div(on.stop * self.count, known))

    def coverage(self, length: int) -> tuple[int, ...]:
        """How often each of `length` samples is read."""
        return self.spread((1,) * self.outputs(length), length)

    def spread(self, weights: Sequence[int], length: int) -> tuple[int, ...]:
        """For each of `length` samples, the sum of the weights of the outputs that read it."""
        sums = [0] * length
        for output, weight in enumerate(weights):
            for sample in range(*self.reads(output, output + 1, length)):
                sums[sample] += weight
        return tuple(sums)

    def _known(self, length: int | None) -> int:
        if length is None:
            raise InputError(f"What {self} reads depends on the signal's length; pass `length`.")
        return length


WHOLE = Adaptive(1)
"""One window over the whole signal: global pooling, or a linear layer over a flattened map."""
