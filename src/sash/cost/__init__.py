"""What a workload costs."""

from sash.cost._callables import as_module, static_tensors
from sash.cost._compare import compare
from sash.cost._fakes import copy_of
from sash.cost._forecast import forecast
from sash.cost._measure import measure
from sash.cost._rates import Rates, calibrate, forget_rates, rates_path, read_rates, stored_rates
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
from sash.cost._saved import looking
from sash.cost._source import FunctionSource, ModelSource
from sash.cost._step import make_optimizer, run_step, training_mode
from sash.cost._time import Bound, Estimate, operator_seconds
from sash.cost._trace import Tracer
from sash.cost._traced import stand_in, trace_step
from sash.cost._workload import Workload, default_loss, make_tensor, map_tensors, tensors_in

__all__ = [
    "Block",
    "Bound",
    "Category",
    "Cost",
    "Environment",
    "Estimate",
    "Forecast",
    "FunctionSource",
    "LayerCost",
    "Measurement",
    "ModelSource",
    "Moment",
    "Phase",
    "Rates",
    "Reason",
    "Timeline",
    "Tracer",
    "Workload",
    "as_module",
    "calibrate",
    "compare",
    "copy_of",
    "default_loss",
    "forecast",
    "forget_rates",
    "looking",
    "make_optimizer",
    "make_tensor",
    "map_tensors",
    "measure",
    "operator_seconds",
    "rates_path",
    "read_rates",
    "run_step",
    "stand_in",
    "static_tensors",
    "stored_rates",
    "tensors_in",
    "trace_step",
    "training_mode",
]
