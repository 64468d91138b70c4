"""What the two peers say a step needs, each used as its own documentation does."""

from __future__ import annotations

from typing import Any

import torch
import torchinfo
from _step import make_step
from _workloads import Inputs, Row
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


def memtracker_peak(row: Row) -> int:
    """Bytes at the peak of a steady step as `torch.distributed._tools.MemTracker` sees it over fake tensors."""
    model, inputs = row.make()
    mode = FakeTensorMode()
    inputs = _made_fake(mode, model, inputs)
    with mode:
        step, optimizer = make_step(row, model, inputs)
        step()
        tracker = MemTracker()
        tracker.track_external(model, *([optimizer] if optimizer else []), *(inputs.values() if isinstance(inputs, dict) else inputs))
        with tracker:
            step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def torchinfo_peak(row: Row) -> int:
    """Bytes of torchinfo's "estimated total size": input, parameters, forward and backward."""
    model, inputs = row.make()
    found = torchinfo.summary(model, input_data=inputs, device="cpu", mode="train" if row.train else "eval", verbose=0)
    return found.total_input + found.total_param_bytes + found.total_output_bytes


def _made_fake(mode: FakeTensorMode, model: nn.Module, inputs: Inputs) -> Inputs:
    """Swaps the model's parameters and buffers for fake ones and returns fake inputs.

    The model is built on real tensors because some initialisers read values, which fake tensors do not have.
    """
    swapped: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = swapped.setdefault(id(parameter), nn.Parameter(mode.from_tensor(parameter.data), parameter.requires_grad))
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = swapped.setdefault(id(buffer), mode.from_tensor(buffer))
    if isinstance(inputs, dict):
        return {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
    return tuple(mode.from_tensor(tensor) for tensor in inputs)
