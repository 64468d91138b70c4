"""Stand-ins: a copy of a model whose tensors have shapes and no memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost._workload import map_tensors
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
            if isinstance(original, nn.parameter.UninitializedTensorMixin):
                raise InputError("the model has lazy parameters without a shape; run it once on a small input, or give its layers their sizes.")
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

    def model(self, model: Any) -> Any:
        """A copy of the module with stand-ins for its tensors; a plain callable is returned as it is."""
        if not isinstance(model, nn.Module):
            return model
        memo: dict[int, Any] = {}
        originals = [*model.parameters(), *model.buffers()]
        for original in originals:
            stand = self.tensor(original)
            if isinstance(original, nn.Parameter):
                stand = nn.Parameter(stand, requires_grad=original.requires_grad)
            elif original.requires_grad and original.is_leaf:
                stand = stand.detach().requires_grad_()
            memo[id(original)] = stand
        # Tensors that are neither parameters nor buffers (kept in lists, in closures' objects) are copied as stand-ins too.
        with FakeCopyMode(self.mode):
            return copy.deepcopy(model, memo)

    def inputs(self, value: Any) -> Any:
        """Stand-ins for every tensor in a tuple, list or dict of inputs."""
        return map_tensors(self.tensor, value)


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
