"""The figures of a result, forecast beside measured, in the order and words that every form shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sash.cost import Category, Cost, Forecast, LayerCost, Measurement, Reason
from sash.units import format_bytes, format_count, format_seconds, format_shape


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, as forecast and as measured; None where that side has none."""

    name: str
    meaning: str
    write: Callable[[float], str]
    forecast: float | None
    measured: float | None

    @property
    def error(self) -> float | None:
        """(forecast - measured) / measured: positive where the forecast is above."""
        if self.forecast is None or self.measured is None:
            return None
        if self.forecast == self.measured:
            return 0.0
        return (self.forecast - self.measured) / self.measured if self.measured else None


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, as forecast and as measured."""

    layer: LayerCost
    measured_held_bytes: int | None


def write_error(error: float | None) -> str:
    """`"+0.3 %"`; empty where there is no error to state."""
    return "" if error is None else "0 %" if error == 0 else f"{error:+,.1%}".replace("%", " %").replace("-", "−")


def write_amount(reason: Reason) -> str:
    """What a reason is about: bytes, or seconds where it is about time."""
    return format_seconds(reason.seconds) if reason.seconds else format_bytes(reason.bytes)


def write_share(share: float) -> str:
    """`"12 %"`, and `"< 1 %"` for what is little but there."""
    return "< 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def write_shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    """`"8x64x112x112"`, several apart by a comma."""
    return ", ".join(format_shape(shape) for shape in shapes)


def sides(cost: Cost, measured: Measurement | None) -> tuple[Forecast | None, Measurement | None]:
    """The two columns of a report: a measurement on its own fills the second."""
    if isinstance(cost, Measurement):
        return None, cost
    assert isinstance(cost, Forecast)
    return cost, measured


def figures(cost: Cost, measured: Measurement | None = None) -> tuple[Figure, ...]:
    """The figures of one workload, the three peaks first."""
    left, right = sides(cost, measured)

    def both(name: str, meaning: str, write: Callable[[float], str], field: str) -> Figure:
        return Figure(name, meaning, write, getattr(left, field, None), getattr(right, field, None))

    rows = [
        both("peak", "the allocator's highest level", format_bytes, "peak_bytes"),
        _process(left, right),
        both("static", "parameters, buffers, inputs and optimizer state", format_bytes, "static_bytes"),
        both("first step", "peak of the very first step", format_bytes, "first_step_peak_bytes"),
        both("parameters", "numbers that the model holds", format_count, "params"),
        both("MACs forward", "multiply-accumulates (FLOPs / 2)", format_count, "macs"),
        both("MACs backward", "multiply-accumulates (FLOPs / 2)", format_count, "macs_backward"),
    ]
    if left and left.first_step_peak_bytes == left.peak_bytes:
        rows = [row for row in rows if row.name != "first step"]
    return tuple(row for row in rows if row.forecast is not None or row.measured is not None) + _times(left, right)


def layer_rows(cost: Cost, measured: Measurement | None = None) -> tuple[LayerRow, ...]:
    """Every layer of a result in its own order, each beside the measured layer of the same path."""
    left, right = sides(cost, measured)
    held = {layer.path: layer.held_bytes for layer in right.layers} if right else {}
    return tuple(LayerRow(layer, held.get(layer.path)) for layer in (left or cost).layers)


def at_peak(cost: Cost) -> dict[Category, int]:
    """Bytes of each category alive at the peak, categories in their own order, empty ones left out."""
    found: dict[Category, int] = {}
    for block in cost.timeline.alive(cost.timeline.peak_moment):
        found[block.category] = found.get(block.category, 0) + block.bytes
    return {category: found[category] for category in Category if found.get(category)}


def _process(left: Forecast | None, right: Measurement | None) -> Figure:
    mapped = left is not None and right is not None and right.allocator == "mapped"
    growth = "growth of resident memory"
    meaning = [f"{growth}, every block mapped" if mapped else f"{growth}, bounded" if left else growth]
    if right and len(right.process_runs) > 1:
        low, high = min(right.process_runs), max(right.process_runs)
        meaning.append(f"{len(right.process_runs)} runs: {format_bytes(low)} – {format_bytes(high)}")
    forecast = None if left is None else left.mapped_bytes if mapped else left.process_bytes
    measured = right.process_bytes if right else None
    return Figure("process, mapped" if mapped else "process", "; ".join(meaning), format_bytes, forecast, measured)


def _times(left: Forecast | None, right: Measurement | None) -> tuple[Figure, ...]:
    found = []
    if left:
        found.append(Figure("time to forecast", "no step is run", format_seconds, left.forecast_s, None))
    forecast = left.wall_s if left and left.wall_s else None
    if right or forecast is not None:
        meaning = "the median of those run" if right else "a steady one, at this machine's rates"
        found.insert(0, Figure("time of a step", meaning, format_seconds, forecast, right.wall_s if right else None))
    return tuple(found)
