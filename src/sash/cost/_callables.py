"""A plain callable as a model: the modules and tensors it holds become its parts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from sash.cost._results import Category
from sash.cost._workload import tensors_in

_DEPTH = 6
"""Callables inside callables that are looked into."""


class Held(nn.Module):
    """A callable and, as submodules, parameters and buffers under the names it knows them by, what it holds.

    Found are: what a function closes over, its defaults, the globals it names, the arguments of a `functools.partial`, and the attributes
    of an object, callable or of a bound method; in lists, tuples and dicts as well. A copy (`copy.deepcopy`) calls the copied parts.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        taken: set[int] = set()
        for name, part in _parts(function, _DEPTH, set()):
            if id(part) in taken:
                continue
            taken.add(id(part))
            name = name.replace(".", "_")
            while hasattr(self, name):
                name += "_"
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    @property
    def name(self) -> str:
        """The callable's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def forward(self, *positional: Any, **keyword: Any) -> Any:
        return self.function(*positional, **keyword)

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return Held(_rebuilt(self.function, memo, _DEPTH))


def as_module(model: Callable[..., Any]) -> nn.Module:
    """The model itself where it is a module, or a module that calls it."""
    return model if isinstance(model, nn.Module) else Held(model)


def kind_of(module: nn.Module) -> str:
    """Its class's name, or the callable's own."""
    return module.name if isinstance(module, Held) else type(module).__name__


def static_tensors(model: nn.Module) -> Iterator[tuple[Category, str, str, Tensor]]:
    """What the model keeps between steps: category, path of its owner, name, tensor.

    Tensors in plain attributes, lists and dicts count as buffers.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield Category.PARAMETER, path, name, parameter
        for name, buffer in module.named_buffers(recurse=False):
            yield Category.BUFFER, path, name, buffer
        for name, value in vars(module).items():
            if name not in _TORCHS_OWN:
                for tensor in tensors_in(value):
                    yield Category.BUFFER, path, name, tensor


def named_layers(model: nn.Module) -> Iterator[dict[str, Any]]:
    """For every module the part of its `LayerCost` that any step has in common; a shared parameter counts in its first owner."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in own)
        yield {
            "path": path,
            "kind": kind_of(module),
            "leaf": next(module.children(), None) is None,
            "params": sum(parameter.numel() for parameter in own),
            "param_bytes": sum(parameter.numel() * parameter.element_size() for parameter in own),
        }


_TORCHS_OWN = frozenset(vars(nn.Module()))


def _parts(value: Any, depth: int, seen: set[int], name: str = "") -> Iterator[tuple[str, nn.Module | Tensor]]:
    if isinstance(value, (nn.Module, Tensor)):
        yield name or "part", value
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    for inner, item in _items(value):
        yield from _parts(item, depth - 1, seen, f"{name}_{inner}" if name and isinstance(inner, int) else str(inner))


def _items(value: Any) -> list[tuple[str | int, Any]]:
    """What a value holds, each with its name or number there."""
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, dict):
        return [(key, item) for key, item in value.items() if isinstance(key, (str, int))]
    if isinstance(value, functools.partial):
        return [("function", value.func), *enumerate(value.args), *value.keywords.items()]
    if isinstance(value, MethodType):
        return [("object", value.__self__)]
    if isinstance(value, FunctionType):
        return [
            *_closure(value).items(),
            *_named_globals(value).items(),
            *enumerate(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).items(),
        ]
    if hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)):
        return list(vars(value).items())
    return []


def _closure(function: FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue  # a name that is assigned later
    return found


def _named_globals(function: FunctionType) -> dict[str, Any]:
    """Of the globals it names: modules, tensors, containers, and its own file's functions. A library's hold nothing of the user's."""
    found = {}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        own = isinstance(value, FunctionType) and value.__globals__ is function.__globals__
        if own or isinstance(value, (nn.Module, Tensor, list, tuple, dict, functools.partial)):
            found[name] = value
    return found


def _rebuilt(value: Any, memo: dict[int, Any], depth: int) -> Any:
    """A copy of a callable that holds copies of its parts; what holds none is returned as it is."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (nn.Module, Tensor)):
        return copy.deepcopy(value, memo)
    if depth == 0 or not any(True for _ in _parts(value, depth, set())):
        return value
    return _copied(value, memo, lambda item: _rebuilt(item, memo, depth - 1))


def _copied(value: Any, memo: dict[int, Any], again: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        items = [again(item) for item in value]
        made = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif isinstance(value, Mapping):
        made = {key: again(item) for key, item in value.items()}
    elif isinstance(value, functools.partial):
        made = functools.partial(again(value.func), *map(again, value.args), **{key: again(item) for key, item in value.keywords.items()})
    elif isinstance(value, MethodType):
        made = MethodType(value.__func__, again(value.__self__))
    elif isinstance(value, FunctionType):
        made = _copied_function(value, memo, again)
    else:
        return copy.deepcopy(value, memo)
    memo[id(value)] = made
    return made


def _copied_function(function: FunctionType, memo: dict[int, Any], again: Callable[[Any], Any]) -> FunctionType:
    names = {**function.__globals__}
    cells = tuple(CellType() for _ in function.__code__.co_freevars)
    made = FunctionType(function.__code__, names, function.__name__, None, cells)
    # Before its parts: a function may close over itself.
    memo[id(function)] = made
    for cell, name in zip(cells, function.__code__.co_freevars, strict=True):
        if name in (known := _closure(function)):
            cell.cell_contents = again(known[name])
    names.update({name: again(value) for name, value in _named_globals(function).items()})
    made.__defaults__ = again(function.__defaults__)
    made.__kwdefaults__ = again(function.__kwdefaults__)
    made.__dict__.update(function.__dict__)
    return made
