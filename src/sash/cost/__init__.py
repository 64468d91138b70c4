"""What a workload costs."""

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

__all__ = [
    "Block",
    "Category",
    "Cost",
    "Environment",
    "Forecast",
    "LayerCost",
    "Measurement",
    "Moment",
    "Phase",
    "Reason",
    "Timeline",
]
