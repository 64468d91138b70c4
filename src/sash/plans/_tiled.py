"""`sash.tiled`: an image of any size through a model, tile by tile, from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sash.cost import ModelSource, as_module, static_tensors, training_mode
from sash.errors import InputError
from sash.heap import blocks_given_back
from sash.plans._reach import Program
from sash.plans._reach_layout import Region, place_of, sizes
from sash.plans._tile import checked
from sash.plans._tile_files import BoxFile, open_image
from sash.plans._tile_journal import Journal, facts_of
from sash.plans._tile_run import Runner, paste
from sash.plans._tile_search import TilePlan, choose
from sash.units import parse_bytes
from sash.window import Interval


def tiled(
    model: nn.Module | Callable[..., Any] | ModelSource,
    image: Tensor | np.ndarray | str | os.PathLike[str],
    budget: str | int,
    out: str | os.PathLike[str] | None = None,
    *,
    two_pass: bool = False,
    tile: tuple[int, ...] | None = None,
    output: str | int | None = None,
    scale: float | None = None,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The model's output on an image of any size, made tile by tile inside `budget`, equal to the whole image's up to rounding.

    `image` is a tensor, a numpy array, the path of a .npy file, or of a picture (which is decoded whole into memory), laid out as
    (channels, height, width), with a batch before or with neither; for a 1-D or 3-D network, that many axes. Pixels of uint8 are
    divided by 255 (`scale` multiplies instead), and all become the model's type. The model runs in evaluation mode.

    `out` names a .npy file. It appears under its name when it is whole; until then tiles gather in `NAME.partial`, and the same call
    after an interruption goes on where it stopped and ends with the same bits. A read-only memory map of it is returned. Without `out` a
    tensor or array is returned, as the image was, and counts in the budget. `output` picks one of several outputs, by key or place.

    The budget bounds what torch's allocator holds at once: model, tile, image and output where those are in memory. The process grows by
    up to 15 % more, and some 60 MB for code and the search itself (bench/tiled.py measures it). `tile` sets the
    tile's size instead of the search. With `plan_only` the `TilePlan` is returned and nothing is run.

    Raises `InputError` for an operator that sees more than a tile and its halo, naming the layer; `two_pass=True` allows those that can be
    computed exactly with passes of their own (global pooling, group and instance normalisation). Raises `DoesNotFit` with the least
    bytes that would.
    """
    total = parse_bytes(budget)
    path = _output_path(out)
    net = as_module(model.load() if isinstance(model, ModelSource) else model)
    _check_device(net)
    dtype = next((t.dtype for _, _, _, t in static_tensors(net) if t.is_floating_point()), torch.float32)
    source = open_image(image, _axes_of(net), hashed=path is not None and not plan_only)
    with training_mode(net, False), torch.inference_mode(), closing(source), blocks_given_back():
        factor = _scale(source.dtype, scale)
        program = _one_output(checked(net, source.shape, dtype, two_pass), output)
        made = program.outputs[0]
        shape, kind = tuple(sizes(program.values[made].layout)), program.values[made].dtype
        _check_type(kind, path)
        held = source.held + (0 if path is not None else program.values[made].bytes)

        def stand_in(region: Region) -> Tensor:
            return _converted(source.stand_in(_box(program, program.image, region)), dtype, factor)

        def read(region: Region) -> Tensor:
            return _converted(source.read(_box(program, program.image, region)), dtype, factor)

        plan = choose(program, net, total, held, stand_in, _tile(tile, program))
        if plan_only:
            return plan
        runner = Runner(program, [tensor for _, _, _, tensor in static_tensors(net)], plan.tile, read)
        with _showing(progress, len(runner.tiles), plan) as tick:
            if path is None:
                result = torch.empty(shape, dtype=kind)
                runner.prepare(tick)
                for one in runner.tiles:
                    ((region, part),) = runner.run(one)
                    paste(result, program.values[made].layout, region, part)
                    tick()
                return result.numpy() if isinstance(image, np.ndarray) else result
            facts = facts_of(program, net, source.identity, factor, plan.tile, [list(shape), str(kind), output])
            _to_file(runner, Journal(path, facts), path, shape, kind, restart, tick)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _to_file(
    runner: Runner, journal: Journal, path: Path, shape: tuple[int, ...], kind: torch.dtype, restart: bool, tick: Callable[[], None]
) -> None:
    done = journal.begun(restart)
    if done is None:
        file = BoxFile.new(journal.partial, shape, kind)
        journal.begin()
    else:
        file = BoxFile.again(journal.partial)
    try:
        if len(done or ()) < len(runner.tiles):
            # Passes over the whole image are made again: their sums are the same to the last bit.
            runner.prepare(tick)
        for number, one in enumerate(runner.tiles):
            if not done or number not in done:
                ((region, part),) = runner.run(one)
                file.write(_box(runner.program, runner.program.outputs[0], region), part)
                del part
                file.flush()
                journal.done(number)
            tick()
    finally:
        file.close()
    journal.finish(path)


def _box(program: Program, value: int, region: Region) -> tuple[Interval, ...]:
    """A region as one interval a dimension."""
    layout = program.values[value].layout
    box = [Interval(0, length) for length in sizes(layout)]
    for axis, part in enumerate(region):
        dim = place_of(layout, axis)
        if dim is not None and part is not None:
            box[dim] = part
    return tuple(box)


def _converted(raw: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    found = raw.to(dtype)
    return found if scale == 1 else found.mul_(scale) if found is not raw else found * scale


def _scale(dtype: torch.dtype, scale: float | None) -> float:
    if scale is not None:
        return float(scale)
    if dtype.is_floating_point:
        return 1.0
    if dtype is torch.uint8:
        return 1 / 255
    raise InputError(f"the image holds {dtype} numbers; say scale=, what they are multiplied by (1/65535 for full 16-bit pixels).")


def _output_path(out: str | os.PathLike[str] | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.suffix.lower() != ".npy":
        raise InputError(f"out is {str(out)!r}; the output is a .npy file, as in {str(path.with_suffix('.npy'))!r}.")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"out is {str(out)!r}; name a file in a folder that exists.")
    return path


def _check_device(net: nn.Module) -> None:
    for _, where, name, tensor in static_tensors(net):
        if tensor.device.type != "cpu":
            raise InputError(f"{where}.{name} is on {tensor.device}; sash tiles on the CPU so far: model.to('cpu').")


def _axes_of(net: nn.Module) -> int:
    """Axes of an image: those of the model's first convolution or pooling; two where it has none."""
    for module in net.modules():
        kind = type(module).__name__
        if kind[-2:] in ("1d", "2d", "3d") and ("Conv" in kind or "Pool" in kind):
            return int(kind[-2])
    return 2


def _one_output(program: Program, output: str | int | None) -> Program:
    """The program of the one output that is asked for."""
    if len(program.outputs) == 1 and output is None:
        return program
    packed = pytree.tree_unflatten(list(program.outputs), program.spec)
    try:
        found = packed[output]
    except (KeyError, IndexError, TypeError):
        names = list(packed) if isinstance(packed, dict) else list(range(len(program.outputs)))
        raise InputError(f"the model has {len(program.outputs)} outputs, {names}; output={output!r} names none: say one of them.") from None
    if not isinstance(found, int):
        raise InputError(f"output={output!r} is more than one tensor.")
    return replace(program, outputs=(found,), spec=None)


def _tile(tile: tuple[int, ...] | None, program: Program) -> tuple[int, ...] | None:
    if tile is None:
        return None
    if len(tile) != program.axes or not all(isinstance(length, int) and length > 0 for length in tile):
        raise InputError(f"tile is {tile!r}; give {program.axes} whole numbers above 0, one an axis.")
    return tuple(tile)


def _check_type(kind: torch.dtype, path: Path | None) -> None:
    if path is not None and kind is torch.bfloat16:
        raise InputError("the output is bfloat16, which .npy files do not have; end the model with .float().")


@contextmanager
def _showing(progress: bool | None, tiles: int, plan: TilePlan) -> Iterator[Callable[[], None]]:
    """A bar on stderr with tiles done and the time left, in a terminal or where it is asked for."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(" x ".join(map(str, plan.tile)), total=tiles * (plan.passes + 1), rate="")
        samples = float(np.prod(plan.tile))

        def tick() -> None:
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed * samples / 1e6:.2f} M samples/s" if speed else "")

        yield tick
