"""Offload: what autograd saves waits on disk for the backward pass, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sash.cost import Category, Forecast, Workload, as_module, looking, static_tensors, tensors_in
from sash.errors import InputError
from sash.plans._disk import DiskFile, DiskRate, Place, disk_rate, on_disk
from sash.plans._lever import Exactness, Lever


@dataclass(frozen=True)
class Offload(Lever):
    """Writes the tensors that autograd saves to disk in forward, and reads them back in backward.

    Never written are parameters, buffers, the model's inputs and its outputs' way into the loss: they live anyway. A storage saved twice
    is written once. A change in place after saving raises as it does without the lever; a change through `.data` is not seen by either.
    """

    least_bytes: int = 1 << 20
    """Smaller storages stay in memory."""
    limit_bytes: int = 0
    """At most so many bytes on disk at a time, those saved first among them; no limit where 0."""
    modules: tuple[str, ...] = ()
    """Paths of the modules whose forward is offloaded; the whole model and the loss where empty."""
    to: str = "disk"
    folder: str = ""
    """On a disk; the system's folder for temporary files where empty."""
    name: ClassVar[str] = "offload"

    def __post_init__(self) -> None:
        if self.to == "host":
            raise InputError("to='host' moves a device's tensors into the machine's memory; a CPU run is in that memory. Use to='disk'.")
        if self.to != "disk":
            raise InputError(f"to is {self.to!r}; saved tensors can be offloaded to 'disk'.")
        for field in ("least_bytes", "limit_bytes"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{field} is {value!r}; it is a number of bytes, 0 or more.")
        object.__setattr__(self, "modules", tuple(self.modules))

    @property
    def exactness(self) -> Exactness:
        """The same bits come back."""
        return Exactness.BITS

    def describe(self) -> str:
        """What it does, in one line."""
        where = f" of {', '.join(self.modules)}" if self.modules else ""
        limit = f", up to {self.limit_bytes:,} bytes" if self.limit_bytes else ""
        return f"offload: saved tensors{where} from {self.least_bytes:,} bytes on wait on {self.to}{limit}"

    def on_model(self, model: nn.Module) -> nn.Module:
        """The model, with hooks around the forward of the modules; keys and values stay as they are."""
        on_disk(self.folder)
        known = dict(model.named_modules())
        unknown = [path for path in self.modules if path not in known]
        if unknown:
            raise InputError(f"offload was asked for {unknown[0]!r}, which is no module of this model; see named_modules().")
        session = _Session(self)
        for module in [known[path] for path in self.modules] or [model]:
            module.register_forward_pre_hook(session.enter, with_kwargs=True)
            module.register_forward_hook(session.leave, always_call=True)
        return model

    def on_work(self, work: Workload) -> Workload:
        """The step, with its loss offloaded as well."""
        if work.loss is None or self.modules:
            return work
        return replace(work, loss=OffloadedLoss(as_module(work.loss), _Session(self)))


@dataclass(frozen=True)
class OffloadedLoss:
    """A loss, what it saves offloaded."""

    loss: Callable[[Any], Tensor]
    session: _Session

    def __call__(self, outputs: Any) -> Tensor:
        module = as_module(self.loss)
        self.session.enter(module, (outputs,), {})
        try:
            return self.loss(outputs)
        finally:
            self.session.leave(module, (), None)


def propose(work: Workload, model: nn.Module | None = None) -> Offload | None:
    """The lever with its defaults; None for inference, where autograd saves nothing."""
    return Offload() if work.train else None


def written_bytes(lever: Offload, plain: Forecast) -> int:
    """What a step writes to disk and reads back, by the forecast of the plain step; at most, for what lives anyway is not read."""
    found = 0
    for block in plain.timeline.blocks:
        inside = not lever.modules or any(block.module == path or block.module.startswith(f"{path}.") for path in lever.modules)
        if block.category is Category.SAVED and block.bytes >= lever.least_bytes and inside:
            found += block.bytes
    return min(found, lever.limit_bytes) if lever.limit_bytes else found


def price_s(lever: Offload, plain: Forecast, rate: DiskRate | None = None) -> float:
    """Seconds that a step takes longer, at the disk's measured rates; less where the system keeps the file in spare memory."""
    rate = rate or disk_rate(lever.folder)
    size = written_bytes(lever, plain)
    return size / rate.write_bytes_per_s + size / rate.read_bytes_per_s


class _Stored:
    """One storage's content at one version."""

    def __init__(self, storage: torch.UntypedStorage, version: int, place: Place | None) -> None:
        self.bytes = storage.nbytes()
        self.version = version
        self.place = place
        """None for a stand-in."""
        self._alive = weakref.ref(storage)

    def alive(self) -> torch.UntypedStorage | None:
        """The storage while something else keeps it, or one that was read back for another node."""
        return self._alive()

    def load(self) -> Tensor:
        """Its bytes, read back."""
        whole = torch.empty(self.bytes, dtype=torch.uint8, device="cpu")
        if self.place is not None:
            self.place.file.read(self.place, whole.untyped_storage())
        self._alive = weakref.ref(whole.untyped_storage())
        return whole


@dataclass(frozen=True, slots=True)
class _Handle:
    """What autograd holds instead of a tensor."""

    witness: Tensor | None
    """Shares the tensor's version counter, and none of its memory."""
    version: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    stored: _Stored


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that stays in memory. Detached: a node that held its own output would keep itself alive."""

    tensor: Tensor
    version: int


class _Session:
    """The hooks of one model: they put autograd's saved tensors into one file."""

    def __init__(self, lever: Offload) -> None:
        self.lever = lever
        self._file: DiskFile | None = None
        self._entered: list[tuple[Any, set[int]]] = []
        self._stored: weakref.WeakValueDictionary[int, _Stored] = weakref.WeakValueDictionary()
        """The last one under each storage's address; an address is given out again once its storage is gone."""
        self._waiting: weakref.WeakSet[_Stored] = weakref.WeakSet()
        """All that autograd still holds."""

    def __getstate__(self) -> dict[str, Any]:
        return {"lever": self.lever}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["lever"])

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a forward."""
        living = [tensor for _, _, _, tensor in static_tensors(module)] + tensors_in((args, kwargs))
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._entered.append((hooks, {tensor.untyped_storage()._cdata for tensor in living if tensor.layout is torch.strided}))
        hooks.__enter__()

    def leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        """After it, also where it raised."""
        if self._entered:
            self._entered.pop()[0].__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> _Handle | _Kept:
        if not self._goes(tensor):
            return _Kept(tensor.detach(), tensor._version)
        storage = tensor.untyped_storage()
        fake = isinstance(tensor, FakeTensor)
        stored = self._stored.get(storage._cdata)
        if stored is None or stored.version != tensor._version or stored.alive() is not storage:
            if self.lever.limit_bytes and self._bytes() + storage.nbytes() > self.lever.limit_bytes:
                return _Kept(tensor.detach(), tensor._version)
            stored = _Stored(storage, tensor._version, None if fake else self._open().write(storage))
            self._stored[storage._cdata] = stored
            self._waiting.add(stored)
        return _Handle(
            None if fake else _witness(tensor),
            tensor._version,
            tensor.dtype,
            tensor.size(),
            tensor.stride(),
            int(tensor.storage_offset()),
            stored,
        )

    def _goes(self, tensor: Tensor) -> bool:
        if type(tensor) not in (Tensor, nn.Parameter, FakeTensor) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return False
        if tensor.is_conj() or tensor.is_neg():
            return False
        storage = tensor.untyped_storage()
        return storage.nbytes() >= max(self.lever.least_bytes, 1) and not any(storage._cdata in living for _, living in self._entered)

    def _bytes(self) -> int:
        return sum(stored.bytes for stored in self._waiting)

    def _open(self) -> DiskFile:
        if self._file is None:
            self._file = DiskFile(on_disk(self.lever.folder))
        return self._file

    def _unpack(self, handle: _Handle | _Kept) -> Tensor:
        if isinstance(handle, _Kept):
            _check_version(handle.tensor, handle.version, handle.tensor.size(), handle.tensor.dtype)
            return handle.tensor
        storage = handle.stored.alive()
        if looking() and storage is None:
            return torch.empty(0, dtype=handle.dtype)
        if handle.witness is not None:
            _check_version(handle.witness, handle.version, handle.size, handle.dtype)
        if storage is not None:
            return torch.empty(0, dtype=handle.dtype).set_(storage, handle.offset, handle.size, handle.stride)
        whole = handle.stored.load()
        item = handle.dtype.itemsize
        return whole[: len(whole) // item * item].view(handle.dtype).as_strided(handle.size, handle.stride, handle.offset)


def _witness(tensor: Tensor) -> Tensor:
    witness = tensor.detach()
    witness.data = tensor.new_empty(0)
    return witness


def _check_version(tensor: Tensor, version: int, size: torch.Size, dtype: torch.dtype) -> None:
    # Autograd itself does not check where hooks pack its tensors.
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{dtype} {list(size)}] is at version {tensor._version}; expected version {version} instead."
        )
