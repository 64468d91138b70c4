"""Results as JSON, and back without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import GenericAlias
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from sash.cost import Cost, Forecast, Measurement, Timeline
from sash.errors import InputError
from sash.plans import Largest, Plan

if TYPE_CHECKING:
    # Types alone: the folder needs numba.
    from sash.arrays import PCA, TopicModel

_SCHEMAS: dict[str, type[Cost]] = {"sash.forecast/1": Forecast, "sash.measurement/1": Measurement}

Read = Callable[[Any, str], Any]
"""Turns a parsed JSON value into a field's value; the text names the field in messages."""


def to_json(result: Cost | Plan | Largest | PCA | TopicModel) -> str:
    """A result as one JSON object: its fields by their names, after `"schema"`; a plan as `Plan.from_json` reads it back. Of components and
    topics, what a page shows, without the arrays.

    Bytes and MACs are whole numbers, times are seconds. Keys and order are stable within a schema.
    """
    if not isinstance(result, Cost):
        return result.to_json()
    schema = next(name for name, kind in _SCHEMAS.items() if isinstance(result, kind))
    return json.dumps({"schema": schema, **_fields_of(result)}, default=_fields_of, allow_nan=False)


def from_json(text: str) -> Forecast | Measurement:
    """The result that `to_json` wrote, equal to the original in every field.

    Raises `InputError` naming the field that is missing, unknown or of another type.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"This is not JSON: {error}. Give what `to_json()` wrote.") from error
    schema = found.pop("schema", None) if isinstance(found, dict) else None
    if not isinstance(schema, str) or schema not in _SCHEMAS:
        raise InputError(f"schema is {schema!r}; this version of sash reads {' and '.join(map(repr, _SCHEMAS))}.")
    cost = _reader(_SCHEMAS[schema])(found, "")
    _check_lives(cost.timeline)
    return cost


def _fields_of(value: Any) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, which takes seconds on a long timeline.
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} has no place in a result")
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_lives(timeline: Timeline) -> None:
    last = len(timeline.moments)
    for index, block in enumerate(timeline.blocks):
        if not 0 <= block.born <= min(block.died, last):
            where = f"timeline.blocks[{index}]"
            raise InputError(f"{where} lives from {block.born} to {block.died}; the timeline has the moments 0 to {last}.")


@cache
def _reader(kind: Any) -> Read:
    if is_dataclass(kind):
        return _object_reader(kind)
    if get_origin(kind) is tuple:
        return _list_reader(kind)
    if kind is float:
        return _read_float
    if issubclass(kind, StrEnum):
        return _choice_reader(kind)
    return _plain_reader(kind)


def _object_reader(kind: Any) -> Read:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}
    # What an older version did not write yet has a default.
    needed = [field.name for field in fields(kind) if field.default is MISSING]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise InputError(_expected(where, "an object", value))
        prefix = f"{where}." if where else ""
        if missing := [name for name in needed if name not in value]:
            raise InputError(f"{prefix}{missing[0]} is missing.")
        if unknown := [name for name in value if name not in readers]:
            raise InputError(f"{prefix}{unknown[0]} is not a field of a {kind.__name__}.")
        return kind(**{name: reader(value[name], prefix + name) for name, reader in readers.items() if name in value})

    return read


def _list_reader(kind: GenericAlias) -> Read:
    read_one = _reader(get_args(kind)[0])

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise InputError(_expected(where, "a list", value))
        return tuple(read_one(one, f"{where}[{index}]") for index, one in enumerate(value))

    return read


def _choice_reader(kind: type[StrEnum]) -> Read:
    choices = {choice.value: choice for choice in kind}

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise InputError(_expected(where, f"one of {', '.join(map(repr, choices))}", value))
        return choices[value]

    return read


def _plain_reader(kind: type) -> Read:
    words = {int: "a whole number", str: "a text", bool: "true or false"}[kind]

    def read(value: Any, where: str) -> Any:
        # Not isinstance: True is an int to Python, and 1 is not a flag.
        if type(value) is not kind:
            raise InputError(_expected(where, words, value))
        return value

    return read


def _read_float(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(_expected(where, "a number", value))
    return float(value)


def _expected(where: str, words: str, value: Any) -> str:
    found = json.dumps(value)
    return f"{where or 'the result'} is {found if len(found) <= 60 else found[:57] + '...'}; expected {words}."
