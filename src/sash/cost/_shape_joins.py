"""Maps that a container adds, joins or reshapes in its own forward, where no layer's numbers tell the fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from math import prod

from sash.cost._shape_calls import Call, Finding, Shape
from sash.units import format_shape
from sash.window import Window, solve

_ABOUT_SHAPES = re.compile(
    r"size of tensor|sizes of tensors|broadcast|shapes? .*(invalid|multiplied|match)|reduction dim|wrapping around|"
    r"expected .*(channels|input|size|[0-9]D)|output size|dimension out of range",
    re.IGNORECASE | re.DOTALL,
)
_ABOUT_OTHERS = re.compile(r"device|dtype|scalar type", re.IGNORECASE)
_ADDED = re.compile(r"size of tensor|broadcast")
_JOINED = re.compile(r"[Ss]izes of tensors must match except in dimension (-?\d+)")
_VIEWED = re.compile(r"shape '\[([-\d, ]*)\]' is invalid for input of size (\d+)")
_SHAPES = re.compile(r"\[(\d+(?:, \d+)*)\]")
_AT_DIMENSION = re.compile(r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)")


def explain_joining(call: Call, inside: Sequence[Call], error: BaseException) -> Finding | None:
    """Why the forward of `call` failed after the calls `inside` it returned; None where `error` is not about shapes."""
    message = str(error)
    if not isinstance(error, (RuntimeError, IndexError, ValueError)) or not _ABOUT_SHAPES.search(message) or _ABOUT_OTHERS.search(message):
        return None
    return _combined(call, inside, message) or _viewed(call, inside, message) or _unknown(call, inside, message)


def _combined(call: Call, inside: Sequence[Call], message: str) -> Finding | None:
    """Two maps that a container adds or joins in its own forward."""
    joined = _JOINED.search(message)
    if not joined and not _ADDED.search(message):
        return None
    pair = _operands(call, inside, message, int(joined[1]) if joined else None)
    if pair is None:
        return None
    shortcut, made = pair
    axes, lengths = len(shortcut) - 2, list(zip(shortcut[2:], made[2:], strict=True))
    sign = "joined with" if joined else "+"
    came = f"{format_shape(shortcut)} {sign} {format_shape(made)}"
    if joined:
        gaps = ", ".join(str(abs(one - other)) for one, other in lengths)
        fix = f"Pad or crop one of them (by {gaps} along its axes), or choose an input whose sides every stride before it divides."
        return Finding(came, f"equal lengths in every axis but {joined[1]}", fix)
    strides = [solve(Window(1), before, after).strides[:1] for before, after in lengths]
    if axes in (1, 2, 3) and all(strides):
        found = [stride[0].stride for stride in strides]
        stride = str(found[0]) if len(set(found)) == 1 else str(tuple(found))
        what = f"nn.Conv{axes}d({shortcut[1]}, {made[1]}, kernel_size=1, stride={stride})"
        fix = f"Project the shortcut: {what} turns {format_shape(shortcut)} into {format_shape(made)}."
    elif all(before >= after for before, after in lengths):
        lost = ", ".join(str(before - after) for before, after in lengths)
        fix = f"The windows between them cut {lost} off: pad them by that much in all, or crop the shortcut to {format_shape(made[2:])}."
    else:
        channels = f"a 1x1 convolution for channels ({shortcut[1]} to {made[1]})"
        fix = f"Bring one to the other's shape: {channels}; a stride, a crop or a pad for lengths."
    return Finding(came, "two equal shapes", fix)


def _operands(call: Call, inside: Sequence[Call], message: str, axis: int | None) -> tuple[Shape, Shape] | None:
    """The earlier and the later of two shapes at hand in a container that cannot be combined."""
    direct = [step for step in inside if _is_child(call.path, step.path)] or list(inside)
    made = [shape for step in direct for shape in step.outputs or ()]
    # Of what its children made, what no later child took is what is left to combine; the container's own input may serve twice.
    taken = [shape for step in direct for shape in step.inputs]
    left = [shape for shape in dict.fromkeys(made) if shape not in taken]
    at_hand = [*dict.fromkeys((*call.inputs, *left, *made))]
    latest = made[-1:]
    pairs = [(one, two) for two in latest for one in (*reversed(left), *call.inputs, *reversed(at_hand)) if _clash(one, two, axis)]
    pairs += [pair for pair in combinations(at_hand, 2) if _clash(*pair, axis)]
    pairs = [pair for pair in pairs if _agrees(pair, message)] or pairs
    pairs = [pair for pair in pairs if len(pair[0]) > 2]
    if not pairs:
        return None
    one, two = pairs[0]
    # The longer map is the shortcut: the other went through the stride.
    return (one, two) if prod(one[2:]) >= prod(two[2:]) else (two, one)


def _agrees(pair: tuple[Shape, Shape], message: str) -> bool:
    """Whether these are the shapes that the message names: a real kernel names one dimension, a fake one both shapes."""
    told = _AT_DIMENSION.search(message)
    if told:
        first, second, dimension = map(int, told.groups())
        return len(pair[0]) > dimension and {pair[0][dimension], pair[1][dimension]} == {first, second}
    return set(pair) <= {tuple(map(int, shape.split(","))) for shape in _SHAPES.findall(message)}


def _clash(one: Shape, two: Shape, joined: int | None) -> bool:
    if len(one) != len(two):
        return False
    if joined is not None:
        return any(a != b for index, (a, b) in enumerate(zip(one, two, strict=True)) if index != joined % len(one))
    return any(a != b and 1 not in (a, b) for a, b in zip(one, two, strict=True))


def _is_child(parent: str, path: str) -> bool:
    return path != parent and path.rpartition(".")[0] == parent


def _viewed(call: Call, inside: Sequence[Call], message: str) -> Finding | None:
    told = _VIEWED.search(message)
    if told is None:
        return None
    shape = _last_shape(call, inside)
    each = f" x.flatten(1) keeps the batch and makes {prod(shape[1:])} values of each sample." if len(shape) > 1 else ""
    return Finding(f"{told[2]} values ({format_shape(shape)})", f"as many as fit the shape [{told[1]}] of a view or reshape", each.strip())


def _unknown(call: Call, inside: Sequence[Call], message: str) -> Finding:
    return Finding(format_shape(_last_shape(call, inside)), f"a shape that its forward can use (torch: {message.splitlines()[0]})", "")


def _last_shape(call: Call, inside: Sequence[Call]) -> Shape:
    made = [shape for step in inside for shape in step.outputs or ()]
    return (made or list(call.inputs) or [()])[-1]
