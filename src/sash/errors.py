"""Everything sash raises on purpose.

    SashError
    ├── InputError        what was asked cannot be read: a shape, a size, an optimizer's name (also a ValueError)
    ├── ModelError        the model's file or factory cannot be loaded, or its forward raises
    │   ├── ShapeError    forward failed on a shape: carries the layer, what came, what was expected, the walk, the fix
    │   └── TraceError    forward cannot be traced without values or without a fake kernel: `real=True` may help
    ├── MeasureError      the measuring child process died or could not be started
    └── DoesNotFit        no plan keeps the budget: carries the least bytes that would

A message says what was asked, what was found and the nearest thing that works.
"""

from __future__ import annotations


class SashError(Exception):
    """Base of every error that sash raises on purpose."""


class InputError(SashError, ValueError):
    """What was asked cannot be read."""


class ModelError(SashError):
    """The model cannot be loaded or run."""


class ShapeError(ModelError):
    """The model's forward failed on a shape."""

    def __init__(self, path: str, came: str, expected: str, walk: str, fix: str) -> None:
        self.path = path
        """Layer whose forward failed, as in `named_modules()`."""
        self.came = came
        """What reached the layer."""
        self.expected = expected
        """What the layer takes."""
        self.walk = walk
        """Shapes from the input to the layer, one line a window; empty where there is none."""
        self.fix = fix
        """The nearest change that works."""
        parts = [f"{path or 'the model'}: {came} came, {expected} expected."]
        if walk:
            parts.append(walk)
        if fix:
            parts.append(fix)
        super().__init__("\n".join(parts))


class TraceError(ModelError):
    """Forward needs a value, or an operator has no fake kernel."""


class MeasureError(SashError):
    """The measuring child process failed."""


class DoesNotFit(SashError):  # noqa: N818 (the name users type, docs and design alike)
    """No plan keeps the budget with the levers that are allowed."""

    def __init__(self, told: str, least_bytes: int) -> None:
        self.least_bytes = least_bytes
        """The smallest budget that can be kept."""
        super().__init__(told)
