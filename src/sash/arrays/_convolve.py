"""`sash.arrays.convolve`: any kernel over an array of any size, by sums of outer products or by transforms of tiles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, isfinite
from typing import Any, Literal

import numpy as np
from scipy.fft import next_fast_len

from sash.arrays._arguments import as_given, axes_of, check_fill, check_numbers, work_dtype, written_dtype
from sash.arrays._border import Boundary, checked_boundary
from sash.arrays._fir import GROUP
from sash.arrays._job import Job, Planned, Step, plan_job, run_job
from sash.arrays._overlap_save import OverlapSave, one_thread_each
from sash.arrays._plan import Method
from sash.arrays._planes import Planes, planes_of
from sash.arrays._running import Options
from sash.arrays._stage import Correlate, Stage, Sum
from sash.arrays._store import Source, open_source
from sash.errors import DoesNotFit, InputError
from sash.units import format_bytes, format_shape
from sash.window import Interval

Mode = Literal["same", "valid", "full"]
MODES = ("same", "valid", "full")
METHODS = ("auto", "separable", "fft")
ROUNDING = {"float32": 4e-7, "float64": 1e-14}
"""What sums in these types can be off by, as a share of the largest sample times the sum of the kernel's absolute taps."""
TRANSFORM_NS = {256: 5.0, 512: 5.2, 768: 6.2, 1024: 7.0, 1536: 8.4, 2048: 10.0, 3072: 15.0, 4096: 15.0, 8192: 18.0}
"""About what a sample of a tile costs one core there and back, by the tile's side. Only ratios count."""


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
    method: Literal["auto", "separable", "fft"] = "auto",
    dtype: Any = None,
    workers: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """The source, convolved with a kernel along its last axes, or along `axes`; as `scipy.signal.convolve`, made in parts.

    `source` is an array, a tensor on the CPU, or a file (.npy, .zarr, TIFF, PNG, JPEG, WAV, FLAC), `kernel` an array of one or two axes, or
    such a file. With
    `mode` "same" the output has the source's size, "valid" leaves out what reaches beyond the ends, "full" keeps all that meets the
    source. `boundary` says what lies beyond the ends, in `scipy.ndimage`'s words. `correlate` does not turn the kernel round.

    Every output is within `tolerance` of the exact one, as a share of the largest absolute sample times the sum of the kernel's absolute
    taps. "separable" writes the kernel as a sum of outer products, as few as the tolerance allows; "fft" cuts the source into tiles of any
    quick size, as large as the budget allows, and transforms each with the kernel's reach beside it; "auto" takes the quicker. Sums are
    in fp32, or float64 where the source is, or the tolerance is below 1e-6. By "fft" NaN and infinities reach what the kernel makes them
    reach, and are there what sums of products are; "separable" makes NaN of infinities where it takes several products.

    The result is fp32 (float64 where sums are), or `dtype`, whole numbers rounded to the nearest. It is an array (or what was given as
    `out`), or the path in `out`, which appears when it is whole; after an interruption the same call goes on, to the same bits.

    The budget bounds what the job holds at once: rows that are read, what is made, work space, and an output that it makes in memory.
    Raises `DoesNotFit` with the least budget that would do, and `InputError` for what cannot be read, written or meant.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    with closing(open_source(source)) as opened:
        taps = _kernel(kernel)
        asked = _Asked(opened, taps, mode, checked_boundary(boundary), fill, correlate, tolerance, axes, method, dtype)
        planned = _planned(asked, opened, out, options)
        if plan_only:
            return planned.plan
        with one_thread_each():
            made = run_job(planned, opened, out, options)
    return as_given(source, made) if out is None else made


@dataclass(frozen=True, eq=False)
class _Asked:
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

    def __post_init__(self) -> None:
        check_numbers(self.source, "convolve")
        check_fill(self.fill)
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; there are {', '.join(MODES)}.")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; there are {', '.join(METHODS)}.")
        if not (isfinite(self.tolerance) and 1e-13 <= self.tolerance < 1):
            raise InputError(f"tolerance is {self.tolerance!r}; it is a share, from 1e-13 to below 1.")
        if len(self.axes) != self.taps.ndim or len(planes_of(self.source.shape, self.axes)) != 1:
            raise InputError(
                f"the kernel has {self.taps.ndim} axes, and goes along axes {self.axes} of {format_shape(self.source.shape)}; "
                "give as many, neighbours in order, and last or before channels."
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
        return taps if taps.ndim == 2 else taps[None] if self.axes[0] == len(self.source.shape) - 1 else taps[:, None]

    def geometry(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The output planes' sides, and how many samples before its own an output's kernel begins."""
        ahead = {"same": lambda taps: taps // 2, "valid": lambda taps: 0, "full": lambda taps: taps - 1}[self.mode]
        more = {"same": lambda taps: 0, "valid": lambda taps: 1 - taps, "full": lambda taps: taps - 1}[self.mode]
        height, width = self.planes.size
        sides = self.kernel.shape
        return (height + more(sides[0]), width + more(sides[1])), (ahead(sides[0]), ahead(sides[1]))

    @property
    def work(self) -> np.dtype:
        return work_dtype(self.source.dtype, self.tolerance)


def _planned(asked: _Asked, source: Source, out: Any, options: Options) -> Planned:
    """The quickest way that keeps the budget; raises `DoesNotFit` with the least bytes of any."""
    ways, refused = list(_ways(asked)), list[tuple[_Way, DoesNotFit]]()
    fitting: list[tuple[float, _Way, Planned]] = []
    for way in ways:
        try:
            planned = plan_job(_job(asked, source, way, ()), source, out, options)
        except DoesNotFit as too_small:
            refused.append((way, too_small))
        else:
            cut, unit = planned.cuts[0], way.stage.unit[0]
            rows = min(cut.rows, way.stage.shape[0])
            fitting.append((way.cost * (ceil(rows / unit) * unit / rows) / cut.workers, way, planned))
    able = [one for one in fitting if asked.method in ("auto", one[1].name)]
    if not able:
        raise min((one for way, one in refused if asked.method in ("auto", way.name)), key=lambda one: one.least_bytes)
    cost, way, planned = min(able, key=lambda one: one[0])
    methods = []
    for name in METHODS[1:]:
        best = min((one for one in fitting if one[1].name == name), key=lambda one: one[0], default=None)
        if name == way.name:
            methods.append(Method(name, planned.plan.peak_bytes, None, way.error, "chosen"))
        elif best is not None:
            methods.append(Method(name, best[2].plan.peak_bytes, None, best[1].error, f"{best[0] / cost:.1f} times the work"))
        else:
            least = min(one.least_bytes for other, one in refused if other.name == name)
            error = next(other.error for other, _ in refused if other.name == name)
            methods.append(Method(name, least, None, error, f"holds {format_bytes(least)} at least"))
    return plan_job(_job(asked, source, way, tuple(methods)), source, out, options)


def _job(asked: _Asked, source: Source, way: _Way, methods: tuple[Method, ...]) -> Job:
    written = written_dtype(asked.dtype, asked.work, "convolve")
    output = asked.planes.sized(asked.geometry()[0])
    told = f"convolution of {format_shape(source.shape)} {source.dtype.name} with {format_shape(asked.taps.shape)}"
    facts = {
        "operation": "convolve",
        "kernel": sha256(np.ascontiguousarray(asked.taps).tobytes()).hexdigest(),
        "kernel_shape": list(asked.taps.shape),
        "mode": asked.mode,
        "boundary": asked.boundary,
        "fill": asked.fill,
        "correlate": asked.correlate,
        "axes": list(asked.axes),
        "method": way.label,
        "dtype": written.name,
    }
    return Job(told, way.label, (Step(way.stage, asked.planes, output),), written, way.error, methods, facts, float(asked.fill))


@dataclass(frozen=True, eq=False)
class _Way:
    """A method, with everything chosen."""

    name: str
    label: str
    stage: Stage
    cost: float
    error: float


def _ways(asked: _Asked) -> Iterator[_Way]:
    kernel, work = asked.kernel, asked.work
    size, before = asked.geometry()
    rounding = ROUNDING[work.name]
    terms, error = _outer_products(kernel, max(asked.tolerance - rounding, asked.tolerance / 2))
    turned = [(down[::-1], along[::-1]) for down, along in terms]
    correlations = tuple(Correlate(size, work, asked.boundary, down, along, before) for down, along in turned)
    taps = sum(-(-count // GROUP) * GROUP for count in kernel.shape)
    count = len(terms)
    label = "separable" if count == 1 else f"separable, {count} outer products"
    yield _Way("separable", label, Sum(correlations) if count > 1 else correlations[0], count * (0.3 + 0.03 * taps), error + rounding)
    for most in sorted(TRANSFORM_NS):
        tile = _side(size[0], kernel.shape[0], most), _side(size[1], kernel.shape[1], most)
        stage = OverlapSave(size, work, asked.boundary, kernel, before, tile)
        useful = np.prod(stage.whole) / np.prod(tile)
        cost = TRANSFORM_NS[most] * (1 if work == np.float32 else 2) / max(useful, 1e-9)
        yield _Way("fft", f"fft, tiles of {format_shape(tile)}", stage, float(cost), rounding)


def _side(outputs: int, taps: int, most: int) -> int:
    """A side of tiles: quick to transform, near `most` where the axis is long and the kernel short enough."""
    whole = _quick(outputs + taps - 1)
    if whole <= most:
        return whole
    if taps == 1:
        return min(outputs, most)
    return _quick(max(most, taps + taps // 4))


def _quick(length: int) -> int:
    """The least length from there on that is quick to transform."""
    return int(next_fast_len(length, True) or length)


def _outer_products(kernel: np.ndarray, tolerance: float) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """As few outer products as add up to the kernel, within a share of the sum of its absolute taps; and how far they are off."""
    size = max(float(np.abs(kernel).sum()), np.finfo(float).tiny)
    if min(kernel.shape) == 1:
        ones = np.ones(1)
        return [(ones, kernel[0]) if kernel.shape[0] == 1 else (kernel[:, 0], ones)], 0.0
    left, values, right = np.linalg.svd(kernel)
    rest, terms = kernel.copy(), []
    for value, down, along in zip(values, left.T, right, strict=False):
        terms.append((down * np.sqrt(value), along * np.sqrt(value)))
        rest -= np.outer(*terms[-1])
        if np.abs(rest).sum() <= tolerance * size:
            break
    return terms, float(np.abs(rest).sum()) / size


def _kernel(kernel: Any) -> np.ndarray:
    """The taps in float64; raises `InputError` for what is none."""
    with closing(open_source(np.asarray(kernel) if isinstance(kernel, (list, tuple)) else kernel)) as opened:
        if not 1 <= len(opened.shape) <= 2:
            raise InputError(f"the kernel is {format_shape(opened.shape)}; kernels have one or two axes so far.")
        if opened.dtype.kind not in "fiub":
            raise InputError(f"the kernel holds {opened.dtype}; its taps are real numbers.")
        taps = np.empty(opened.shape, opened.dtype)
        opened.read(tuple(Interval(0, length) for length in opened.shape), taps)
    taps = taps.astype(np.float64)
    if not np.isfinite(taps).all():
        raise InputError("the kernel has taps that are NaN or infinite; give finite ones.")
    return taps
