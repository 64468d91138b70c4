"""What is to be forecast or measured: a model, its inputs and how a step runs."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from sash.cost._source import ModelSource
from sash.errors import InputError
from sash.units import TensorSpec, parse_tensor

OptimizerMaker = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Workload:
    """One step of a model: inference, or training with forward, loss, backward, optimizer step and gradients set to None.

    A step keeps its outputs until it ends, as a training loop does. Raises `InputError` for what cannot be read.
    """

    model: nn.Module | Callable[..., Any] | ModelSource
    """On any device, meta included; its values are neither read nor changed by a forecast."""
    inputs: Any
    """A tensor or a string like `"8x3x224x224"`, a tuple of them, or a dict of keyword arguments; real, meta or fake tensors."""
    train: bool = False
    """A training step in training mode, with gradients; otherwise inference in evaluation mode, without."""
    optimizer: str | type[torch.optim.Optimizer] | OptimizerMaker | None = None
    """A name in `torch.optim` (`"momentum"` is SGD with momentum 0.9), a class, or a function parameters → optimizer."""
    loss: Callable[[Any], Tensor] | None = None
    """Outputs → scalar, a `FunctionSource` among them; the means of all floating outputs, summed, where None."""
    device: str = "cpu"
    autocast: torch.dtype | str | None = None
    """Forward and loss run under `torch.autocast` with this type."""
    accumulate: int = 1
    """Micro-batches a step: `inputs` is one of them, and the loss is divided by their number."""
    rewrite: Callable[[nn.Module], nn.Module] | None = None
    """Applied to the model where it is loaded, before the step: a plan's levers. It may change the module that it is given."""

    def __post_init__(self) -> None:
        if torch.device(self.device).type != "cpu":
            raise InputError(f"device {self.device!r} was asked for; sash forecasts and measures on 'cpu' so far.")
        if not (isinstance(self.model, (nn.Module, ModelSource)) or callable(self.model)):
            raise InputError(f"model is of type {type(self.model).__name__}; it must be an nn.Module, a callable or a ModelSource.")
        if not self.train and (self.optimizer is not None or self.accumulate != 1):
            raise InputError("an optimizer or accumulation was asked for without train=True; say train=True, or leave them out.")
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise InputError(f"accumulate is {self.accumulate!r}; it is a number of micro-batches, 1 or more.")
        if self.loss is not None and not callable(self.loss):
            kind = type(self.loss).__name__
            raise InputError(f"loss is of type {kind}; give a function outputs → scalar, or FunctionSource('file.py:function').")
        if self.loss is not None and not self.train:
            raise InputError("a loss was asked for without train=True; say train=True, or leave it out.")
        object.__setattr__(self, "autocast", _autocast_type(self.autocast))
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", _named_optimizer(self.optimizer))
        elif self.optimizer is not None and not callable(self.optimizer):
            kind = type(self.optimizer).__name__
            raise InputError(f"optimizer is of type {kind}; give a torch.optim class, its name, or a function parameters → optimizer.")
        object.__setattr__(self, "inputs", _read_inputs(self.inputs))

    @property
    def name(self) -> str:
        """The model's class, or the function's name."""
        if isinstance(self.model, ModelSource):
            return self.model.text
        return (
            type(self.model).__name__ if isinstance(self.model, nn.Module) else getattr(self.model, "__name__", type(self.model).__name__)
        )

    @property
    def setting(self) -> str:
        """The step in words."""
        positional, keyword = self.arguments()
        shown = [_describe(value) for value in positional] + [f"{key}={_describe(value)}" for key, value in keyword.items()]
        words = [", ".join(shown) or "no input", "training" if self.train else "inference"]
        if self.optimizer is not None:
            words.append(_optimizer_name(self.optimizer))
        if self.autocast is not None:
            words.append(f"autocast {_type_name(self.autocast)}")
        if self.accumulate > 1:
            words.append(f"{self.accumulate} micro-batches")
        return ", ".join(words)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model's forward."""
        if isinstance(self.inputs, dict):
            named = {key: value for key, value in self.inputs.items() if isinstance(key, str)}
            return tuple(value for key, value in self.inputs.items() if not isinstance(key, str)), named
        return tuple(self.inputs), {}


LAZY = "the model has lazy parameters without a shape; run it once on a small input, or give its layers their sizes."


def make_tensor(value: Any) -> Any:
    """A real tensor for a `TensorSpec` (uniform in [0, 1), or zero for whole numbers without a bound); anything else as it is."""
    if not isinstance(value, TensorSpec):
        return value
    dtype = getattr(torch, value.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(value.shape, dtype=dtype)
    if value.below is None or dtype is torch.bool:
        return torch.zeros(value.shape, dtype=dtype) if dtype is not torch.bool else torch.ones(value.shape, dtype=dtype)
    return torch.randint(value.below, value.shape, dtype=dtype)


def map_tensors(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with every tensor and `TensorSpec` in its tuples, lists and dicts replaced."""
    if isinstance(value, (Tensor, TensorSpec)):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a result: tuples, lists, dicts and dataclasses, in order, each once."""
    found: dict[int, Tensor] = {}
    _collect(value, found, 0)
    return list(found.values())


def _collect(item: Any, found: dict[int, Tensor], depth: int) -> None:
    # Not a closure: one that calls itself is a reference cycle, and would keep tensors alive until the next garbage collection.
    if isinstance(item, Tensor):
        found.setdefault(id(item), item)
    elif depth > 8:
        return
    elif isinstance(item, Mapping):
        for one in item.values():
            _collect(one, found, depth + 1)
    elif isinstance(item, (tuple, list)):
        for one in item:
            _collect(one, found, depth + 1)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        for field in dataclasses.fields(item):
            _collect(getattr(item, field.name), found, depth + 1)


def default_loss(outputs: Any) -> Tensor:
    """The means of all floating outputs, summed."""
    means = [tensor.mean() for tensor in tensors_in(outputs) if tensor.is_floating_point()]
    if not means:
        raise InputError("the model returned no floating tensor to make a loss of; give loss=, a function outputs → scalar.")
    return reduce(torch.add, means)


def _read_inputs(inputs: Any) -> Any:
    def read(value: Any) -> Any:
        spec = parse_tensor(value) if isinstance(value, str) else value
        if isinstance(spec, TensorSpec) and not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
            known = [name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
            near = difflib.get_close_matches(spec.dtype, known, 1) or ["float32"]
            raise InputError(f"{str(spec)!r} has the type {spec.dtype!r}, which torch does not have; the nearest is {near[0]!r}.")
        if isinstance(value, (list, tuple)):
            return type(value)(read(item) for item in value)
        return spec

    if isinstance(inputs, Mapping):
        return {key: read(value) for key, value in inputs.items()}
    if isinstance(inputs, (Tensor, str, TensorSpec)):
        inputs = (inputs,)
    if not isinstance(inputs, Sequence):
        raise InputError(
            f"inputs are of type {type(inputs).__name__}; give a tensor, a string like '8x3x224x224', a tuple of them or a dict."
        )
    values = [read(value) for value in inputs]
    named = {value.name: value for value in values if isinstance(value, TensorSpec) and value.name}
    if not named:
        return tuple(values)
    positional = [value for value in values if not (isinstance(value, TensorSpec) and value.name)]
    return {**dict(enumerate(positional)), **named}


def _autocast_type(value: torch.dtype | str | None) -> torch.dtype | None:
    names = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}
    found = names.get(value) if isinstance(value, str) else value
    if (value is not None and found is None) or (found is not None and found not in names.values()):
        raise InputError(f"autocast is {value!r}; it may be 'bf16' or 'fp16'.")
    return found


def _named_optimizer(name: str) -> OptimizerMaker:
    if name.lower() == "momentum":
        return partial(torch.optim.SGD, momentum=0.9)
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), [*known, "momentum"], 1)
        hint = f"the nearest is {known[near[0]].__name__!r}" if near and near[0] in known else "try 'AdamW', 'Adam', 'SGD' or 'momentum'"
        raise InputError(f"optimizer {name!r} is not in torch.optim; {hint}.")
    found: Any = known[name.lower()]
    return found


def _optimizer_name(optimizer: Any) -> str:
    if isinstance(optimizer, partial):
        settings = ", ".join(f"{key}={value}" for key, value in optimizer.keywords.items())
        return f"{optimizer.func.__name__}({settings})"
    return getattr(optimizer, "__name__", type(optimizer).__name__)


def _describe(value: Any) -> str:
    if isinstance(value, TensorSpec):
        return str(dataclasses.replace(value, name=None))
    if isinstance(value, Tensor):
        return str(TensorSpec(tuple(value.shape), _type_name(value.dtype)))
    return type(value).__name__


def _type_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
