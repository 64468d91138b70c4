"""The rule of interpolation: every output's source position is the one it has in the whole image.

Source of the positions: `area_pixel_compute_source_index` and the index functions in ATen/native/UpSample.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sash.plans._reach_layout import Factor, Layout, Region, axes_in, image_layout, marked, place_of, sizes
from sash.plans._reach_rule import RULES, Call, Rule
from sash.window import Interval

_CUBIC = -0.75
"""The kernel's free parameter in torch."""


@dataclass(frozen=True)
class Axis:
    """Interpolation along one dimension of the whole image."""

    kind: str
    """nearest, nearest-exact, linear or cubic."""
    length: int
    count: int
    scale: float | None
    """As the user gave it: torch then does not take the ratio of the lengths."""
    corners: bool
    dtype: torch.dtype

    @property
    def ratio(self) -> float:
        """Source samples an output."""
        if self.corners:
            return (self.length - 1) / (self.count - 1) if self.count > 1 else 0.0
        return 1 / self.scale if self.scale else self.length / self.count

    @property
    def times(self) -> int:
        """Outputs a source sample where that is a whole number and positions repeat with it; else 0."""
        even = self.count % self.length == 0 and not self.corners
        return self.count // self.length if even and (self.scale is None or self.scale * self.length == self.count) else 0

    @property
    def parts(self) -> int:
        """Source samples an output, likewise."""
        even = self.length % self.count == 0 and not self.corners
        return self.length // self.count if even and (self.scale is None or self.scale * self.length == self.count) else 0

    def taps(self, want: Interval) -> tuple[list[list[int]], list[list[float]]]:
        """For each tap, the source index and the weight of every output in `want`."""
        if self.kind.startswith("nearest"):
            return [self._nearest(want)], [[1.0] * want.length]
        indices, weights = [], []
        for output in range(*want):
            source = self._source(output)
            first = math.floor(source)
            part = source - first
            if self.kind == "linear":
                first = min(first, self.length - 1)
                indices.append([first, min(first + 1, self.length - 1)])
                weights.append([1 - part, part])
            else:
                indices.append([min(max(first + tap, 0), self.length - 1) for tap in (-1, 0, 1, 2)])
                weights.append(_cubic(part))
        return [list(tap) for tap in zip(*indices, strict=True)], [list(tap) for tap in zip(*weights, strict=True)]

    def reads(self, want: Interval) -> Interval:
        """Source samples under the outputs in `want`; positions never fall, so the ends tell."""
        ends = [index for end in (want.start, want.stop - 1) for tap in self.taps(Interval(end, end + 1))[0] for index in tap]
        return Interval(min(ends), max(ends) + 1)

    def _source(self, output: int) -> float:
        if self.corners:
            return output * self.ratio
        source = self.ratio * (output + 0.5) - 0.5
        return source if self.kind == "cubic" else max(source, 0.0)

    def _nearest(self, want: Interval) -> list[int]:
        # torch computes the position in the tensor's own type, at least float32: near a border between two samples rounding decides.
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        outputs = torch.arange(want.start, want.stop, dtype=torch.float64).to(wide)
        shifted = outputs + 0.5 if self.kind == "nearest-exact" else outputs
        return (shifted * torch.tensor(self.ratio, dtype=wide)).floor().to(torch.int64).clamp(max=self.length - 1).tolist()


class Resized(Rule):
    """Interpolation of a tile at the positions of the whole image."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], axes: list[Axis], method: str) -> None:
        super().__init__(call, layouts)
        self._axes, self._method = axes, method
        layout = call.layouts[0]
        self._first = len(layout) - len(axes)
        self._image = [axes_in(factors)[0] if axes_in(factors) else None for factors in layouts[0][self._first :]]
        self._born = {axis for axis in self._image if axis is not None and place_of(layout, axis) is None}
        """Axes that the input does not have: it is the same small map for every tile."""

    def reads(self, axis: int, want: Interval | None) -> tuple[Interval | None, ...]:
        if axis in self._born:
            return (None,)
        if axis not in self._image or want is None:
            return (want,)
        along = self._axes[self._image.index(axis)]
        needed = along.reads(want)
        if along.parts > 1:
            # Whole groups of samples, so that the kernel keeps its phase.
            return (Interval(needed.start // along.parts * along.parts, -(-needed.stop // along.parts) * along.parts),)
        return (needed,)

    def run(self, tensors: list[Tensor], have: list[Region], want: Region) -> Any:
        x = tensors.pop()
        spans = []
        for axis, along in zip(self._image, self._axes, strict=True):
            held, wanted = (have[0][axis], want[axis]) if axis is not None else (None, None)
            spans.append((held or Interval(0, along.length), wanted or Interval(0, along.count)))
        firsts = [_local(along, held, wanted) for along, (held, wanted) in zip(self._axes, spans, strict=True)]
        known = [first for first in firsts if first is not None]
        if len(known) < len(firsts):
            return self._gather(x, spans)
        corners = {"align_corners": False} if self._method in ("linear", "bilinear", "trilinear", "bicubic") else {}
        made = F.interpolate(x, size=[count for _, count in known], mode=self._method, **corners)
        for place, ((start, _), (_, wanted)) in enumerate(zip(known, spans, strict=True)):
            made = made.narrow(self._first + place, wanted.start - start, wanted.length)
        return made

    def _gather(self, x: Tensor, spans: list[tuple[Interval, Interval]]) -> Tensor:
        """One dimension after the other, the last first, each output a weighted sum of a few samples."""
        for place in reversed(range(len(spans))):
            (held, wanted), dim = spans[place], self._first + place
            indices, weights = self._axes[place].taps(wanted)
            total = None
            for index, weight in zip(indices, weights, strict=True):
                part = x.index_select(dim, torch.tensor([source - held.start for source in index]))
                if len(indices) > 1:
                    part.mul_(torch.tensor(weight, dtype=x.dtype).view(-1, *[1] * (x.dim() - 1 - dim)))
                total = part if total is None else total.add_(part)
            assert total is not None
            x = total
        return x


def _local(along: Axis, held: Interval, wanted: Interval) -> tuple[int, int] | None:
    """First output and number of outputs of torch's kernel on the samples held; None where its positions are not the whole image's."""
    if held == (0, along.length) and wanted == (0, along.count) and (along.scale is None and not along.corners):
        return 0, along.count
    if along.times and along.times * held.length <= 2 * wanted.length + 64:
        return held.start * along.times, held.length * along.times
    if along.parts:
        return held.start // along.parts, held.length // along.parts
    return None


def _cubic(part: float) -> list[float]:
    def near(x: float) -> float:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    return [far(part + 1), near(part), near(1 - part), far(2 - part)]


METHODS = {
    **{f"upsample_nearest{n}d": ("nearest", "nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": ("nearest-exact", "nearest-exact") for n in (1, 2, 3)},
    "upsample_linear1d": ("linear", "linear"),
    "upsample_bilinear2d": ("linear", "bilinear"),
    "upsample_trilinear3d": ("linear", "trilinear"),
    "upsample_bicubic2d": ("cubic", "bicubic"),
}


@RULES.add(*METHODS)
def _resize(call: Call) -> Rule:
    kind, method = METHODS[call.name]
    layout, shape = call.layouts[0], call.shapes[0]
    lengths = sizes(layout)
    count = len(lengths) - 2
    if any(len(factors) > 1 for factors in layout[2:]):
        raise call.refuse("interpolates along merged image axes.")
    scales = call.get("scale_factors")
    if call.func._overloadname != "vec":
        names = ["scales"] if count == 1 else ["scales_d", "scales_h", "scales_w"][3 - count :]
        scales = [call.get(name) for name in names]
    dtype = call.dtype
    axes = [
        Axis(kind, lengths[2 + place], shape[2 + place], scales[place] if scales else None, bool(call.get("align_corners")), dtype)
        for place in range(count)
    ]
    made = tuple((Factor(axes_in(f)[0] if axes_in(f) else None, shape[d]),) if d >= 2 else f for d, f in enumerate(layout))
    if not marked(layout):
        # What was pooled from the whole image, stretched over it again: from here on it has the image's axes.
        made = image_layout(shape)
    return Resized(call, (made,), axes, method)


@RULES.add(
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator"
)
def _sampled(call: Call) -> Rule:
    raise call.refuse("samples the image at positions that sash does not follow (antialiased resizing, grids).")
