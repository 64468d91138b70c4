"""Shape errors that teach: the layer, what came, what was expected, the walk up to there and the nearest change that works."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sash.cost._shape_calls import Call
from sash.cost._shape_joins import explain_joining
from sash.cost._shape_layers import explain_layer
from sash.cost._windows import spell
from sash.errors import ShapeError
from sash.units import format_shape

__all__ = ["Call", "explain_shape_failure"]

_WALK_LINES = 10


def explain_shape_failure(calls: Sequence[Call], error: BaseException) -> ShapeError | None:
    """The `ShapeError` for a forward that raised `error` after `calls` (in order of entry); None where it is not about a shape."""
    unfinished = [index for index, call in enumerate(calls) if call.outputs is None]
    if not unfinished:
        return None
    failing, returned = calls[unfinished[-1]], [call for call in calls if call.outputs is not None]
    inside = [call for call in calls[unfinished[-1] + 1 :] if call.outputs is not None]
    finding = explain_layer(failing, returned) or explain_joining(failing, inside, error)
    if finding is None:
        return None
    return ShapeError(failing.path, finding.came, finding.expected, _walk(returned, failing), finding.fix)


def _walk(before: Sequence[Call], failing: Call) -> str:
    """A line for every layer that changed the shape, up to the failing one."""
    rows: list[tuple[str, str, str]] = []
    for call in before:
        if not call.outputs or not call.inputs or next(call.module.children(), None) is not None or call.inputs[0] == call.outputs[0]:
            continue
        if not rows:
            rows.append(("input", "", format_shape(call.inputs[0])))
        rows.append((call.path, _what(call.module), format_shape(call.outputs[0])))
    if not rows:
        return ""
    if next(failing.module.children(), None) is None and failing.inputs:
        rows.append((failing.path, _what(failing.module), f"got {format_shape(failing.inputs[0])}"))
    if len(rows) > _WALK_LINES:
        rows = [rows[0], ("…", f"{len(rows) - _WALK_LINES + 1} more layers", ""), *rows[2 - _WALK_LINES :]]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {path:<{widths[0]}}  {what:<{widths[1]}}  {shape}".rstrip() for path, what, shape in rows)


def _what(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features} to {module.out_features}"
    return spell(module).lower() if isinstance(module, nn.Flatten) else spell(module)
