"""What a training run recorded: plain numbers, epoch by epoch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass through the data, or the part of it before the last step."""

    steps: int
    """Optimizer steps since training began."""
    train: dict[str, float]
    """The loss and each metric: means over the epoch's samples, seen while the weights were changing."""
    held_out: dict[str, float]
    """The same over the held-out data, after the epoch; empty where there are none."""
    wall_s: float = field(compare=False)
    """Seconds of training, without the held-out data; after a resumption, of the part that ran since."""


@dataclass(frozen=True, slots=True)
class History:
    """The epochs of a training run, in order."""

    epochs: tuple[Epoch, ...]
    best: int | None
    """Index of the epoch with the least held-out loss, or the least loss where no data were held out; None before the first."""
    stopped_early: bool = False
    """Whether patience ran out before the epochs or steps did."""

    def to_json(self) -> str:
        """The history as one JSON object."""
        return json.dumps(asdict(self), indent=1)
