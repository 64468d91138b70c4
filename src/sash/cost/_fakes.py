"""Stand-ins: a copy of a model whose tensors have shapes and no memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost._callables import as_module, static_tensors
from sash.cost._workload import LAZY, map_tensors
from sash.errors import InputError
from sash.units import TensorSpec

LARGE_BYTES = 1 << 18
"""While a model is built from its source, larger tensors are made as stand-ins, so that building allocates next to nothing."""


class Stand:
    """Makes stand-ins that share storages where the originals do."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._storages: dict[int, Tensor] = {}

    def tensor(self, original: Any) -> Any:
        """A fake CPU tensor of the same type, sizes and strides; its storage is as large as the original's."""
        with self.mode:
            if isinstance(original, TensorSpec):
                return torch.empty(original.shape, dtype=getattr(torch, original.dtype), device="cpu")
            if isinstance(original, UninitializedTensorMixin):
                raise InputError(LAZY)
            if original.layout is not torch.strided:
                raise InputError(f"a tensor is in the layout {original.layout}; only strided (dense) tensors can be forecast.")
            if isinstance(original, FakeTensor) and original.fake_mode is self.mode and original.device.type == "cpu":
                return original.detach() if isinstance(original, nn.Parameter) else original
            key = original.untyped_storage()._cdata
            if key not in self._storages:
                length = original.untyped_storage().nbytes() // original.element_size()
                self._storages[key] = torch.empty(length, dtype=original.dtype, device="cpu")
            whole = self._storages[key]
            if whole.dtype is not original.dtype:
                whole = whole.view(original.dtype)
            return whole.as_strided(original.size(), original.stride(), original.storage_offset())

    def model(self, model: Any) -> nn.Module:
        """A copy of the model with stand-ins for its tensors; of a plain callable, with the parts that it holds.

        Tensors in plain attributes are buffers of the copy.
        """
        module = as_module(model)
        memo: dict[int, Any] = {}
        # Tensors in plain attributes too: their own copies would not share storages with a parameter, and what a graph made has none.
        static = list(static_tensors(module))
        for _, _, _, original in static:
            if id(original) not in memo:
                stand = self._leaf(original)
                memo[id(original)] = nn.Parameter(stand, original.requires_grad) if isinstance(original, nn.Parameter) else stand
        # Any other tensor, in an object of the user's own, is copied as a stand-in.
        with FakeCopyMode(self.mode):
            return copy_of(module, memo)

    def inputs(self, value: Any) -> Any:
        """Stand-ins for every tensor in a tuple, list or dict of inputs."""
        return map_tensors(self._leaf, value)

    def _leaf(self, original: Any) -> Any:
        stand = self.tensor(original)
        wanted = isinstance(original, Tensor) and original.requires_grad and original.is_leaf and not isinstance(original, nn.Parameter)
        return stand.detach().requires_grad_() if wanted else stand


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Without torch's own traceback on stderr where a stand-in refuses a shape: the error is raised all the same, and told once."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def copy_of(model: Any, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the model, or of a plain callable with the parts that it holds; what cannot be copied, as a lock, is the original's."""
    module, known = as_module(model), memo or {}
    try:
        return copy.deepcopy(module, dict(known))
    except Exception:
        return _copy_of_parts(module, dict(known))


def _copy_of_parts(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    copies = [(module, type(module).__new__(type(module))) for module in model.modules()]
    memo.update((id(module), made) for module, made in copies)
    for module, made in copies:
        for name, value in vars(module).items():
            try:
                made.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:
                made.__dict__[name] = value
    return copies[0][1]


class LeanBuild(TorchDispatchMode):
    """While a model is built: large new tensors become stand-ins, small ones stay real."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _FACTORIES and not any(isinstance(arg, Tensor) for arg in args):
            with self.mode:
                stand = func(*args, **kwargs)
            if stand.untyped_storage().nbytes() >= LARGE_BYTES:
                return stand
            return func(*args, **kwargs)
        if any(isinstance(arg, FakeTensor) for arg in args):
            with self.mode:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


_FACTORIES = frozenset({"empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "empty_strided", "eye"})
