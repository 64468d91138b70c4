"""What the first lines of a Matrix Market file say."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass

from sash.errors import InputError

LONGEST_LINE = 4096
"""Bytes of one, at most."""
_FIELDS = {"real": 3, "double": 3, "integer": 3, "pattern": 2}
"""Words of a line of coordinates."""
_SYMMETRIES = ("general", "symmetric", "skew-symmetric", "hermitian")


@dataclass(frozen=True)
class Header:
    """What the first lines say."""

    layout: str
    """coordinate or array."""
    field: str
    symmetry: str
    shape: tuple[int, int]
    entries: int
    """Lines of numbers."""
    lines: int
    """Before the first of these."""

    @property
    def words(self) -> int:
        """Of a line of numbers."""
        return _FIELDS[self.field] if self.layout == "coordinate" else 1

    @property
    def most_nnz(self) -> int:
        """Non-zeros that the entries stand for, at most."""
        return self.entries * (1 if self.symmetry == "general" else 2)


def read_header(file: io.BufferedReader | gzip.GzipFile, told: str) -> Header:
    """The banner and the line of sizes; raises `InputError` for matrices of other kinds."""
    try:
        banner = file.readline(LONGEST_LINE)
        words = banner.decode("ascii", "replace").lower().split()
        if len(words) != 5 or words[0] != "%%matrixmarket" or words[1] != "matrix":
            raise InputError(
                f"{told}, line 1: {quoted(banner)}; a Matrix Market file begins with %%MatrixMarket matrix coordinate real general."
            )
        _, _, layout, field, symmetry = words
        number = 1
        while (line := file.readline()) and (line.startswith(b"%") or not line.strip()):
            number += 1
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{told} is cut off or damaged in its header: {error}.") from error
    if field == "complex":
        raise InputError(f"{told} is complex; give its real part, or its modulus.")
    if layout not in ("coordinate", "array") or field not in _FIELDS or symmetry not in _SYMMETRIES:
        raise InputError(f"{told}, line 1: {quoted(banner)}; what is read is coordinate or array, of real, integer or pattern.")
    if layout == "array" and field == "pattern":
        raise InputError(f"{told}, line 1: an array has numbers, and a pattern has none.")
    sizes = line.split()
    wanted = 3 if layout == "coordinate" else 2
    if len(sizes) != wanted or not all(size.isdigit() for size in sizes):
        asked = "rows, columns and entries" if wanted == 3 else "rows and columns"
        raise InputError(f"{told}, line {number + 1}: {quoted(line)}; the first line of numbers says {asked}.")
    rows, columns, *entries = map(int, sizes)
    if min(rows, columns) < 1 or max(rows, columns) >= 1 << 63:
        raise InputError(f"{told}, line {number + 1}: a matrix of {rows} × {columns}; give at least one row and one column.")
    if symmetry != "general" and rows != columns:
        raise InputError(f"{told} is {symmetry} and has {rows} rows, {columns} columns; a symmetric matrix is square.")
    if layout == "array":
        packed = {"general": rows * columns, "skew-symmetric": rows * (rows - 1) // 2}
        entries = [packed.get(symmetry, rows * (rows + 1) // 2)]
    return Header(layout, field, symmetry, (rows, columns), entries[0], number + 1)


def quoted(line: bytes) -> str:
    """As it is shown in a message."""
    found = repr(line.decode("ascii", "replace").strip())
    return found if len(found) <= 60 else found[:57] + "...'"
