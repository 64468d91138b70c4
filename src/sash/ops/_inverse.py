"""The inverse of a convolution layer: exact where there is one, a least-squares estimate where noise is stated."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._adjoint import check_weight
from sash.ops._inverse_large import CONVOLVE, Estimate, LargeLayer
from sash.ops._separable_bands import Geometry, PaddingMode, pad, read_geometry
from sash.ops._tensors import has_values, is_stand_in, shown

MOST_CONDITION = 1e15
"""Of a layer that is inverted without noise, for outputs in float64; for other types as much less as they round more coarsely."""
MOST_ENTRIES = 1 << 22
"""Of the layer's matrix, where it has to be written out: 32 MiB, some seconds for its singular values."""
ONE_WINDOW: Any = ([2], [0])
"""The next axis of the window, to be summed over; its frequencies come last."""


@dataclass(frozen=True, slots=True)
class Inverse:
    """What a layer's input was, and how well that is known."""

    tensor: Float[Tensor, "*batch_channel_space"]
    """The input that gives the output; with noise, the estimate of it."""
    condition: float
    """The layer's largest singular value by its smallest: how much a relative error of the output can grow. Infinite where inputs are lost;
    nan where tensors have no values."""
    error: float
    """The relative error to expect of `tensor`, in root mean square: without noise the condition times the type's rounding, which is seldom
    reached; with noise, that of white inputs under white noise of the stated power. nan where tensors have no values."""


def invert_conv(
    y: Float[Tensor, "*batch_out_sides"],
    weight: Float[Tensor, "out inner *window"],
    bias: Float[Tensor, " out"] | None = None,
    *,
    padding: int | str | tuple[int | tuple[int, int], ...] = "same",
    padding_mode: PaddingMode = "circular",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    noise: float | None = None,
) -> Inverse:
    """The input x of a convolution layer of stride 1 that has the output y, with the condition number and the error to expect.

    The settings are the layer's; one to three spatial axes, with or without a batch. With circular padding that keeps the size, each
    frequency is solved by itself, out channels x channels. With any other padding the layer's matrix is written out, up to 2²² outputs
    times inputs; above, x is found by iteration, with noise only. Condition and error are then within some percent; the condition is
    infinite where the smallest singular value is below a third of √noise, and nan where it was not found. Where a layer has more outputs
    than inputs, x is the least-squares solution; an output that the layer did make gives its input all the same.

    Without `noise`, raises `InputError` above the condition 1e15 (for y in float64; 0.22 / eps of other types, 1.9e6 in fp32), where
    nothing of x would be left, and where inputs outnumber outputs. With `noise`, the power of what was added to y by that of x, there is
    always an estimate: the x of least |Ax - y|² + noise · |x|² (Tikhonov, and the Wiener filter for white x and white noise).

    Computed in float64 and returned in y's type. Gradients flow to y, weight and bias. Memory: the layer's spectrum, 16 bytes for each
    of out channels x channels a group x half the positions, and three times that while it is solved; or its matrix, likewise in float64; by
    iteration the spectrum and some thirty maps of one image in float64, outside of torch's allocator.
    Raises `InputError` also where shapes do not go together, and for weights that are not finite.

    Source: H. C. Andrews, B. R. Hunt, "Digital Image Restoration", 1977, chapters 7 and 8; D. C.-L. Fong, M. Saunders 2011 (LSMR),
    preconditioned by the circular layer (T. Chan 1988); A. Knyazev 2001 (LOBPCG) and M. F. Hutchinson 1990 for condition and error.
    """
    geometry, sides = _check(y, weight, bias, (padding, dilation, padding_mode), groups, noise)
    axes = len(sides)
    batched = y.dim() == axes + 2
    wide = (y if batched else y[None]).double()
    images = wide.shape[0]
    if not images:
        # MKL transforms no empty batch.
        wide = F.pad(wide, (*(0, 0) * (axes + 1), 0, 1))
    if bias is not None:
        wide = wide - bias.double().view(-1, *(1,) * axes)
    if _goes_round(geometry):
        parts = _spectrum(wide, weight.double(), geometry, sides, groups)
    elif _entries(wide, weight, sides, groups) <= MOST_ENTRIES:
        parts = _matrix(wide, weight.double(), geometry, sides, groups)
    else:
        return _iterated(y, wide[:images], weight.double(), geometry, sides, groups, noise)  # pyright: ignore[reportCallIssue]
    condition, error = _judged(parts, y, noise)
    found = parts.back(_solved(parts.layer, parts.wanted, noise))[:images].to(y.dtype)
    return Inverse(found if batched else found[0], condition, error)


class InverseConv(nn.Module):
    """`invert_conv` as a layer: the inverse of `conv`, whose parameters it shares; from the output to the input."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, noise: float | None = None) -> None:
        super().__init__()
        if any(step != 1 for step in conv.stride):
            raise InputError(f"the convolution has stride {conv.stride}, which leaves samples out; only stride 1 is inverted.")
        self.conv, self.noise = conv, noise

    def forward(self, y: Float[Tensor, "*batch_out_sides"]) -> Float[Tensor, "*batch_channel_space"]:
        conv = self.conv
        mode: Any = conv.padding_mode
        settings: dict[str, Any] = {"padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups}
        return invert_conv(y, conv.weight, conv.bias, padding_mode=mode, noise=self.noise, **settings).tensor


class _System(NamedTuple):
    """A layer as independent systems of equations, and the way back from their solutions."""

    layer: Tensor
    """(group, place..., outputs, inputs): a matrix for each."""
    wanted: Tensor
    """(group, place..., outputs, image)."""
    back: Any
    """From (group, place..., inputs, image) to the map."""
    counts: Tensor | None
    """How many systems of the whole each place stands for; None: one."""


def _goes_round(geometry: Geometry) -> bool:
    return geometry.mode == "circular" and all(sum(window.pad) == window.span - 1 for window in geometry.windows)


def _spectrum(y: Tensor, weight: Tensor, geometry: Geometry, sides: tuple[int, ...], groups: int) -> _System:
    """A system for each frequency, of half of them: the others are their conjugates."""
    layer = _frequencies(weight, geometry, sides, groups)
    last = [*range(-len(sides), 0)]
    wanted = torch.fft.rfftn(y, dim=last).unflatten(1, (groups, -1)).movedim((0, 2), (-1, -2))

    def back(found: Tensor) -> Tensor:
        spectrum = found.movedim((-1, -2), (0, 2)).flatten(1, 2)
        return torch.fft.irfftn(spectrum, s=sides, dim=last)

    counts = torch.full((layer.shape[-3],), 2.0, dtype=torch.float64, device=y.device)
    counts[0] = 1
    if sides[-1] % 2 == 0:
        counts[-1] = 1
    return _System(layer, wanted, back, counts)


def _frequencies(weight: Tensor, geometry: Geometry, sides: tuple[int, ...], groups: int) -> Tensor:
    """The circular layer at half of the frequencies: (group, frequency..., outputs, inputs)."""
    layer = weight.to(torch.complex128)
    halves = [*sides[:-1], sides[-1] // 2 + 1]
    for window, side, frequencies in zip(geometry.windows, sides, halves, strict=True):
        # Modulo the side as whole numbers: sines of large angles would be less exact.
        places = torch.arange(window.size, device=weight.device) * window.dilation - window.pad[0]
        turns = torch.outer(places, torch.arange(frequencies, device=weight.device)) % side
        angles = turns.double() * (2 * math.pi / side)
        layer = torch.tensordot(layer, torch.polar(torch.ones_like(angles), angles), ONE_WINDOW)
    return layer.unflatten(0, (groups, -1)).movedim((1, 2), (-2, -1))


def _entries(y: Tensor, weight: Tensor, sides: tuple[int, ...], groups: int) -> int:
    """Of the layer's matrices, written out."""
    return weight.shape[1] * math.prod(sides) * (weight.shape[0] // groups) * math.prod(y.shape[2:]) * groups


@torch.compiler.disable
def _iterated(
    y: Tensor, wide: Tensor, weight: Tensor, geometry: Geometry, sides: tuple[int, ...], groups: int, noise: float | None
) -> Inverse:
    if noise is None:
        raise InputError(
            f"y is {shown(y)}, and with {geometry.mode} padding of {geometry.pads} the layer's matrix has "
            f"{_entries(wide, weight, sides, groups)} entries, more than {MOST_ENTRIES}: too many to tell whether an input is left. "
            f"Give noise= (its power by the input's, as {_rounding(y.dtype):.0e}) for an estimate."
        )
    if torch.compiler.is_exporting():
        raise InputError(f"y is {shown(y)}: an inverse that is found by iteration cannot be exported; circular padding needs none.")
    if is_stand_in(wide) or is_stand_in(weight):
        return Inverse(y.new_empty(*y.shape[: -1 - len(sides)], groups * weight.shape[1], *sides), math.nan, math.nan)
    layer = LargeLayer(weight, _frequencies(weight.detach(), geometry, sides, groups), geometry, sides, groups, noise)
    found: Any = Estimate.apply(wide, weight, layer) if len(wide) else wide.new_empty(0, *layer.shape)
    return Inverse((found if y.dim() == wide.dim() else found[0]).to(y.dtype), layer.condition(), layer.error())


def _matrix(y: Tensor, weight: Tensor, geometry: Geometry, sides: tuple[int, ...], groups: int) -> _System:
    """One system for each group: the layer written out, a column for each input."""
    inner, outs = weight.shape[1], weight.shape[0] // groups
    inputs, outputs = inner * math.prod(sides), outs * math.prod(y.shape[2:])
    single = torch.eye(inputs, dtype=torch.float64, device=y.device).view(inputs, inner, *sides)
    padded, kept = pad(single, geometry.pads, geometry.mode)
    columns = CONVOLVE[len(sides)](padded, weight, None, 1, kept, geometry.dilation)
    layer = columns.view(inputs, groups, outputs).movedim(0, -1)
    wanted = y.reshape(-1, groups, outputs).movedim(0, -1)

    def back(found: Tensor) -> Tensor:
        return found.movedim(-1, 0).reshape(-1, groups * inner, *sides)

    return _System(layer, wanted, back, None)


def _solved(layer: Tensor, wanted: Tensor, noise: float | None) -> Tensor:
    outputs, inputs = layer.shape[-2:]
    if noise is None and outputs == inputs:
        return torch.linalg.solve(layer, wanted)
    if noise is not None:
        # Rows below rather than normal equations, which would square the condition.
        ridge = math.sqrt(noise) * torch.eye(inputs, dtype=layer.dtype, device=layer.device)
        layer = torch.cat([layer, ridge.expand(*layer.shape[:-2], inputs, inputs)], -2)
        wanted = F.pad(wanted, (0, 0, 0, inputs))
    q, r = torch.linalg.qr(layer)
    return torch.linalg.solve_triangular(r, q.mH @ wanted, upper=True)


def _judged(parts: _System, y: Tensor, noise: float | None) -> tuple[float, float]:
    """The condition and the error to expect. Raises `InputError` where nothing of the input would be left."""
    outputs, inputs = parts.layer.shape[-2:]
    told = "" if noise is not None else f"; give noise= (its power by the input's, as {_rounding(y.dtype):.0e}) for an estimate"
    if noise is None and outputs < inputs:
        raise InputError(f"the layer makes {outputs} numbers of {inputs}{_each(parts)}: inputs are lost{told}.")
    values = torch.linalg.svdvals(parts.layer.detach())
    if not has_values(values):
        return math.nan, math.nan
    most, least = float(values.max()), float(values[..., -1].min()) if outputs >= inputs else 0.0
    condition = most / least if least else math.inf
    if noise is not None:
        lost = noise / (values.square() + noise)
        share = lost.sum(-1) + max(inputs - outputs, 0)
        weights = torch.ones((), dtype=share.dtype) if parts.counts is None else parts.counts
        mean = (share * weights).sum() / (weights.expand_as(share).sum() * inputs)
        return condition, math.sqrt(float(mean))
    limit = MOST_CONDITION * _rounding(torch.float64) / _rounding(y.dtype)
    if not condition <= limit:
        where = "" if parts.counts is None else f" (least at frequency {_place(values[..., -1])})"
        raise InputError(
            f"the layer's condition is {condition:.1e}, its singular values from {least:.1e} to {most:.1e}{where}, and in {y.dtype} "
            f"nothing is left of an input above {limit:.1e}{told}."
        )
    return condition, _rounding(y.dtype) * condition


def _place(least: Tensor) -> tuple[int, ...]:
    _, *place = torch.unravel_index(least.argmin(), least.shape)
    return tuple(int(one) for one in place)


def _each(parts: _System) -> str:
    return "" if parts.counts is None else " at each frequency"


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _check(
    y: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, Any, str], groups: int, noise: float | None
) -> tuple[Geometry, tuple[int, ...]]:
    """How the window slides, and the input's sides. Raises `InputError` for what does not go together."""
    axes, out = check_weight(y, weight, groups), weight.shape[0]
    if bias is not None and bias.shape != (out,):
        raise InputError(f"bias is {shown(bias)}; it has to be {out} numbers, one an output channel.")
    if bias is not None and bias.device != y.device:
        raise InputError(f"y is on {y.device} and the bias on {bias.device}; move one to the other's.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and has_values(tensor) and not tensor.isfinite().all():
            raise InputError(f"the {name} has numbers that are not finite; no input can be found through it.")
    if noise is not None and not (isinstance(noise, (int, float)) and 0 < noise < math.inf):
        raise InputError(f"noise is {noise!r}; it is the noise's power by the input's, above 0: leave it out where there is none.")
    padding, dilation, mode = settings
    geometry = read_geometry(tuple(weight.shape[2:]), 1, padding, dilation, mode)
    sides = tuple(count + one.span - 1 - sum(one.pad) for count, one in zip(y.shape[-axes:], geometry.windows, strict=True))
    for axis, (side, count, window) in enumerate(zip(sides, y.shape[-axes:], geometry.windows, strict=True)):
        most = {"reflect": side - 1, "circular": side}.get(mode)
        if side < 1 or count < 1 or (most is not None and max(window.pad) > most):
            raise InputError(
                f"y is {shown(y)}, and no input gives {count} samples on spatial axis {axis} with {mode} padding of {window.pad} "
                f"and a window that spans {window.span}; it would have {side} samples."
            )
    return geometry, sides
