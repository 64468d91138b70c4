"""A workload on its way to the child process that measures it.

What is sent is a pickle without tensor data, over a pipe from our own process to our own child; nothing is read from disk. Each storage
follows as raw bytes and is read straight into its place, so that receiving a model takes no memory but the model's own. Storages without
data (meta, fake) are filled by the child.
"""

from __future__ import annotations

import importlib.machinery
import io
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import IO, Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore[reportAttributeAccessIssue]
from torch.nn.utils import parametrize

from sash.cost._workload import LAZY, Workload
from sash.errors import InputError, MeasureError, SashError

_Row = tuple[int, str, int, tuple[int, ...], tuple[int, ...], bool, bool, dict[str, Any]]
"""Storage, type, offset, sizes, strides, requires gradient, is a parameter, attributes the user set on it."""


class Parcel:
    """Writes a workload. Raises `MeasureError` where a part of it cannot leave this process."""

    def __init__(self, work: Workload) -> None:
        self.storages: list[tuple[int, str, Tensor | None]] = []
        """Length in bytes, a type that it holds, and a tensor that holds the bytes (None: no data)."""
        self._index: dict[int, int] = {}
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self)
        try:
            pickler.dump(work)
        except SashError:
            raise
        except Exception as error:
            raise MeasureError(
                f"{work.name} cannot be handed to the measuring process ({type(error).__name__}: {error}). "
                "Leave what it names out of the model, or name the model as ModelSource('file.py:factory'), which the process loads itself."
            ) from error
        finally:
            for module in pickler.strangers:
                cloudpickle.unregister_pickle_by_value(module)
        self.pickle = buffer.getvalue()
        self.modules = list(pickler.modules)
        """What the receiver will import, in the order of need: imported beforehand, it is not counted as running the model."""

    def write(self, pipe: IO[bytes]) -> None:
        """Lengths first, then the pickle, then every storage's bytes."""
        lengths = [(size, kind, tensor is not None) for size, kind, tensor in self.storages]
        head = cloudpickle.dumps((lengths, len(self.pickle)))
        pipe.write(len(head).to_bytes(8, "little") + head + self.pickle)
        for _, _, tensor in self.storages:
            if tensor is not None:
                pipe.write(_bytes(tensor))
        pipe.flush()

    def row(self, tensor: Tensor) -> _Row:
        """All there is to know about a tensor but its storage's bytes."""
        if isinstance(tensor, UninitializedTensorMixin):
            raise InputError(LAZY)
        if tensor.layout is not torch.strided:
            raise MeasureError(f"a tensor is in the layout {tensor.layout}; only strided (dense) tensors can be measured.")
        gradient, parameter = tensor.requires_grad and tensor.is_leaf, isinstance(tensor, nn.Parameter)
        place = (self._storage(tensor), str(tensor.dtype), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())
        return (*place, gradient, parameter, {} if _is_fake(tensor) else dict(vars(tensor)))

    def _storage(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._index:
            self._index[storage._cdata] = len(self.storages)
            self.storages.append((storage.nbytes(), str(tensor.dtype), None if tensor.is_meta or _is_fake(tensor) else tensor.detach()))
        return self._index[storage._cdata]


class _Pickler(cloudpickle.Pickler):
    """Leaves tensor data out, sends along what a fresh process could not import, and notes what it will have to."""

    def __init__(self, buffer: io.BytesIO, parcel: Parcel) -> None:
        super().__init__(buffer)
        self.parcel = parcel
        self.modules: dict[str, None] = {}
        self.strangers: list[ModuleType] = []
        self._met: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return _received, (self.parcel.row(obj),)
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            return _undressed, (parametrize.type_before_parametrizations(obj),), vars(obj), None, None, _dress
        if isinstance(obj, ModuleType):
            self._meet(obj.__name__)
        elif isinstance(obj, (type, FunctionType, BuiltinFunctionType)):
            self._meet(obj.__module__)
        return super().reducer_override(obj)

    def _meet(self, name: Any) -> None:
        # What __main__ defines travels by value without being asked.
        if not isinstance(name, str) or name in self._met or name not in sys.modules or name == "__main__":
            return
        self._met.add(name)
        module = sys.modules[name]
        if _fresh_import_finds(module, name):
            self.modules[name] = None
        elif getattr(module, "__file__", None) or not _fresh_import_finds(sys.modules.get(name.partition(".")[0]), name.partition(".")[0]):
            cloudpickle.register_pickle_by_value(module)
            self.strangers.append(module)
        # Otherwise its package makes it while it is imported, as torch makes torch._C._nn.


def receive(pipe: IO[bytes]) -> Workload:
    """The workload that `Parcel.write` sent."""
    lengths, size = cloudpickle.loads(pipe.read(int.from_bytes(pipe.read(8), "little")))
    pickle = pipe.read(size)
    generator = torch.Generator().manual_seed(0)
    _ARRIVED.clear()
    for length, kind, sent in lengths:
        whole = torch.empty(length, dtype=torch.uint8)
        if sent:
            _read_into(pipe, whole)
        else:
            _fill(whole, _dtype(kind), generator)
        _ARRIVED.append(whole)
    try:
        return cloudpickle.loads(pickle)
    finally:
        _ARRIVED.clear()


_ARRIVED: list[Tensor] = []


def _received(row: _Row) -> Tensor:
    index, kind, offset, sizes, strides, gradient, parameter, attributes = row
    tensor = torch.empty(0, dtype=_dtype(kind)).set_(_ARRIVED[index].untyped_storage(), offset, sizes, strides)
    if parameter:
        tensor = nn.Parameter(tensor, requires_grad=gradient)
    elif gradient:
        tensor.requires_grad_()
    vars(tensor).update(attributes)
    return tensor


def _undressed(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _dress(module: nn.Module, state: dict[str, Any]) -> None:
    """Make a module parametrized again. torch refuses to pickle one, and copies it in this way."""
    vars(module).update(state)
    parametrize._inject_new_class(module)
    parametrizations: Any = module.parametrizations
    for name in parametrizations:
        parametrize._inject_property(module, name)


def _fill(whole: Tensor, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Small positive values keep every layer finite, which a variance of zero or below would not; zero is an index of any table."""
    if dtype.is_complex:
        dtype = dtype.to_real()
    if dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype).uniform_(0.001, 0.02, generator=generator)
    else:
        whole.zero_()


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name.removeprefix("torch."))


def _bytes(tensor: Tensor) -> memoryview:
    storage = tensor.untyped_storage().cpu()
    return _view(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)))


def _view(whole: Tensor) -> memoryview:
    numbers: Any = whole.numpy()
    return memoryview(numbers).cast("B")


def _read_into(pipe: IO[bytes], whole: Tensor) -> None:
    view = _view(whole)
    done = 0
    while done < len(view):
        got = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the workload ended early")
        done += got


def _fresh_import_finds(module: ModuleType | None, name: str) -> bool:
    """Whether a new process that imports `name` gets this module, and not another of that name or none; sys.modules does not tell."""
    own = getattr(module, "__spec__", None)
    if own is None:
        return False
    path = None
    spec = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _find(".".join(parts[:count]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None and spec.origin == own.origin


def _find(name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            return spec
    return None
