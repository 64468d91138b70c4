"""A training run on disk: everything that its next step depends on, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sash.errors import InputError

_FORMAT = 1
_NEXT = "give another path, or resume=False to begin anew."


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes beside the file and takes its place: whenever the process dies, one whole checkpoint is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What was written, of this very run. Raises `InputError` for anything else, naming what is different."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); {_NEXT}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise InputError(f"{path} is no checkpoint of sash.models.train; {_NEXT}")
    changed = list(_differences(state["run"], run))
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"{path} is the checkpoint of another run: {'; '.join(changed[:3])}{more}. Please {_NEXT}")
    return state


def describe_run(model: nn.Module, optimizer: Optimizer, **settings: Any) -> dict[str, dict[str, str]]:
    """What has to be the same for a run to be taken up, in words: the weights' shapes, the optimizer's settings, the data's order."""
    weights = {name: f"{'x'.join(map(str, value.shape))} {value.dtype}" for name, value in model.state_dict().items()}
    chosen = {"class": type(optimizer).__name__, **{name: repr(value) for name, value in optimizer.defaults.items()}}
    return {"weight": weights, "optimizer's": chosen, "the run's": {name: repr(value) for name, value in settings.items()}}


def _differences(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    for kind, new in here.items():
        old = there[kind]
        for name in {**old, **new}:
            was, now = old.get(name, "absent"), new.get(name, "absent")
            if was != now:
                yield f"{kind} {name} was {was}, now {now}"
