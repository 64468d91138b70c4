"""`sash.arrays.convolve`: any kernel over an array of any size, by sums of outer products or by transforms of tiles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import ceil, isfinite
from typing import Any, Literal

import numpy as np
from scipy.fft import next_fast_len

from sash.arrays._arguments import (
    as_given,
    axes_of,
    check_fill,
    check_kernel_axes,
    check_numbers,
    kernel_taps,
    of_two_axes,
    work_dtype,
    written_dtype,
)
from sash.arrays._blocks import plan_blocks
from sash.arrays._border import Boundary, checked_boundary
from sash.arrays._choose import Way, quickest, stage_seconds
from sash.arrays._convolve_blocks import block_ways
from sash.arrays._device import device_of, open_on, processor
from sash.arrays._job import Job, Step, run_job
from sash.arrays._outer_products import least_terms, outer_products
from sash.arrays._overlap_save import MAPPED_FROM as OVERLAP_MAPPED_FROM
from sash.arrays._overlap_save import OverlapSave, one_thread_each
from sash.arrays._planes import Planes, planes_of
from sash.arrays._rates import ArrayRates, array_rates
from sash.arrays._running import Options
from sash.arrays._stage import Correlate, Stage, Sum
from sash.arrays._store import Source, open_source
from sash.errors import InputError
from sash.units import format_shape

Mode = Literal["same", "valid", "full"]
MODES = ("same", "valid", "full")
METHODS = ("auto", "separable", "direct", "fft")
ROUNDING = {"float32": 4e-7, "float64": 1e-14}
"""What sums in these types can be off by, as a share of the largest sample times the sum of the kernel's absolute taps."""
SIDES_TRIED = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 4608, 5120, 6144)
"""Of tiles, about: larger ones have more whole outputs, and fall out of caches."""
EVEN = 16
"""Transforms of lengths that are multiples of it take two fifths of the time of odd ones, and nine tenths of that of multiples of 4."""
HOPELESS = 3.0
"""Times as long as transforms from which on outer products are not counted out."""


def convolve(
    source: Any,
    kernel: Any,
    out: np.ndarray | str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    mode: Mode = "same",
    boundary: Boundary = "constant",
    fill: float = 0.0,
    correlate: bool = False,
    tolerance: float = 1e-6,
    axes: Sequence[int] | None = None,
    method: Literal["auto", "separable", "direct", "fft"] = "auto",
    dtype: Any = None,
    device: Any = None,
    workers: int | str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The source, convolved with a kernel along its last axes, or along `axes`; as `scipy.signal.convolve`, made in parts.

    `source` is an array, a tensor, or a file (.npy, .zarr, TIFF, PNG, JPEG, WAV, FLAC), `kernel` an array of one to three axes,
    or such a file. With `mode` "same" the output has the source's size, "valid" leaves out what reaches beyond the ends, "full" keeps all
    that meets the source. `boundary` says what lies beyond the ends, in `scipy.ndimage`'s words. `correlate` does not turn the kernel
    round.

    Every output is within `tolerance` of the exact one, as a share of the largest absolute sample times the sum of the kernel's absolute
    taps. "separable" writes the kernel as a sum of outer products, as few as the tolerance allows; "fft" cuts the source into tiles of a
    quick size, and transforms each with the kernel's reach beside it; "auto" takes the quickest that fits, by this machine's rates
    (`array_rates`). Kernels of three axes, and all on a device, are gone through by blocks of all their axes, whose ways are weighed by
    their work: there is "direct" too, each tap by itself, and bits may depend on the budget. Sums are in fp32, or float64 where the source
    is, or the tolerance is below 1e-6. By "fft" NaN and infinities reach what the kernel makes them reach, and are there what sums of
    products are; "separable" makes NaN of infinities where it takes several products.

    The result is fp32 (float64 where sums are), or `dtype`, whole numbers rounded to the nearest. It is an array (or what was given as
    `out`), or the path in `out`, which appears when it is whole; after an interruption the same call goes on, to the same bits.

    `workers` is a number of threads, or the address of a Dask scheduler, as "tcp://127.0.0.1:8786": its workers then read and write the
    files, which they see under the same names, to the bits of as many threads here. Each holds what its tasks share, a kernel's spectrum
    among it.

    `device` is None for compiled code on the processor; with 'cpu', 'cuda', 'cuda:1' or a torch.device torch computes there, by blocks with
    what lies around them. A tensor on a GPU means that GPU, and without `out` the result is a tensor where the source is one. Numbers are
    within the same tolerance; their last bits may depend on device, budget and workers. On a cluster each worker computes on its own such
    device. The budget then counts in one sum what is held on the device (blocks, transforms and what these work in, the kernel's spectrum,
    a result that stays there) and what is on its way on this side, in pinned memory for a GPU; not what a GPU's libraries load, nor what
    torch's allocator keeps back. Not measured on a GPU.

    The budget bounds what is held at once, by all workers together: rows that are read, what is made, work space, and an output in memory.
    Raises `DoesNotFit` with the least budget that would do, and `InputError` for what cannot be read, written or meant.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    place = device_of(device, source, options)
    with closing(open_source(source) if place is None else open_on(source, place)) as opened:
        taps = kernel_taps(kernel, 3)
        asked = Asked(
            opened,
            taps,
            mode,
            checked_boundary(boundary),
            fill,
            correlate,
            tolerance,
            axes,
            method,
            dtype,
            place is not None or taps.ndim == 3,
        )
        if asked.by_blocks:
            blocks = plan_blocks(block_ways(asked), opened, out, options, place or processor(), place is not None, method)
            if plan_only:
                return blocks.plan
            made = blocks.run()
            return as_given(source, made) if out is None and place is None else made
        rates = array_rates()
        planned = quickest(_ways(asked, rates), opened, out, options, method, rates)
        if plan_only:
            return planned.plan
        with one_thread_each():
            made = run_job(planned, opened, out, options)
    return as_given(source, made) if out is None else made


@dataclass(frozen=True, eq=False)
class Asked:
    """A checked call."""

    source: Source
    taps: np.ndarray
    mode: str
    boundary: Boundary
    fill: float
    correlate: bool
    tolerance: float
    named: Sequence[int] | None
    method: str
    dtype: Any
    by_blocks: bool

    def __post_init__(self) -> None:
        check_numbers(self.source, "convolve")
        check_fill(self.fill)
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; there are {', '.join(MODES)}.")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; there are {', '.join(METHODS)}.")
        if not (isfinite(self.tolerance) and 1e-13 <= self.tolerance < 1):
            raise InputError(f"tolerance is {self.tolerance!r}; it is a share, from 1e-13 to below 1.")
        check_kernel_axes(self.taps, self.source.shape, self.axes)
        if self.method == "direct" and not self.by_blocks:
            raise InputError(
                "method 'direct' adds up taps one by one, of kernels of three axes and on a device; 'separable' makes a kernel of two axes "
                "of as few outer products as there are."
            )
        for axis, taps in zip(self.axes, self.taps.shape, strict=True):
            if self.mode == "valid" and taps > self.source.shape[axis]:
                raise InputError(
                    f"the kernel has {taps} taps along axis {axis} of {self.source.shape[axis]}; no output is valid: use 'same'."
                )

    @property
    def axes(self) -> tuple[int, ...]:
        return axes_of(self.source.shape, self.named, self.taps.ndim)

    @property
    def planes(self) -> Planes:
        return planes_of(self.source.shape, self.axes)[0][0]

    @property
    def kernel(self) -> np.ndarray:
        """For convolution, of two axes."""
        taps = self.taps[(slice(None, None, -1),) * self.taps.ndim] if self.correlate else self.taps
        return of_two_axes(taps, self.source.shape, self.axes)

    def geometry(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The output planes' sides, and how many samples before its own an output's kernel begins."""
        ahead = {"same": lambda taps: taps // 2, "valid": lambda taps: 0, "full": lambda taps: taps - 1}[self.mode]
        more = {"same": lambda taps: 0, "valid": lambda taps: 1 - taps, "full": lambda taps: taps - 1}[self.mode]
        height, width = self.planes.size
        sides = self.kernel.shape
        return (height + more(sides[0]), width + more(sides[1])), (ahead(sides[0]), ahead(sides[1]))

    @cached_property
    def digest(self) -> str:
        """Of the taps."""
        return sha256(np.ascontiguousarray(self.taps).tobytes()).hexdigest()

    @property
    def work(self) -> np.dtype:
        return work_dtype(self.source.dtype, self.tolerance)

    @property
    def written(self) -> np.dtype:
        """Of the output."""
        return written_dtype(self.dtype, self.work, "convolve")

    @property
    def told(self) -> str:
        """The job in words."""
        return f"convolution of {format_shape(self.source.shape)} {self.source.dtype.name} with {format_shape(self.taps.shape)}"

    def facts(self, label: str) -> dict[str, Any]:
        """What the output's bits depend on, beside the source, by the method of that label."""
        return {
            "operation": "convolve",
            "kernel": self.digest,
            "kernel_shape": list(self.taps.shape),
            "mode": self.mode,
            "boundary": self.boundary,
            "fill": self.fill,
            "correlate": self.correlate,
            "axes": list(self.axes),
            "method": label,
            "dtype": self.written.name,
        }


def _job(asked: Asked, label: str, stage: Stage, error: float) -> Job:
    output = asked.planes.sized(asked.geometry()[0])
    mapped = {"mapped_from": OVERLAP_MAPPED_FROM} if isinstance(stage, OverlapSave) else {}
    steps, held = (Step(stage, asked.planes, output),), 3 * asked.taps.nbytes
    return Job(asked.told, label, steps, asked.written, error, asked.facts(label), float(asked.fill), held, **mapped)


def _ways(asked: Asked, rates: ArrayRates) -> Iterator[Way]:
    kernel, work = asked.kernel, asked.work
    size, before = asked.geometry()
    rounding = ROUNDING[work.name]
    transforms = []
    for most in SIDES_TRIED:
        tile = _side(size[0], kernel.shape[0], most), _side(size[1], kernel.shape[1], most)
        if all(one.tile != tile for one in transforms):
            transforms.append(OverlapSave(size, work, asked.boundary, kernel, before, tile))
    share = max(asked.tolerance - rounding, asked.tolerance / 2)
    # Products of several outer products cost in proportion: where even the least number of them is far too many, they are not looked for.
    one = Correlate(size, work, asked.boundary, kernel[:, 0], kernel[0], before)
    each = stage_seconds(one, rates) / min(stage_seconds(stage, rates) for stage in transforms)
    least = least_terms(kernel, share, ceil(HOPELESS / each) + 1) if asked.method == "auto" else 1
    ratio = least * each
    if asked.method == "auto" and least > 1 and ratio > HOPELESS:
        yield Way("separable", None, rounding, f"{least} outer products at least: {ratio:.2g} times as long")
    else:
        terms, error = outer_products(kernel, share)
        turned = [(down[::-1], along[::-1]) for down, along in terms]
        correlations = tuple(Correlate(size, work, asked.boundary, down, along, before) for down, along in turned)
        label = "separable" if len(terms) == 1 else f"separable, {len(terms)} outer products"
        stage = Sum(correlations) if len(terms) > 1 else correlations[0]
        yield Way("separable", _job(asked, label, stage, error + rounding), error + rounding)
    for stage in transforms:
        yield Way("fft", _job(asked, f"fft, tiles of {format_shape(stage.tile)}", stage, rounding), rounding)


def _side(outputs: int, taps: int, most: int) -> int:
    """A side of tiles: quick to transform; on a long axis, where the kernel allows it, near `most` and so that tiles come out even."""
    whole = _quick(outputs + taps - 1)
    if whole <= most:
        return whole
    if taps == 1:
        return min(outputs, most)
    count = ceil(outputs / max(most - taps + 1, taps // 4 + 1))
    return _quick(ceil(outputs / count) + taps - 1)


def _quick(length: int) -> int:
    """The least length from there on, or one hardly longer, that is quick to transform."""
    even = min(EVEN, 1 << max(length // EVEN, 1).bit_length() - 1)
    return even * int(next_fast_len(ceil(length / even), True) or ceil(length / even))
