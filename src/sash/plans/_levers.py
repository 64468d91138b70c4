"""All levers, by the name that users type."""

from __future__ import annotations

from sash.plans._fold import Fold
from sash.plans._inplace import InPlace
from sash.plans._layout import Layout
from sash.plans._lever import Lever
from sash.plans._loss import ChunkedLoss
from sash.plans._microbatch import MicroBatch
from sash.plans._offload import Offload
from sash.plans._precision import Precision
from sash.plans._recompute import Recompute
from sash.plans._release import Release
from sash.plans._separable import Separable
from sash.plans._tile import Tile

LEVERS: dict[str, type[Lever]] = {
    lever.name: lever for lever in (InPlace, Fold, Separable, ChunkedLoss, Layout, Tile, MicroBatch, Recompute, Offload, Precision, Release)
}
