"""Tiles: inference on an image piece by piece, equal to the whole image at once up to rounding.

The model's forward is followed over the whole image without memory (`_reach`); each tile then computes only what it needs of every
signal on the way, padded only where the image itself ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from sash.cost import ModelSource, Workload, as_module, forecast, static_tensors
from sash.errors import DoesNotFit, InputError, SashError
from sash.plans._lever import Exactness, Lever, shared_copy
from sash.plans._reach import Program
from sash.plans._reach_layout import Region, crop, whole
from sash.plans._reach_record import follow
from sash.plans._reach_rule import SeesAll
from sash.plans._tile_run import Runner, buffers, paste
from sash.plans._tile_search import Kept, TilePlan, choose, kinds, output_bytes

_FORECAST_STEPS = 20_000
"""Operators that a forecast of a tiled forward runs one by one; above, it runs one tile of each kind."""


@dataclass(frozen=True)
class Tile(Lever):
    """Inference in tiles, on an image and into outputs that are in memory whole."""

    name: ClassVar[str] = "tile"
    tile: tuple[int, ...]
    """Samples of the output, along each axis."""
    halo: tuple[tuple[int, int], ...] = ()
    """Image samples before and after a tile that it reads too; told, not needed to run."""
    stride: tuple[int, ...] = ()
    """Output samples that tile starts are multiples of; told, not needed to run."""
    extra: float = 0.0
    """Work done over again, as a share of the whole image's; told, not needed to run."""
    two_pass: bool = False
    """Operators that see the whole image (global pooling, group and instance normalisation) get passes of their own."""

    @property
    def exactness(self) -> Exactness:
        return Exactness.ROUNDING

    def describe(self) -> str:
        size = " x ".join(map(str, self.tile))
        halo = f" with a halo of up to {max(side for pair in self.halo for side in pair)} samples" if self.halo else ""
        return f"inference in tiles of {size}{halo}, {self.extra:.1%} of the work done again"

    def on_model(self, model: nn.Module) -> nn.Module:
        return Tiled(model, self.tile, self.two_pass)


class Tiled(nn.Module):
    """A model whose forward runs tile by tile; its parameters have the names that they have in the model."""

    def __init__(self, model: nn.Module, tile: tuple[int, ...], two_pass: bool = False) -> None:
        super().__init__()
        # The model's own tables: parameters, buffers and modules stay under their names, and a copy of this is a copy of those.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self.tile, self.two_pass = tuple(tile), two_pass
        self._inside = (model,)
        self._programs = Kept({})

    def forward(self, image: Tensor) -> Any:
        """The model's outputs on a batch of images."""
        model = self._inside[0]
        if self.training or (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())):
            raise InputError(
                "a tiled model is for inference: call model.eval() and run it under torch.inference_mode() or torch.no_grad()."
            )
        model.training = False
        program = self._program(model, image)
        if len(self.tile) != program.axes:
            raise InputError(f"a tile of {len(self.tile)} lengths was asked for, and the image has {program.axes} axes.")
        layout = program.values[program.image].layout
        full = whole(layout, program.axes)
        statics = [tensor for _, _, _, tensor in static_tensors(model)]
        runner = Runner(program, statics, self.tile, lambda region: crop(image, layout, full, region))
        tiles = runner.tiles
        if isinstance(image, FakeTensor) and len(tiles) * len(program.nodes) > _FORECAST_STEPS:
            tiles = kinds(runner, every=True)
        outputs = buffers(program)
        runner.prepare(only=tiles)
        for tile in tiles:
            for value, output, (region, part) in zip(program.outputs, outputs, runner.run(tile), strict=True):
                paste(output, program.values[value].layout, region, part)
        return pytree.tree_unflatten(outputs, program.spec)

    def _program(self, model: nn.Module, image: Tensor) -> Program:
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        key = (tuple(image.shape), image.dtype, autocast)
        known: Any = self._programs.value
        if known is None:
            known = self._programs.value = {}
        if key not in known:
            program = follow(model, tuple(image.shape), image.dtype)
            check_passes(program, self.two_pass)
            known[key] = program
        return known[key]


def check_passes(program: Program, two_pass: bool) -> None:
    """Raises `SeesAll` where operators see the whole image and passes for them were not asked for."""
    seeing = program.wholes
    if not seeing or two_pass:
        return
    node = seeing[0]
    more = f", and {len(seeing) - 1} more like it" if len(seeing) > 1 else ""
    passes = "a pass" if program.passes == 1 else f"{program.passes} passes"
    raise SeesAll(
        f"{node.call.where} sees the whole image{more}: {_WHY.get(node.call.name, 'it sums over every position')}. "
        f"two_pass=True computes it exactly, with {passes} over the image before the last."
    )


_WHY = {
    "group_norm": "it normalises by the mean and deviation of the whole image",
    "instance_norm": "it normalises by the mean and deviation of the whole image",
    "adaptive_avg_pool2d": "it pools the whole image, as squeeze-and-excite does",
    "mean": "it averages the whole image, as global pooling and squeeze-and-excite do",
}


def checked(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, two_pass: bool) -> Program:
    """The program of a model on an image; raises `SeesAll` with the layer that cannot be tiled."""
    program = follow(model, shape, dtype)
    check_passes(program, two_pass)
    return program


def propose(work: Workload, model: nn.Module, budget: int | None = None, two_pass: bool = False) -> Tile | None:
    """Tiles of the least extra work inside `budget` (half of the plain run's peak where None); None where there are none."""
    image = _image(work)
    if image is None:
        return None
    try:
        program = checked(_evaluating(model), image[0], image[1], two_pass)
        found = in_memory(program, model, forecast(work).peak_bytes // 2 if budget is None else budget)
    except SashError:
        return None
    return Tile(found.tile, found.halo, found.stride, found.extra, two_pass)


def least_budget(work: Workload, model: nn.Module) -> int | None:
    """The least budget that tiles can keep; None where none can be cut."""
    image = _image(work)
    if image is None:
        return None
    try:
        in_memory(checked(_evaluating(model), image[0], image[1], False), model, 1)
    except DoesNotFit as error:
        return error.least_bytes
    except SashError:
        return None
    raise AssertionError("no tile takes one byte")


def in_memory(program: Program, model: nn.Module, budget: int) -> TilePlan:
    """The tile for an image and outputs that are in memory whole."""
    layout = program.values[program.image].layout
    image = torch.empty(0, dtype=program.values[program.image].dtype)

    def read(region: Region) -> Tensor:
        # A tile of an image in memory is a view of it: it takes no bytes of its own.
        lengths = [1 if part is None else part.length for part in region]
        return image.new_empty(1).expand(*program.shape[: len(layout) - program.axes], *lengths)

    return choose(program, model, budget, output_bytes(program) + program.values[program.image].bytes, read)


def why_not(work: Workload, model: nn.Module) -> str | None:
    """Why tiles would change the result or cannot be cut: the layer, the reason, what would do; None where they can."""
    if work.train:
        return "tiles are for inference: a training step sums gradients over the whole image and keeps what backward needs of it."
    image = _image(work)
    if image is None:
        return "tiles are cut from one floating image (batch, channels, and one to three axes); the model takes something else."
    try:
        checked(_evaluating(model), image[0], image[1], two_pass=False)
    except SashError as error:
        return str(error)
    return None


def _image(work: Workload) -> tuple[tuple[int, ...], torch.dtype] | None:
    positional, keyword = work.arguments()
    if work.train or len(positional) != 1 or keyword or work.autocast is not None:
        return None
    spec = positional[0]
    dtype = getattr(torch, spec.dtype) if isinstance(getattr(spec, "dtype", None), str) else getattr(spec, "dtype", None)
    if dtype is None or not dtype.is_floating_point or not 3 <= len(spec.shape) <= 5:
        return None
    return tuple(spec.shape), dtype


def _evaluating(model: Any) -> nn.Module:
    """A copy in evaluation mode that shares the tensors."""
    module = as_module(model.load() if isinstance(model, ModelSource) else model)
    return shared_copy(module).eval()
