"""`sash.arrays.deconvolve`: what a convolution was made of, as far as it can be known, with the error to expect."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite, log2, nan, prod, sqrt
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sash.arrays._arguments import as_given, axes_of, check_kernel_axes, check_numbers, kernel_taps, of_two_axes, written_dtype
from sash.arrays._border import Boundary, checked_boundary
from sash.arrays._deconvolve_plan import MOST_CONDITION, DeconvolutionPlan, Seen, fitted, planned, verdicts
from sash.arrays._device import device_of, open_on
from sash.arrays._diagonal import Condition, Line, Spectrum, condition, mirrored
from sash.arrays._look import Data, Look
from sash.arrays._phases import Phased, run_phases
from sash.arrays._plan import Method
from sash.arrays._planes import Planes, planes_of
from sash.arrays._region import Grid
from sash.arrays._running import Options, mapped_from
from sash.arrays._signal import MODEL_BYTES, Errors, errors, model
from sash.arrays._spectral import Filtered, Inverse, Wiener
from sash.arrays._store import Source, open_source
from sash.arrays._store_tensor import TensorSource
from sash.arrays._tiled import Tiled
from sash.errors import InputError
from sash.heap import blocks_given_back
from sash.units import format_shape

if TYPE_CHECKING:
    import torch

METHODS = ("auto", "inverse", "wiener", "richardson-lucy")
ITERATIONS = 30
"""Of Richardson–Lucy, unless said."""
_EQUAL = 1.05
"""Up to so many times Wiener's error, the inverse is taken: it needs no model of the signal."""
Looked = tuple[Condition | None, Data]
"""What does not depend on method and budget."""
_LAST: dict[str, Looked] = {}
"""The last file's: planning and running one job look at the same data."""


def deconvolve(
    source: Any,
    kernel: Any,
    out: np.ndarray | str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    boundary: Boundary = "wrap",
    method: Literal["auto", "inverse", "wiener", "richardson-lucy"] = "auto",
    noise: float | None = None,
    iterations: int | None = None,
    adjoint: bool = False,
    axes: Sequence[int] | None = None,
    dtype: Any = None,
    device: Any = None,
    workers: int | str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> Any:
    """What `convolve(x, kernel, boundary=boundary)` made the source of: x, or the nearest to it that the source tells.

    `source` is an array, a tensor, or a file; `kernel` an array of one or two axes, or such a file, along the last axes or
    `axes`. A kernel longer than its axis is allowed: with "wrap" it goes round, else it mirrors again.

    "inverse" divides each frequency by the kernel's: exact, but for noise, which it amplifies. It takes "wrap" (Fourier transform), or
    "reflect" and "mirror" (cosine transforms of type II and I) with kernels that are symmetric along each axis, up to a condition number
    (largest of the kernel's spectrum by its smallest) of 1e15. "wiener" takes the same borders and any condition: conj(H) / (|H|² + N/S),
    with white noise N, and S falling with frequency as a power that is fitted to the data, scaled to the data's variance. "auto" takes the
    one with the smaller expected error. "richardson-lucy" takes any border ("constant" is 0 outside), data and kernels without negative
    numbers, and `iterations` of them (30), from a constant on; it has no expected error.

    `noise` is the standard deviation of what was added to the data. Not given, it is what lies at the frequencies that the kernel passes
    least, where that is more than signal can be; else rounding to the data's type, or for method "wiener" the median absolute difference of
    neighbours. Noise that cannot be told from signal so is not known: state it.

    The plan has the condition number and, for each method, the expected error: the root mean square of result less x, by that of x (mean
    included), over the signals and noises of the model; `error_range` is where it lies when noise is neither stated nor found. One pass
    over the data comes before the plan. `adjoint=True` gives the transposed operator's output instead (x is then no estimate): for all v,
    w, ⟨convolve(v), w⟩ = ⟨v, deconvolve(w, adjoint=True)⟩, with any border.

    All is computed in float64. The result is float64 where the source is, else fp32, or `dtype`. It is an array (or what was given as
    `out`), or the path in `out`, which appears when it is whole; after an interruption the same call goes on, to the same bits, which do
    not depend on budget and workers. To a file, planes whose transform has more than 256 MiB go by way of two files beside it,
    each as large as the plane in float64.

    `workers` is a number of threads, or the address of a Dask scheduler, as "tcp://127.0.0.1:8786": its workers then read and write the
    files, which they see under the same names, to the same bits. The first pass over the data is made by this process, and what lies
    between passes over a plane is always in those two files, which all workers see.

    `device` is None for compiled code on the processor; with 'cpu', 'cuda', 'cuda:1' or a torch.device torch computes there: the
    transforms, filters and iterations; the first pass over the data is made on this side, and what lies between passes is there. A tensor
    on a GPU means that GPU, and without `out` the result is a tensor where the source is one. Numbers are within the same error bounds;
    their last bits may depend on device, budget and workers. On a cluster each worker computes on its own such device. The budget then
    counts in one sum what is held on the device (lines and their transforms, and what these work in) and what is on its way on this side,
    in pinned memory for a GPU; not what a GPU's libraries load, nor what torch's allocator keeps back. Not measured on a GPU.

    The budget bounds what the job holds at once, in all workers together, a whole line of the filtered axes at least. Raises `DoesNotFit`
    with the least budget that would do, and `InputError` for what cannot be read, written, inverted or meant; data with NaN or infinities
    among them.

    Source: H. C. Andrews, B. R. Hunt, "Digital Image Restoration", 1977; S. A. Martucci 1994 for cosine transforms; D. L. Donoho,
    I. M. Johnstone 1994 for the median absolute difference; D. J. Field 1987 for the power law; W. H. Richardson 1972, L. B. Lucy 1974.
    """
    options = Options(budget, workers, overwrite, restart, progress)
    place = device_of(device, source, options)
    with closing(open_source(source) if place is None else open_on(source, place)) as opened, blocks_given_back(mapped_from(opened)):
        asked = _Asked(opened, kernel_taps(kernel), checked_boundary(boundary), method, noise, iterations, adjoint, axes, dtype, place)
        tiled = asked.adjoint or asked.method == "richardson-lucy"
        job, plan = _tiled(asked, out, options) if tiled else _spectral(asked, out, options)
        if plan_only:
            return plan
        made = run_phases(job, opened, out, options, place)
    if isinstance(opened, TensorSource) and out is None:
        return as_given(source, made).to(opened.tensor.device)
    return as_given(source, made) if out is None else made


@dataclass(frozen=True, eq=False)
class _Asked:
    """A checked call."""

    source: Source
    kernel: np.ndarray
    boundary: Boundary
    method: str
    noise: float | None
    given_iterations: int | None
    adjoint: bool
    named: Sequence[int] | None
    dtype: Any
    device: torch.device | None = None

    def __post_init__(self) -> None:
        check_numbers(self.source, "deconvolve")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; there are {', '.join(METHODS)}.")
        noise, count = self.noise, self.given_iterations
        number = isinstance(noise, (int, float, np.number)) and not isinstance(noise, bool)
        if noise is not None and not (number and isfinite(noise) and noise >= 0):
            raise InputError(f"noise is {noise!r}; it is the standard deviation of what was added to the data, 0 or more.")
        if count is not None and (isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1):
            raise InputError(f"iterations is {count!r}; give a whole number from 1 on.")
        if count is not None and (self.method != "richardson-lucy" or self.adjoint):
            raise InputError("iterations are those of method='richardson-lucy'; the others have none.")
        if self.adjoint and (noise is not None or self.method != "auto"):
            raise InputError("the adjoint is one operator: it has neither noise nor a method; leave them out.")
        if noise is not None and self.method == "richardson-lucy":
            raise InputError("noise is for 'inverse' and 'wiener'; 'richardson-lucy' supposes counts, and stops after its iterations.")
        if not self.kernel.size or not self.kernel.any():
            raise InputError("all of the kernel's taps are 0, so that nothing of x is in the data; give one that is not.")
        check_kernel_axes(self.kernel, self.source.shape, self.axes)

    @property
    def axes(self) -> tuple[int, ...]:
        return axes_of(self.source.shape, self.named, self.kernel.ndim)

    @property
    def planes(self) -> Planes:
        return planes_of(self.source.shape, self.axes)[0][0]

    @property
    def taps(self) -> np.ndarray:
        """Of two axes."""
        return of_two_axes(self.kernel, self.source.shape, self.axes)

    @property
    def written(self) -> np.dtype:
        usual = np.dtype(np.float64 if self.source.dtype == np.float64 else np.float32)
        return written_dtype(self.dtype, usual, "deconvolve")

    @property
    def told(self) -> str:
        of = f"{format_shape(self.source.shape)} {self.source.dtype.name} and {format_shape(self.kernel.shape)}, {self.boundary}"
        return f"adjoint convolution of {of}" if self.adjoint else f"deconvolution of {of}"

    def facts(self, method: str) -> dict[str, Any]:
        return {
            "operation": "deconvolve",
            "kernel": sha256(np.ascontiguousarray(self.kernel).tobytes()).hexdigest(),
            "kernel_shape": list(self.kernel.shape),
            "boundary": self.boundary,
            "axes": list(self.axes),
            "method": method,
            "dtype": self.written.name,
            **({} if self.device is None else {"device": self.device.type}),
        }


def _looked(asked: _Asked, spectrum: Spectrum | None, found: Condition | None) -> Data:
    """What a pass over the data sees; not again for the file that was looked at last."""
    held = asked.source.array is not None or isinstance(asked.source, TensorSource)
    key = repr((None if held else asked.source.identity, asked.facts("look"), spectrum is None, asked.adjoint))
    if held or key not in _LAST:
        seen = _look(asked, spectrum, found).run()
        _LAST.clear()
        _LAST[key] = found, seen
    return _LAST[key][1]


def _look(asked: _Asked, spectrum: Spectrum | None, found: Condition | None = None) -> Look:
    weakest = (0, 0) if found is None else found.place
    return Look(asked.source, asked.planes, spectrum, weakest, positive=spectrum is None and not asked.adjoint)


def _spectral(asked: _Asked, out: Any, options: Options) -> tuple[Phased, DeconvolutionPlan]:
    taps, off = mirrored(asked.taps, asked.boundary)
    sizes = asked.planes.size
    both = min(taps.shape) > 1
    along = Line.of(sizes[1], asked.boundary, True) if taps.shape[1] > 1 or taps.shape[0] == 1 else None
    down = Line.of(sizes[0], asked.boundary, not both) if taps.shape[0] > 1 else None
    spectrum = Spectrum(taps, (down, along))
    # Both methods take the same tasks, and the same memory: shapes say whether the budget will do, before any data are read.
    work = Filtered(asked.source, asked.planes, asked.written, Inverse(spectrum), asked.device)
    look = _look(asked, spectrum)
    before = max(look.peak_bytes, spectrum.scratch_bytes(), MODEL_BYTES), spectrum.held_bytes + look.kept_bytes
    asking = asked.method if asked.method != "auto" else ""
    size = fitted(asked.told, asking, work, before, asked.source, out, asked.source.shape, asked.written, options, asked.device)
    found = condition(spectrum)
    data = _looked(asked, spectrum, found)
    count = prod(line.size for line in spectrum.lines if line is not None)
    rounding = np.finfo(float).eps * sqrt(log2(count + 1)) * 0.3 + off
    wanted = asked.method == "wiener" or not found.number <= MOST_CONDITION
    supposed = model(data, spectrum, found, asked.source.dtype, asked.noise, wanted, rounding)
    expected = errors(spectrum, found, supposed, asked.written, rounding)
    chosen = _chosen(asked, found, expected)
    told = verdicts(chosen, found, expected, supposed, spectrum.shape)
    if chosen == "wiener":
        work = replace(work, filter=Wiener(spectrum, supposed))
    facts = asked.facts(chosen)
    if chosen == "wiener":
        facts |= {"noise": supposed.noise, "signal": [supposed.scale, supposed.slope, supposed.corner, supposed.constant]}
    error = expected.inverse if chosen == "inverse" else expected.wiener
    inverse = chosen == "inverse"
    least = error if inverse else min(error, expected.wiener_least)
    ends = least, max(error, expected.unseen if inverse else expected.wiener_unseen)
    seen = Seen(asked.told, chosen, work, asked.source.shape, asked.written, facts, told, error, found.number, asked.device, ends)
    return planned(seen, asked.source, size)


def _chosen(asked: _Asked, found: Condition, expected: Errors) -> str:
    """The method; raises `InputError` where the inverse was asked for, and there is none."""
    possible = found.number <= MOST_CONDITION
    if asked.method == "auto":
        return "inverse" if possible and expected.inverse <= _EQUAL * expected.wiener else "wiener"
    if asked.method == "inverse" and not possible:
        raise InputError(
            f"the kernel's condition is {found.number:.1e}: its spectrum goes from {found.least:.1e} at frequency {found.place} to "
            f"{found.most:.1e}, and above {MOST_CONDITION:.0e} nothing is left in float64. method='wiener' (with noise=, the standard "
            "deviation of what was added, if it is known) and method='richardson-lucy' give an estimate; a kernel that blurs less has an "
            "inverse."
        )
    return asked.method


def _tiled(asked: _Asked, out: Any, options: Options) -> tuple[Phased, DeconvolutionPlan]:
    name = "adjoint" if asked.adjoint else "richardson-lucy"
    if not asked.adjoint and (asked.taps < 0).any():
        place = tuple(int(one) for one in np.argwhere(asked.kernel < 0)[0])
        raise InputError(f"the kernel has {asked.kernel[place]:g} at {place}, and Richardson–Lucy takes taps of 0 or more: use 'wiener'.")
    count = 1 if asked.adjoint else asked.given_iterations or ITERATIONS
    grid, most = Grid.of(asked.planes.size, asked.taps, asked.boundary, count)
    phases = () if asked.adjoint else tuple(min(most, count - first) for first in range(0, count, most))
    work = Tiled(asked.source, asked.planes, asked.written, grid, phases, asked.device)
    facts = asked.facts(name) | {"iterations": list(phases)}
    label = name if asked.adjoint else f"{name}, {count} iterations"
    before = _look(asked, None).peak_bytes, 0
    size = fitted(asked.told, label, work, before, asked.source, out, asked.source.shape, asked.written, options, asked.device)
    _looked(asked, None, None)
    if asked.adjoint:
        told, error = (), 1e-14 if asked.written == np.float64 else 1e-7
    else:
        told, error = (Method(name, None, None, nan, "chosen: asked for; its error is not known before"),), nan
    seen = Seen(asked.told, label, work, asked.source.shape, asked.written, facts, told, error, nan, asked.device)
    return planned(seen, asked.source, size)
