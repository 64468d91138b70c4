"""Which module is at work: in forward by hooks, in backward by the sequence numbers of autograd's nodes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sash.cost._shapes import Call
from sash.cost._workload import tensors_in


class Scopes:
    """The path of the innermost module at work, kept up to date by hooks on every module of one model."""

    def __init__(self, model: Any, watch: Callable[[str, bool], None] | None = None) -> None:
        self.calls: list[Call] = []
        """Every forward call of a module, in order of entry."""
        self._stack: list[tuple[str, int]] = []
        self._starts: list[int] = [0]
        self._paths: list[str] = [""]
        self._watch = watch
        self._handles: list[Any] = []
        if isinstance(model, nn.Module):
            for path, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # it takes no hooks: its operators count for the module around it
                self._handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True, prepend=True))
                self._handles.append(module.register_forward_hook(self._leaving(path)))

    @property
    def current(self) -> str:
        """Path of the innermost module at work; in backward, of the one whose forward made the node at work."""
        if self._stack:
            return self._stack[-1][0]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        return self._paths[max(bisect_right(self._starts, node._sequence_nr()) - 1, 0)]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _mark(self) -> None:
        # A node takes the next number when it is made: nodes from here on belong to the module now on top.
        path = self._stack[-1][0] if self._stack else ""
        number = torch.autograd._get_sequence_nr()  # pyright: ignore[reportPrivateImportUsage]
        if number > self._starts[-1]:
            self._starts.append(number)
            self._paths.append(path)
        elif number == self._starts[-1]:
            self._paths[-1] = path

    def _entering(self, path: str):
        def enter(module: nn.Module, positional: Any, keyword: Any) -> None:
            shapes = tuple(tuple(tensor.shape) for tensor in tensors_in((positional, keyword)))
            self._stack.append((path, len(self.calls)))
            self.calls.append(Call(path, module, shapes, None))
            self._mark()
            if self._watch is not None:
                self._watch(path, True)

        return enter

    def _leaving(self, path: str):
        def leave(module: nn.Module, positional: Any, outputs: Any) -> None:
            if self._watch is not None:
                self._watch(path, False)
            # A module that raised and was caught never left: drop it with whatever it had entered.
            while self._stack and self._stack[-1][0] != path:
                self._stack.pop()
            if self._stack:
                _, index = self._stack.pop()
                call = self.calls[index]
                self.calls[index] = Call(call.path, call.module, call.inputs, tuple(tuple(tensor.shape) for tensor in tensors_in(outputs)))
            self._mark()

        return leave
