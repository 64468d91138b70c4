"""Rules of operators that stay at their own position: pointwise ones, those along channels, and those that only rearrange."""

from __future__ import annotations

from typing import Any

import torch

from sash.plans._reach_layout import Factor, Layout, axes_in, crop, length_of, marked, plain, reshaped, sizes
from sash.plans._reach_rule import RULES, Aligned, Call, Joined, Reshaped, Rule, Sized, Sliced, broadcast, dims_of, is_marked
from sash.window import Interval

POINTWISE = frozenset(
    [
        "hardswish",
        "_prelu_kernel",
        "_to_copy",
        "fill",
        "copy",
        "masked_fill",
        "log_sigmoid_forward",
        "rsub",
        "clone",
        "contiguous",
        "to",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "nan_to_num",
        "where",
        "clamp_min",
        "clamp_max",
        "isnan",
        "logical_and",
        "logical_or",
        "logical_not",
    ]
)
"""Pointwise operators that torch does not tag as such."""


def is_pointwise(func: Any) -> bool:
    """One output sample, one sample of each input."""
    packet = func.overloadpacket
    if packet.__name__ in POINTWISE or torch.Tag.pointwise in func.tags:
        return True
    if not packet.__name__.endswith("_"):
        return False
    plain_packet = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
    return plain_packet is not None and is_pointwise(getattr(plain_packet, plain_packet.overloads()[0]))


def pointwise(call: Call) -> Rule:
    """The rule of any pointwise operator."""
    return Aligned(call, (broadcast(call),) * len(call.shapes), cuts=True)


TRAINING = (
    "normalises by the statistics of the whole batch, as batch normalisation does in training; "
    "model.eval() makes it use its running statistics."
)


@RULES.add("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Rule:
    if call.get("training", False) or "running_mean" not in call.named or call.get("running_mean") is None:
        raise call.refuse(TRAINING)
    return Aligned(call, (call.layouts[0], *map(plain, call.shapes[1:])))


@RULES.add("linear")
def _linear(call: Call) -> Rule:
    layout = call.layout("input")
    if axes_in(layout[-1]):
        raise call.refuse("reads every position of the image, flattened, as one row; a 1x1 convolution, or pooling first, does not.")
    return _Weighted(call, ((*layout[:-1], (Factor(None, call.shapes[0][-1]),)),))


class _Weighted(Aligned):
    def macs(self) -> int:
        return _product(self.call.shapes[0]) * sizes(self.call.layouts[0])[-1]


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for length in shape:
        found *= length
    return found


@RULES.add("bmm", "mm", "matmul", "baddbmm", "addmm")
def _matmul(call: Call) -> Rule:
    names = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2") if call.name == "baddbmm" else None
    left, right = (list(call.layout(name)) for name in names) if names else map(list, call.layouts[-2:])
    batch_layouts = [layout[:-2] for layout in (left, right) if len(layout) > 2]
    if min(len(left), len(right)) < 2 or (len(batch_layouts) == 2 and len(batch_layouts[0]) != len(batch_layouts[1])):
        raise call.refuse("multiplies tensors of different ranks; sash follows matrices and batches of them.")
    if axes_in(left[-1]) or axes_in(right[-2]):
        raise call.refuse("sums over the positions of the whole image, as attention does.")
    if axes_in(left[-2]) and axes_in(right[-1]):
        raise call.refuse("joins every position of the image with every other, as attention does.")
    batch: list[tuple[Factor, ...]] = []
    if batch_layouts:
        first, second = batch_layouts[0], batch_layouts[-1]
        batch = [one if axes_in(one) else other for one, other in zip(first, second, strict=True)]
        if any(axes_in(one) != axes_in(other) for one, other in zip(first, second, strict=True)):
            raise call.refuse("multiplies a batch of image positions with another batch than itself.")
    return _Weighted(call, ((*batch, left[-2], right[-1]),))


@RULES.add("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math")
def _attention(call: Call) -> Rule:
    if any(axes_in(factors) for layout in call.layouts for factors in layout[-2:]):
        raise call.refuse("is attention: every position of the image sees every other.")
    query, *others = map(list, call.layouts)
    if len(others) != 2 or any(layout[:-2] != query[:-2] for layout in others):
        raise call.refuse("is attention with a mask or a shared batch over image positions, which sash does not cut.")
    return Aligned(call, ((*query[:-1], (Factor(None, call.shapes[0][-1]),)),))


@RULES.add(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "glu", "logcumsumexp", "flip", "roll", "argsort"
)
def _along(call: Call) -> Rule:
    layout = call.layouts[0]
    dims = dims_of(call, "dims" if call.name in ("flip", "roll") else "dim", len(layout))
    if any(axes_in(layout[dim]) for dim in dims):
        raise call.refuse(_WHOLE.get(call.name, "runs along the whole of an image axis."))
    shapes = call.shapes[0]
    made = tuple(factors if axes_in(factors) else (Factor(None, shapes[dim]),) for dim, factors in enumerate(layout))
    return Aligned(call, (made,) * len(call.shapes))


_WHOLE = {
    "softmax": "normalises over every position of the image, as attention does.",
    "_softmax": "normalises over every position of the image, as attention does.",
    "log_softmax": "normalises over every position of the image.",
    "flip": "mirrors the image: a tile would need the one opposite.",
    "roll": "shifts the image round its ends: a tile would need what lies at the other end.",
}


@RULES.add("argmax", "argmin", "max", "min", "topk", "kthvalue", "median", "mode", "logsumexp", "any", "all", "prod", "nansum", "nanmean")
def _picking(call: Call) -> Rule:
    layout = call.layouts[0]
    if len(call.layouts) > 1:
        return pointwise(call)  # the elementwise maximum of two tensors
    dims = dims_of(call, "dim", len(layout))
    if call.name == "topk" and call.get("dim") is None:
        dims = [len(layout) - 1]
    if any(axes_in(layout[dim]) for dim in dims):
        raise call.refuse("looks at every position of the image at once.")
    return Aligned(call, (_reduced(layout, dims, call.shapes[0]),) * len(call.shapes))


def _reduced(layout: Layout, dims: list[int], shape: tuple[int, ...]) -> Layout:
    """The layout after a reduction over dimensions that are no axes, kept with what length they have now or dropped."""
    if len(shape) == len(layout):
        return tuple((Factor(None, shape[dim]),) if dim in dims else factors for dim, factors in enumerate(layout))
    return tuple(factors for dim, factors in enumerate(layout) if dim not in dims)


def reduction_over_channels(call: Call, dims: list[int]) -> Rule:
    """The rule of a reduction that leaves every image axis alone."""
    return Aligned(call, (_reduced(call.layouts[0], dims, call.shapes[0]),) * len(call.shapes))


@RULES.add("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Rule:
    layout = call.layouts[0]
    if any(axes_in(factors) for factors in layout[-len(call.get("normalized_shape")) :]):
        raise call.refuse("normalises over the whole image; group normalisation, or layer normalisation over channels alone, can be tiled.")
    return Aligned(call, (layout, *map(plain, call.shapes[1:])))


@RULES.add("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def _dropout(call: Call) -> Rule:
    if call.get("train"):
        raise call.refuse("draws random numbers, which would differ in the halos; model.eval() turns dropout off.")
    return Aligned(call, (call.layouts[0],) * len(call.shapes))


@RULES.add("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "numpy_T", "mT", "adjoint")
def _permute(call: Call) -> Rule:
    # A probe finds the order: dimension d of a tensor of sizes 1 with stride d.
    probe = torch.empty(0).as_strided([1] * len(call.layouts[0]), list(range(len(call.layouts[0]))))
    order = call.invoke([probe]).stride()
    return Aligned(call, (tuple(call.layouts[0][dim] for dim in order),))


@RULES.add("unsqueeze")
def _unsqueeze(call: Call) -> Rule:
    layout = call.layouts[0]
    dim = call.get("dim") % (len(layout) + 1)
    return Aligned(call, ((*layout[:dim], (Factor(None, 1),), *layout[dim:]),))


@RULES.add("squeeze")
def _squeeze(call: Call) -> Rule:
    layout = call.layouts[0]
    dims = dims_of(call, "dim", len(layout))
    gone = [dim for dim in dims if sizes(layout)[dim] == 1]
    if call.get("dim") is None and any(axes_in(layout[dim]) for dim in range(len(layout)) if dim not in gone):
        # Without a dimension it would drop a tile's side of 1 as well.
        func = torch.ops.aten.squeeze.dims
        return _Fixed(call, (tuple(factors for dim, factors in enumerate(layout) if dim not in gone),), func, dim=gone)
    return Aligned(call, (tuple(factors for dim, factors in enumerate(layout) if dim not in gone),))


class _Fixed(Aligned):
    """Runs as another overload, with its arguments said."""

    def __init__(self, call: Call, layouts: tuple[Layout, ...], func: Any, **changes: Any) -> None:
        super().__init__(call, layouts)
        self._func, self._changes = func, changes

    def run(self, tensors: list, have: list, want: Any) -> Any:
        return self.call.invoke(tensors, self._func, **self._changes)


@RULES.add("view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten")
def _reshape(call: Call) -> Rule:
    if "dtype" in call.named:
        raise call.refuse("reads the image's bytes as another type.")
    layout = reshaped(call.layouts[0], call.shapes[0])
    if layout is None:
        raise call.refuse(
            f"reshapes {tuple(sizes(call.layouts[0]))} to {call.shapes[0]} across the image's axes; sash follows a reshape that keeps each "
            "axis whole, splits it evenly, or merges axes side by side."
        )
    return Reshaped(call, (layout,))


@RULES.add("expand", "expand_as")
def _expand(call: Call) -> Rule:
    before, shape = call.layouts[0], call.shapes[0]
    new = len(shape) - len(before)
    if call.name == "expand_as":
        return _ExpandAs(call, (broadcast(call),))
    layout = list(plain(shape[:new]))
    for dim, factors in enumerate(before):
        length = shape[dim + new]
        layout.append(factors if sizes((factors,))[0] == length else (Factor(axes_in(factors)[0] if axes_in(factors) else None, length),))
    return Sized(call, (tuple(layout),), "size")


class _ExpandAs(Aligned):
    def run(self, tensors: list, have: list, want: Any) -> Any:
        return tensors[0].expand(tensors[1].shape)


@RULES.add("repeat", "tile")
def _repeat(call: Call) -> Rule:
    times = call.get("repeats") or call.get("dims")
    before, shape = call.layouts[0], call.shapes[0]
    layout = list(plain(shape))
    for dim, factors in enumerate(before):
        place = dim + len(shape) - len(before)
        if axes_in(factors) and times[dim + len(times) - len(before)] != 1:
            raise call.refuse("repeats the image side by side.")
        if axes_in(factors):
            layout[place] = factors
    return Aligned(call, (tuple(layout),))


@RULES.add("cat", "concat", "concatenate")
def _cat(call: Call) -> Rule:
    first = next(layout for layout in call.layouts if marked(layout))
    dim = call.get("dim", 0) % len(first)
    if any(len(layout) != len(first) for layout in call.layouts):
        raise call.refuse("joins tensors of different ranks.")
    for other, factors in enumerate(first):
        if other != dim and any(axes_in(layout[other]) and layout[other] != factors for layout in call.layouts):
            raise call.refuse("joins two tensors whose image axes lie crosswise: every position meets every other.")
    if any(axes_in(layout[dim]) for layout in call.layouts):
        if not all(marked(layout) for layout in call.layouts):
            raise call.refuse("joins the image with a tensor that has no image axes, along one of them.")
        factors = next(layout[dim] for layout in call.layouts if axes_in(layout[dim]))
        if len(factors) > 1:
            raise call.refuse("joins tensors along merged image axes, as a class token does.")
        axis = axes_in(factors)[0]
        return Joined(call, ((*first[:dim], (Factor(axis, call.shapes[0][dim]),), *first[dim + 1 :]),), axis, dim)
    return Aligned(call, ((*first[:dim], (Factor(None, call.shapes[0][dim]),), *first[dim + 1 :]),), cuts=True)


@RULES.add("stack")
def _stack(call: Call) -> Rule:
    first = next(layout for layout in call.layouts if marked(layout))
    if any(layout != first for layout in call.layouts):
        raise call.refuse("stacks the image with a tensor that has no image axes.")
    dim = call.get("dim", 0) % (len(first) + 1)
    return Aligned(call, ((*first[:dim], (Factor(None, len(call.layouts)),), *first[dim:]),))


@RULES.add("chunk", "split", "split_with_sizes", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split")
def _split(call: Call) -> Rule:
    layout = call.layouts[0]
    dim = call.get("dim", 0) % len(layout)
    if axes_in(layout[dim]):
        raise call.refuse("cuts the image into parts along one of its own axes; slices (x[..., a:b]) are followed.")
    if call.name == "unbind":
        return Aligned(call, ((*layout[:dim], *layout[dim + 1 :]),) * len(call.shapes))
    return Aligned(call, tuple((*layout[:dim], (Factor(None, shape[dim]),), *layout[dim + 1 :]) for shape in call.shapes))


@RULES.add("select")
def _select(call: Call) -> Rule:
    layout = call.layouts[0]
    dim = call.get("dim") % len(layout)
    if axes_in(layout[dim]):
        raise call.refuse("picks one row or column by its absolute position.")
    return Aligned(call, ((*layout[:dim], *layout[dim + 1 :]),))


@RULES.add("index_select")
def _index_select(call: Call) -> Rule:
    layout = call.layout("self")
    dim = call.get("dim") % len(layout)
    if axes_in(layout[dim]) or marked(call.layout("index")):
        raise call.refuse("picks positions of the image by an index.")
    return Aligned(call, ((*layout[:dim], (Factor(None, call.shapes[0][dim]),), *layout[dim + 1 :]),))


@RULES.add("slice")
def _slice(call: Call) -> Rule:
    layout = call.layouts[0]
    dim = call.get("dim", 0) % len(layout)
    length = sizes(layout)[dim]
    start, stop, step = slice(call.get("start"), call.get("end"), call.get("step", 1)).indices(length)
    if not axes_in(layout[dim]):
        return Aligned(call, ((*layout[:dim], (Factor(None, call.shapes[0][dim]),), *layout[dim + 1 :]),))
    if len(layout[dim]) > 1 and (start, stop, step) != (0, length, 1):
        raise call.refuse("slices merged image axes.")
    if (start, stop, step) == (0, length, 1):
        return Reshaped(call, (layout,))
    axis = axes_in(layout[dim])[0]
    made = (*layout[:dim], (Factor(axis, call.shapes[0][dim]),), *layout[dim + 1 :])
    return Sliced(call, (made,), axis, start, step)


@RULES.add("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(call: Call) -> Rule:
    if is_marked(call, "self" if "self" in call.named else "input", 1):
        raise call.refuse("shuffles an image axis.")
    return Aligned(call, (call.layouts[0],))


@RULES.add("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(call: Call) -> Rule:
    layout, shape = call.layouts[0], call.shapes[0]
    if any(len(factors) > 1 for factors in layout[-2:]) or any(axes_in(factors) for factors in layout[:-2]):
        raise call.refuse("shuffles pixels of a tensor whose last two dimensions are not height and width.")
    made = [(Factor(axes_in(factors)[0] if axes_in(factors) else None, shape[dim]),) for dim, factors in enumerate(layout)]
    return _Shuffled(call, (tuple(made),))


class _Shuffled(Reshaped):
    def run(self, tensors: list, have: list, want: Any) -> Any:
        covers = list(want)
        for axis, held in enumerate(have[0]):
            before, after = length_of(self.call.layouts[0], axis), length_of(self.layouts[0], axis)
            if held is not None and before and after:
                covers[axis] = Interval(held.start * after // before, held.stop * after // before)
        return crop(self.call.invoke(tensors), self.layouts[0], tuple(covers), want)
