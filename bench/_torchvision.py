"""torchvision on a torch built for CPUs only."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load.

    The wheel on the package index is linked to CUDA. Its models are pure Python, but importing them registers fake kernels for two
    operators that only the compiled library declares; declaring those two is enough. timm and transformers import torchvision too, so
    call this first.
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
