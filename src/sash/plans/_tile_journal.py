"""What an interrupted tiled run leaves beside its output, and how the next one takes it up."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sash.cost import static_tensors
from sash.errors import InputError
from sash.plans._reach import Program

_SCHEMA = 1
_WORDS = {
    "weights": "the model's weights",
    "forward": "the model's forward",
    "image": "the image",
    "scale": "the scale of its pixels",
    "tile": "the tiles (the budget sets them)",
    "torch": "torch",
    "threads": "the number of threads",
    "output": "the output",
}


class Journal:
    """Which tiles are done, one line each, after a first line that says of what run."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.partial = out.with_name(out.name + ".partial")
        """Where tiles go until the last is there."""
        self.path = out.with_name(out.name + ".journal")
        self._facts = {"schema": _SCHEMA, **facts}

    def begun(self, restart: bool) -> set[int] | None:
        """Tiles that an earlier run finished; None where a new one starts. Raises `InputError` where that run was another one."""
        if restart or not (self.path.exists() and self.partial.exists()):
            self.remove()
            return None
        lines = self.path.read_text(encoding="utf-8").splitlines()
        try:
            before = json.loads(lines[0])
        except (ValueError, IndexError):
            self.remove()
            return None
        changed = [key for key in self._facts if before.get(key) != self._facts[key]]
        if changed:
            words = ", ".join(_told(key, before.get(key), self._facts[key]) for key in changed)
            raise InputError(
                f"{self.partial.name} was left by an interrupted run, and since then other things changed: {words}. "
                "Undo that to go on with it, or say restart=True (--restart) to begin anew."
            )
        done: set[int] = set()
        for line in lines[1:]:
            try:
                done.add(int(json.loads(line)))
            except (ValueError, TypeError):
                break  # the line at which it was cut off
        return done

    def begin(self) -> None:
        """Write the first line."""
        self._append(json.dumps(self._facts), "w")

    def done(self, tile: int) -> None:
        """A tile is in the file."""
        self._append(str(tile), "a")

    def remove(self) -> None:
        """Take it and the unfinished output away."""
        self.path.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def finish(self, out: Path) -> None:
        """The output appears under its name, whole."""
        os.replace(self.partial, out)
        self.path.unlink(missing_ok=True)

    def _append(self, line: str, mode: str) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def facts_of(program: Program, model: nn.Module, image: dict[str, Any], scale: float, tile: tuple[int, ...], output: Any) -> dict[str, Any]:
    """Everything that a tile's bits depend on."""
    weights = hashlib.sha256()
    for _, path, name, tensor in static_tensors(model):
        weights.update(f"{path}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(_bytes_of(tensor))
    forward = hashlib.sha256()
    for node in program.nodes:
        forward.update(f"{node.call.func} {node.call.named} {node.inputs} {node.outputs}\n".encode())
    return {
        "weights": weights.hexdigest(),
        "forward": forward.hexdigest(),
        **image,
        "scale": scale,
        "tile": list(tile),
        "output": output,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _told(key: str, before: Any, now: Any) -> str:
    word = _WORDS.get(key, key)
    return f"{word} ({before} → {now})" if key in ("tile", "torch", "threads", "scale") else word
