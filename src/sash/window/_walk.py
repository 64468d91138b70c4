"""The shape walk: a line of text in, the shape after every step out."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TypeVar

from sash.errors import InputError
from sash.units import format_shape, parse_tensor
from sash.window._adaptive import WHOLE, Adaptive
from sash.window._chain import Chain, Link
from sash.window._circular import Circular
from sash.window._grammar import Layer, parse_layer
from sash.window._transposed import Transposed
from sash.window._window import Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a walk and the signal after it."""

    text: str
    """As written; the input's own step is its shape."""
    shape: tuple[int, ...]
    """Channels first, where there are any, then one length an axis; one number after flatten and linear."""
    receptive_field: tuple[int, ...]
    """Input samples under one output along each axis: without the signal's ends, until a step reads the whole signal."""
    jump: tuple[int | Fraction, ...] | None
    """Input samples from one output to the next along each axis; None where outputs have no fixed step."""

    @property
    def values(self) -> int:
        """Numbers in the signal."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Walk:
    """The shapes a signal takes, step by step; prints as a table."""

    steps: tuple[Step, ...]
    """The input first."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape after every step, the input's first."""
        return tuple(step.shape for step in self.steps)

    def to_dict(self) -> dict:
        """The walk in JSON's own types; a fractional jump becomes a float."""
        return {
            "steps": [
                {
                    "step": step.text,
                    "shape": list(step.shape),
                    "values": step.values,
                    "receptive_field": list(step.receptive_field),
                    "jump": None if step.jump is None else [jump if isinstance(jump, int) else float(jump) for jump in step.jump],
                }
                for step in self.steps
            ]
        }

    def __str__(self) -> str:
        rows = [("step", "shape", "values", "receptive field", "jump")]
        for step in self.steps:
            jump = "–" if step.jump is None else format_shape(step.jump)
            rows.append((step.text, format_shape(step.shape), f"{step.values:,}", format_shape(step.receptive_field), jump))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        pads = [str.ljust, *[str.rjust] * (len(widths) - 1)]
        lines = ("  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Signal:
    """What the next step sees."""

    source: tuple[int, ...]
    """Lengths of the walk's input."""
    lengths: tuple[int, ...]
    chains: tuple[Chain, ...]
    channels: int | None = None
    features: int | None = None
    """Numbers of a flat signal; None until it is flattened."""


def walk(text: str) -> Walk:
    """The walk that `text` spells: an input shape, then steps, with `|` between.

    The input is `40` (a length), `1x40` (channels, length), `3x224x224` (channels, height, width) or one axis more. The steps:

    | step | meaning |
    |---|---|
    | `conv 8`, `conv 7/2 64 p3`, `conv 3x5/2x1 64` | window[/stride] and channels (unchanged without); stride 1 unless written |
    | `pool 2`, `pool 6/2`, `pool 3/2 p1 ceil` | stride as long as the window unless written; `ceil` keeps a last partial window |
    | `transposed 4/2 64 p1 o1` | transposed convolution; `o` is the output padding |
    | `adaptive 7`, `adaptive 7x7` | that many outputs, whatever the length |
    | `global` | one output over the whole signal |
    | `flatten` | every value in one row |
    | `linear 1000` | that many outputs, each from all the values of a row |

    Options: `p1` pads both sides, `p2:1` before:after, `d2` dilates, `same`, `causal` and `circular` pad a conv. A number with
    `x` has one entry an axis; a single one stands for all.

    Raises `InputError` naming the token, its place and the nearest thing that works.
    """
    parts = text.split("|") if isinstance(text, str) else []
    if not parts or not parts[0].strip():
        raise InputError(f"A walk starts with the shape of its input, as in '40 | conv 8 | pool 6/2', not {text!r}.")
    signal = _source(parts[0].strip())
    steps = [_step(parts[0].strip(), signal)]
    column = len(parts[0]) + 2
    for number, part in enumerate(parts[1:], 2):
        layer = parse_layer(part, number, column)
        signal = _apply(layer, signal)
        steps.append(_step(layer.text, signal))
        column += len(part) + 1
    return Walk(tuple(steps))


def _source(text: str) -> _Signal:
    try:
        tensor = parse_tensor(text)
    except InputError as error:
        raise InputError(f"Step 1, '{text}' at column 1, is the input's shape: {error}") from None
    if tensor.name or tensor.dtype != "float32" or tensor.below is not None or len(tensor.shape) > 4:
        raise InputError(
            f"Step 1, '{text}' at column 1: the input is a shape without a batch, like '40', '1x40', '3x224x224' or '1x8x64x64'."
        )
    lengths = tensor.shape[1:] or tensor.shape
    return _Signal(lengths, lengths, (Chain(),) * len(lengths), tensor.shape[0] if len(tensor.shape) > 1 else None)


def _apply(layer: Layer, signal: _Signal) -> _Signal:
    if layer.word == "flatten":
        return _Signal(signal.source, (), signal.chains, features=prod(_shape(signal)))
    if layer.word == "linear":
        if signal.features is None:
            raise layer.fail(
                f"takes one row of values, {format_shape(_shape(signal))} came; put 'flatten' (or 'global | flatten') before it."
            )
        if len(layer.sizes) != 1:
            raise layer.fail(f"takes one number of features, not {format_shape(layer.sizes)}; 'linear {prod(layer.sizes)}' works.")
        # Every feature reads all there is: a window over the whole of each axis.
        whole = signal.chains if _ends_whole(signal) else tuple(chain.then(WHOLE) for chain in signal.chains)
        return _Signal(signal.source, (), whole, features=layer.sizes[0])
    if signal.features is not None:
        raise layer.fail(f"slides over a signal, but the walk is flat ({signal.features:,} values) here; put it before 'flatten'.")
    links = tuple(_link(layer, signal, axis) for axis in range(len(signal.lengths)))
    lengths = tuple(link.outputs(length) for link, length in zip(links, signal.lengths, strict=True))
    for axis, (link, length) in enumerate(zip(links, lengths, strict=True)):
        if length < 1:
            raise layer.fail(_too_short(link, signal, axis))
    chains = tuple(chain.then(link) for chain, link in zip(signal.chains, links, strict=True))
    return _Signal(signal.source, lengths, chains, layer.channels or signal.channels)


def _link(layer: Layer, signal: _Signal, axis: int) -> Link:
    count = len(signal.lengths)
    for numbers in (layer.sizes, layer.strides, layer.pads, layer.dilations, layer.output_pads):
        if len(numbers) not in (0, 1, count):
            raise layer.fail(f"has {len(numbers)} entries, one an axis, where the signal has {count} ({format_shape(signal.lengths)}).")
    if layer.word == "global":
        return WHOLE
    size = _entry(layer.sizes, axis)
    if layer.word == "adaptive":
        return Adaptive(size)
    default = size if layer.word == "pool" else 1
    stride, dilation = _entry(layer.strides, axis) if layer.strides else default, _entry(layer.dilations, axis)
    pad = _entry(layer.pads, axis)
    if "same" in layer.flags:
        pad = Window.same(size, stride, dilation).pad
    elif "causal" in layer.flags:
        pad = Window.causal(size, stride, dilation).pad
    window = Window(size, stride, dilation, pad, "ceil" in layer.flags)
    if layer.word != "transposed":
        return Circular(window) if "circular" in layer.flags else window
    try:
        return Transposed(window, _entry(layer.output_pads, axis))
    except InputError as error:
        raise layer.fail(str(error)) from None


def _too_short(link: Link, signal: _Signal, axis: int) -> str:
    length = signal.lengths[axis]
    name = "length" if len(signal.lengths) == 1 else ("depth", "height", "width")[axis - len(signal.lengths)]
    link = link.window if isinstance(link, Circular) else link
    if isinstance(link, Window):
        largest = (length + sum(link.pad) - 1) // link.dilation + 1
        missing = link.span - length - sum(link.pad)
        padded = f" with its padding {length + sum(link.pad)}" if any(link.pad) else ""
        more = (link.pad[0] + missing // 2, link.pad[1] + missing - missing // 2)
        pad = f"p{more[0]}" if more[0] == more[1] else f"p{more[0]}:{more[1]}"
        return f"a window of {link.span} samples does not fit on a {name} of {length}{padded}; a size of {largest} does, or {pad}."
    assert isinstance(link, Transposed)
    uncut = link.window.span + (length - 1) * link.window.stride + link.output_pad
    return f"its padding cuts all of the {uncut} outputs off its {name}; a pad of {(uncut - 1) // 2} on both sides leaves some."


def _step(text: str, signal: _Signal) -> Step:
    whole = any(isinstance(link, Adaptive) for chain in signal.chains for link in chain.links)
    if whole:
        fields = tuple(chain.field(length) for chain, length in zip(signal.chains, signal.source, strict=True))
    else:
        fields = tuple(chain.receptive_field for chain in signal.chains)
    jump = None if whole or signal.features is not None else tuple(chain.jump for chain in signal.chains)
    return Step(text, _shape(signal), fields, jump)


def _ends_whole(signal: _Signal) -> bool:
    return all(chain.links[-1:] == (WHOLE,) for chain in signal.chains)


def _shape(signal: _Signal) -> tuple[int, ...]:
    if signal.features is not None:
        return (signal.features,)
    return signal.lengths if signal.channels is None else (signal.channels, *signal.lengths)


def _entry(numbers: tuple[T, ...], axis: int) -> T:
    return numbers[axis % len(numbers)]
