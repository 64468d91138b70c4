"""The residual join: two maps added, though their lengths or their channels differ."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._pointwise import CONVOLUTIONS
from sash.ops._tensors import shown
from sash.units import format_shape
from sash.window import Window

Way = Literal["project", "crop", "pool", "pad"]
Align = Literal["start", "centre", "end"]

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
AVERAGES = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def join(
    x: Float[Tensor, "batch channel *space"],
    y: Float[Tensor, "batch out *sides"],
    way: Way | Sequence[Way] | None = None,
    *,
    weight: Float[Tensor, "out channel *ones"] | None = None,
    bias: Float[Tensor, " out"] | None = None,
    stride: int | tuple[int, ...] | None = None,
    align: Align = "centre",
) -> Float[Tensor, "batch out *joined"]:
    """The sum of a skip x and a branch y, made alike in the ways that are chosen; one to three spatial axes.

    `"project"`: x goes through a 1×1 convolution of `weight` and `bias`, with `stride` or the least that gives y's lengths.
    `"pool"`: x is averaged to y's lengths, in bins as `F.adaptive_avg_pool1d` has them.
    `"crop"`: of the longer one, on each axis, only as much is taken as the shorter one has.
    `"pad"`: the shorter one, on each axis, gets zeros to the length of the longer one; so does the one with fewer channels, after its own.

    Several ways are gone in the order given. `align` says which samples crop keeps and where pad puts them: `"start"`, `"end"` (for causal
    layers), or `"centre"`, the odd sample off at the end. Maps that are alike are added as they are.
    Raises `InputError` where they differ and no way is chosen, where they still differ after all ways, and where a way cannot be gone.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", 2016, section 3.2 (project, pad); O. Ronneberger et al., "U-Net",
    2015 (crop).
    """
    ways = _check(x, y, way, weight, align)
    given = x, y
    for one in ways:
        if one == "project":
            x = _project(x, y, weight, bias, stride)
        elif one == "pool":
            x = _pool(x, y)
        elif one == "crop":
            sides = [min(pair) for pair in zip(x.shape[2:], y.shape[2:], strict=True)]
            x, y = _crop(x, sides, align), _crop(y, sides, align)
        else:
            sizes = [max(pair) for pair in zip(x.shape[1:], y.shape[1:], strict=True)]
            x, y = _pad(x, sizes, align), _pad(y, sizes, align)
    if x.shape != y.shape:
        raise InputError(_differ(*given, ways, x, y))
    return x + y


class Join(nn.Module):
    """`join` as a layer: (skip, branch) → sum. With `"project"` among its ways it holds that convolution, of `axes` spatial axes."""

    def __init__(
        self,
        way: Way | Sequence[Way],
        in_channels: int | None = None,
        out_channels: int | None = None,
        *,
        stride: int | tuple[int, ...] = 1,
        bias: bool = True,
        axes: int = 1,
        align: Align = "centre",
    ) -> None:
        super().__init__()
        self.ways = _ways(way)
        self.align: Align = align
        self.project: nn.Conv1d | nn.Conv2d | nn.Conv3d | None = None
        if "project" in self.ways:
            if in_channels is None or out_channels is None or axes not in CONVOLUTIONS:
                raise InputError(
                    f"a projection from {in_channels} to {out_channels} channels on {axes} axes was asked for; give all three."
                )
            step: Any = stride
            self.project = CONVOLUTIONS[axes](in_channels, out_channels, 1, step, bias=bias)

    def forward(self, x: Float[Tensor, "batch channel *space"], y: Float[Tensor, "batch out *sides"]) -> Float[Tensor, "batch out *joined"]:
        if self.project is None:
            return join(x, y, self.ways, align=self.align)
        layer = self.project
        return join(x, y, self.ways, weight=layer.weight, bias=layer.bias, stride=layer.stride, align=self.align)

    def extra_repr(self) -> str:
        return f"{self.ways}, align={self.align!r}"


def _project(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, stride: int | tuple[int, ...] | None) -> Tensor:
    assert weight is not None
    axes = x.dim() - 2
    if weight.shape[1:] != (x.shape[1], *(1,) * axes):
        wanted = format_shape(("out", x.shape[1], *(1,) * axes))
        raise InputError(f"the weight is {shown(weight)}, and x is {shown(x)}; to project it, the weight has to be {wanted}.")
    if stride is None:
        pairs = list(zip(x.shape[2:], y.shape[2:], strict=True))
        steps = [_stride(length, outputs) for length, outputs in pairs]
        if None in steps:
            length, outputs = pairs[steps.index(None)]
            raise InputError(
                f"x is {shown(x)} and y is {shown(y)}: no stride makes {outputs} samples of {length}; "
                f"{_near(length, outputs)}, and way=('project', 'crop') or ('project', 'pad') does the rest."
            )
        stride = tuple(step for step in steps if step is not None)
    elif isinstance(stride, tuple) and len(stride) != axes:
        raise InputError(f"stride is {stride}, {len(stride)} entries, and x {shown(x)} has {axes} spatial axes; give 1 or {axes}.")
    steps = [stride] * axes if isinstance(stride, int) else [*stride]
    return CONVOLVE[axes](x, weight, bias, steps)


def _stride(length: int, outputs: int) -> int | None:
    """The least stride that makes so many outputs of one tap."""
    if outputs < 1 or outputs > length:
        return None
    step = (length - 1) // outputs + 1
    return step if Window(1, step).outputs(length) == outputs else None


def _near(length: int, outputs: int) -> str:
    if outputs > length:
        return f"stride=1 keeps {length}"
    step = max((length - 1) // max(outputs, 1), 1)
    return f"stride={step} makes {Window(1, step).outputs(length)}"


def _pool(x: Tensor, y: Tensor) -> Tensor:
    sides = y.shape[2:]
    if sides == x.shape[2:]:
        return x
    if any(wanted > length or wanted < 1 for length, wanted in zip(x.shape[2:], sides, strict=True)):
        raise InputError(
            f"x is {shown(x)} and y is {shown(y)}: averages of x make it shorter, not longer; give the longer map as x, or pad."
        )
    return AVERAGES[x.dim() - 2](x, sides)  # pyright: ignore[reportArgumentType]


def _crop(x: Tensor, sides: Sequence[int], align: Align) -> Tensor:
    for axis, (length, wanted) in enumerate(zip(x.shape[2:], sides, strict=True), start=2):
        if wanted != length:
            x = x.narrow(axis, _before(length - wanted, align), wanted)
    return x


def _pad(x: Tensor, sizes: Sequence[int], align: Align) -> Tensor:
    missing = [wanted - size for wanted, size in zip(sizes, x.shape[1:], strict=True)]
    if not any(missing):
        return x
    before = [0, *(_before(count, align) for count in missing[1:])]
    # F.pad counts axes from the last.
    flat = [side for first, count in zip(reversed(before), reversed(missing), strict=True) for side in (first, count - first)]
    return F.pad(x, flat)


def _before(count: int, align: Align) -> int:
    """Of so many samples off or added, those at the start."""
    return {"start": 0, "centre": count // 2, "end": count}[align]


def _check(x: Tensor, y: Tensor, way: Way | Sequence[Way] | None, weight: Tensor | None, align: str) -> tuple[Way, ...]:
    """The ways, in order. Raises `InputError` for what cannot be joined at all, and where a way is wanted and none is chosen."""
    if x.dim() != y.dim() or x.dim() not in (3, 4, 5) or x.shape[0] != y.shape[0]:
        raise InputError(f"x is {shown(x)} and y is {shown(y)}; both have to be batch x channel x 1 to 3 spatial axes, of one batch.")
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y on {y.device}; move one to the other's.")
    if align not in get_args(Align):
        raise InputError(f"align is {align!r}; it may be {', '.join(map(repr, get_args(Align)))}.")
    ways = _ways(("project",) if way is None and weight is not None else () if way is None else way)
    if ("project" in ways) != (weight is not None):
        told = "no weight to project with" if weight is None else f"a weight {shown(weight)}, but no 'project' among the ways"
        raise InputError(f"way is {way!r}, and there is {told}; give both or neither.")
    return ways


def _ways(way: Way | Sequence[Way]) -> tuple[Way, ...]:
    ways: tuple[Way, ...] = (way,) if isinstance(way, str) else tuple(way)
    for one in ways:
        if one not in get_args(Way):
            raise InputError(f"way is {way!r}; it may be {', '.join(map(repr, get_args(Way)))}, or several of them in order.")
    return ways


def _differ(x: Tensor, y: Tensor, ways: tuple[Way, ...], found: Tensor, other: Tensor) -> str:
    """Both shapes, and what can be done about them."""
    if ways:
        rest = "channels" if found.shape[1] != other.shape[1] else "lengths"
        more = "'project' (with a weight) or 'pad'" if rest == "channels" else "'crop', 'pool' or 'pad'"
        return (
            f"x is {shown(x)} and y is {shown(y)}; after {', '.join(map(repr, ways))} they are {shown(found)} and {shown(other)}: "
            f"their {rest} differ still; go {more} as well."
        )
    least = [min(pair) for pair in zip(x.shape[2:], y.shape[2:], strict=True)]
    most = [max(pair) for pair in zip(x.shape[1:], y.shape[1:], strict=True)]
    weight = (y.shape[1], x.shape[1], *(1,) * len(least))
    return (
        f"x is {shown(x)} and y is {shown(y)}: they cannot be added as they are. Choose a way: weight= of {format_shape(weight)} "
        f"projects x (with a stride), 'crop' keeps {format_shape(least)} samples of both, "
        f"'pool' averages x to {format_shape(y.shape[2:])}, 'pad' adds zeros up to {format_shape(most[1:])} samples and {most[0]} channels."
    )
