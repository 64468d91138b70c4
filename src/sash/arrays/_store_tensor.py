"""Tensors as sources and sinks, wherever they are: their numbers stay there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sash.arrays._store_sink import Sink
from sash.arrays._store_source import Box, Source, checked_dtype, checked_shape, slices
from sash.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class TensorSource(Source):
    """A tensor on any device."""

    def __init__(self, tensor: Tensor, dtype: np.dtype) -> None:
        self.shape, self.dtype = checked_shape(tuple(tensor.shape), "the tensor"), checked_dtype(dtype, "the tensor")
        self.grain = (1,) * len(self.shape)
        self.tensor = tensor

    @classmethod
    def of(cls, tensor: Any) -> TensorSource:
        """Checked: raises `InputError` for tensors that are not dense, want a gradient, or are of a type that numpy does not have."""
        if tensor.requires_grad:
            raise InputError("the tensor requires a gradient, which an array job does not give; give tensor.detach().")
        try:
            dtype = tensor.new_empty(0, device="cpu").numpy().dtype
            tensor = tensor.resolve_conj().resolve_neg()
            tensor.stride()
        except (TypeError, RuntimeError) as error:
            raise InputError(f"the tensor of {tensor.dtype} is no numpy array ({error}); give tensor.float(), dense.") from error
        return cls(tensor, dtype)

    def _fill(self, box: Box, into: np.ndarray) -> None:
        into[...] = self.tensor[slices(box)].cpu().numpy()

    def _identified(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for part in self.tensor.split(1 << 20) if self.tensor.ndim == 1 else self.tensor:
            digest.update(np.ascontiguousarray(part.cpu().numpy()).reshape(-1).view(np.uint8).data)
        return {"shape": list(self.shape), "dtype": self.dtype.name, "sha256": digest.hexdigest()}


class TensorSink(Sink):
    """A new tensor."""

    def __init__(self, tensor: Tensor, dtype: np.dtype) -> None:
        self.shape, self.dtype = tuple(tensor.shape), dtype
        self.held_bytes = tensor.nbytes
        self.grain = (1,) * len(self.shape)
        self.tensor = tensor

    def finish(self) -> Any:
        """The tensor."""
        return self.tensor

    def _put(self, box: Box, part: np.ndarray) -> None:
        import torch

        self.tensor[slices(box)] = torch.from_numpy(part).to(self.tensor.device)
