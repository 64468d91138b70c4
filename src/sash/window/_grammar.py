"""The words of a walk: one step's text in, its numbers out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches

from sash.errors import InputError

_LENGTHS = r"\d+(?:x\d+)*"
_WINDOW = re.compile(rf"({_LENGTHS})(?:/({_LENGTHS}))?")
_OPTION = re.compile(r"([a-z])(\d[\dx:]*)")
_PAD = re.compile(r"(\d+)(?::(\d+))?")

FORMS = {
    "conv": "conv 3x3/2 64 p1 d2",
    "pool": "pool 3/2 p1 ceil",
    "transposed": "transposed 4/2 64 p1 o1",
    "adaptive": "adaptive 7x7",
    "global": "global",
    "flatten": "flatten",
    "linear": "linear 1000",
}
"""Each word with an example that uses what it takes."""

_TAKES = {
    "conv": {"p", "d", "channels", "same", "causal", "circular"},
    "pool": {"p", "d", "ceil", "causal"},
    "transposed": {"p", "d", "o", "channels"},
}
_NEEDS_NUMBER = {"conv", "pool", "transposed", "adaptive", "linear"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One step's numbers as written; one entry stands for every axis."""

    text: str
    place: str
    """Where it stands, for messages."""
    word: str
    sizes: tuple[int, ...] = ()
    """Taps; features for linear, outputs for adaptive."""
    strides: tuple[int, ...] = ()
    """Empty where none is written."""
    pads: tuple[tuple[int, int], ...] = ((0, 0),)
    dilations: tuple[int, ...] = (1,)
    output_pads: tuple[int, ...] = (0,)
    channels: int | None = None
    flags: frozenset[str] = field(default_factory=frozenset)

    def fail(self, problem: str) -> InputError:
        return InputError(f"{self.place}: {problem}")


def parse_layer(text: str, number: int, column: int) -> Layer:
    """The step `text`, the `number`-th of its walk, starting at `column` (both from 1).

    Raises `InputError` naming the token, its column and the nearest form that works.
    """
    tokens = [(found[0], column + found.start()) for found in re.finditer(r"\S+", text)]
    stripped = text.strip()
    if not tokens:
        raise InputError(f"Step {number} at column {column} is empty; between two '|' stands one of: {', '.join(FORMS)}.")
    place = f"Step {number}, '{stripped}'"

    def fail(token: str, at: int, problem: str) -> InputError:
        return InputError(f"{place}: '{token}' at column {at} {problem}")

    word, at = tokens[0]
    word = word.lower()
    if word not in FORMS:
        near = get_close_matches(word, FORMS, 1, 0.5)
        nearest = f"{near[0]!r} is nearest, as in {FORMS[near[0]]!r}" if near else f"one of: {', '.join(FORMS)}"
        raise fail(tokens[0][0], at, f"is no step; {nearest}.")
    takes = _TAKES.get(word, set())
    values: dict[str, object] = {}
    for token, at in tokens[1:]:
        name, value = _read(token.lower())
        if name in ("sizes", "strides") and "sizes" in values:
            name, value = "channels", int(token) if token.isdigit() else None
        if name == "sizes" and word in _NEEDS_NUMBER:
            values["sizes"] = value
        elif name == "strides" and word in _TAKES and isinstance(value, tuple):
            values["sizes"], values["strides"] = value
        elif name in takes and value is not None and name not in values:
            values[name] = value
        else:
            raise fail(token, at, f"is not understood here; '{word}' is written like '{FORMS[word]}'.")
        if name not in ("p", "o") and re.search(r"(?<!\d)0+(?!\d)", token):
            raise fail(token, at, "holds a 0; sizes, strides, dilations and channels are from 1 on.")
    if word in _NEEDS_NUMBER and "sizes" not in values:
        raise fail(tokens[0][0], tokens[0][1], f"needs a number, as in '{FORMS[word]}'.")
    flags = frozenset(name for name, value in values.items() if value is True)
    if ("p" in values) + len(flags & {"same", "causal"}) > 1:
        raise InputError(f"{place}: p, same and causal each set the pad; keep one of them.")
    renamed = {"p": "pads", "d": "dilations", "o": "output_pads"}
    fields = {renamed.get(name, name): value for name, value in values.items() if value is not True}
    return Layer(stripped, f"{place} (column {tokens[0][1]})", word, flags=flags, **fields)  # type: ignore[arg-type]


def _read(token: str) -> tuple[str, object]:
    """What a token sets, and to what; None where its number cannot be read."""
    if token in ("same", "causal", "circular", "ceil"):
        return token, True
    if found := _WINDOW.fullmatch(token):
        sizes = _numbers(found[1])
        return ("strides", (sizes, _numbers(found[2]))) if found[2] else ("sizes", sizes)
    if found := _OPTION.fullmatch(token):
        if found[1] == "p":
            sides = [_PAD.fullmatch(side) for side in found[2].split("x")]
            return "p", tuple((int(side[1]), int(side[2] or side[1])) for side in sides if side) if all(sides) else None
        return found[1], _numbers(found[2]) if re.fullmatch(_LENGTHS, found[2]) else None
    return token, None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
