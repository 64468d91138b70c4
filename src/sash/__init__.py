"""sash forecasts, fits and runs windowed workloads inside the memory you have."""

import importlib as _importlib
import typing as _typing

from sash.errors import DoesNotFit, InputError, MeasureError, ModelError, SashError, ShapeError, TraceError
from sash.window import Chain, Window, walk

if _typing.TYPE_CHECKING:
    from sash.cost import Forecast, Measurement, ModelSource, Timeline, Workload, forecast, measure
    from sash.plans import Largest, Plan, assert_fits, fit, largest, tiled

__all__ = [
    "Chain",
    "DoesNotFit",
    "Forecast",
    "InputError",
    "Largest",
    "MeasureError",
    "Measurement",
    "ModelError",
    "ModelSource",
    "Plan",
    "SashError",
    "ShapeError",
    "Timeline",
    "TraceError",
    "Window",
    "Workload",
    "assert_fits",
    "fit",
    "forecast",
    "largest",
    "measure",
    "tiled",
    "walk",
]

_FOLDERS = {"arrays", "models", "ops"}
_FITTING = {"Largest", "Plan", "assert_fits", "fit", "largest", "tiled"}


def __getattr__(name: str) -> _typing.Any:
    # What needs torch comes when it is first named: windows and walks, and `sash --help`, do without it.
    if name in _FOLDERS:
        return _importlib.import_module(f"sash.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'sash' has no attribute {name!r}")
    return getattr(_importlib.import_module("sash.plans" if name in _FITTING else "sash.cost"), name)


def __dir__() -> list[str]:
    return __all__
