"""Strings at the edge: bytes and tensor shapes, parsed and printed here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sash.errors import InputError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:=<]*)(?::(?P<dtype>[a-z]+[0-9]*)(?:<(?P<below>[0-9]+))?)?")


def parse_bytes(text: str | int) -> int:
    """Bytes of `"2 GiB"`, `"512 MB"` or a plain number; KiB, MiB … are powers of 1024, kB, MB … of 1000.

    Raises `InputError` for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    unit = _BYTES.get((found[2] or "b").lower()) if found else None
    if found is None or unit is None:
        raise InputError(f"{text!r} is not a number of bytes; write it like '2 GiB', '512 MB' or 1073741824.")
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def format_bytes(count: float) -> str:
    """`"1.50 GiB"` for 1610612736: three significant digits, powers of 1024."""
    size, sign = abs(count), "-" if count < 0 else ""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 999.5 or unit == "TiB":
            digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
            return f"{sign}{size:.{digits}f} {unit}"
        size /= 1024
    raise AssertionError


def format_count(count: float) -> str:
    """`"17.3 M"` for 17 267 393: three significant digits, powers of 1000."""
    size, sign = abs(count), "-" if count < 0 else ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if size < 999.5 or unit == "P":
            digits = 0 if not unit or size >= 99.95 else 1 if size >= 9.995 else 2
            return f"{sign}{size:.{digits}f} {unit}".rstrip()
        size /= 1000
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """`"1.24 s"`, `"83 ms"`, `"0.35 ms"`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def format_shape(sizes: Iterable[object]) -> str:
    """`"2x3x4"`; of no axes, `"a single number"`."""
    return "x".join(map(str, sizes)) or "a single number"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor named by its shape alone."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    """A torch dtype's name."""
    name: str | None = None
    """The keyword argument it is passed as; positional where None."""
    below: int | None = None
    """Integer values are drawn from [0, below); all zero where None."""

    def __str__(self) -> str:
        text = format_shape(self.shape)
        if self.dtype != "float32":
            text += f":{self.dtype}"
        if self.below is not None:
            text += f"<{self.below}"
        return f"{self.name}={text}" if self.name else text


def parse_tensor(text: str) -> TensorSpec:
    """The tensor that `"8x3x224x224"`, `"8x128:int64<30522"` or `"mask=8x128:bool"` names.

    Raises `InputError` where a length is not a positive whole number.
    """
    found = _SHAPE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} is not a shape; write it like '8x3x224x224', '8x128:int64<30522' or 'mask=8x128:bool'.")
    lengths = found["shape"].strip().lower().split("x")
    for length in lengths:
        if not re.fullmatch(r"[0-9]+", length.strip()) or int(length) == 0:
            raise InputError(f"{text!r} has the length {length.strip()!r}; every length is a positive whole number, as in '8x3x224x224'.")
    below = int(found["below"]) if found["below"] else None
    return TensorSpec(tuple(int(length) for length in lengths), found["dtype"] or "float32", found["name"], below)
