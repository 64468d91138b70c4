"""What the step's time goes to, and why, in ranked sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sash.cost._phrases import joined, named
from sash.cost._phrases import times as in_times
from sash.cost._results import LayerCost, Moment, Phase, Reason
from sash.cost._time import Bound, Estimate
from sash.units import format_seconds

_MOST = 5
"""Layers that are told."""
_LEAST_SHARE = 0.02
"""Of the step: a layer that takes less is not told."""
_NEAR = 1.25
"""Times its limit, up to which a layer is said to be at it."""
_LIMIT = "A layer's limit is what its arithmetic, and one pass over its operands, take at this machine's best rates."
_PHASES = {Phase.FORWARD: "forward", Phase.LOSS: "the loss", Phase.BACKWARD: "backward", Phase.OPTIMIZER: "the optimizer's step"}
_WHY = {
    Bound.ARITHMETIC: "arithmetic",
    Bound.MEMORY: "memory traffic (what it reads, writes and lays out anew)",
    Bound.OVERHEAD: "overhead (its operators are small: starting them takes longer than their work)",
}


def slow_reasons(
    moments: Sequence[Moment], estimates: Mapping[int, Estimate], times: float, wall_s: float, layers: Sequence[LayerCost]
) -> tuple[Reason, ...]:
    """Sentences on the step and on its slowest layers, the slowest first.

    `estimates` are by index into `moments`, of which all but the optimizer's come `times` times in a step.
    """
    if wall_s <= 0:
        return ()
    spent: dict[Phase, float] = defaultdict(float)
    bounds: dict[str, dict[Bound, float]] = defaultdict(lambda: defaultdict(float))
    limits: dict[str, float] = defaultdict(float)
    for index, moment in enumerate(moments):
        spent[moment.phase] += moment.seconds * (1 if moment.phase is Phase.OPTIMIZER else times)
        if moment.phase is Phase.OPTIMIZER or index not in estimates:
            continue
        found = estimates[index]
        # What is beside the operator's own time is the making of pages, where it is much: memory traffic too.
        bounds[moment.module][found.bound] += found.seconds
        bounds[moment.module][Bound.MEMORY] += max(moment.seconds - found.seconds, 0.0)
        limits[moment.module] += found.limit_s
    ranked = sorted(layers, key=lambda layer: -(layer.forward_s + layer.backward_s))[:_MOST]
    told = [layer for layer in ranked if layer.forward_s + layer.backward_s >= _LEAST_SHARE * wall_s]
    parts = [f"{format_seconds(taken)} {_PHASES[phase]}" for phase, taken in spent.items() if taken >= 0.005 * wall_s]
    first = f"A step takes {format_seconds(wall_s)}{': ' * (len(parts) > 1)}{joined(parts) if len(parts) > 1 else ''}."
    first = f"{first} {_LIMIT}" if told else first
    return (Reason(first, 0, (), wall_s), *(_slow(layer, bounds[layer.path], limits[layer.path], wall_s) for layer in told))


def _slow(layer: LayerCost, bounds: Mapping[Bound, float], limit_s: float, wall_s: float) -> Reason:
    taken = layer.forward_s + layer.backward_s
    bound = max(bounds, key=lambda one: bounds[one], default=Bound.OVERHEAD)
    name = f"{named(layer.path)} ({layer.kind})" if layer.path else f"What {layer.kind} does outside of its layers"
    share = f"{taken / wall_s:.0%}".replace("%", " %")
    text = f"{name} takes {format_seconds(taken)}, {share} of the step, bound by {_WHY[bound]}"
    own = sum(bounds.values())
    if limit_s > 0 and own > 0:
        ratio = own / limit_s
        text += ", and is at its limit" if ratio <= _NEAR else f": {in_times(ratio)} its limit"
    return Reason(f"{text}.", 0, (layer.path,) if layer.path else (), taken)
