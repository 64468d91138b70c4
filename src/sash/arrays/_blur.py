"""`sash.arrays.blur`: Gaussians and their derivatives along any axes, within a stated error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from sash.arrays._arguments import as_given, axes_of, check_fill, check_numbers, work_dtype, written_dtype
from sash.arrays._block_filters import Rated, torch_axis_seconds
from sash.arrays._blocks import BlockJob, plan_blocks
from sash.arrays._border import Boundary, checked_boundary
from sash.arrays._choose import Way, axis_seconds, quickest
from sash.arrays._device import device_of, open_on
from sash.arrays._gaussian import Direct, Filter, Multirate, filters
from sash.arrays._job import Job, Step, run_job
from sash.arrays._planes import Planes, planes_of
from sash.arrays._rates import ArrayRates, array_rates
from sash.arrays._running import Options
from sash.arrays._stage import Coarse, Correlate, Restored, Thinned
from sash.arrays._store import Source, open_source
from sash.errors import InputError
from sash.units import format_shape

ROUNDING = {"float32": 4e-7, "float64": 1e-14}
"""What sums in these types can be off by, as a share of the range: that much of a tolerance is set aside."""
NONE = Direct(np.ones(1), 0.0)
"""The filter of an axis that is not filtered along."""


def blur(
    source: Any,
    sigma: float | Sequence[float],
    out: np.ndarray | str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    tolerance: float = 1e-3,
    boundary: Boundary = "reflect",
    fill: float = 0.0,
    order: int | Sequence[int] = 0,
    axes: Sequence[int] | None = None,
    method: Literal["auto", "direct", "multirate"] = "auto",
    dtype: Any = None,
    device: Any = None,
    workers: int | str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The source, convolved with a Gaussian along the last two axes, or along `axes`; as `scipy.ndimage.gaussian_filter`, made in parts.

    `source` is an array, a tensor, or a file (.npy, .zarr, TIFF, PNG, JPEG, WAV, FLAC); `sigma` the standard deviation in
    samples, one for all axes or one each, 0 for none. `order` asks for derivatives of the Gaussian. `boundary` says what lies beyond the
    ends, in `scipy.ndimage`'s words; `fill` is the value of "constant".

    Every output is within `tolerance` of the exact one (the sampled Gaussian, never cut off), as a share of the input's range (largest
    less least value, `fill` among them); for derivatives that times the sum of the derivative's absolute taps. A Gaussian is cut where
    the tolerance allows ("direct"), or made of splines at a lower rate ("multirate"), whose cost hardly depends on sigma; "auto" takes
    the quicker that fits, by this machine's rates (`array_rates`). Each makes the same bits whatever the budget and the workers. Sums are
    in fp32, or float64 where the input is, or the tolerance is below 1e-6. Whole numbers are rounded to the nearest.
    NaN and infinities make NaN of, or spread to, all that the taps reach: at most 9.5 sigma.

    The result has the source's type, or `dtype`; derivatives of whole numbers are fp32. It is an array (or what was given as `out`), or
    the path in `out`, which appears when it is whole; after an interruption the same call goes on where it stopped, to the same bits.

    `workers` is a number of threads, or the address of a Dask scheduler, as "tcp://127.0.0.1:8786": its workers then read and write the
    files, which they see under the same names.

    `device` is None for compiled code on the processor; with 'cpu', 'cuda', 'cuda:1' or a torch.device torch computes there, by blocks of
    all axes with what lies around them. A tensor on a GPU means that GPU, and without `out` the result is a tensor where the source is one.
    Numbers are within the same tolerance; their last bits may depend on device, budget and workers. On a cluster each worker computes on
    its own such device. The budget then counts in one sum what is held on the device (blocks, and a result that stays there) and what is on
    its way on this side, in pinned memory for a GPU; not what a GPU's libraries load, nor what torch's allocator keeps back. Not measured
    on a GPU.

    The budget bounds what is held at once, by all workers together: rows that are read, what is made, work space, and an output in memory.
    Raises `DoesNotFit` with the least budget that would do, and `InputError` for what cannot be read, written or meant.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    place = device_of(device, source, options)
    with closing(open_source(source) if place is None else open_on(source, place)) as opened:
        asked = (opened, sigma, order, axes, tolerance, checked_boundary(boundary), fill, method, dtype)
        if place is not None:
            jobs = [job for one in _found(*asked, None) if (job := _block_job(one)) is not None]
            blocks = plan_blocks(jobs, opened, out, options, place, True, method)
            return blocks.plan if plan_only else blocks.run()
        rates = array_rates()
        ways = [_way(one) for one in _found(*asked, rates)]
        planned = quickest(ways, opened, out, options, method, rates)
        if plan_only:
            return planned.plan
        made = run_job(planned, opened, out, options)
    return as_given(source, made) if out is None else made


@dataclass(frozen=True, eq=False)
class _Found:
    """One way of blurring: a filter an axis; none where the method has none."""

    name: str
    told: str
    shape: tuple[int, ...]
    picked: dict[int, Filter] | None
    work: np.dtype
    written: np.dtype
    boundary: Boundary
    fill: float
    error: float
    facts: dict[str, Any]


def _way(one: _Found) -> Way:
    if one.picked is None:
        return Way(one.name, None, one.error, "no samples can be left out")
    steps = _steps(one.shape, one.picked, one.work, one.boundary)
    return Way(one.name, Job(one.told, one.name, steps, one.written, one.error, one.facts, one.fill), one.error)


def _block_job(one: _Found) -> BlockJob | None:
    if one.picked is None:
        return None
    axes = tuple(sorted(one.picked))
    made = Rated(tuple(Coarse.of(one.shape[axis], one.picked[axis]) for axis in axes), one.work)
    return BlockJob(one.told, one.name, one.name, made, axes, one.written, one.boundary, one.fill, one.error, one.facts)


def _found(
    source: Source,
    sigma: float | Sequence[float],
    order: int | Sequence[int],
    axes: Sequence[int] | None,
    tolerance: float,
    boundary: Boundary,
    fill: float,
    method: str,
    dtype: Any,
    rates: ArrayRates | None,
) -> list[_Found]:
    """The ways that there are; without rates, those of torch's operators."""
    along = axes_of(source.shape, axes, 2)
    sigmas = dict(zip(along, _each(sigma, along, "sigma"), strict=True))
    orders = dict(zip(along, _each(order, along, "order"), strict=True))
    _check(source, sigmas, orders, tolerance, fill, method)
    derived = any(orders.values())
    usual = np.dtype(np.float32) if derived and source.dtype.kind in "iu" else source.dtype
    written = written_dtype(dtype, usual, "blur")
    # A derivative along an axis without a Gaussian is none: scipy takes the samples as they are, and so does this.
    blurred = tuple(axis for axis in along if sigmas[axis] > 0)
    work = work_dtype(source.dtype, tolerance)
    share = max(tolerance - ROUNDING[work.name], tolerance / 2) / max(len(blurred), 1)
    choices = {axis: _choices(sigmas[axis], orders[axis], share, rates, "f32" if work == np.float32 else "f64") for axis in blurred}
    told = f"blur of {format_shape(source.shape)} {source.dtype.name} by sigma {_told(sigmas)}"
    found = []
    for name in ("direct", "multirate"):
        picked = {axis: choice[name] for axis, choice in choices.items()}
        mixed = {axis: choice["quicker"] for axis, choice in choices.items()}
        if name == "multirate" and any(isinstance(one, Multirate) for one in mixed.values()):
            # A few taps along one axis are quicker than two rates, whatever is done along the other.
            picked = mixed
        error = sum(one.error for one in picked.values()) + ROUNDING[work.name]
        if name == "multirate" and not any(isinstance(one, Multirate) for one in picked.values()):
            if method == name:
                none = f"no sigma of {_told(sigmas)} leaves samples out at a tolerance of {tolerance:g}"
                raise InputError(f"method is 'multirate', and {none}; use 'direct'.")
            found.append(_Found(name, told, source.shape, None, work, written, boundary, float(fill), error, {}))
            continue
        facts = {
            "operation": "blur",
            "sigma": [sigmas[axis] for axis in along],
            "order": [orders[axis] for axis in along],
            "axes": list(along),
            "tolerance": tolerance,
            "boundary": boundary,
            "fill": fill,
            "method": name,
            # Which filters were chosen rests on the rates, and the output's last bits on the filters.
            "filters": [f"{one.step}/{one.degree}" if isinstance(one, Multirate) else "direct" for one in picked.values()],
            "dtype": written.name,
        }
        found.append(_Found(name, told, source.shape, picked, work, written, boundary, float(fill), error, facts))
    return found


def _steps(shape: tuple[int, ...], picked: dict[int, Filter], work: np.dtype, boundary: Boundary) -> tuple[Step, ...]:
    """A pass over every plane for direct filters; two, by way of the coarse plane, for others."""
    found: list[Step] = []
    for planes, axes in planes_of(shape, tuple(picked)) or [(Planes(shape, max(len(shape) - 2, 0), 1, len(shape) == 1), (None, None))]:
        own = [NONE if axis is None else picked[axis] for axis in axes]
        down, along = own
        if isinstance(down, Direct) and isinstance(along, Direct):
            stage = Correlate(planes.size, work, boundary, down.weights, along.weights, (down.radius, along.radius))
            found.append(Step(stage, planes, planes))
            continue
        pair = (Coarse.of(planes.size[0], down), Coarse.of(planes.size[1], along))
        thinned = Thinned(pair, work, boundary)
        between = planes.resized(thinned.shape)
        found += [Step(thinned, planes, between), Step(Restored(pair, work), between, planes)]
    return tuple(found)


def _choices(sigma: float, order: int, share: float, rates: ArrayRates | None, kind: str) -> dict[str, Filter]:
    """The quickest filter without and with samples left out (direct for both where none can be), and the quicker of the two."""
    direct, *others = filters(sigma, order, share)

    def seconds(found: Filter) -> float:
        return axis_seconds(found, rates, kind) if rates is not None else torch_axis_seconds(found)

    best = min(others, key=seconds, default=direct)
    return {"direct": direct, "multirate": best, "quicker": min(direct, best, key=seconds)}


def _each(given: Any, axes: tuple[int, ...], name: str) -> tuple[Any, ...]:
    if isinstance(given, (int, float, np.number)):
        return (given,) * len(axes)
    found = tuple(given)
    if len(found) != len(axes):
        raise InputError(f"{name} has {len(found)} entries, and {len(axes)} axes are filtered along; give one number, or one an axis.")
    return found


def _check(source: Source, sigmas: dict[int, Any], orders: dict[int, Any], tolerance: float, fill: float, method: str) -> None:
    check_numbers(source, "blur")
    check_fill(fill)
    for axis, sigma in sigmas.items():
        if not (isinstance(sigma, (int, float, np.number)) and isfinite(sigma) and sigma >= 0):
            raise InputError(f"sigma is {sigma!r} along axis {axis}; a standard deviation is 0 or more, in samples.")
    for axis, order in orders.items():
        if not (isinstance(order, (int, np.integer)) and 0 <= order <= 8):
            raise InputError(f"order is {order!r} along axis {axis}; derivatives from 0 (the Gaussian itself) to 8 are made.")
        if order and not sigmas[axis]:
            raise InputError(f"order is {order} along axis {axis}, where sigma is 0; a derivative of a Gaussian has a sigma.")
    if not (isfinite(tolerance) and 1e-13 <= tolerance < 1):
        raise InputError(f"tolerance is {tolerance!r}; it is a share of the input's range, from 1e-13 to below 1.")
    if method not in ("auto", "direct", "multirate"):
        raise InputError(f"method is {method!r}; there are 'auto', 'direct' and 'multirate'.")


def _told(sigmas: dict[int, Any]) -> str:
    found = [f"{sigma:g}" for sigma in sigmas.values()]
    return found[0] if len(set(found)) == 1 else ", ".join(found)
