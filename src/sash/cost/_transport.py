"""A workload on its way to the child process that measures it.

What is sent is a pickle without tensor data, over a pipe from our own process to our own child; nothing is read from disk. Each storage follows as raw bytes and is
read straight into its place, so that receiving a model takes no memory but the model's own. Storages without data (meta, fake) are filled by the child.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from typing import Any, BinaryIO

import cloudpickle
import torch
from torch import Tensor, nn

from sash.cost._source import ModelSource
from sash.cost._workload import Workload
from sash.errors import MeasureError

_Row = tuple[int, str, int, tuple[int, ...], tuple[int, ...], bool, bool]
"""Storage, type, offset, sizes, strides, requires gradient, is a parameter."""


class Parcel:
    """Writes a workload."""

    def __init__(self, work: Workload) -> None:
        self.storages: list[tuple[int, Tensor | None]] = []
        """Length in bytes, and a tensor that holds the bytes (None: no data)."""
        self._index: dict[int, int] = {}
        buffer = io.BytesIO()
        pickler = cloudpickle.Pickler(buffer)
        pickler.reducer_override = self._reduce_with(pickler.reducer_override)  # type: ignore[method-assign]
        strangers = _by_value(work)
        try:
            pickler.dump(work)
        except Exception as error:
            raise MeasureError(
                f"{work.name} cannot be handed to the measuring process ({type(error).__name__}: {error}). "
                "Define it at the top level of an importable file, or name it as ModelSource('file.py:factory')."
            ) from error
        finally:
            for module in strangers:
                cloudpickle.unregister_pickle_by_value(module)
        self.pickle = buffer.getvalue()

    def write(self, pipe: BinaryIO) -> None:
        """Lengths first, then the pickle, then every storage's bytes."""
        lengths = [(size, tensor is not None) for size, tensor in self.storages]
        head = cloudpickle.dumps((lengths, len(self.pickle)))
        pipe.write(len(head).to_bytes(8, "little") + head + self.pickle)
        for _, tensor in self.storages:
            if tensor is not None:
                pipe.write(_bytes(tensor))
        pipe.flush()

    def _reduce_with(self, otherwise: Any):
        def reduce(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return otherwise(value)
            if value.layout is not torch.strided:
                raise MeasureError(f"a tensor is in the layout {value.layout}; only strided (dense) tensors can be measured.")
            row = (self._storage(value), str(value.dtype), value.storage_offset(), tuple(value.shape), value.stride())
            return _received, ((*row, value.requires_grad and value.is_leaf, isinstance(value, nn.Parameter)),)

        return reduce

    def _storage(self, tensor: Tensor) -> int:
        key = tensor.untyped_storage()._cdata
        if key not in self._index:
            self._index[key] = len(self.storages)
            empty = tensor.is_meta or type(tensor).__name__ == "FakeTensor"
            self.storages.append((tensor.untyped_storage().nbytes(), None if empty else tensor.detach()))
        return self._index[key]


def receive(pipe: BinaryIO) -> Workload:
    """The workload that `Parcel.write` sent."""
    head = cloudpickle.loads(pipe.read(int.from_bytes(pipe.read(8), "little")))
    lengths, size = head
    pickle = pipe.read(size)
    generator = torch.Generator().manual_seed(0)
    _ARRIVED.clear()
    for length, sent in lengths:
        whole = torch.empty(length, dtype=torch.uint8)
        if sent:
            _read_into(pipe, whole)
        elif length % 4 == 0:
            # Small positive values keep every layer finite: a variance of zero or below would not.
            whole.view(torch.float32).uniform_(0.001, 0.02, generator=generator)
        else:
            whole.zero_()
        _ARRIVED.append(whole)
    work = cloudpickle.loads(pickle)
    _ARRIVED.clear()
    return work


_ARRIVED: list[Tensor] = []


def _received(row: _Row) -> Tensor:
    index, dtype, offset, sizes, strides, gradient, parameter = row
    kind = getattr(torch, dtype.removeprefix("torch."))
    tensor = torch.empty(0, dtype=kind).set_(_ARRIVED[index].untyped_storage(), offset, sizes, strides)
    if parameter:
        return nn.Parameter(tensor, requires_grad=gradient)
    return tensor.requires_grad_() if gradient else tensor


def _bytes(tensor: Tensor) -> memoryview:
    storage = tensor.untyped_storage()
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy()).cast("B")  # type: ignore[arg-type]


def _read_into(pipe: BinaryIO, whole: Tensor) -> None:
    view = memoryview(whole.numpy()).cast("B")
    done = 0
    while done < len(view):
        got = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the workload ended early")
        done += got


def modules_of(work: Workload) -> list[str]:
    """Modules that define the model, so that importing them is not counted as running it."""
    if isinstance(work.model, ModelSource):
        return []
    values = [*work.model.modules()] if isinstance(work.model, nn.Module) else [work.model]
    values += [work.optimizer, work.loss]
    found = {getattr(value if isinstance(value, type) or not hasattr(type(value), "__module__") else type(value), "__module__", "") for value in values}
    return sorted(name for name in found if name and name not in ("builtins", "__main__", "functools") and _findable(name))


def _by_value(work: Workload) -> list[Any]:
    """Modules that the child could not import, registered so that what they define travels whole."""
    values = [*work.model.modules()] if isinstance(work.model, nn.Module) else [work.model]
    values += [work.optimizer, work.loss]
    names = {getattr(value, "__module__", None) for value in values} | {type(value).__module__ for value in values}
    strangers = []
    for name in names:
        module = sys.modules.get(name or "")
        if module is not None and name not in ("__main__", "builtins") and not _findable(name or ""):
            cloudpickle.register_pickle_by_value(module)
            strangers.append(module)
    return strangers


def _findable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None and getattr(sys.modules.get(name), "__spec__", None) is not None and _on_path(name)
    except (ImportError, ValueError):
        return False


def _on_path(name: str) -> bool:
    origin = getattr(sys.modules[name].__spec__, "origin", None)
    top = importlib.machinery.PathFinder.find_spec(name.split(".")[0])
    return top is not None or origin in ("built-in", "frozen")
