"""The nearest thing that works, for what torch says only in its own terms."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sash.cost._shapes import Call
from sash.units import TensorSpec

_DEVICE = re.compile(r"not linked with support for|is on meta|meta is not on the expected device|tensors to be on the same device")
_TYPES = re.compile(r"scalar type|should be the same|same dtype|have one of the following", re.IGNORECASE)
_ARGUMENTS = re.compile(r"unexpected keyword argument|positional argument|multiple values for argument")


def hint(error: BaseException, calls: Sequence[Call], layer: str = "") -> str:
    """One sentence that says what to change; empty where torch's own words say it best. `layer` is the path of the module that failed."""
    text = str(error)
    module = next((call.module for call in reversed(calls) if call.path == layer), None)
    shape = next((call.inputs[0] for call in reversed(calls) if call.path == layer and call.inputs), None)
    if _DEVICE.search(text):
        return "Some tensors of the model or its inputs are on another device; put them all on the cpu."
    if isinstance(module, nn.Embedding) and (isinstance(error, IndexError) or _TYPES.search(text)):
        return f"It takes whole numbers below {module.num_embeddings}: {_text(shape, 'int64', module.num_embeddings)!r}."
    if _TYPES.search(text):
        kind = _weight_type(module) or "float32"
        return f"Its weights are {kind}: give an input of that type, as {_text(shape, kind)!r}, or convert it in forward."
    if "only for scalar outputs" in text:
        return "The loss has to be one number: give a function outputs → scalar, as y.mean()."
    if isinstance(error, TypeError) and calls and _ARGUMENTS.search(text) and f"{type(calls[0].module).__name__}.forward()" in text:
        return f"The model is called as {_signature(calls[0].module)}; a keyword input is written like mask=8x128:bool."
    return ""


def _text(shape: tuple[int, ...] | None, dtype: str, below: int | None = None) -> str:
    return str(TensorSpec(shape or (8, 128), dtype, below=below))


def _weight_type(module: nn.Module | None) -> str | None:
    parameter = next(module.parameters(), None) if module is not None else None
    return str(parameter.dtype).removeprefix("torch.") if isinstance(parameter, torch.Tensor) else None


def _signature(module: Any) -> str:
    names = []
    for parameter in inspect.signature(module.forward).parameters.values():
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        names.append(star + parameter.name + ("" if parameter.default is parameter.empty else f"={parameter.default!r}"))
    return f"{type(module).__name__}.forward({', '.join(names)})"
