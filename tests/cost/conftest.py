"""The allocator's own word on a step."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile


@pytest.fixture(scope="session")
def truth():
    """Bytes at the peak of a steady step, found without sash, so that it can contradict sash."""
    return allocator_peak


def allocator_peak(model, inputs, train=False, optimizer=None, loss=None, autocast=None, accumulate=1, held=()):
    """Bytes at the peak of a steady step of a copy of `model`, or of a plain function that keeps the tensors `held`."""
    model = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    modules = [model] if isinstance(model, nn.Module) else []
    if modules:
        model.train(train)
    parameters = [parameter for module in modules for parameter in module.parameters()] or [t for t in held if t.requires_grad]
    made = optimizer(parameters) if optimizer else None

    def step():
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        if not train:
            with torch.inference_mode(), torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                return model(*args, **kwargs)
        outputs = None
        for _ in range(accumulate):
            del outputs
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                outputs = model(*args, **kwargs)
                value = (loss or sum_of_means)(outputs)
                value = value / accumulate if accumulate > 1 else value
            value.backward()
            del value
        if made is not None:
            made.step()
        for tensor in (*parameters, *(inputs.values() if isinstance(inputs, dict) else inputs)):
            tensor.grad = None
        return outputs

    step()
    static = [
        *(t for m in modules for t in (*m.parameters(), *m.buffers())),
        *(inputs.values() if isinstance(inputs, dict) else inputs),
        *held,
    ]
    for module in modules:
        lists = [value.values() if isinstance(value, dict) else value for value in vars(module).values() if isinstance(value, (dict, list))]
        static += [value for values in lists for value in values if isinstance(value, Tensor)]
    if made is not None:
        static += [value for state in made.state.values() for value in state.values() if isinstance(value, Tensor)]
    level = sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in static}.values())
    with profile(profile_memory=True, use_kineto=True) as record:
        step()
    peak = level
    events = [(event.start_ns(), event.nbytes()) for event in record.kineto_results.events() if event.name() == "[memory]"]
    for _, size in sorted(events, key=lambda event: event[0]):
        level += size
        peak = max(peak, level)
    return peak


def sum_of_means(outputs):
    if isinstance(outputs, Tensor):
        return outputs.mean()
    if isinstance(outputs, dict):
        outputs = outputs.values()
    elif hasattr(outputs, "__dataclass_fields__"):
        outputs = vars(outputs).values()
    return functools.reduce(torch.add, [tensor.mean() for tensor in outputs if tensor.is_floating_point()])
