"""The allocator's own record of a step, read into levels, blocks and each module's part."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.autograd.profiler import profile, record_function

from sash.cost._callables import named_layers
from sash.cost._results import Phase
from sash.cost._scopes import Scopes

_MARK = "sash:"
_END = "!"


def record_step(model: nn.Module, step: Callable[..., Any], static: int) -> dict[str, Any]:
    """Peak, moments, blocks and layers of one step that starts with `static` bytes alive."""
    scopes = Scopes(model, lambda path, entering: _mark(f"{'>' if entering else '<'}{path}"))
    gc.collect()
    recording: Any = profile(profile_memory=True, use_kineto=True)
    with recording:
        outputs = step(lambda phase, loss: _mark(f"={phase.value}"))
        _mark(_END)
        del outputs
    scopes.remove()
    events: list[tuple[int, int, str]] = []
    for event in recording.kineto_results.events():
        name = event.name()
        if name == "[memory]":
            events.append((event.start_ns(), event.nbytes(), ""))
        elif name.startswith(_MARK):
            events.append((event.start_ns(), 0, name[len(_MARK) :]))
    record = _Record(static)
    for _, size, mark in sorted(events, key=lambda event: event[0]):
        if mark == _END:
            break
        if mark:
            record.mark(mark)
        else:
            record.change(size)
    return {"peak_bytes": record.peak, "moments": record.moments, "blocks": record.all_blocks(), "layers": _layers(model, scopes, record)}


def _mark(text: str) -> None:
    with record_function(_MARK + text):
        pass


@dataclass
class _Record:
    """What the events tell, one after the other."""

    level: int
    peak: int = 0
    phase: Phase = Phase.FORWARD
    moments: list[tuple[str, str]] = field(default_factory=list)
    """Phase and module path of every allocation."""
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    peaks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _stack: list[list[Any]] = field(default_factory=list)
    """Modules at work in forward: path, level on entry, highest level since."""
    _blocks: list[list[Any]] = field(default_factory=list)
    _alive: dict[int, list[list[Any]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.peak = self.level

    def mark(self, mark: str) -> None:
        """A phase starts (`=`), or a module's forward is entered (`>`) or left (`<`)."""
        if mark[0] == "=":
            self.phase = Phase(mark[1:])
        elif self.phase is not Phase.FORWARD:
            return  # a recomputation in backward
        elif mark[0] == ">":
            self._stack.append([mark[1:], self.level, self.level])
        elif self._stack:
            path, before, highest = self._stack.pop()
            self.calls[path] += 1
            self.held[path] += self.level - before
            self.peaks[path] = max(self.peaks[path], highest)
            self._reach(highest)

    def change(self, size: int) -> None:
        """A block is allocated, or freed where `size` is negative."""
        self.level += size
        self.peak = max(self.peak, self.level)
        self._reach(self.level)
        if size > 0:
            module = self._stack[-1][0] if self._stack else ""
            block = [size, module, len(self.moments), -1]
            self.moments.append((self.phase.value, module))
            self._blocks.append(block)
            self._alive[size].append(block)
        elif self._alive[-size]:
            # The record does not say which block of this size was freed; any of them gives the same level.
            self._alive[-size].pop()[3] = len(self.moments)

    def all_blocks(self) -> list[list[Any]]:
        """Bytes, module path, first moment and the moment after the last; what still lives lives to the end."""
        return [[size, module, born, len(self.moments) if died < 0 else died] for size, module, born, died in self._blocks]

    def _reach(self, level: int) -> None:
        if self._stack:
            self._stack[-1][2] = max(self._stack[-1][2], level)


def _layers(model: nn.Module, scopes: Scopes, record: _Record) -> list[dict[str, Any]]:
    outputs = {call.path: call.outputs or () for call in scopes.calls}
    layers = []
    for layer in named_layers(model):
        path = layer["path"]
        layers.append(
            {
                **layer,
                "calls": record.calls[path],
                "outputs": outputs.get(path, ()),
                "macs": 0,
                "macs_backward": 0,
                "held_bytes": record.held[path],
                "forward_peak_bytes": record.peaks[path],
                "at_peak_bytes": 0,
            }
        )
    return layers
