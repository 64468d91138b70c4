"""Precision: bfloat16 where the plain run has float32. Another result, and only where the user allowed it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sash.cost import Workload, map_tensors
from sash.errors import InputError
from sash.plans._lever import Exactness, Lever

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Precision(Lever):
    """bfloat16 arithmetic: 8 bits of mantissa in place of 24."""

    kind: str = "autocast"
    """`"autocast"`: torch chooses operator by operator, weights stay as they are. `"weights"`: weights, inputs and activations are bfloat16
    (batch and instance norm keep theirs, with their statistics), and the optimizer works on float32 masters."""
    name: ClassVar[str] = "precision"

    def __post_init__(self) -> None:
        if self.kind not in ("autocast", "weights"):
            raise InputError(f"kind is {self.kind!r}; it is 'autocast' or 'weights'.")

    @property
    def exactness(self) -> Exactness:
        """Never the plain run's result."""
        return Exactness.CHANGED

    def describe(self) -> str:
        """What it does, in one line."""
        if self.kind == "autocast":
            return "precision: bfloat16 autocast"
        return "precision: bfloat16 weights and activations, float32 masters in the optimizer"

    def on_model(self, model: nn.Module) -> nn.Module:
        """For `"weights"`: new bfloat16 parameters; the ones it was given stay as they are, and are the optimizer's masters."""
        if self.kind == "autocast":
            return model
        made: dict[int, Tensor] = {}
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                _narrow(module, made)
        model.register_forward_pre_hook(_narrow_inputs, with_kwargs=True)
        model.register_forward_hook(_widen_outputs)
        return model

    def on_work(self, work: Workload) -> Workload:
        """Autocast around forward and loss, or an optimizer that keeps masters."""
        if self.kind == "autocast":
            return replace(work, autocast=torch.bfloat16)
        return work if work.optimizer is None else replace(work, optimizer=Masters(work.optimizer))


@dataclass(frozen=True)
class Masters:
    """Makes an optimizer over float32 masters of the parameters that are bfloat16."""

    maker: Any
    """Parameters → optimizer; what a workload takes."""

    @property
    def __name__(self) -> str:
        return f"{getattr(self.maker, '__name__', type(self.maker).__name__)} with float32 masters"

    def __call__(self, parameters: Iterable[nn.Parameter]) -> MasterOptimizer:
        parameters = list(parameters)
        masters = [_master_of(parameter) for parameter in parameters]
        return MasterOptimizer(parameters, masters, self.maker(masters))


class MasterOptimizer(torch.optim.Optimizer):
    """Steps float32 masters with an optimizer of theirs, and rounds them into the model's parameters.

    A step holds a float32 copy of every gradient. Groups, learning rates and hyperparameters are the inner optimizer's own.
    """

    def __init__(self, parameters: list[nn.Parameter], masters: list[nn.Parameter], inner: torch.optim.Optimizer) -> None:
        super().__init__(parameters, inner.defaults)
        self.inner = inner
        self.param_groups = inner.param_groups
        self._pairs = [(low, high) for low, high in zip(parameters, masters, strict=True) if low is not high]
        self._kept = [(low, high) for low, high in zip(parameters, masters, strict=True) if low is high]
        self._note_state()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the inner optimizer, from the model's gradients; the loss where a closure gives it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for low, high in self._pairs:
            high.grad = None if low.grad is None else low.grad.to(high.dtype)
        self.inner.step()
        for low, high in self._pairs:
            low.copy_(high)
            high.grad = None
        self._note_state()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the model's parameters: those of the masters live only in a step."""
        for low, _ in (*self._pairs, *self._kept):
            if set_to_none:
                low.grad = None
            elif low.grad is not None:
                low.grad.detach_().zero_()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the masters."""
        return {"inner": self.inner.state_dict(), "masters": [high.detach() for _, high in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; the model's parameters follow the masters."""
        if set(state_dict) != {"inner", "masters"} or len(state_dict["masters"]) != len(self._pairs):
            raise InputError("the state is not that of an optimizer with float32 masters of this model.")
        self.inner.load_state_dict(state_dict["inner"])
        for (low, high), saved in zip(self._pairs, state_dict["masters"], strict=True):
            high.copy_(saved)
            low.copy_(high)
        self.param_groups = self.inner.param_groups
        self._note_state()

    def _note_state(self) -> None:
        # Where whoever counts an optimizer's memory looks for it.
        for low, high in (*self._pairs, *self._kept):
            own = {} if low is high else {"master": high}
            self.state[low] = {**own, **self.inner.state.get(high, {})}


def propose(work: Workload, model: nn.Module) -> Precision | None:
    """bfloat16 autocast, where the step has float32 to cast; `Precision("weights")` is the other kind. Only ever with the user's leave."""
    return Precision() if why_not(work, model) is None else None


def why_not(work: Workload, model: nn.Module) -> str | None:
    """Why lower precision has nothing to lower; None where it has."""
    if work.autocast is not None:
        return f"The step already runs under autocast, in {work.autocast}."
    if not any(parameter.dtype in _WIDE for parameter in model.parameters()):
        return "The model has no float32 parameter to lower."
    return None


def _narrow(module: nn.Module, made: dict[int, Tensor]) -> None:
    for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
        if parameter.dtype in _WIDE:
            if id(parameter) not in made:
                low = nn.Parameter(parameter.detach().to(torch.bfloat16), parameter.requires_grad)
                low.master = parameter  # pyright: ignore[reportAttributeAccessIssue]
                made[id(parameter)] = low
            setattr(module, name, made[id(parameter)])
    for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
        if buffer.dtype in _WIDE:
            setattr(module, name, made.setdefault(id(buffer), buffer.to(torch.bfloat16)))


def _master_of(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype is not torch.bfloat16:
        return parameter
    # A copied parameter has lost its master; its own value is the nearest.
    known = getattr(parameter, "master", None)
    return known if known is not None else nn.Parameter(parameter.detach().float(), parameter.requires_grad)


def _narrow_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    def narrow(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16) if tensor.dtype in _WIDE else tensor

    return map_tensors(narrow, args), map_tensors(narrow, kwargs)


def _widen_outputs(module: nn.Module, args: Any, outputs: Any) -> Any:
    # The loss sees the type that it was written for. Containers of a class of their own are left as they are.
    if type(outputs) in (tuple, list, dict) or isinstance(outputs, Tensor):
        return map_tensors(lambda tensor: tensor.float() if tensor.dtype is torch.bfloat16 else tensor, outputs)
    return outputs
