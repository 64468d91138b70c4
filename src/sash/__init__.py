"""sash forecasts, fits and runs windowed workloads inside the memory you have."""

from sash.cost import Forecast, Measurement, ModelSource, Timeline, Workload, forecast, measure
from sash.errors import InputError, MeasureError, ModelError, SashError, ShapeError, TraceError
from sash.window import Chain, Window, walk

__all__ = [
    "Chain",
    "Forecast",
    "InputError",
    "MeasureError",
    "Measurement",
    "ModelError",
    "ModelSource",
    "SashError",
    "ShapeError",
    "Timeline",
    "TraceError",
    "Window",
    "Workload",
    "forecast",
    "measure",
    "walk",
]
