"""The largest batch, side or length that keeps a budget, from forecasts alone; then proven by one measured run."""

from __future__ import annotations

import difflib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sash.cost import Forecast, Measurement, Workload, forecast, map_tensors, measure, trace_step
from sash.errors import DoesNotFit, InputError, MeasureError, ModelError
from sash.plans._grow import VARIES, Growth, growths
from sash.plans._headroom import needed, usable
from sash.units import format_bytes, format_shape, parse_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

LARGEST_SIZE = 2**31
"""No size is looked for beyond: a budget that is not reached by then is not what limits the run."""
LEAP = 16
"""Times by which a size grows at most from one forecast to the next."""
POWERS_OF_TWO = tuple(2**power for power in range(10))


@dataclass(frozen=True)
class Largest:
    """The largest size of a workload whose forecast is within a budget."""

    work: Workload = field(repr=False)
    """The step at that size."""
    vary: str
    """`"batch"`, `"side"` or `"length"`."""
    size: int
    """Samples in the batch, pixels along the longest side, or steps of the sequence."""
    step: int
    """The model takes sizes so far apart."""
    inputs: tuple[str, ...]
    """Shapes of the inputs at that size."""
    budget_bytes: int
    forecast: Forecast = field(repr=False)
    next_size: int
    """One step more."""
    next_peak_bytes: int | None
    """Its forecast, over the budget or within less than 0.1 % of it; None where the model does not take that size."""
    limit: str
    """Why the model does not take the next size, where it is that and not the budget; else empty."""
    forecasts: int
    """How many were made, those that only asked which sizes the model takes included."""
    search_s: float
    """Seconds that finding it took, without the measured run."""
    measurement: Measurement | None = field(default=None, repr=False)
    """The run that proves it; None where none was asked for."""

    @property
    def peak_bytes(self) -> int:
        """Forecast at this size."""
        return self.forecast.peak_bytes

    @property
    def kept(self) -> bool | None:
        """Whether the measured run stayed within the budget; None where nothing was measured."""
        return None if self.measurement is None else self.measurement.peak_bytes <= self.budget_bytes

    def to_json(self) -> str:
        """The size, the figures it rests on and the measured peak, as one JSON object."""
        told = {
            "schema": "sash.largest/1",
            "name": self.forecast.name,
            "setting": self.forecast.setting,
            "vary": self.vary,
            "size": self.size,
            "step": self.step,
            "inputs": list(self.inputs),
            "budget_bytes": self.budget_bytes,
            "peak_bytes": self.peak_bytes,
            "next_size": self.next_size,
            "next_peak_bytes": self.next_peak_bytes,
            "limit": self.limit,
            "forecasts": self.forecasts,
            "search_s": self.search_s,
            "measured_peak_bytes": self.measurement.peak_bytes if self.measurement else None,
            "measured_wall_s": self.measurement.wall_s if self.measurement else None,
            "kept": self.kept,
        }
        return json.dumps(told)

    def __str__(self) -> str:
        from sash.report import plain_text

        return plain_text(self)

    def __rich__(self) -> RenderableType:
        from sash.report import text

        return text(self)


def largest(work: Workload, budget: str | int, vary: str = "batch", *, prove: bool = True) -> Largest:
    """The largest batch, side or length whose forecast peak is within the budget ("6 GiB", or bytes), 0.1 % of it kept free as by `fit`.

    The size is searched by forecasts alone; what is found is then run once, in a process of its own (`prove`), and its measured peak
    stands in `measurement`, also where it is over the budget (`kept` is False then).

    * `"batch"`: the first dimension of the first input, and of every input that has the same.
    * `"side"`: the last two dimensions of an input (batch, channels, height, width), or the last three, in proportion; and of every input
      that ends in the same. `size` is the longest of them.
    * `"length"`: dimension 1 of whole numbers (batch, length); for floats the last, or of (batch, length, features) dimension 1:
      of three dimensions the model is asked which it lets vary. Every other input's dimensions of that length vary with it.

    The size fits, and the next does not; sizes that the model does not take are left out (a U-Net takes multiples of 16, say). A peak
    may fall with a larger side, where other kernels are chosen: then there can be a larger side that fits as well.

    Raises `DoesNotFit` where not even the smallest size does, `InputError` where the model takes one size only, where the budget limits no
    size, and for what cannot be read; `ModelError` and `MeasureError` where the size found does not run; what `forecast` raises.
    """
    started = time.perf_counter()
    budget_bytes = parse_bytes(budget)
    if budget_bytes == 0:
        raise InputError("the budget is 0 bytes; write it like '2 GiB', '512 MB' or 1073741824.")
    if vary not in VARIES:
        near = difflib.get_close_matches(str(vary), VARIES, 1) or VARIES
        raise InputError(f"vary is {vary!r}; {near[0]!r} is the nearest of {', '.join(VARIES)}.")
    hunt = _Hunt(work, budget_bytes, list(growths(work, vary)))
    hunt.run()
    size, growth = hunt.low, hunt.growth
    assert size is not None
    found = growth.work(work, size, hunt.step, values=True)
    seconds = time.perf_counter() - started
    return Largest(
        found,
        vary,
        size,
        hunt.step,
        _shapes(found),
        budget_bytes,
        hunt.found[size],
        size + hunt.step,
        hunt.found[size + hunt.step].peak_bytes if size + hunt.step in hunt.found else None,
        hunt.refused.get(size + hunt.step, ""),
        hunt.forecasts,
        seconds,
        _prove(found, vary, size, hunt.found[size]) if prove else None,
    )


class _Hunt:
    """Sizes that were forecast, and where to look next."""

    def __init__(self, work: Workload, budget: int, meanings: list[Growth]) -> None:
        self.work = work
        self.budget = budget
        self.usable = usable(budget)
        self.meanings = meanings
        self.growth = meanings[0]
        self.step = 1
        self.asked = False
        """Whether the model was asked for its step."""
        self.forecasts = 0
        self.found: dict[int, Forecast] = {}
        self.refused: dict[int, str] = {}
        """Why the model does not take a size."""
        self.turns: list[tuple[int, int]] = []
        """Of the last turns: sizes left to look at, and bytes to the budget."""

    @property
    def low(self) -> int | None:
        """The largest size known to fit."""
        return max((size for size, one in self.found.items() if one.peak_bytes <= self.usable), default=None)

    @property
    def high(self) -> int | None:
        """The smallest known not to fit, above every one that does."""
        above = self.low or 0
        return min((size for size, one in self.found.items() if size > above and one.peak_bytes > self.usable), default=None)

    def run(self) -> None:
        """Look until the largest is known. Raises `DoesNotFit` where none fits."""
        self.forecasts += 1
        self.found[self.growth.start] = forecast(self.work)
        if len(self.meanings) > 1:
            self._ask()
        while (size := self._next()) is not None:
            self._try(size)

    def _try(self, size: int) -> None:
        if size >= LARGEST_SIZE:
            most = self.low or size
            raise InputError(
                f"the budget does not limit the {self.growth.word}: at {most} the peak is {format_bytes(self.found[most].peak_bytes)} of "
                f"{format_bytes(self.budget)}; give a smaller budget."
            )
        self.forecasts += 1
        try:
            self.found[size] = forecast(self.growth.work(self.work, size, self.step))
        except ModelError as error:
            if not self.asked:
                self._ask()
                if (size - self.growth.start) % self.step == 0:
                    self.refused[size] = _first_line(error)
            else:
                self.refused[size] = _first_line(error)

    def _ask(self) -> None:
        """Find the least step between sizes that the model takes, and which dimension it lets vary."""
        self.asked = True
        start = self.growth.start
        why: ModelError | InputError | None = None
        steps = sorted({*POWERS_OF_TWO, *(number for number in range(1, start + 1) if start % number == 0)})
        for step in steps:
            for meaning in self.meanings:
                for size in (meaning.start + step, meaning.start - step):
                    if size < 1:
                        continue
                    self.forecasts += 1
                    try:
                        trace_step(meaning.work(self.work, size, step))
                    except (ModelError, InputError) as error:
                        why = why or error
                        continue
                    if meaning.start != start:
                        self.found = {meaning.start: self.found[start]}
                    self.growth, self.step = meaning, step
                    return
        word = self.growth.word
        doubt = "; has the input a batch dimension?" if word == "batch" else "."
        raise InputError(
            f"{self.work.name} takes the {word} {start} only, so there is none to choose{doubt} With {start + 1}: {_first_line(why)}"
        )

    def _next(self) -> int | None:
        """The size to forecast next; None where the largest is known."""
        low, high = self.low, self.high
        if low is None:
            assert high is not None
            bottom = max((size for size in self.refused if size < high), default=0)
            if high - self.step <= bottom:
                least = self.found[high]
                raise DoesNotFit(
                    f"{least.name} peaks at {format_bytes(least.peak_bytes)} ({least.peak_bytes} bytes) with {self.growth.word} {high}, "
                    f"the least that it takes; {format_bytes(least.static_bytes)} of it are there before the step starts. "
                    f"The budget is {format_bytes(self.budget)}; the least that can be kept is {needed(least.peak_bytes)} bytes.",
                    needed(least.peak_bytes),
                )
            return self._between(bottom, high)
        top = min((size for size in (high, *self.refused) if size is not None and size > low), default=None)
        if top is not None:
            return self._between(low, top) if top - low > self.step else None
        return self._on_grid(min(max(self._aim(), low + self.step), LEAP * low))

    def _between(self, bottom: int, top: int) -> int:
        """Strictly between two sizes: where the line through what is known meets the budget; the middle, where that gets nowhere."""
        size = self._on_grid((bottom + top) // 2 if top in self.refused or self._slow(top - bottom) else self._aim())
        first = self._on_grid(bottom + self.step)
        last = self._on_grid(top - 1)
        return min(max(size, first), last)

    def _slow(self, width: int) -> bool:
        """Whether the last two sizes neither halved what is left to look at nor came much nearer to the budget."""
        self.turns.append((width, min(abs(one.peak_bytes - self.usable) for one in self.found.values())))
        if len(self.turns) < 3:
            return False
        before = self.turns[-3]
        slow = width > before[0] / 2 and self.turns[-1][1] > before[1] / 5
        if slow:
            self.turns.clear()
        return slow

    def _aim(self) -> int:
        """Where the peak meets the budget, if it grows evenly with the size to the power of the dimensions that vary."""
        power = self.growth.power
        known = sorted(self.found.items(), key=lambda item: abs(item[1].peak_bytes - self.usable))
        size, near = known[0]
        if len(known) > 1 and known[1][1].peak_bytes != near.peak_bytes:
            other, peak = known[1][0] ** power, known[1][1].peak_bytes
        else:
            other, peak = 0, near.static_bytes
        slope = (near.peak_bytes - peak) / (size**power - other)
        if slope <= 0:
            return LARGEST_SIZE if near.peak_bytes <= self.usable else 1
        aim = size**power + (self.usable - near.peak_bytes) / slope
        return max(int(max(aim, 0) ** (1 / power) + 1e-6), 1)

    def _on_grid(self, size: int) -> int:
        """The nearest size not above that the model takes, or the least of them."""
        start = self.growth.start
        found = start + (size - start) // self.step * self.step
        return found if found >= 1 else found + self.step


def _prove(found: Workload, vary: str, size: int, expected: Forecast) -> Measurement:
    try:
        return measure(found)
    except (ModelError, MeasureError) as error:
        kind = MeasureError if isinstance(error, MeasureError) else ModelError
        told = f"by forecast, {vary} {size} peaks at {format_bytes(expected.peak_bytes)} and fits"
        raise kind(f"{told}; the run that was to prove it failed: {error}") from error


def _shapes(work: Workload) -> tuple[str, ...]:
    found: list[str] = []
    map_tensors(lambda value: found.append(format_shape(value.shape)), work.inputs)
    return tuple(found)


def _first_line(error: Exception | None) -> str:
    return str(error).strip().split("\n", 1)[0]
