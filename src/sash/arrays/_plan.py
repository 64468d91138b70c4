"""What an array job will do, or did: method, tasks, bytes, seconds, and what was not chosen."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from sash.units import format_bytes, format_seconds, format_shape


@dataclass(frozen=True)
class Method:
    """One way to do a job."""

    name: str
    peak_bytes: int | None
    """The least that it can keep, in bytes held at once; None where it was not looked at."""
    wall_s: float | None
    error: float
    """Largest share of the input's range by which an output can be wrong; NaN where it is not known before."""
    verdict: str
    """Chosen, or why not."""


@dataclass(frozen=True)
class ArrayPlan:
    """An array job before it runs."""

    operation: str
    """In words."""
    method: str
    shape: tuple[int, ...]
    """Of the output."""
    dtype: str
    tasks: int
    task_shape: tuple[int, ...]
    """Planes, rows and columns of output that one task makes, in the last pass."""
    workers: int
    passes: int
    budget_bytes: int
    peak_bytes: int
    """Bytes held at once, at most: input and output where those count, rows that are read, what is made and written, and work space."""
    read_bytes: int
    """Bytes that are read of the input, all of its own counted as often as tasks read them."""
    written_bytes: int
    """Bytes of the output."""
    wall_s: float | None
    error: float
    methods: tuple[Method, ...]
    """All that were weighed, the chosen one among them."""
    device: str | None = None
    """Where torch does the arithmetic, if it was asked to: then `peak_bytes` counts what is held there, and what waits on this side."""

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(_without_nan({"schema": "sash.array-plan/1", **asdict(self)}))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that opens offline: figures, how the output is cut, ways that were weighed; raises `InputError` where it cannot."""
        from sash.report import plan_to_html

        plan_to_html(self, path)

    def __str__(self) -> str:
        lines = [
            f"{self.operation}: {self.method}",
            f"output    {format_shape(self.shape)} {self.dtype}, {format_bytes(self.written_bytes)}; reads {format_bytes(self.read_bytes)}",
            f"tasks     {self.tasks} of up to {format_shape(self.task_shape)}, {self.workers} side by side",
            f"peak      {format_bytes(self.peak_bytes)} of a budget of {format_bytes(self.budget_bytes)}",
            f"error     at most {self.error:.1e} of the input's range",
        ]
        if self.device is not None:
            lines.insert(3, f"device    {self.device}, by torch")
        if self.wall_s is not None:
            lines.append(f"time      {format_seconds(self.wall_s)}, by forecast")
        lines += [f"  {method.name}: {method.verdict}" for method in self.methods]
        return "\n".join(lines)


def _without_nan(value: Any) -> Any:
    """JSON has no numbers that are none, nor infinite ones."""
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value
