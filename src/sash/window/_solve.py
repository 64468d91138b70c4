"""Which window gives a wanted output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sash.errors import InputError
from sash.window._window import Window


@dataclass(frozen=True, slots=True)
class Solutions:
    """The windows, differing from a given one in a single number, that give a wanted number of outputs. Empty where there is none."""

    pads: tuple[Window, ...]
    """The least pad first, shared by both sides, an odd sample after."""
    sizes: tuple[Window, ...]
    """The smallest size first."""
    strides: tuple[Window, ...]
    """The smallest stride first."""


def solve(window: Window, length: int, outputs: int) -> Solutions:
    """Every pad, every size and every stride with which `window` gives `outputs` outputs on `length` samples.

    Pads end where a window would lie on padding alone; strides without a bound end at the signal and its pad.
    Raises `InputError` where outputs or length is below 1.
    """
    if outputs < 1 or length < 1:
        raise InputError(f"Solving needs at least 1 output on at least 1 sample, not {outputs} on {length}.")
    reach = (outputs - 1) * window.stride
    padded = length + sum(window.pad)

    def fitting(candidates: Iterable[Window]) -> tuple[Window, ...]:
        return tuple(candidate for candidate in candidates if candidate.outputs(length) == outputs)

    # Ceil mode moves the bounds by less than a stride to either side; every candidate is then asked itself.
    least = max(reach + window.span - length - window.stride, 0)
    most = min(reach + window.span - length + 2 * window.stride, 2 * (window.span - 1))
    largest = (padded - reach + window.stride) // window.dilation + 1
    smallest = (padded - reach - 2 * window.stride) // window.dilation
    room = max(padded - window.span, 0)
    endless = outputs == 1 or (window.ceil and outputs == 2)
    widest = padded if endless else -(-room // (outputs - 1 - window.ceil))
    return Solutions(
        pads=fitting(replace(window, pad=(total // 2, total - total // 2)) for total in range(least, most + 1)),
        sizes=fitting(replace(window, size=size) for size in range(max(smallest, 1), max(largest, 0) + 1)),
        strides=fitting(replace(window, stride=stride) for stride in range(max(room // (outputs + 1), 1), widest + 1)),
    )
