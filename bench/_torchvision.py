"""torchvision on a torch built for CPUs only.

Import this before torchvision, timm or transformers: all three import torchvision.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


class BesideTorchvision(nn.Module):
    """A library's model and nothing else.

    sash's measuring process imports the modules that the model's classes are from, in the order of their names: this one first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *positional: Any, **keyword: Any) -> Any:
        return self.model(*positional, **keyword)


def _import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load.

    The wheel on the package index is linked to CUDA. Its models are pure Python, but importing them registers fake kernels for two
    operators that only the compiled library declares; declaring those two is enough.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)  # A library that is collected takes its operators with it.
        return importlib.import_module("torchvision")


torchvision = _import_torchvision()
