"""What a workload costs."""

from sash.cost._compare import compare
from sash.cost._forecast import forecast
from sash.cost._measure import measure
from sash.cost._results import (
    Block,
    Category,
    Cost,
    Environment,
    Forecast,
    LayerCost,
    Measurement,
    Moment,
    Phase,
    Reason,
    Timeline,
)
from sash.cost._source import FunctionSource, ModelSource
from sash.cost._workload import Workload

__all__ = [
    "Block",
    "Category",
    "Cost",
    "Environment",
    "Forecast",
    "FunctionSource",
    "LayerCost",
    "Measurement",
    "ModelSource",
    "Moment",
    "Phase",
    "Reason",
    "Timeline",
    "Workload",
    "compare",
    "forecast",
    "measure",
]
