"""A layer and a shape that it cannot take: read from the layer's numbers alone, so real and fake kernels are explained alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from sash.cost._shape_calls import Call, Finding, Shape
from sash.cost._windows import Convolution, TransposedConvolution, axes_of, spell, windows_of
from sash.errors import InputError
from sash.units import format_shape
from sash.window import Chain, Circular, Window


def explain_layer(call: Call, before: Sequence[Call]) -> Finding | None:
    """Why `call`'s layer cannot take its input, after the calls `before`; None where its numbers allow it."""
    if not call.inputs:
        return None
    return _linear(call, before) or _channels(call) or _window(call, before) or _normalised(call)


def _linear(call: Call, before: Sequence[Call]) -> Finding | None:
    module, shape = call.module, call.inputs[0]
    if not isinstance(module, nn.Linear) or not shape or shape[-1] == module.in_features:
        return None
    width, wanted = shape[-1], module.in_features
    rows = prod(shape[1:])
    maps = [made for made in (call.outputs[0] for call in before if call.outputs) if len(made) > 2 and prod(made[1:]) == rows]
    fixes = []
    if len(shape) > 2 and rows == wanted:
        fixes.append(f"Flatten first: x.flatten(1) or nn.Flatten() makes the {wanted} values of each sample one row.")
    elif len(shape) > 2 and maps and maps[-1] == shape:
        fixes.append(f"Flatten first (x.flatten(1) or nn.Flatten()), then Linear(in_features={rows}) works.")
    elif len(shape) == 1 and width % wanted == 0 and width > wanted:
        fixes.append("The batch was flattened too: x.flatten(1) keeps it.")
    else:
        fixes.append(f"Linear(in_features={width}) works here.")
    if maps:
        side = _side(wanted, maps[-1])
        if side and rows != wanted:
            axes = len(maps[-1]) - 2
            flat = f"AdaptiveAvgPool{axes}d({side})"
            fixes.append(f"To keep the layer, nn.{flat} before the flatten makes {wanted} values of {maps[-1][1]} channels.")
    return Finding(format_shape(shape), f"{wanted} values in the last axis", " ".join(fixes))


def _side(values: int, made: Shape) -> int | None:
    """Side of the cube that holds `values` in the channels of a map; None where none does."""
    channels, axes = made[1], len(made) - 2
    if values % channels:
        return None
    side = round((values // channels) ** (1 / axes))
    return side if side and side**axes == values // channels else None


def _channels(call: Call) -> Finding | None:
    module, shape = call.module, call.inputs[0]
    axes = axes_of(module)
    if not axes:
        return None
    names = ("batch", "channels", *("depth", "height", "width")[3 - axes :]) if axes > 1 else ("batch", "channels", "length")
    layout = " x ".join(names)
    if len(shape) not in (axes + 1, axes + 2):
        if len(shape) == axes:
            fix = f"Add the two missing axes: x[None, None] is {format_shape((1, 1, *shape))}."
        elif len(shape) < axes:
            fix = f"The layer slides along {_count(axes)}; the signal has {len(shape)}."
        else:
            fix = f"Join the leading axes: x.flatten(0, {len(shape) - axes - 2}) has {axes + 2}."
        return Finding(f"{format_shape(shape)} ({_count(len(shape))})", f"{layout} ({axes + 2} axes)", fix)
    if not isinstance(module, (*Convolution, *TransposedConvolution)):
        return None
    wanted, channels = module.in_channels, shape[-axes - 1]
    if channels == wanted:
        return None
    fixes = []
    if len(shape) == axes + 1 and wanted == 1:
        fixes.append(f"Without a batch, {channels} is read as the channels; x.unsqueeze(1) is {format_shape((shape[0], 1, *shape[1:]))}.")
    elif len(shape) == axes + 2 and shape[-1] == wanted:
        order = ", ".join(map(str, (0, axes + 1, *range(1, axes + 1))))
        fixes.append(f"The {wanted} channels are the last axis: x.permute({order}) puts them first.")
    else:
        fixes.append(f"{type(module).__name__}(in_channels={channels}) works here, or a layer before it that makes {wanted} channels.")
    return Finding(f"{format_shape(shape)} ({channels} channels)", f"{wanted} channels", " ".join(fixes))


def _window(call: Call, before: Sequence[Call]) -> Finding | None:
    shape, links = call.inputs[0], windows_of(call.module)
    for axis, found in enumerate(links):
        link = found.window if isinstance(found, Circular) else found
        length = shape[axis - len(links)]
        if link.outputs(length) > 0:
            continue
        name = "length" if len(links) == 1 else ("depth", "height", "width")[axis - len(links)]
        came = f"{format_shape(shape)} (a {name} of {length}"
        if not isinstance(link, Window):
            return Finding(f"{came})", f"a {name} longer than what its padding cuts off", "Lower the padding.")
        padded = length + sum(link.pad)
        more = -(-(link.span - length) // 2)
        fix = f"A kernel of {(padded - 1) // link.dilation + 1} fits, or {more} more of padding on both sides."
        least = _least_input(call, before, axis - len(links), len(links))
        if least:
            fix += f" So does an input with a {name} of at least {least[1]} (it is {least[0]}): the windows before shrink it."
        came += f", {padded} with its padding)" if any(link.pad) else ")"
        return Finding(came, f"a {name} of at least {link.span - sum(link.pad)} for {spell(call.module)}", fix)
    return None


def _least_input(call: Call, before: Sequence[Call], axis: int, axes: int) -> tuple[int, int] | None:
    """The input's length along an axis, and the least at which the call's window fits; None where the windows form no single line."""
    source, links, length = None, [], None
    for step in (*before, call):
        found = windows_of(step.module)
        if not step.inputs or not found:
            continue
        came = step.inputs[0][axis] if len(step.inputs[0]) >= -axis else None
        if len(found) != axes or came is None or length not in (None, came):
            return None
        source = came if source is None else source
        links.append(found[axis])
        length = step.outputs[0][axis] if step.outputs else None
    if source is None or len(links) < 2:
        return None
    chain = Chain(links)
    try:
        least = next((wanted for wanted in range(source + 1, chain.receptive_field + 1) if chain.outputs(wanted)), None)
    except InputError:
        return None
    return None if least is None else (source, least)


def _normalised(call: Call) -> Finding | None:
    module, shape = call.module, call.inputs[0]
    kind = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._NormBase) and len(shape) > 1 and shape[1] != module.num_features:
        return Finding(f"{format_shape(shape)} ({shape[1]} channels)", f"{module.num_features} channels", f"{kind}({shape[1]}) works here.")
    if isinstance(module, nn.GroupNorm) and len(shape) > 1 and shape[1] != module.num_channels:
        return Finding(
            f"{format_shape(shape)} ({shape[1]} channels)",
            f"{module.num_channels} channels",
            f"A {kind} of {shape[1]} channels works here.",
        )
    if isinstance(module, nn.LayerNorm):
        wanted, tail = tuple(module.normalized_shape), shape[-len(module.normalized_shape) :]
        if tail != wanted:
            return Finding(format_shape(shape), f"{format_shape(wanted)} in the last axes", f"LayerNorm({list(tail)}) works here.")
    width = shape[len(shape) - 1] if shape else 0
    if isinstance(module, nn.RNNBase) and width != module.input_size:
        return Finding(format_shape(shape), f"{module.input_size} values in the last axis", f"{kind}(input_size={width}) works here.")
    return None


def _count(axes: int) -> str:
    return f"{axes} axis" if axes == 1 else f"{axes} axes"
